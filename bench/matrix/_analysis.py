"""From the cells of a matrix to a decision, with how sure it is.

Everything is done on logarithms of rates, where errors are relative. Cells of one worker count are pooled with the variance
between batches beside each cell's own (random effects; DerSimonian and Laird, Meta-analysis in clinical trials, Controlled
Clinical Trials 7, 1986), which is shared by all worker counts because each has only a few cells. Few cells cannot know that
variance: they are helped by two cells' worth of what batches of one service are known to differ by (moderated variances; Smyth,
Linear models and empirical Bayes methods, Statistical Applications in Genetics and Molecular Biology 3:1, 2004), so that a
matrix of a single batch size is unsure instead of certain. What follows from several rates at once (which scenario, which is
best) is counted over draws from Student's t around the pooled rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ..results import Analysis, Cell, Forecast, Level

# A tenth more is worth a worker; within a twentieth of the best is as good as the best.
_GAIN, _NEAR = 0.10, 0.05
_ERRORS = 0.05
_FLATTERS = 1.25
_DRAWS, _SEED = 20_000, 1
Scenario = Literal["workers help", "workers do not help", "workers hurt"]
_SCENARIOS: tuple[Scenario, ...] = ("workers help", "workers do not help", "workers hurt")
# What batches of one service differ by, as a share of the rate, before any is seen, and how many cells that is worth.
_PRIOR_SPREAD, _PRIOR_CELLS = 0.05, 2
# By how much the log rate may change with the log of the batch size before any is seen: 12 % for ten times as many requests.
_PRIOR_SLOPE = 0.05


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One measured rate at one level of workers (or slots). `spread`: its standard error as a share of it; `freedom`:
    degrees of freedom of that; `first`: the rate that the first 20 answers showed, nan where unknown."""

    level: int
    batch: int
    rate: float
    spread: float
    freedom: float
    error_rate: float
    seconds: float
    latency: float
    p95: float = math.nan
    first: float = math.nan
    refused: str = ""


def sample_of(cell: Cell) -> Sample | None:
    """The cell as a sample; None where it was too short to know a sustained rate."""
    metrics = cell.run.metrics
    rate = metrics.get("sustained_requests_per_second", 0.0)
    if not cell.run.valid or rate <= 0:
        return None
    return Sample(
        level=cell.workers,
        batch=cell.batch,
        rate=rate,
        spread=max(1e-4, metrics["sustained_requests_per_second_se"] / rate),
        freedom=max(1.0, metrics["sustained_batches"] - 1),
        error_rate=metrics["error_rate"],
        seconds=metrics["sustained_seconds"],
        latency=metrics["e2e_mean_seconds"],
        p95=metrics.get("e2e_p95_seconds", math.nan),
        first=metrics.get("first_20_requests_per_second", math.nan),
    )


@dataclass(frozen=True, kw_only=True)
class _Pooled:
    """Log rates by level, their standard errors, what batches differ by besides (tau), and the degrees of freedom.

    `drift`: change of the log rate with the log of the batch size, 0 where none is sure; `slope_error`: what that may be off by;
    `middle`: the mean log batch size. `spare`: cells beyond one for each level.
    """

    levels: tuple[int, ...]
    centre: NDArray[np.float64]
    error: NDArray[np.float64]
    tau: float
    freedom: float
    drift: float
    slope_error: float
    middle: float
    spare: int


