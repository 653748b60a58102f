"""Where warm-up ends: change-points on the series of latency and of rate, and a test that what follows is level.

The truncation point is the one that minimises the marginal standard error (White, MSER, Simulation 69:6, 1997):
dropping more of the beginning pays as long as it lowers the variance faster than it lowers the number of samples.
Weighted here, as each bin of time holds another number of requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
# A window is judged by the median answer, which may be somewhat above the mean that it is stretched by.
_MARGIN = 1.1


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


def rate_change_point(counts: Floats, last: int) -> int:
    """The bin in 0..last at which the rate became what it then stayed; 0 where it was so from the beginning.

    Bins are put together, so that a rate of a few per second does not look like bursts; a change counts only where it is
    more than a tenth and beyond four standard errors, because arrivals at random are never even.
    """
    size = len(counts)
    width = max(1, math.ceil(size / 60))
    whole = size // width
    if whole < 8:
        return 0
    coarse = counts[size - whole * width :].reshape(whole, width).sum(axis=1)
    found = change_point(np.ones(whole), coarse, min(last // width, whole - 2))
    before, after = coarse[:found], coarse[found:]
    if not len(before) or after.mean() <= 0:
        return 0
    # Counts vary at least as much as Poisson's.
    errors = [max(float(part.var()), float(part.mean()), 1.0) / len(part) for part in (before, after)]
    step = abs(float(after.mean() - before.mean()))
    if step <= 4 * math.sqrt(sum(errors)) or step <= 0.1 * float(after.mean()):
        return 0
    return min(last, size - whole * width + found * width)


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
        latency = change_point(ok[first:], means[first:], last - first)
        # The rate tells what the latency of good answers cannot: a service that refused some of them at first.
        rate = rate_change_point(ok[first:], last - first)
        return max(floor, (first + max(latency, rate)) * self.seconds)

    def warm_up(self, now: float, seconds: float, floor: float) -> float | None:
        """When the level part began, if it has lasted `seconds` at `now`; else None."""
        if now - floor < seconds:
            return None
        begun = self.begin(now, floor, seconds)
        # A change-point at the last allowed bin means that the change may still be going on.
        if begun > floor and begun >= (int((now - seconds) / self.seconds) - 0.5) * self.seconds:
            return None
        return begun

    def window(self, now: float, seconds: float, requests: int) -> float:
        """How long to measure, looking back from `now`: at least `seconds`, until `requests` have ended, and a little
        longer than an answer takes on average; infinity as long as too few have ended."""
        size = int(now / self.seconds)
        ok = _padded(self.ok, size)[::-1].cumsum()
        ended = ok + _padded(self.failed, size)[::-1].cumsum()
        if not size or ended[-1] < requests:
            return math.inf
        bins = max(int(np.searchsorted(ended, requests)) + 1, min(size, math.ceil(seconds / self.seconds)))
        latency = float(_padded(self.latency, size)[-bins:].sum() / max(ok[bins - 1], 1.0))
        return max(seconds, bins * self.seconds, _MARGIN * latency)

    def trend(self, start: float, end: float) -> Trend:
        """Of the latency between two moments, in seconds from the start."""
        a, b = int(start / self.seconds), int(end / self.seconds)
        return trend(_padded(self.ok, b)[a:], _padded(self.means(), b)[a:])


def _padded(values: Floats, size: int) -> Floats:
    return values[:size] if len(values) >= size else np.concatenate([values, np.zeros(size - len(values))])


def sustained(series: Series, sent: float, floor: float | None, early: Sequence[float]) -> dict[str, float]:
    """How fast a batch went once it was under way, from the level part until the last request was sent.

    `sustained_requests_per_second` with its standard error `…_se` over `sustained_batches` stretches of equal time (batch
    means, each several answers long, so that neighbours hardly depend on each other), and `first_20_requests_per_second`,
    what someone would have believed who had stopped after twenty answers. Nothing where there is too little of it.
    """
    found: dict[str, float] = {}
    if len(early) >= 20 and early[19] > 0:
        found["first_20_requests_per_second"] = 20 / early[19]
    if floor is None:
        return found
    begin = series.begin(sent, min(floor, sent), (sent - min(floor, sent)) / 2)
    first, last = int(begin / series.seconds), int(sent / series.seconds)
    ok = _padded(series.ok, last)[first:]
    if len(ok) < 10 or ok.sum() < 20:
        return found
    latency = float(_padded(series.latency, last)[first:].sum() / ok.sum())
    seconds = len(ok) * series.seconds
    batches = max(5, min(20, int(seconds / max(2 * latency, series.seconds)), int(ok.sum() / 4)))
    width = len(ok) // batches
    rates = ok[len(ok) - batches * width :].reshape(batches, width).sum(axis=1) / (width * series.seconds)
    found["sustained_requests_per_second"] = float(rates.mean())
    # One answer more or less at the edges is always possible: no stretch of time is known better than that.
    spread = max(float(rates.std(ddof=1)) / math.sqrt(batches), 1 / seconds)
    found["sustained_requests_per_second_se"] = spread
    found["sustained_batches"] = float(batches)
    found["sustained_seconds"] = seconds
    return found
