"""How many requests at once: found by trying, judged by the rate of answers that lasts.

More requests in flight are kept only where they bring more answers per second; where they do not, they only wait in the
engine's queue, and would be lost with it. Pure: told the time, never asks for it.
"""

from __future__ import annotations

import math

# A step up is worth it when the rate grows by at least this share of what it would grow by if it scaled.
_WORTH = 0.3
_GROW, _PROBE, _SHRINK = 2.0, 1.25, 0.8
# A step down costs nothing when the rate stays within this.
_SAME = 0.97
_HOLD_FIRST, _HOLD_MOST = 20.0, 320.0
_WINDOW_ANSWERS, _WINDOW_SECONDS = 100, 1.0
# With so few answers nothing is known of a rate: a window waits for them, but not for ever.
_WINDOW_MOST_SECONDS, _FEW = 120.0, 20


class Pace:
    """The limit of one endpoint. `start`: from the plan's slots, where there is one; `low` to `high` bound it. With `fixed`
    it stays at `start` but for what the endpoint itself refuses."""

    def __init__(self, start: int, *, low: int = 1, high: int = 1024, fixed: bool = False) -> None:
        self.low, self.high, self.fixed = low, max(low, high), fixed
        self.limit = min(max(start, low), self.high)
        self.settled = False
        self.rate = 0.0
        self._start = self.limit
        self._base: tuple[int, float] | None = None
        self._step = _GROW
        self._hold = _HOLD_FIRST
        self._hold_until = 0.0
        self._answers = 0
        self._latency = 0.0
        self._full = True
        self._settling = True
        self._began: float | None = None
        self._direction = 1

    def answered(self, seconds: float) -> None:
        """One more answer, which took so long."""
        self._answers += 1
        self._latency += (seconds - self._latency) / min(self._answers, 100)

    def idle(self) -> None:
        """The limit was not used: there was nothing more to ask. What is measured meanwhile says nothing about it."""
        self._full = False

    def busy(self, now: float) -> bool:
        """The endpoint refused for load: half as many. A burst of refusals is one. Whether the limit changed."""
        if self._settling and self._began is not None and now - self._began < max(0.5, 2 * self._latency):
            return False
        self._base = None
        self._hold_until = now + self._hold
        self._hold = min(_HOLD_MOST, 2 * self._hold)
        self._step = _PROBE
        return self._change(max(self.low, self.limit // 2), now)

    def restart(self, now: float) -> None:
        """The endpoint was away: what was measured before it went says nothing any more, the limit stays."""
        self._base = None
        self._change(self.limit, now)

    def tick(self, now: float) -> bool:
        """Look, a few times a second; whether the limit changed."""
        if self._began is None:
            self._change(self.limit, now)
            return False
        elapsed = now - self._began
        if self._settling:
            # Answers to what was sent under the limit before say nothing about the present one.
            if elapsed >= max(0.2, 1.5 * self._latency) and self._answers:
                self._open(now, settling=False)
            return False
        enough = self._answers >= max(_WINDOW_ANSWERS, 2 * self.limit)
        late = elapsed >= _WINDOW_MOST_SECONDS and self._answers >= _FEW
        if not ((enough and elapsed >= max(_WINDOW_SECONDS, 2 * self._latency)) or late):
            return False
        rate, full = self._answers / elapsed, self._full
        self.rate = rate
        if self.fixed:
            # Only what the endpoint refused is regained.
            self.settled = True
            if self.limit < self._start and now >= self._hold_until:
                return self._change(min(self._start, math.ceil(self.limit * _PROBE)), now)
            self._open(now, settling=False)
            return False
        if not full:
            self._open(now, settling=False)
            return False
        return self._decide(rate, now)

    def _decide(self, rate: float, now: float) -> bool:
        """After a full window at the present limit."""
        if self._base is None:
            self._base = (self.limit, rate)
            if now < self._hold_until:
                self._open(now, settling=False)
                return False
            return self._try(now)
        limit, before = self._base
        if self.limit == limit:
            # At rest; what is the rate now is the measure for the next trial.
            self._base = (limit, rate)
            self.settled = True
            if now < self._hold_until:
                self._open(now, settling=False)
                return False
            return self._try(now)
        needed = 1 + _WORTH * (self.limit / limit - 1) if self.limit > limit else _SAME
        if rate >= before * needed:
            self._base = (self.limit, rate)
            self._hold = _HOLD_FIRST
            return self._try(now)
        # Back, and rest the longer the more often nothing came of it.
        self.settled = True
        if self._step == _GROW and self.limit > limit:
            # Between a doubling that brought nothing and where it began there may be more to be had.
            self._step = _PROBE
            self._hold_until = now
        else:
            self._direction = -self._direction
            self._hold_until = now + self._hold
            self._hold = min(_HOLD_MOST, 2 * self._hold)
        return self._change(limit, now)

    def _try(self, now: float) -> bool:
        if self._direction > 0 or self._step == _GROW:
            wanted = min(self.high, max(self.limit + 1, math.ceil(self.limit * self._step)))
        else:
            wanted = max(self.low, min(self.limit - 1, math.floor(self.limit * _SHRINK)))
        if wanted == self.limit:
            self._direction = -self._direction
            self._hold_until = now + self._hold
            self.settled = True
            self._open(now, settling=False)
            return False
        return self._change(wanted, now)

    def _change(self, limit: int, now: float) -> bool:
        changed, self.limit = limit != self.limit, limit
        self._open(now, settling=True)
        return changed

    def _open(self, now: float, *, settling: bool) -> None:
        self._began, self._answers, self._full, self._settling = now, 0, True, settling
