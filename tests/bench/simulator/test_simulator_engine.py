"""The scheduler alone, on a loop whose clock the test turns."""

from __future__ import annotations

import copy
import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from bench.simulator import _engine, _paced, _scheduler, _throttle, ollama_from, vllm_from
from bench.simulator._engine import BatchEngine
from bench.simulator._faults import Fate, slow_replica
from bench.simulator._machine import Machine
from bench.simulator._options import Engine, Faults, Sim
from bench.simulator._paced import PacedEngine
from bench.simulator._scheduler import Sequence
from bench.simulator._share import DECODING, Board
from bench.simulator._stats import Stats
from bench.simulator._throttle import Throttle
from bench.simulator._words import LENGTH, Corpus


class Clock:
    """Just enough of an event loop: timers in order, time that jumps to them."""

    def __init__(self) -> None:
        self.now = 100.0
        self._timers: list[tuple[float, int, Any]] = []
        self._count = 0

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> Any:
        self._count += 1
        handle = Handle(callback, args)
        heapq.heappush(self._timers, (self.now + max(0.0, delay), self._count, handle))
        return handle

    def call_soon(self, callback: Callable[..., None], *args: Any) -> Any:
        return self.call_later(0, callback, *args)

    def run(self, limit: float = 1e9, late: float = 0.0) -> None:
        while self._timers and self._timers[0][0] <= limit:
            when, _, handle = heapq.heappop(self._timers)
            self.now = max(self.now, when + late)
            if handle.callback is not None:
                handle.callback(*handle.args)


