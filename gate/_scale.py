"""Whether what was measured, times the target's fleet, carries the target's traffic."""

from __future__ import annotations

import math

import planner
import stacks
from bench.results import Result

from ._judge import Criterion
from ._statistics import factor_bounds


def demand(stack: stacks.Stack, measured_latency: float) -> float:
    """Requests per second that the stack's traffic asks for.

    Open arrivals ask for their rate. Closed users ask as fast as they are answered, so by Little's law the rate that keeps
    the promise is users / (latency + think time), with the promised p95 latency where there is one, else the measured mean.
    """
    traffic = stack.traffic
    if traffic.arrival != "closed":
        return float(traffic.requests_per_second or 0)
    latency = stack.objectives.e2e_p95_seconds or measured_latency
    return float(traffic.users or 0) / (latency + traffic.think_seconds)


def scale(stack: stacks.Stack, criteria: stacks.Criteria, result: Result) -> Criterion:
    """Measured rate per replica (its lower bound) × the fleet at its maximum against the demand × headroom."""
    runs = [run for run in result.runs if run.valid]
    samples = [run.metrics.get("requests_per_second", 0.0) for run in runs]
    latencies = [run.metrics.get("e2e_mean_seconds", 0.0) for run in runs]
    try:
        rate = factor_bounds(samples, criteria.confidence)
    except ValueError as error:
        return Criterion(
            metric="scale",
            needed="capacity ≥ demand",
            measured=None,
            bound=None,
            outcome="inconclusive",
            why=str(error),
        )
    plan = planner.plan(stack)
    per_replica = rate.lower / result.replicas
    capacity = per_replica * plan.replicas_max
    needed = demand(stack, sum(latencies) / len(latencies)) * criteria.headroom
    why = f"{per_replica:.2f} req/s per replica × {plan.replicas_max} replicas"
    if capacity < needed:
        nodes = math.ceil((needed - capacity) / (per_replica * max(1, plan.replicas_per_node)))
        node_cost = plan.cost_per_hour_max_usd / max(1, plan.nodes_max)
        why += f"; short by {nodes} node(s), ${nodes * node_cost:.2f}/h"
    return Criterion(
        metric="scale",
        needed=f"≥ {needed:.2f} req/s",
        measured=rate.mean / result.replicas * plan.replicas_max,
        bound=capacity,
        outcome="pass" if capacity >= needed else "fail",
        why=why,
    )
