"""A GPU that slows down under sustained load: the first requests are fast, what is sustained is not."""

from __future__ import annotations

import time


class Throttle:
    """Heat in seconds of work: it rises while the GPU works and falls at the same rate while it rests. Above `after`
    seconds the clock goes down to `factor` of its speed, and up again below half of that."""

    def __init__(self, after: float, factor: float) -> None:
        self.after = after
        self.factor = factor
        self.heat = 0.0
        self.hot = after <= 0
        self._until = 0.0

    def slow(self, duration: float) -> float:
        """How long work of `duration` seconds takes now."""
        now = time.monotonic()
        if now > self._until:
            self.heat = max(0.0, self.heat - (now - self._until))
            self._until = now
            if self.heat < self.after / 2:
                self.hot = False
        taken = duration / self.factor if self.hot else duration
        end = now + taken
        if end > self._until:
            # Streams that run side by side share one GPU: only the time that is not yet accounted for warms it.
            self.heat = min(self.after * 1.5, self.heat + end - self._until)
            self._until = end
        if self.heat >= self.after:
            self.hot = True
        return taken
