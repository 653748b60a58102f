"""The simulated engine: who runs, who waits, when each token is ready.

`BatchEngine` steps as an engine does. Each step takes the next token of every running request and as many prompt tokens
as fit `max_batched_tokens` (chunked prefill), lasts as long as the latency model says for that batch, and then every
request whose prompt is done has one more token. A request that finds no free block of the KV cache waits; one that
needs a block to go on when none is free takes it from the youngest, which starts again (preemption by recomputation).
One timer serves all streams, and none is set while nothing runs.

`_paced.PacedEngine` has fixed latencies instead. Both keep time by an ideal clock: a late timer delays one token, never
the rate. Only when this process was starved for `MAX_LAG` seconds is the lost time given up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ._options import Engine as EngineOptions
from ._stats import Stats
from ._timing import Timing

MAX_LAG = 0.25
_EARLY = 0.0006  # uvloop rounds timers to whole milliseconds: this much early is on time.

clock = time.monotonic


class Sink(Protocol):
    """Who receives what a sequence generates."""

    def on_token(self, seq: Sequence) -> None:
        """One more token is ready (`seq.made` counts it); not called for the last, nor where `seq.streams` is false."""

    def on_finish(self, seq: Sequence) -> None:
        """The last token is ready."""


class Sequence:
    """One answer being generated. Times are seconds of `time.monotonic()`."""

    __slots__ = (
        "admitted",
        "arrived",
        "blocks",
        "cached",
        "chain",
        "computed",
        "draw",
        "first",
        "index",
        "last",
        "made",
        "max_tokens",
        "output",
        "preemptions",
        "prompt",
        "reason",
        "sink",
        "slow",
        "state",
        "streams",
    )

    def __init__(
        self,
        sink: Sink,
        prompt: int,
        output: int,
        *,
        streams: bool,
        draw: int = 0,
        reason: str = "length",
        index: int = 0,
    ) -> None:
        self.sink = sink
        self.prompt = prompt
        self.output = output
        self.streams = streams
        self.draw = draw
        self.reason = reason
        self.index = index
        self.max_tokens = output
        self.chain: tuple[int, ...] = ()
        self.made = 0
        self.computed = 0
        self.cached = 0
        self.blocks = 0
        self.preemptions = 0
        self.slow = 1.0
        self.arrived = self.admitted = self.first = self.last = 0.0
        self.state = 0  # 0 waiting, 1 running, 2 finished, 3 cancelled


class Scheduler:
    """What both engines share: the queue, the slots, and what the metrics see."""

    def __init__(self, options: EngineOptions, stats: Stats) -> None:
        self.options = options
        self.stats = stats
        self.max_seqs = options.max_seqs
        self.max_queue = options.max_queue
        # A request that is cancelled stays in the deque until its turn; `queued` counts the live ones.
        self.waiting: deque[Sequence] = deque()
        self.queued = 0
        self.active = 0
        self.instant = False
        self.on_idle: Callable[[], None] | None = None

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return self.active > 0 or self.queued > 0

    @property
    def full(self) -> bool:
        """Whether the queue takes no more."""
        return 0 < self.max_queue <= self.queued and self.active >= self.max_seqs

    def kv_usage(self) -> float:
        """Share of the KV cache in use, 0..1."""
        return 0.0

    def submit(self, seq: Sequence) -> bool:
        """Take a request in; False where the queue is full (the caller answers as its engine would)."""
        if self.full:
            return False
        seq.arrived = clock()
        self.waiting.append(seq)
        self.queued += 1
        self._wake()
        return True

    def cancel(self, seq: Sequence) -> None:
        """The client has gone: free what the request held."""
        if seq.state >= 2:
            return
        if seq.state == 1:
            self._leave(seq)
        else:
            self.queued -= 1
        seq.state = 3
        self.stats.aborted(seq)
        self._after()

    def _wake(self) -> None:
        raise NotImplementedError

    def _leave(self, seq: Sequence) -> None:
        """Take a running request off its slot."""
        raise NotImplementedError

    def _next(self) -> Sequence | None:
        """The first request in the queue that still has a client."""
        waiting = self.waiting
        while waiting:
            if waiting[0].state == 0:
                return waiting[0]
            waiting.popleft()
        return None

    def _after(self) -> None:
        if self.on_idle is not None and not self.busy:
            self.on_idle()

    def stop(self) -> None:
        """Set no further timer."""


class BatchEngine(Scheduler):
    """Steps through time as the module's docstring says.

    `blocks`: blocks of the KV cache, 0 for an engine whose slots each have their whole context reserved (Ollama).
    """

    def __init__(
        self,
        options: EngineOptions,
        timing: Timing,
        stats: Stats,
        loop: asyncio.AbstractEventLoop,
        *,
        blocks: int = 0,
        slowdown: Callable[[float], float] | None = None,
    ) -> None:
        super().__init__(options, stats)
        self.timing = timing
        self.loop = loop
        self.running: list[Sequence] = []
        self.blocks = blocks
        self.free = blocks
        self.block_tokens = options.block_tokens
        self.budget = options.max_batched_tokens
        self.speed = options.sim.speed
        self.slowdown = slowdown
        self._timer: asyncio.TimerHandle | None = None
        self._now = 0.0
        self._duration = 0.0
        self._ready: list[Sequence] = []
        self._cache: dict[int, None] = {}
        self._stopped = False

    def kv_usage(self) -> float:
        return 1.0 - self.free / self.blocks if self.blocks else 0.0

    def _wake(self) -> None:
        if self._timer is None and not self._stopped:
            self._now = clock()
            # Requests that arrive in the same turn of the event loop belong into the same step.
            self._timer = self.loop.call_later(0, self._begin_soon)

    def _begin_soon(self) -> None:
        self._timer = None
        self._begin()

    def _begin(self) -> None:
        """Choose the next step's batch and set its timer."""
        budget = self.budget
        decoding = context = prefilling = 0
        ready = self._ready
        ready.clear()
        position = 0
        running = self.running
        while position < len(running):
            seq = running[position]
            position += 1
            if self.blocks and not self._room(seq):
                break  # it was the youngest and lost its own blocks
            missing = seq.prompt + seq.made - seq.computed
            if missing <= 1 and seq.made:
                decoding += 1
                budget -= 1
                context += seq.computed
                seq.computed += 1
                ready.append(seq)
            elif budget > 0:
                chunk = min(missing, budget)
                prefilling += chunk
                budget -= chunk
                seq.computed += chunk
                if chunk == missing:
                    ready.append(seq)
        while len(running) < self.max_seqs and budget > 0:
            head = self._next()
            if head is None or not self._admit(head):
                break
            seq = self.waiting.popleft()
            self.queued -= 1
            self.active += 1
            seq.state = 1
            if not seq.admitted:
                seq.admitted = max(seq.arrived, self._now)
            running.append(seq)
            missing = seq.prompt + seq.made - seq.computed
            chunk = min(missing, budget)
            prefilling += chunk
            budget -= chunk
            seq.computed += chunk
            if chunk == missing:
                ready.append(seq)
        if not running:
            self._after()
            return
        duration = 0.0
        if prefilling:
            duration += self.timing.prefill_seconds(prefilling, decoding)
        if decoding:
            duration += self.timing.decode_step_seconds(decoding, context / decoding)
        duration /= self.speed
        if self.slowdown is not None:
            duration = self.slowdown(duration)
        self._duration = duration
        self.stats.iteration(prefilling + decoding)
        self._timer = self.loop.call_later(max(0.0, self._now + duration - clock()), self._end)

    def _end(self) -> None:
        """The step is over: hand out its tokens and begin the next, catching up where the timer came late."""
        turns = 0
        while True:
            self._timer = None
            end = self._now + self._duration
            now = clock()
            if end - now > _EARLY:
                self._timer = self.loop.call_later(end - now, self._end)
                return
            if now - end > MAX_LAG:
                end = now
            self._now = end
            self._emit(end)
            if not self.busy:
                self._after()
                return
            if self._timer is not None:  # a sink's callback woke the engine
                return
            self._begin()
            turns += 1
            if self._timer is None or turns >= 8 or self._now + self._duration > clock() + _EARLY:
                return
            self._timer.cancel()

    def _emit(self, now: float) -> None:
        stats = self.stats
        gaps = 0
        previous = 0.0
        gap = 0.0
        for seq in self._ready:
            if seq.state != 1:
                continue
            seq.made += 1
            if seq.made == 1:
                seq.first = now
                stats.first_token(seq)
            else:
                if seq.last == previous:
                    gaps += 1
                else:
                    if gaps:
                        stats.gaps(gap, gaps)
                    previous, gap, gaps = seq.last, now - seq.last, 1
            seq.last = now
            if seq.made >= seq.output:
                self._finish(seq)
            elif seq.streams:
                seq.sink.on_token(seq)
        if gaps:
            stats.gaps(gap, gaps)

    def _finish(self, seq: Sequence) -> None:
        self._leave(seq)
        seq.state = 2
        self.stats.finished(seq)
        seq.sink.on_finish(seq)

    # The KV cache: counted in blocks, not held.

    def _admit(self, seq: Sequence) -> bool:
        hit = self._lookup(seq)
        if not self.blocks:
            seq.computed = hit
            return True
        need = -(-(seq.prompt + seq.made + 1) // self.block_tokens)
        if need > self.free:
            return False
        self.free -= need
        seq.blocks = need
        seq.computed = hit
        return True

    def _lookup(self, seq: Sequence) -> int:
        """Prompt tokens found in the prefix cache, whole blocks, never the whole prompt."""
        chain = seq.chain
        if not chain:
            return 0
        cache = self._cache
        hits = 0
        for key in chain:
            if key not in cache:
                break
            del cache[key]  # to the young end
            cache[key] = None
            hits += 1
        for key in chain[hits:]:
            cache[key] = None
        limit = self.blocks or 1 << 14
        while len(cache) > limit:
            del cache[next(iter(cache))]
        tokens = min(hits * seq.prompt // len(chain), seq.prompt - 1)
        tokens -= tokens % self.block_tokens
        if not seq.preemptions:
            seq.cached = tokens
            self.stats.prefix(seq.prompt, tokens)
        return tokens

    def _room(self, seq: Sequence) -> bool:
        """A block for the next token, taken from the youngest where none is free; False where `seq` itself was it."""
        if seq.computed < seq.blocks * self.block_tokens:
            return True
        while self.free <= 0:
            victim = self.running[-1]
            self._leave(victim)
            self.queued += 1
            victim.state = 0
            victim.computed = 0
            victim.preemptions += 1
            self.waiting.appendleft(victim)
            self.stats.preempted()
            if victim in self._ready:
                self._ready.remove(victim)
            if victim is seq:
                return False
        self.free -= 1
        seq.blocks += 1
        return True

    def _leave(self, seq: Sequence) -> None:
        if self.running[-1] is seq:
            self.running.pop()
        else:
            self.running.remove(seq)
        self.active -= 1
        self.free += seq.blocks
        seq.blocks = 0

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