class Handle:
    def __init__(self, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.callback: Callable[..., None] | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None


@dataclass
class Fixed:
    load_seconds: float = 0.0
    step: float = 0.02
    prompt: float = 0.0001

    def prefill_seconds(self, prompt_tokens: int, running: int) -> float:
        seconds = prompt_tokens * self.prompt
        return seconds if running else max(seconds, self.step)

    def decode_step_seconds(self, running: int, context_tokens: float) -> float:
        return self.step


class Sink:
    def __init__(self) -> None:
        self.tokens: list[tuple[int, float]] = []
        self.done: list[Sequence] = []

    def on_token(self, seq: Sequence) -> None:
        self.tokens.append((seq.index, seq.last))

    def on_finish(self, seq: Sequence) -> None:
        self.tokens.append((seq.index, seq.last))
        self.done.append(seq)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (_engine, _paced, _scheduler, _throttle):
        monkeypatch.setattr(module, "clock", lambda: made.now)
    return made


def options(**changes: Any) -> Engine:
    base = vllm_from(["serve", "tiny", "--max-model-len", "2048"], {}, version="0")
    return replace(base, **changes)


def engine(clock: Clock, *, blocks: int = 0, **changes: Any) -> tuple[BatchEngine, Stats]:
    stats = Stats(2048)
    loop: Any = clock
    return BatchEngine(options(**changes), Fixed(), stats, loop, blocks=blocks), stats


def ask(sink: Sink, index: int, prompt: int = 100, output: int = 10) -> Sequence:
    return Sequence(sink, prompt, output, streams=True, index=index)


def test_a_lone_request_takes_its_prompt_and_one_step_per_token(clock: Clock) -> None:
    made, _ = engine(clock)
    sink = Sink()
    made.submit(ask(sink, 0, prompt=1000, output=11))
    clock.run()
    times = [at - 100.0 for _, at in sink.tokens]
    assert times[0] == pytest.approx(0.1)
    assert times[-1] == pytest.approx(0.1 + 10 * 0.02)
    assert not made.busy


def test_late_timers_delay_a_token_but_not_the_rate(clock: Clock) -> None:
    made, _ = engine(clock)
    sink = Sink()
    made.submit(ask(sink, 0, prompt=1000, output=101))
    clock.run(late=0.004)
    assert sink.tokens[-1][1] - 100.0 == pytest.approx(0.1 + 100 * 0.02, abs=0.03)


def test_requests_beyond_the_slots_wait_for_one(clock: Clock) -> None:
    made, _ = engine(clock, max_seqs=2)
    sink = Sink()
    for index in range(3):
        made.submit(ask(sink, index))
    clock.run(limit=100.05)
    assert (made.active, made.queued) == (2, 1)
    clock.run()
    firsts = {index: min(at for i, at in sink.tokens if i == index) for index in range(3)}
    ends = {index: max(at for i, at in sink.tokens if i == index) for index in range(3)}
    assert firsts[0] == firsts[1] < ends[0] < firsts[2]


def test_a_long_prompt_is_worked_in_chunks_beside_the_tokens_of_others(clock: Clock) -> None:
    made, stats = engine(clock, max_batched_tokens=512)
    sink = Sink()
    made.submit(ask(sink, 0, prompt=10, output=40))
    clock.run(limit=100.1)
    made.submit(ask(sink, 1, prompt=1500, output=2))
    clock.run()
    first = min(at for i, at in sink.tokens if i == 1)
    between = [at for i, at in sink.tokens if i == 0 and 100.1 < at < first]
    assert len(between) >= 2
    largest = max(i for i, n in enumerate(stats.values[stats.iteration_tokens.at : stats.iteration_tokens.sum]) if n)
    assert stats.iteration_tokens.bounds[largest] <= 512


def test_a_full_kv_cache_preempts_the_youngest_and_everybody_still_finishes(clock: Clock) -> None:
    made, stats = engine(clock, blocks=20)
    sink = Sink()
    for index in range(3):
        made.submit(ask(sink, index, prompt=80, output=100))
    clock.run()
    assert sorted(seq.index for seq in sink.done) == [0, 1, 2]
    assert all(seq.made == 100 for seq in sink.done)
    assert stats.values[stats.preemptions] >= 1
    assert next(seq for seq in sink.done if seq.index == 0).preemptions == 0
    assert made.free == made.blocks == 20


def test_a_cancelled_request_gives_back_what_it_held(clock: Clock) -> None:
    made, stats = engine(clock, blocks=40, max_seqs=1)
    sink = Sink()
    running, waiting = ask(sink, 0), ask(sink, 1)
    made.submit(running)
    made.submit(waiting)
    clock.run(limit=100.05)
    made.cancel(waiting)
    made.cancel(running)
    made.cancel(running)
    assert (made.active, made.queued, made.free) == (0, 0, 40)
    clock.run()
    assert sink.done == []
    assert stats.values[stats.success + 2] == 2


def test_a_prompt_that_was_seen_before_is_mostly_cached(clock: Clock) -> None:
    made, stats = engine(clock, blocks=400)
    sink = Sink()
    for index in range(2):
        seq = ask(sink, index, prompt=1600, output=2)
        seq.chain = tuple(range(100))
        made.submit(seq)
        clock.run()
    assert [seq.cached for seq in sink.done] == [0, 1584]
    first, second = sink.done
    assert second.first - second.arrived < (first.first - first.arrived) / 5
    assert stats.values[stats.prefix_hits] == 1584


@pytest.mark.parametrize("itl", [0.0203, 0.02])
@pytest.mark.parametrize("streams", [True, False])
def test_fixed_latencies_are_kept_exactly_and_do_not_drift(clock: Clock, streams: bool, itl: float) -> None:
    """Also where tokens are whole milliseconds apart, which is simpler to serve."""
    loop: Any = clock
    stats = Stats(2048)
    made = PacedEngine(options(sim=Sim(ttft=0.2, itl=itl)), stats, loop)
    sent: list[float] = []

    class Timed(Sink):
        def on_token(self, seq: Sequence) -> None:
            super().on_token(seq)
            sent.append(clock.now)

    sink = Timed()
    seq = Sequence(sink, 10, 101, streams=streams)
    made.submit(seq)
    clock.run(late=0.0004)
    assert seq.first - 100.0 == pytest.approx(0.2)
    assert seq.last - 100.0 == pytest.approx(0.2 + 100 * itl)
    assert len(sink.tokens) == (101 if streams else 1)
    # Within a timer's millisecond, and that for each token alone.
    assert all(-0.0007 < at - (100.2 + itl * number) < 0.0015 for number, at in enumerate(sent))
    assert len(sent) == (100 if streams else 0)
    assert sum(stats.values[stats.itl.at : stats.itl.sum]) == 100
    assert stats.values[stats.generation_tokens] == 101


def test_a_gpu_slows_down_under_sustained_load_and_recovers(clock: Clock) -> None:
    gpu = Throttle(1.0, 0.1)
    taken = []
    for _ in range(20):
        spent = gpu.slow(0.1)
        taken.append(spent)
        clock.now += spent
    assert taken[0] == pytest.approx(0.1)
    assert taken[-1] == pytest.approx(1.0)
    clock.now += 5
    gpu.slow(0.1)
    assert gpu.slow(0.1) == pytest.approx(0.1)


THROTTLED = {"TOLLGATE_SIM_THROTTLE_AFTER": "1.4s", "TOLLGATE_SIM_THROTTLE_FACTOR": "0.0887"}
# Four at once, a little more than a quarter of a second each: 14.65 requests/s while the GPU is cool.
FIXED = {"TOLLGATE_SIM_TTFT": "73ms", "TOLLGATE_SIM_ITL": "20ms"}


@pytest.mark.parametrize("streams", [True, False])
def test_twenty_requests_are_fast_and_what_is_sustained_is_slow(clock: Clock, streams: bool) -> None:
    """As operators have it on record: 14.65 requests/s over 20 requests, 1.3 requests/s sustained."""
    loop: Any = clock
    words = ["serve", "tiny", "--max-num-seqs", "4"]
    made = Machine(vllm_from(words, FIXED | THROTTLED, version="0"), loop).scheduler("tiny")
    ends: list[float] = []

    class Next(Sink):
        def on_finish(self, seq: Sequence) -> None:
            ends.append(seq.last - 100.0)
            if len(ends) < 80:
                made.submit(Sequence(self, 8, 11, streams=streams))

    for _ in range(4):
        made.submit(Sequence(Next(), 8, 11, streams=streams))
    clock.run()
    assert 20 / ends[19] == pytest.approx(14.65, rel=0.05)
    assert 40 / (ends[79] - ends[39]) == pytest.approx(1.3, rel=0.05)


@pytest.mark.parametrize("modelled", [True, False])
def test_a_modelled_gpu_throttles_too_and_is_even_without_it(clock: Clock, modelled: bool) -> None:
    loop: Any = clock
    env = {"TOLLGATE_ACCELERATOR": "nvidia-l4"} | ({} if modelled else FIXED)
    spans = []
    for more in ({}, THROTTLED):
        made = Machine(vllm_from(["serve", "gemma-3-4b-it"], env | more, version="0"), loop).scheduler("gemma-3-4b-it")
        sink = Sink()
        for tokens in (20, 400, 20):
            made.submit(ask(sink, 0, prompt=8, output=tokens))
            clock.run()
        first, _, last = sink.done
        spans.append((last.last - last.first) / (first.last - first.first))
    assert spans == [pytest.approx(1.0, rel=0.01), pytest.approx(1 / 0.0887, rel=0.01)]


@pytest.mark.parametrize(("slots", "rate"), [("1", 0.515), ("8", 1.85)])
def test_slots_share_the_gpu_and_the_rest_wait(clock: Clock, slots: str, rate: float) -> None:
    """The measured case: on one L4, five users of 128 tokens get 1.8 req/s from 8 slots and 0.5 from 1."""
    loop: Any = clock
    env = {"OLLAMA_NUM_PARALLEL": slots, "OLLAMA_CONTEXT_LENGTH": "2048", "TOLLGATE_ACCELERATOR": "nvidia-l4"}
    made = Machine(ollama_from(env, version="0"), loop).new_scheduler("gemma3:4b")
    ends: list[float] = []

    class Next(Sink):
        def on_finish(self, seq: Sequence) -> None:
            ends.append(clock.now)
            if len(ends) < 40:
                made.submit(Sequence(self, 128, 128, streams=False))

    for _ in range(5):
        made.submit(Sequence(Next(), 128, 128, streams=False))
    clock.run()
    assert 20 / (ends[24] - ends[4]) == pytest.approx(rate, rel=0.1)


def test_windows_of_the_corpus_go_round_and_have_exactly_their_tokens() -> None:
    corpus = Corpus(3)
    for start, tokens in ((0, 1), (LENGTH - 1, 5), (17, LENGTH), (17, 3 * LENGTH + 11)):
        text = corpus.text(start, tokens)
        assert text == b"".join(corpus.piece(start + at) for at in range(tokens))


def test_without_chunked_prefill_a_prompt_is_worked_in_one_step(clock: Clock) -> None:
    made, stats = engine(clock, max_batched_tokens=512, chunked=False)
    sink = Sink()
    made.submit(ask(sink, 0, prompt=10, output=40))
    clock.run(limit=100.1)
    made.submit(ask(sink, 1, prompt=1500, output=2))
    clock.run()
    gaps = [b - a for a, b in zip(times(sink, 0), times(sink, 0)[1:], strict=False)]
    assert max(gaps) == pytest.approx(0.02 + 1500 * 0.0001)
    counts = stats.values[stats.iteration_tokens.at : stats.iteration_tokens.sum]
    assert sum(counts[stats.iteration_tokens.bounds.index(1024.0) + 1 :]) == 1


def times(sink: Sink, index: int) -> list[float]:
    return [at for i, at in sink.tokens if i == index]


def test_a_request_that_is_slowed_takes_so_much_longer_and_others_do_not(clock: Clock) -> None:
    made, _ = engine(clock)
    sink = Sink()
    slow, other = ask(sink, 0, prompt=1, output=31), ask(sink, 1, prompt=1, output=31)
    slow.slow = 3.0
    made.submit(slow)
    made.submit(other)
    clock.run()
    spans = [seq.last - seq.first for seq in (slow, other)]
    assert spans[1] == pytest.approx(30 * 0.02)
    assert spans[0] == pytest.approx(3 * 30 * 0.02, rel=0.05)


@pytest.mark.parametrize("kind", [0, 1])
def test_the_limits_of_the_queue_count_what_waits_and_runs_and_whole_prompts(clock: Clock, kind: int) -> None:
    loop: Any = clock
    if kind:
        made: Any = PacedEngine(options(sim=Sim(ttft=0.5, itl=0.1), max_queued_tokens=150), Stats(2048), loop)
    else:
        made, _ = engine(clock, max_queued_tokens=150)
    sink = Sink()
    assert made.over(1) == ""
    first, second = ask(sink, 0), ask(sink, 1)
    made.submit(first)
    assert made.over(1) == ""
    made.submit(second)
    assert made.over(1) == "max_num_queued_tokens"
    made.cancel(second)
    assert made.over(1) == ""
    clock.run()
    assert made.backlog == 0
    made, _ = engine(clock, max_queued_reqs=3)
    made.submit(ask(sink, 2))
    assert (made.over(2), made.over(3)) == ("", "max_num_queued_reqs")


def test_jitter_varies_the_gaps_and_keeps_their_mean(clock: Clock) -> None:
    loop: Any = clock
    made = PacedEngine(options(sim=Sim(ttft=0.1, itl=0.02, jitter=0.3)), Stats(2048), loop)
    sink = Sink()
    for index in range(20):
        made.submit(ask(sink, index, output=101))
    clock.run()
    gaps = [b - a for i in range(20) for a, b in zip(times(sink, i), times(sink, i)[1:], strict=False)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.02, rel=0.05)
    assert spread / mean == pytest.approx(0.3, rel=0.15)


def test_many_paced_streams_are_all_on_time_and_finish(clock: Clock) -> None:
    loop: Any = clock
    made = PacedEngine(options(sim=Sim(ttft=0.05, itl=0.0101), max_seqs=300), Stats(2048), loop)
    sink = Sink()
    seqs = [ask(sink, index, output=50) for index in range(500)]
    for seq in seqs:
        made.submit(seq)
    clock.run(late=0.0003)
    assert len(sink.done) == 500
    assert all(seq.last - seq.first == pytest.approx(49 * 0.0101) for seq in seqs)
    # The slots of the first 300 are free after their last token, and go to the rest at once.
    assert max(seq.first for seq in seqs) - 100.0 == pytest.approx(2 * 0.05 + 49 * 0.0101, abs=0.003)
    assert (made.active, made.queued) == (0, 0)


@pytest.mark.parametrize("paced", [True, False])
@pytest.mark.parametrize("at", [1, 5, 10])
def test_an_answer_that_fails_ends_alone(clock: Clock, paced: bool, at: int) -> None:
    class Failing(Sink):
        def on_token(self, seq: Sequence) -> None:
            if seq.index == 1 and seq.made == at:
                raise ValueError("no")
            super().on_token(seq)

        def on_finish(self, seq: Sequence) -> None:
            if seq.index == 1 and at == 10:
                raise ValueError("no")
            super().on_finish(seq)

    loop: Any = clock
    made: Any = PacedEngine(options(sim=Sim(ttft=0.1, itl=0.02)), Stats(2048), loop) if paced else engine(clock)[0]
    sink = Failing()
    for index in range(3):
        made.submit(ask(sink, index, output=10))
    clock.run()
    assert [seq.index for seq in sink.done] == [0, 2]
    assert [len(times(sink, index)) for index in (0, 2)] == [10, 10]
    assert (made.active, made.queued) == (0, 0)


def test_faults_are_drawn_by_the_seed_in_the_share_that_was_asked_for() -> None:
    faults = Faults.parse("error=0.1,disconnect=0.2,slow=0.3,slow_factor=4,oom=0.05")
    fates = [Fate(faults, draw * 0x9E3779B97F4A7C15 & (1 << 64) - 1) for draw in range(1, 20_001)]
    assert sum(f.error for f in fates) / 20_000 == pytest.approx(0.1, rel=0.1)
    assert sum(f.cut > 0 for f in fates) / 20_000 == pytest.approx(0.2, rel=0.1)
    assert sum(f.slow == 4.0 for f in fates) / 20_000 == pytest.approx(0.3, rel=0.1)
    assert sum(f.dies for f in fates) / 20_000 == pytest.approx(0.05, rel=0.2)


def test_a_share_of_the_replicas_is_slow_by_name() -> None:
    faults = Faults(slow_replica=0.25, slow_factor=3.0)
    factors = [slow_replica(faults, f"engine-{at}", 7) for at in range(2000)]
    assert set(factors) == {1.0, 3.0}
    assert factors.count(3.0) / 2000 == pytest.approx(0.25, rel=0.15)
    assert factors == [slow_replica(faults, f"engine-{at}", 7) for at in range(2000)]


def test_throttling_workers_share_one_gpus_heat(clock: Clock) -> None:
    state = [0.0] * 3
    one, other = Throttle(0.95, 0.5, state), Throttle(0.95, 0.5, state)
    for _ in range(10):
        clock.now += one.slow(0.1)
    assert other.slow(0.1) == pytest.approx(0.2)


def test_workers_share_the_blocks_of_one_cache_and_all_finish(clock: Clock) -> None:
    board = Board(2, 64)
    engines, sink = [], Sink()
    for worker in range(2):
        mine = copy.copy(board)
        mine.become(worker)
        made, stats = engine(clock, blocks=24, max_seqs=64)
        made.share(mine, "m")
        engines.append((made, stats))
    most = 0
    watch = clock.call_later

    def watched(delay: float, callback: Callable[..., None], *args: Any) -> Any:
        nonlocal most
        most = max(most, sum(made.used for made, _ in engines))
        return watch(delay, callback, *args)

    clock.call_later = watched  # type: ignore[method-assign]
    for index in range(10):
        engines[index % 2][0].submit(ask(sink, index, prompt=60, output=80))
    clock.run(limit=200.0)
    assert sorted(seq.index for seq in sink.done) == list(range(10))
    assert [made.used for made, _ in engines] == [0, 0]
    # A worker may look a moment before the other has written: one request's worth more at most.
    assert 16 <= most <= 24 + 6
    board.close()


def test_a_step_of_one_worker_lasts_as_long_as_the_batch_of_all(clock: Clock) -> None:
    @dataclass
    class Growing(Fixed):
        def decode_step_seconds(self, running: int, context_tokens: float) -> float:
            return 0.01 * running

    spans = []
    for others in (0, 3):
        board = Board(2, 64)
        loop: Any = clock
        made = BatchEngine(options(), Growing(), Stats(2048), loop)
        made.share(board, "m")
        peer = copy.copy(board)
        peer.become(1)
        peer.put(DECODING, others)
        sink = Sink()
        made.submit(ask(sink, 0, prompt=1, output=11))
        clock.run()
        spans.append(sink.done[0].last - sink.done[0].first)
        board.close()
    assert spans == [pytest.approx(0.1), pytest.approx(0.4)]
