"""One-sided confidence bounds over runs.

The unit is the run: requests within one run share its noise, so a bound over requests is far too narrow (identical source
failed at +8.95 % [7.16, 10.74] that way, lattice#1137). Latencies, rates and costs are positive and vary by factors, so
they are bounded on the logarithm (Student's t over runs); shares are bounded as they are; errors are counts and are bounded
exactly (Clopper and Pearson, 1934) over all requests, because zero errors in every run has no variance to estimate from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# The histograms that percentiles come from are exact to 1 %: runs that agree better than that agree by rounding.
_RESOLUTION = 0.005


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """`mean` over runs (geometric for factors); `lower` and `upper` each hold at the confidence asked for."""

    mean: float
    lower: float
    upper: float


def factor_bounds(samples: Sequence[float], confidence: float) -> Bounds:
    """Bounds of a positive quantity, one sample per run. Needs two samples or more, all above 0; else ValueError."""
    if len(samples) < 2 or min(samples) <= 0 or not all(math.isfinite(sample) for sample in samples):
        raise ValueError("needs at least two runs with positive, finite values")
    logs = [math.log(sample) for sample in samples]
    centre, half = _t_interval(logs, confidence, floor=_RESOLUTION)
    return Bounds(mean=math.exp(centre), lower=math.exp(centre - half), upper=math.exp(centre + half))


def share_bounds(samples: Sequence[float], confidence: float) -> Bounds:
    """Bounds of a share within 0..1, one sample per run. Needs two samples or more; else ValueError."""
    if len(samples) < 2 or not all(0 <= sample <= 1 for sample in samples):
        raise ValueError("needs at least two runs with shares within 0..1")
    centre, half = _t_interval(list(samples), confidence, floor=_RESOLUTION)
    return Bounds(mean=centre, lower=max(0.0, centre - half), upper=min(1.0, centre + half))


def count_bounds(failed: int, sent: int, confidence: float) -> Bounds:
    """Exact bounds of the share of failures among requests. Needs one request or more; else ValueError."""
    from scipy.special import betaincinv

    if sent <= 0 or not 0 <= failed <= sent:
        raise ValueError("needs at least one request")
    lower = 0.0 if failed == 0 else float(betaincinv(failed, sent - failed + 1, 1 - confidence))
    upper = 1.0 if failed == sent else float(betaincinv(failed + 1, sent - failed, confidence))
    return Bounds(mean=failed / sent, lower=lower, upper=upper)


def _t_interval(samples: list[float], confidence: float, floor: float) -> tuple[float, float]:
    from scipy.special import stdtrit

    count = len(samples)
    centre = math.fsum(samples) / count
    spread = math.sqrt(math.fsum((sample - centre) ** 2 for sample in samples) / (count - 1))
    return centre, float(stdtrit(count - 1, confidence)) * max(spread, floor) / math.sqrt(count)
