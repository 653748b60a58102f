"""Where warm-up ends: a change-point on the latency series, and a test that what follows is level.

The truncation point is the one that minimises the marginal standard error (White, MSER, Simulation 69:6, 1997):
dropping more of the beginning pays as long as it lowers the variance faster than it lowers the number of samples.
Weighted here, as each bin of time holds another number of requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def change_point(counts: Floats, means: Floats, last: int) -> int:
    """The bin in 0..last at which the level part begins. `means[i]` is the mean of `counts[i]` samples (any value where
    that is 0). When no end of warm-up is to be seen yet, `last` is returned."""
    size = len(counts)
    last = min(last, size - 1)
    if size < 2 or last <= 0:
        return 0
    values = np.where(counts > 0, means, 0.0)
    # Sums over the tail beginning at each bin.
    n = np.cumsum(counts[::-1])[::-1]
    s = np.cumsum((counts * values)[::-1])[::-1]
    q = np.cumsum((counts * values**2)[::-1])[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.maximum(q - s**2 / n, 0.0)
        error = np.where(n > 1, spread / n**2, np.inf)
    # What rounding alone leaves of a constant series is nothing.
    error[spread <= 1e-12 * q] = 0.0
    return int(np.argmin(error[: last + 1]))


@dataclass(frozen=True)
class Trend:
    """`change`: of the level over the window, as a share of it; `significant`: whether that is more than chance."""

    change: float
    significant: bool


def trend(counts: Floats, means: Floats, batches: int = 10) -> Trend:
    """The straight line through `batches` means of equal time, weighted alike; significant above 4 standard errors."""
    parts = [slice(i * len(counts) // batches, (i + 1) * len(counts) // batches) for i in range(batches)]
    points = [
        (position, float(np.average(means[part], weights=counts[part])))
        for position, part in enumerate(parts)
        if counts[part].sum() > 0
    ]
    if len(points) < 4:
        return Trend(0.0, False)
    x = np.array([p[0] for p in points], dtype=np.float64)
    y = np.array([p[1] for p in points], dtype=np.float64)
    x -= x.mean()
    slope = float((x * y).sum() / (x * x).sum())
    residual = y - y.mean() - slope * x
    error = math.sqrt(float((residual**2).sum()) / (len(points) - 2) / float((x * x).sum()))
    level = float(y.mean())
    change = slope * batches / level if level else 0.0
    return Trend(change, abs(slope) > 4 * error and abs(change) > 0)


class Series:
    """Bins of time of one or several sessions, added up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.ok: Floats = np.zeros(0)
        self.latency: Floats = np.zeros(0)
        self.failed: Floats = np.zeros(0)

    def take(self, ok: ArrayLike, latency: ArrayLike, failed: ArrayLike) -> None:
        """Take these bins, all of one length, instead of what was there."""
        self.ok = np.array(ok, dtype=np.float64)
        self.latency = np.array(latency, dtype=np.float64)
        self.failed = np.array(failed, dtype=np.float64)

    def means(self) -> Floats:
        """Mean latency per bin, 0 where nothing ended."""
        return np.divide(self.latency, self.ok, out=np.zeros_like(self.latency), where=self.ok > 0)

    def begin(self, now: float, floor: float, tail: float = 0.0) -> float:
        """When the level part begins, as far as can be told at `now`; seconds from the start of the load.

        `floor`: before which it cannot begin (not every user has been answered). `tail`: how long it must have lasted.
        """
        size, last = int(now / self.seconds), int((now - tail) / self.seconds)
        ok, means = _padded(self.ok, size), _padded(self.means(), size)
        # What came before the floor is warm-up by definition and must not hide a change-point after it.
        first = min(int(floor / self.seconds), last)
        return max(floor, (first + change_point(ok[first:], means[first:], last - first)) * self.seconds)

    def warm_up(self, now: float, seconds: float, floor: float) -> float | None:
        """When the level part began, if it has lasted `seconds` at `now`; else None."""
        if now - floor < seconds:
            return None
        begun = self.begin(now, floor, seconds)
        # A change-point at the last allowed bin means that the change may still be going on.
        if begun > floor and begun >= (int((now - seconds) / self.seconds) - 0.5) * self.seconds:
            return None
        return begun

    def trend(self, start: float, end: float) -> Trend:
        """Of the latency between two moments, in seconds from the start."""
        a, b = int(start / self.seconds), int(end / self.seconds)
        return trend(_padded(self.ok, b)[a:], _padded(self.means(), b)[a:])


def _padded(values: Floats, size: int) -> Floats:
    return values[:size] if len(values) >= size else np.concatenate([values, np.zeros(size - len(values))])