def analyse(
    samples: Sequence[Sample], *, forecasts: Sequence[int] = (), what: str = "workers", lost: Sequence[str] = ()
) -> Analysis | None:
    """The decision; None without samples. `lost`: sentences about cells that could not be used.

    One level alone decides nothing (scenario "unknown"), but what it does, and how long batches take with it, is known.
    """
    levels = tuple(sorted({sample.level for sample in samples}))
    if not levels:
        return None
    pooled = _pool(samples, levels)
    draws = _drawn(pooled, pooled.error)
    refused = {level: _refused([s for s in samples if s.level == level]) for level in levels}
    optimal, optimal_confidence = _optimal(levels, pooled.centre, draws, refused)
    scenario: Scenario | Literal["unknown"]
    if len(levels) > 1:
        scenario, confidence = _scenario(pooled.centre, draws)
    else:
        scenario, confidence, optimal_confidence = "unknown", 0.0, 0.0
    quantile = _quantile(0.975, pooled.freedom)
    found = []
    for index, level in enumerate(levels):
        own = [sample for sample in samples if sample.level == level]
        tails = [sample.p95 for sample in own if sample.p95 == sample.p95]
        rate, margin = math.exp(pooled.centre[index]), math.exp(quantile * pooled.error[index])
        found.append(
            Level(
                workers=level, requests_per_second=rate, low=rate / margin, high=rate * margin,
                error_rate=float(np.mean([sample.error_rate for sample in own])),
                e2e_p95_seconds=max(tails) if tails else None, refused=refused[level],
            )
        )  # fmt: skip
    return Analysis(
        scenario=scenario,
        confidence=confidence,
        because=_because(found, what),
        optimal_workers=optimal,
        optimal_confidence=optimal_confidence,
        levels=tuple(found),
        forecasts=_forecasts(samples, pooled, levels.index(optimal), optimal, forecasts),
        warnings=(*_warnings(samples, pooled, forecasts, what), *_unsure(pooled, found, what), *lost),
    )


def _pool(samples: Sequence[Sample], levels: tuple[int, ...]) -> _Pooled:
    y = np.log([sample.rate for sample in samples])
    s = np.array([sample.spread for sample in samples])
    group = np.array([levels.index(sample.level) for sample in samples])
    batch = np.log([sample.batch for sample in samples])
    drift, slope_error = _drift(y, group, batch, len(levels))
    # Where longer batches go at another rate, all are seen as the longest.
    y = y + drift * (batch.max() - batch)
    spare = len(y) - len(levels) - (1 if drift else 0)
    tau2 = _PRIOR_CELLS * _PRIOR_SPREAD**2 + max(0, spare) * _between(y, s, group, len(levels), spare)
    tau2 /= _PRIOR_CELLS + max(0, spare)
    weight = 1 / (s**2 + tau2)
    total = np.array([weight[group == g].sum() for g in range(len(levels))])
    centre = np.array([(weight * y)[group == g].sum() for g in range(len(levels))]) / total
    return _Pooled(
        levels=levels, centre=centre, error=np.sqrt(1 / total), tau=math.sqrt(tau2),
        freedom=float(_PRIOR_CELLS + max(0, spare)), drift=drift, slope_error=slope_error, middle=float(batch.mean()),
        spare=spare,
    )  # fmt: skip


def _drift(
    y: NDArray[np.float64], group: NDArray[np.int64], batch: NDArray[np.float64], levels: int
) -> tuple[float, float]:
    """By how much the log rate rises with the log of the batch size, 0 where that may be chance or is below 5 %; and what any
    slope may be off by, which with one size of batch is all that is thought possible."""
    centred_y, centred_x = y.copy(), batch.copy()
    for g in range(levels):
        inside = group == g
        centred_y[inside] -= y[inside].mean()
        centred_x[inside] -= batch[inside].mean()
    spread, spare = float((centred_x**2).sum()), len(y) - levels - 1
    if spread <= 0:
        return 0.0, _PRIOR_SLOPE
    slope = float((centred_x * centred_y).sum()) / spread
    left = float(((centred_y - slope * centred_x) ** 2).sum())
    moderated = (left + _PRIOR_CELLS * _PRIOR_SPREAD**2) / (max(0, spare) + _PRIOR_CELLS)
    unsure = 1 / math.sqrt(spread / moderated + 1 / _PRIOR_SLOPE**2)
    if spare < 3:
        return 0.0, unsure
    error = math.sqrt(left / spare / spread)
    significant = abs(slope) > _quantile(0.995, spare) * error
    large = abs(slope) * float(batch.max() - batch.min()) > _NEAR
    return (slope if significant and large else 0.0), unsure


