"""When will it be done, what will it cost, and can the promise be kept? From the rate that lasts, with an interval.

The rate is that of the last level stretch: warm-up, a GPU that slowed down from heat, an endpoint that was gone are
changes of level, and what was before the last of them says nothing about what comes. Before a stretch has lasted a
minute and a half nothing is called certain: a machine that will throttle has not done so yet. Pure: told the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CERTAIN_SECONDS = 90.0
_CERTAIN_ANSWERS = 20
_CERTAIN_SPREAD = 0.2
_MOST_BINS = 960
# Student's t for 90 % two-sided, by degrees of freedom from 2; imported from scipy it would cost a second and 70 MB.
_T90 = (2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753, 1.746, 1.740,
        1.734, 1.729)  # fmt: skip
# What no statistics of the past covers: inputs still to come that differ from those seen. A convention, shown as such.
_UNKNOWN = 0.05


@dataclass(frozen=True, kw_only=True)
class Eta:
    """Seconds until the end and their interval (90 %); nan where nothing is known, inf where nothing moves. `rate`: answers
    per second of the last moments, `sustained`: of the last level stretch, which has lasted `steady_seconds`. `certain`:
    whether that is long and even enough to be relied upon; `because`: why not."""

    seconds: float = math.nan
    low: float = math.nan
    high: float = math.nan
    rate: float = 0.0
    sustained: float = 0.0
    steady_seconds: float = 0.0
    certain: bool = False
    because: str = "nothing has been answered yet"


class Forecast:
    """Fed with how many are done, about once a second; memory is bounded: bins of time grow with the run."""

    def __init__(self, began: float) -> None:
        self._width = 1.0
        self._edge = began
        self._bins: list[float] = []
        self._last = began
        self._seen = 0

    def feed(self, now: float, done: int) -> None:
        """`done`: since `began`, never less than before. What happened since the last call is spread evenly over that time."""
        new, since = done - self._seen, now - self._last
        if since <= 0:
            return
        at = self._last
        while at < now:
            index = int((at - self._edge) / self._width)
            end = min(now, self._edge + (index + 1) * self._width)
            if end <= at:
                # Rounding at an edge.
                index += 1
                end = min(now, self._edge + (index + 1) * self._width)
            self._bins += [0.0] * (index + 1 - len(self._bins))
            self._bins[index] += new * (end - at) / since
            at = end
        self._last, self._seen = now, done
        if len(self._bins) > _MOST_BINS:
            pairs = self._bins + [0.0] * (len(self._bins) % 2)
            self._bins = [a + b for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
            self._width *= 2

    def eta(self, left: int) -> Eta:
        """As far as can be told now."""
        whole = int((self._last - self._edge) / self._width + 1e-9)
        bins = np.array(self._bins[:whole], dtype=np.float64)
        if not left:
            return Eta(seconds=0.0, low=0.0, high=0.0, certain=True, because="")
        if not len(bins) or not self._seen:
            return Eta()
        now = _recent(bins, self._width)
        begin = level_from(bins)
        stretch = bins[begin:]
        seconds = len(stretch) * self._width
        rate = float(stretch.sum()) / seconds
        if rate <= 0:
            return Eta(
                seconds=math.inf, low=math.inf, high=math.inf, rate=now, steady_seconds=seconds,
                because=f"nothing has been answered for {seconds:.0f} s",
            )  # fmt: skip
        error = _spread(stretch, rate * self._width) + _UNKNOWN
        because = ""
        if seconds < CERTAIN_SECONDS:
            because = f"the rate has lasted only {seconds:.0f} s, {CERTAIN_SECONDS:.0f} s make it sustained"
        elif stretch.sum() < _CERTAIN_ANSWERS:
            because = f"only {stretch.sum():.0f} answers at this rate"
        elif error > _CERTAIN_SPREAD:
            because = f"the rate varies by ±{100 * error:.0f} %"
        if because and seconds < CERTAIN_SECONDS:
            # Who has seen a moment knows little of the hours to come.
            error = max(error, min(0.9, 0.5 * CERTAIN_SECONDS / seconds))
        return Eta(
            seconds=left / rate, low=left / (rate * (1 + error)), high=left / (rate * max(0.05, 1 - error)), rate=now,
            sustained=rate, steady_seconds=seconds, certain=not because, because=because,
        )  # fmt: skip


def _recent(bins: NDArray[np.float64], width: float) -> float:
    """Over the last ten seconds, or longer where so few are done that they tell nothing."""
    last = max(1, math.ceil(10 / width))
    while last < len(bins) and bins[-last:].sum() < 10:
        last *= 2
    last = min(last, len(bins))
    return float(bins[-last:].sum()) / (last * width)


def level_from(bins: NDArray[np.float64]) -> int:
    """The bin at which the last level began: the series is cut where the halves differ most for their spread, again and
    again in its last part, until no cut is more than chance."""
    begin = 0
    while True:
        cut = _cut(bins[begin:])
        if cut is None:
            return begin
        begin += cut


def _cut(counts: NDArray[np.float64]) -> int | None:
    """The best place to part `counts` in two levels; None where no two levels are there. By the t statistic of Welch for all
    places at once; neighbours are not independent, so that chance is allowed much more than a table would."""
    size = len(counts)
    if size < 10:
        return None
    n = np.arange(1, size, dtype=np.float64)
    total = np.cumsum(counts)[:-1]
    squares = np.cumsum(counts**2)[:-1]
    m = size - n
    after, squares_after = counts.sum() - total, (counts**2).sum() - squares
    before_mean, after_mean = total / n, after / m
    # Counts vary at least as much as Poisson's.
    before_var = np.maximum(np.maximum(squares / n - before_mean**2, before_mean), 0.25)
    after_var = np.maximum(np.maximum(squares_after / m - after_mean**2, after_mean), 0.25)
    error = np.sqrt(before_var / n + after_var / m)
    step = np.abs(after_mean - before_mean)
    score = np.where(step > 0.15 * np.maximum(before_mean, after_mean), step / error, 0.0)
    # Three bins at either end are too few to be called a level.
    score[:2] = 0.0
    score[-4:] = 0.0
    best = int(np.argmax(score))
    return best + 1 if score[best] > 5.0 else None


def _spread(stretch: NDArray[np.float64], mean: float) -> float:
    """Half the width of the rate's confidence interval as a share of it, from the means of up to 20 batches of bins."""
    batches = min(20, len(stretch) // 3)
    if batches < 3:
        return 1.0
    width = len(stretch) // batches
    means = stretch[len(stretch) - batches * width :].reshape(batches, width).mean(axis=1)
    error = float(means.std(ddof=1)) / math.sqrt(batches)
    # One answer more or less at the edges is always possible.
    error = max(error, 1 / len(stretch))
    return _T90[batches - 3] * error / mean


@dataclass(frozen=True, kw_only=True)
class Prices:
    """US dollars: `per_hour` of all that serves the batch, `per_million_in` and `per_million_out` tokens. None: not known."""

    per_hour: float | None = None
    per_million_in: float | None = None
    per_million_out: float | None = None

    @property
    def known(self) -> bool:
        return any(price is not None for price in (self.per_hour, self.per_million_in, self.per_million_out))

    def cost(self, hours: float, tokens_in: float, tokens_out: float) -> float:
        """Dollars."""
        tokens = tokens_in * (self.per_million_in or 0.0) + tokens_out * (self.per_million_out or 0.0)
        return hours * (self.per_hour or 0.0) + tokens / 1e6


def projected(prices: Prices, *, busy: float, eta: float, done: int, left: int, tokens: tuple[int, int]) -> float:
    """Dollars at the end: as much per input for tokens as until now, and the hours until then; nan where nothing is known."""
    if not done or not math.isfinite(eta):
        return math.nan
    share = (done + left) / done
    return prices.cost((busy + eta) / 3600, tokens[0] * share, tokens[1] * share)


def warnings(
    eta: Eta, *, left: int, deadline: float | None, budget: float | None, cost: float, prices: Prices, spent: float
) -> list[str]:
    """What cannot be kept, and what would. `deadline`: seconds from now; `budget`, `cost` (projected), `spent`: dollars."""
    found = []
    perhaps = "" if eta.certain else " (as far as can be told: " + eta.because + ")"
    if deadline is not None and math.isfinite(eta.seconds) and eta.seconds > deadline and left:
        if deadline <= 0:
            found.append(
                f"the deadline has passed with {left:,} left; at this rate {span(eta.seconds)} more are needed"
            )
        else:
            needed = left / deadline
            found.append(
                f"the deadline cannot be kept{perhaps}: {span(eta.seconds)} are needed, {span(deadline)} are left; "
                f"{eta.seconds / deadline:.1f} times the endpoints would ({needed:.3g} requests/s instead of "
                f"{eta.sustained:.3g}), or {int(left - eta.sustained * deadline):,} inputs fewer"
            )
    if budget is not None and cost == cost and cost > budget and left:
        more = max(0.0, budget - spent)
        share = more / (cost - spent) if cost > spent else 0.0
        cheaper = f"; prices of {budget / cost:.0%} of these would (spot machines?)" if prices.known else ""
        found.append(
            f"the budget cannot be kept{perhaps}: {cost:,.2f} $ will be spent, {budget:,.2f} $ are allowed; it suffices for "
            f"{int(left * share):,} of the {left:,} inputs left{cheaper}"
        )
    return found


def span(seconds: float) -> str:
    """A time as people say it."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
