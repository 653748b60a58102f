"""One-sided confidence bounds over runs.

The unit is the run: requests within one run share its noise, so a bound over requests is far too narrow (identical source
failed at +8.95 % [7.16, 10.74] that way, lattice#1137). Latencies, rates and costs are positive and vary by factors, so
they are bounded on the logarithm (Student's t over runs), where a bound can never fall below zero.

Errors and goodput are shares of counted requests. Zero errors in every run has no variance to estimate from, so they are
bounded exactly over all requests (Clopper and Pearson, 1934); but errors come in bursts, and then requests are not
independent, so the bound is never narrower than Student's t over the shares of the runs. The wider of the two holds at the
confidence asked for as long as either model is right.

Where runs follow each other closely in value (a throttling card, a filling cache), they are not independent either: the
bound is then never narrower than that over blocks of neighbouring runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# The histograms that percentiles come from are exact to 1 %: runs that agree better than that agree by rounding.
RESOLUTION = 0.005
# Nearly the largest number there is. Runs that have nothing to do with each other are bounded by nothing; evidence may not hold
# infinity.
_MOST_LOG = 700.0
# Lag-1 correlation of neighbouring runs from which blocks are used. Of independent runs about one set in ten shows more.
_CORRELATED = 0.3
_FEWEST_FOR_BLOCKS = 6


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """`mean` over runs (geometric for factors); `lower` and `upper` each hold at the confidence asked for."""

    mean: float
    lower: float
    upper: float


def factor_bounds(samples: Sequence[float], confidence: float) -> Bounds:
    """Bounds of a positive quantity, one sample per run. Needs two samples or more, all above 0; else ValueError."""
    centre, half = interval(logs(samples), confidence, floor=RESOLUTION)
    return Bounds(mean=math.exp(centre), lower=math.exp(centre - half), upper=math.exp(min(centre + half, _MOST_LOG)))


def grown(log: float) -> float:
    """By which share something grew that is so much more on the logarithm."""
    return math.expm1(min(log, _MOST_LOG))


def count_bounds(hits: int, total: int, confidence: float) -> Bounds:
    """Exact bounds of the share of `hits` among independent requests. Needs one request or more; else ValueError."""
    from scipy.special import betaincinv

    if total <= 0 or not 0 <= hits <= total:
        raise ValueError("needs at least one request")
    lower = 0.0 if hits == 0 else float(betaincinv(hits, total - hits + 1, 1 - confidence))
    upper = 1.0 if hits == total else float(betaincinv(hits + 1, total - hits, confidence))
    return Bounds(mean=hits / total, lower=lower, upper=upper)


def share_bounds(counts: Sequence[tuple[int, int]], confidence: float) -> Bounds:
    """Bounds of a share of requests, one (hits, requests) per run: the wider of exact over requests and t over runs.

    Needs two runs or more with one request or more each; else ValueError.
    """
    if len(counts) < 2 or not all(0 <= hits <= total and total > 0 for hits, total in counts):
        raise ValueError("needs at least two runs with answered requests")
    exact = count_bounds(sum(hits for hits, _ in counts), sum(total for _, total in counts), confidence)
    centre, half = interval([hits / total for hits, total in counts], confidence, floor=0.0)
    return Bounds(
        mean=exact.mean,
        lower=max(0.0, min(exact.lower, centre - half)),
        upper=min(1.0, max(exact.upper, centre + half)),
    )


def logs(samples: Sequence[float]) -> list[float]:
    """Natural logarithms. Raises ValueError unless there are two samples or more, all positive and finite."""
    if not all(math.isfinite(sample) for sample in samples):
        raise ValueError("a run holds a value that is not a finite number")
    if len(samples) < 2 or min(samples) <= 0:
        raise ValueError("needs at least two runs with values above 0")
    return [math.log(sample) for sample in samples]


def quantile(freedom: float, confidence: float) -> float:
    """Student's t at that one-sided confidence; `freedom` may be a fraction (Welch and Satterthwaite)."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, confidence))


def mean_and_spread(samples: Sequence[float], floor: float) -> tuple[float, float]:
    """Mean and sample standard deviation, the latter at least `floor`."""
    centre = math.fsum(samples) / len(samples)
    square = math.fsum((sample - centre) ** 2 for sample in samples) / (len(samples) - 1)
    return centre, max(math.sqrt(square), floor)


def interval(samples: Sequence[float], confidence: float, floor: float) -> tuple[float, float]:
    """Mean and one-sided half width of Student's t."""
    centre, square, freedom = mean_error(samples, floor)
    return centre, quantile(freedom, confidence) * math.sqrt(square)


def mean_error(samples: Sequence[float], floor: float) -> tuple[float, float, int]:
    """Mean, its squared standard error and the degrees of freedom of that; of blocks where neighbouring runs are alike."""
    centre, spread = mean_and_spread(samples, floor)
    square, freedom = spread**2 / len(samples), len(samples) - 1
    if len(samples) >= _FEWEST_FOR_BLOCKS and correlation(samples) > _CORRELATED:
        blocks = [math.fsum(block) / len(block) for block in _blocks(samples)]
        _, between = mean_and_spread(blocks, floor)
        # Few blocks have few degrees of freedom; the error itself is never taken to be smaller than that of the runs.
        square, freedom = max(square, between**2 / len(blocks)), len(blocks) - 1
    return centre, square, freedom


def correlation(samples: Sequence[float]) -> float:
    """Of each run with the next (lag 1); 0 where all are the same."""
    centre = math.fsum(samples) / len(samples)
    square = math.fsum((sample - centre) ** 2 for sample in samples)
    if square <= 1e-24 * max(1.0, centre * centre):
        return 0.0
    products = ((one - centre) * (two - centre) for one, two in pairwise(samples))
    return math.fsum(products) / square


def _blocks(samples: Sequence[float]) -> list[Sequence[float]]:
    """Three neighbouring blocks of nearly the same length: as few as a spread can be taken from."""
    count = len(samples)
    edges = [round(count * part / 3) for part in range(4)]
    return [samples[start:end] for start, end in pairwise(edges)]
