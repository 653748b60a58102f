"""An engine with given latencies: the first token `ttft` after a slot is free, then one every `itl`.

One timer wheel of 1 ms (the resolution of uvloop's timers) serves all streams: a token's due time is computed from the
request's start, never from when the one before it was really sent, so gaps do not drift. What is due in one tick is sent
in one go, and where tokens are whole milliseconds apart it moves on together.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from heapq import heappop, heappush

from ._options import Engine as EngineOptions
from ._scheduler import Scheduler, Sequence, clock
from ._stats import Stats

_TICKS = 1000.0
# Added before rounding a time up to a tick: a due time that lies on one is not pushed to the next by its last bit.
_BIT = 1e-6
_TURN = 0.005


class PacedEngine(Scheduler):
    """Fixed TTFT and inter-token latency, seconds; with jitter both vary by a normal of that coefficient of variation."""

    def __init__(
        self,
        options: EngineOptions,
        stats: Stats,
        loop: asyncio.AbstractEventLoop,
        *,
        slowdown: Callable[[float], float] | None = None,
    ) -> None:
        super().__init__(options, stats, loop)
        sim = options.sim
        self.ttft = (sim.ttft or 0.0) / sim.speed
        self.itl = (sim.itl or 0.0) / sim.speed
        self.slowdown = slowdown
        rng = random.Random(sim.seed ^ 0x717)
        self._jitter = [max(0.05, rng.gauss(1.0, sim.jitter)) for _ in range(1024)] if sim.jitter else []
        self.instant = self.ttft == 0 and self.itl == 0
        self._even = not self._jitter and slowdown is None
        # The gap in ticks; 0 where it is not a whole number of them.
        step = round(self.itl * _TICKS)
        self._step = step if abs(self.itl * _TICKS - step) < _BIT else 0
        self._buckets: dict[int, list[Sequence]] = {}
        self._heap: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_tick = 0
        self._stopped = False

    def kv_usage(self) -> float:
        return self.active / self.max_seqs

    def _wake(self) -> None:
        now = clock()
        while self._next() is not None and self._take():
            seq = self.waiting.popleft()
            self._queue(-1)
            self.active += 1
            seq.state = 1
            seq.admitted = max(now, seq.arrived)
            if self._even and seq.streams and seq.slow == 1.0:
                # Token number `made` is due `made - 1` gaps after the first: nothing to work out until the last.
                seq.until = seq.output
            self.stats.prefix(seq.prompt, 0)
            self._due(seq, seq.admitted + self._span(seq, self.ttft))

    def _leave(self, seq: Sequence) -> None:
        self.active -= 1
        self._give()
        if self.queued:
            self.loop.call_soon(self._wake)

    def _span(self, seq: Sequence, base: float) -> float:
        span = self._varied(seq, base, seq.made)
        return span if self.slowdown is None else self.slowdown(span)

    def _varied(self, seq: Sequence, base: float, made: int) -> float:
        """The time before token number `made`, as far as it depends on the request alone."""
        span = base * seq.slow
        return span * self._jitter[(seq.draw + made * 7) & 1023] if self._jitter else span

    def _due(self, seq: Sequence, when: float) -> None:
        seq.last = when
        if not seq.streams and seq.made == 1 and seq.output > 2:
            # Nobody sees the tokens between: one event, at the end.
            rest = seq.output - 2
            if self._even:
                when += rest * self.itl * seq.slow
                self.stats.gaps(self.itl * seq.slow, rest)
                seq.made += rest
            else:
                gaps = [self._varied(seq, self.itl, seq.made + at) for at in range(rest)]
                span = sum(gaps)
                # One stretch of work: asked for gap by gap, a GPU that slows down would take them for simultaneous.
                slower = 1.0 if self.slowdown is None or not span else self.slowdown(span) / span
                for gap in gaps:
                    self.stats.gaps(gap * slower, 1)
                when += span * slower
                seq.made += rest
            seq.last = when
        self._put(-int(-when * _TICKS + _BIT), [seq])

    def _put(self, tick: int, seqs: list[Sequence]) -> None:
        """These have their next token in that tick."""
        bucket = self._buckets.get(tick)
        if bucket is not None:
            bucket += seqs
            return
        self._buckets[tick] = seqs
        heappush(self._heap, tick)
        if self._timer is None or tick < self._timer_tick:
            self._arm(tick)

    def _arm(self, tick: int) -> None:
        if self._stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_tick = tick
        self._timer = self.loop.call_later(max(0.0, tick / _TICKS - clock()), self._fire)

    def _fire(self) -> None:
        # Nothing is armed while tokens go out: their next due times are all later, and one call at the end finds the first.
        self._timer_tick = 0
        heap, buckets = self._heap, self._buckets
        begun = clock()
        now = begun * _TICKS + 0.6
        while heap and heap[0] <= now:
            tick = heappop(heap)
            bucket = buckets.pop(tick)
            if self._even:
                self._tokens(tick, bucket)
            else:
                for seq in bucket:
                    if seq.state == 1:
                        self._token(seq)
            if clock() - begun > _TURN:
                break  # more is asked than can be made: others get their turn too
        self._timer = None
        if heap:
            self._arm(heap[0])

    def _tokens(self, tick: int, bucket: list[Sequence]) -> None:
        """One more token for each; the same as `_token` for what is neither first nor last, without the calls."""
        further = []
        for seq in bucket:
            made = seq.made + 1
            if 1 < made < seq.until:
                seq.made = made
                try:
                    seq.sink.on_token(seq)
                except Exception as error:  # noqa: BLE001 - see `broken`
                    self.broken(seq, error)
                further.append(seq)
            elif seq.state == 1:
                self._token(seq)
        if not further:
            return
        self.stats.gaps(self.itl, len(further))
        if self._step:
            self._put(tick + self._step, further)
        else:
            itl, buckets = self.itl, self._buckets
            for seq in further:
                due = -int(-(seq.first + seq.made * itl) * _TICKS + _BIT)
                later = buckets.get(due)
                if later is not None:
                    later.append(seq)
                else:
                    self._put(due, [seq])

    def _token(self, seq: Sequence) -> None:
        when = seq.last
        if seq.until and seq.made:
            when = seq.last = seq.first + seq.made * self.itl
        seq.made += 1
        if seq.made == 1:
            seq.first = when
            self._backlog(-seq.prompt)
            self.stats.first_token(seq)
        else:
            self.stats.gaps(self.itl * seq.slow, 1)
        if seq.made >= seq.output:
            self._leave(seq)
            seq.state = 2
            self.stats.finished(seq)
            self._over(seq)
            self._after()
            return
        if seq.streams:
            try:
                seq.sink.on_token(seq)
            except Exception as error:  # noqa: BLE001 - see `broken`
                self.broken(seq, error)
        if seq.state == 1:
            self._due(seq, when + self._span(seq, self.itl))

    def stop(self) -> None:
        super().stop()
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
