"""A GPU that slows down under sustained load: the first requests are fast, what is sustained is not."""

from __future__ import annotations

from typing import Protocol

from ._scheduler import clock

# Cells of the state.
_HEAT, _UNTIL, _HOT = range(3)


class State(Protocol):
    """Numbers that can be read and written by position: a list, or a part of shared memory."""

    def __getitem__(self, at: int, /) -> float: ...

    def __setitem__(self, at: int, value: float, /) -> None: ...


class Throttle:
    """Heat in seconds of work: it rises while the GPU works and falls at the same rate while it rests. Above `after`
    seconds the clock goes down to `factor` of its speed, and up again below half of that.

    `state`: where the numbers lie; workers that serve one GPU share it.
    """

    def __init__(self, after: float, factor: float, state: State | None = None) -> None:
        self.after = after
        self.factor = factor
        self.state: State = [0.0] * 3 if state is None else state
        if after <= 0:
            self.state[_HOT] = 1.0

    def slow(self, duration: float) -> float:
        """How long work of `duration` seconds takes now."""
        state = self.state
        now = clock()
        heat, until, hot = state[_HEAT], state[_UNTIL], state[_HOT] > 0
        if now > until:
            heat = max(0.0, heat - (now - until))
            until = now
            if heat < self.after / 2:
                hot = False
        taken = duration / self.factor if hot else duration
        end = now + taken
        if end > until:
            # Streams that run side by side share one GPU: only the time that is not yet accounted for warms it.
            heat = min(self.after * 1.5, heat + end - until)
            until = end
        state[_HEAT], state[_UNTIL], state[_HOT] = heat, until, float(hot or heat >= self.after)
        return taken