def _between(
    y: NDArray[np.float64], s: NDArray[np.float64], group: NDArray[np.int64], levels: int, spare: int
) -> float:
    """The variance between cells of one level beyond their own, shared by all levels."""
    if spare <= 0:
        return 0.0
    q = scale = 0.0
    for g in range(levels):
        weight = 1 / s[group == g] ** 2
        mean = float((weight * y[group == g]).sum() / weight.sum())
        q += float((weight * (y[group == g] - mean) ** 2).sum())
        scale += float(weight.sum() - (weight**2).sum() / weight.sum())
    return max(0.0, (q - spare) / scale) if scale > 0 else 0.0


def _quantile(share: float, freedom: float) -> float:
    """Of Student's t. Not by `scipy.stats`, which takes a second to import."""
    return float(special.stdtrit(freedom, share))


def _drawn(pooled: _Pooled, error: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draws × levels of log rates."""
    dice = np.random.default_rng(_SEED).standard_t(pooled.freedom, (_DRAWS, len(pooled.levels)))
    return np.asarray(pooled.centre + dice * error, dtype=np.float64)


def _which(rates: NDArray[np.float64]) -> NDArray[np.int64]:
    """Per row of log rates: 0 they help, 1 they don't, 2 they hurt."""
    few, many, best = rates[:, 0], rates[:, -1], rates.max(axis=1)
    helps = best >= few + math.log1p(_GAIN)
    hurts = ~helps & (many <= few + math.log1p(-_GAIN))
    return np.where(helps, 0, np.where(hurts, 2, 1))


def _scenario(centre: NDArray[np.float64], draws: NDArray[np.float64]) -> tuple[Scenario, float]:
    """Which one, and how sure. That the best of several beats the fewest is what chance alone brings about before long: such
    a claim has to hold against each of the comparisons that it was picked from (Sidak, JASA 62:318, 1967)."""
    found = int(_which(centre[None, :])[0])
    sure = float((_which(draws) == found).mean())
    if found == 0:
        best = int(centre.argmax())
        alone = float((draws[:, best] >= draws[:, 0] + math.log1p(_GAIN)).mean())
        sure = min(sure, alone ** (len(centre) - 1))
    return _SCENARIOS[found], sure


def _optimal(
    levels: tuple[int, ...], centre: NDArray[np.float64], draws: NDArray[np.float64], refused: dict[int, str]
) -> tuple[int, float]:
    """The fewest within 5 % of the best that may be chosen (all, where none may), and in how many draws it is that."""
    allowed = np.array([not refused[level] for level in levels])
    if not allowed.any():
        allowed[:] = True

    def pick(rates: NDArray[np.float64]) -> NDArray[np.int64]:
        usable = np.where(allowed, rates, -np.inf)
        near = usable >= usable.max(axis=1, keepdims=True) + math.log1p(-_NEAR)
        return np.asarray(near.argmax(axis=1), dtype=np.int64)

    index = int(pick(centre[None, :])[0])
    # A draw agrees where the choice is within 5 % of that draw's best: another count might then save workers, not time.
    usable = np.where(allowed, draws, -np.inf)
    agrees = usable[:, index] >= usable.max(axis=1) + math.log1p(-2 * _NEAR)
    return levels[index], float(agrees.mean())


def _refused(own: Sequence[Sample]) -> str:
    errors = float(np.mean([sample.error_rate for sample in own]))
    if errors > _ERRORS:
        return f"{errors:.1%} of its requests failed"
    return next((sample.refused for sample in own if sample.refused), "")


def _counted(count: int, what: str) -> str:
    return f"{count} {what if count != 1 else what.removesuffix('s')}"


def _because(levels: Sequence[Level], what: str) -> str:
    few, many = levels[0], levels[-1]
    if len(levels) == 1:
        return f"{few.requests_per_second:.3g} requests/s with {_counted(few.workers, what)}"
    best = max(levels, key=lambda level: level.requests_per_second)
    text = (
        f"{few.requests_per_second:.3g} requests/s with {_counted(few.workers, what)}, at best "
        f"{best.requests_per_second:.3g} with {best.workers} (× {best.requests_per_second / few.requests_per_second:.2f})"
    )
    if many.requests_per_second < best.requests_per_second * (1 - _GAIN):
        text += f", down to {many.requests_per_second:.3g} with {many.workers}"
    return text


def _forecasts(
    samples: Sequence[Sample], pooled: _Pooled, index: int, level: int, counts: Sequence[int]
) -> tuple[Forecast, ...]:
    """Another batch differs from the mean of those that were measured by tau, besides what the mean is unsure by; and the
    further it is from them, by what the rate may change with the size. A change that was seen may go on: the interval, not
    the figure, has it."""
    rate = math.exp(float(pooled.centre[index]))
    largest = math.log(max(sample.batch for sample in samples))
    # The last answers come one latency after the last request was sent.
    tail = max(sample.latency for sample in samples if sample.level == level)
    found = []
    for count in counts:
        away = math.log(count)
        error = math.sqrt(
            float(pooled.error[index]) ** 2 + pooled.tau**2 + (pooled.slope_error * (away - pooled.middle)) ** 2
        )
        margin = math.exp(_quantile(0.95, pooled.freedom) * error)
        on = math.exp(pooled.drift * max(0.0, away - largest))
        found.append(
            Forecast(
                requests=count,
                seconds=count / rate + tail,
                low=count / rate / margin / max(1.0, on) + tail,
                high=count / rate * margin / min(1.0, on) + tail,
            )
        )
    return tuple(found)


def _warnings(samples: Sequence[Sample], pooled: _Pooled, forecasts: Sequence[int], what: str) -> tuple[str, ...]:
    found = []
    flattered = [sample for sample in samples if sample.first >= _FLATTERS * sample.rate]
    if flattered:
        worst = max(flattered, key=lambda sample: sample.first / sample.rate)
        found.append(
            f"a small sample flatters: the first 20 requests with {_counted(worst.level, what)} went at {worst.first:.2f} "
            f"requests/s, {worst.rate:.2f} were sustained ({worst.first / worst.rate:.1f} times less)"
        )
    if pooled.drift:
        ends = [math.log(sample.batch) for sample in samples]
        change = math.expm1(pooled.drift * (max(ends) - min(ends)))
        found.append(
            f"the rate changes by {change:+.0%} from the smallest to the largest batch: figures are for the largest, and "
            "longer batches may differ by as much again"
        )
    longest = max(sample.batch for sample in samples)
    far = [count for count in forecasts if count > 20 * longest]
    if far:
        found.append(f"{far[-1]} requests are more than 20 times the largest batch measured ({longest})")
    short = [sample for sample in samples if sample.seconds < 10 * sample.latency]
    if short:
        found.append(
            f"{len(short)} of {len(samples)} cells lasted less than ten answers' time: measure larger batches to be sure"
        )
    return tuple(found)


def _unsure(pooled: _Pooled, levels: Sequence[Level], what: str) -> tuple[str, ...]:
    """What so few cells cannot know."""
    found = []
    if len(levels) == 1:
        found.append(f"one number of {what} alone does not say whether more would help")
    if pooled.spare <= 0:
        found.append(
            f"one cell for each number of {what}: by how much another one would differ is not known, and {_PRIOR_SPREAD:.0%} is "
            "taken for it"
        )
    if all(level.refused for level in levels):
        found.append(f"no number of {what} can be recommended: {levels[0].refused} with {levels[0].workers}")
    return tuple(found)
