"""Whether what was measured, times the target's fleet, carries the target's traffic.

Closed loop. `N` users who think for `Z` seconds and wait `L` for the reply ask `X = N / (L + Z)` times a second (the
interactive response time law, Little's law for a closed loop). Two ways to know how many users `R` replicas carry:

- as measured: `R ×` the users per replica of the benchmark, if those thought no longer than these do. No model, no noise;
- by the law: a service that answers at least `x` requests per second and replica keeps the mean latency of `N` users at or
  below `N / (R x) - Z`; so that it stays within `L*`, `N ≤ R x (L* + Z)`. This takes `x` not to fall as users are added
  (engines with a fixed number of slots queue, they do not slow down), and it bounds the end-to-end latency only: where
  time to first token, inter-token latency or goodput are promised, nothing beyond the measured load is concluded.
  `L*` is the promised 95th percentile times mean / 95th percentile as measured; without such a promise the measured mean.

The larger counts. Open loop: arrivals do not wait, so the measured rate is what was offered, as long as it was answered
(its lower bound is within 5 % of it: a service that falls behind further than that has a growing queue); else the lower
bound itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import stacks
from bench.results import Result

from ._judge import Criterion, Outcome, failing_confidence, passing_confidence, samples_of
from ._statistics import Bounds, factor_bounds

if TYPE_CHECKING:
    import planner

_KEPT_UP = 0.95


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What `replicas` carry, in users (closed loop) or requests per second: surely, as measured, and at most."""

    lower: float
    mean: float
    upper: float
    how: str


def capacity(stack: stacks.Stack, criteria: stacks.Criteria, result: Result, replicas: int) -> Capacity:
    """Of that many replicas under the stack's traffic. Raises ValueError when the result does not say."""
    rates = samples_of("requests_per_second", [run for run in result.runs if run.valid])
    confidence = passing_confidence(criteria)
    upper = factor_bounds(rates, failing_confidence(criteria, stack.objectives)).upper
    rate = replace(factor_bounds(rates, confidence), upper=upper)
    times = replicas / result.replicas
    if stack.traffic.arrival == "closed":
        return _users(stack, result, rate, times, confidence)
    offered = result.traffic.requests_per_second or 0.0
    if rate.lower >= _KEPT_UP * offered > 0:
        return Capacity(lower=times * offered, mean=times * offered, upper=times * offered, how="as offered")
    return Capacity(lower=times * rate.lower, mean=times * rate.mean, upper=times * rate.upper, how="as answered")


def _users(stack: stacks.Stack, result: Result, rate: Bounds, times: float, confidence: float) -> Capacity:
    runs = [run for run in result.runs if run.valid]
    mean = factor_bounds(samples_of("e2e_mean_seconds", runs), confidence).mean
    promise, think = stack.objectives, stack.traffic.think_seconds
    within = mean
    if promise.e2e_p95_seconds is not None:
        beyond = promise.ttft_p95_seconds is None and promise.itl_p95_seconds is None and promise.goodput is None
        high = factor_bounds(samples_of("e2e_p95_seconds", runs), confidence).mean
        within = promise.e2e_p95_seconds * min(1.0, mean / high) if beyond else mean
    law = [times * each * (within + think) for each in (rate.lower, rate.mean, rate.upper)]
    if result.traffic.arrival == "closed" and result.traffic.think_seconds <= think:
        seen = times * float(result.traffic.users or 0)
        if seen >= law[0]:
            return Capacity(lower=seen, mean=seen, upper=max(seen, law[2]), how="users as measured")
    return Capacity(lower=law[0], mean=law[1], upper=law[2], how=f"a mean latency of {within:.2f} s")


def scale(stack: stacks.Stack, criteria: stacks.Criteria, result: Result, plan: planner.Plan) -> Criterion:
    """Capacity of the target's fleet at its maximum (`plan`) against its traffic × headroom; says what is missing."""
    closed = stack.traffic.arrival == "closed"
    unit = "users" if closed else "req/s"
    needed = float((stack.traffic.users if closed else stack.traffic.requests_per_second) or 0) * criteria.headroom
    shown = f"≥ {needed:g} {unit}"
    try:
        found = capacity(stack, criteria, result, plan.replicas_max)
    except ValueError as error:
        return Criterion(metric="scale", needed=shown, outcome="inconclusive", why=str(error))
    why = f"{found.lower / plan.replicas_max:.3g} {unit} per replica ({found.how}) × {plan.replicas_max} replicas"
    outcome: Outcome = "pass"
    # Equal counts of users must not differ by the last bit of a quotient.
    if found.lower < needed * (1 - 1e-9):
        outcome = "fail" if found.upper < needed else "inconclusive"
        nodes = math.ceil((needed - found.lower) / (found.lower / plan.nodes_max) - 1e-9)
        why += f"; short by {nodes} node(s), ${nodes * plan.cost_per_hour_max_usd / plan.nodes_max:.2f}/h"
    return Criterion(
        metric="scale",
        needed=shown,
        measured=found.mean,
        bound=found.lower,
        confidence=passing_confidence(criteria),
        outcome=outcome,
        why=why,
    )
