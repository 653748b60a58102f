"""The scheduler alone, on a loop whose clock the test turns."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from bench.simulator import _engine, _paced, _scheduler, vllm_from
from bench.simulator._engine import BatchEngine
from bench.simulator._options import Engine, Sim
from bench.simulator._paced import PacedEngine
from bench.simulator._scheduler import Sequence
from bench.simulator._schema import instance
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
    for module in (_engine, _paced, _scheduler):
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


@pytest.mark.parametrize("streams", [True, False])
def test_fixed_latencies_are_kept_exactly_and_do_not_drift(clock: Clock, streams: bool) -> None:
    loop: Any = clock
    stats = Stats(2048)
    made = PacedEngine(options(sim=Sim(ttft=0.2, itl=0.0203)), stats, loop)
    sink = Sink()
    seq = Sequence(sink, 10, 101, streams=streams)
    made.submit(seq)
    clock.run(late=0.0004)
    assert seq.first - 100.0 == pytest.approx(0.2)
    assert seq.last - 100.0 == pytest.approx(0.2 + 100 * 0.0203)
    assert len(sink.tokens) == (101 if streams else 1)
    assert sum(stats.values[stats.itl.at : stats.itl.sum]) == 100
    assert stats.values[stats.generation_tokens] == 101


def test_a_gpu_slows_down_under_sustained_load_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("bench.simulator._throttle.time.monotonic", lambda: now[0])
    gpu = Throttle(1.0, 0.1)
    taken = []
    for _ in range(20):
        spent = gpu.slow(0.1)
        taken.append(spent)
        now[0] += spent
    assert taken[0] == pytest.approx(0.1)
    assert taken[-1] == pytest.approx(1.0)
    now[0] += 5
    gpu.slow(0.1)
    assert gpu.slow(0.1) == pytest.approx(0.1)


def test_windows_of_the_corpus_go_round_and_have_exactly_their_tokens() -> None:
    corpus = Corpus(3)
    for start, tokens in ((0, 1), (LENGTH - 1, 5), (17, LENGTH), (17, 3 * LENGTH + 11)):
        text = corpus.text(start, tokens)
        assert text == b"".join(corpus.piece(start + at) for at in range(tokens))


@pytest.mark.parametrize(
    ("schema", "check"),
    [
        ({"type": "integer", "exclusiveMinimum": 3, "maximum": 4}, lambda v: v == 4),
        ({"enum": ["x"]}, lambda v: v == "x"),
        ({"type": ["string", "null"], "maxLength": 2}, lambda v: isinstance(v, str) and len(v) <= 2),
        ({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["next"], "properties": {
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}}}, lambda v: isinstance(v, dict)),
    ],
)  # fmt: skip
def test_instances_fit_their_schema(schema: Any, check: Callable[[Any], bool]) -> None:
    assert all(check(instance(schema, draw)) for draw in range(8))
