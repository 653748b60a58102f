"""What a stack is scaled on, and how fast: pure functions from its settings to the spec of a KEDA ScaledObject.

The demand is counted in replicas. `queue-and-slots` adds up what runs, against the slots a replica shall have in use, and
what waits: neither alone is enough. A queue that has gone because new replicas took it over reads as "one replica will do",
and slots that are all in use read as "as many as there are", however long the queue. Two triggers would give the larger of
the two; the sum is what is needed, so it is a formula (`scalingModifiers`), and each query stays simple enough to be checked.
Where a proxy of ours stands in front, requests beyond the slots wait in it and not in the engine, and its queue is added.
docs/autoscaling.md has the policies measured on one trace.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import stacks

GATEWAY_METRIC = "haproxy_backend_current_sessions"
# What waits for any replica, and what waits for the one that its session belongs to.
GATEWAY_QUEUES = ("haproxy_backend_current_queue", "haproxy_server_current_queue")
CPU_METRIC = "process_cpu_seconds_total"
# The HPA controller refuses longer windows.
_LONGEST_WINDOW = 3600
# A fleet of simulators: when it grows, when it shrinks, in Prometheus' durations.
_CPU_HIGH, _CPU_HIGH_FOR = 0.75, "5m"
_CPU_LOW, _CPU_LOW_FOR = 0.40, "10m"
_ADDED_HIGH, _ADDED_HIGH_FOR = 0.015, "2m"
# What an HPA on CPU is usually given.
_CPU_TARGET = 0.8


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a stack's demand can be read. `waiting`, `running`: the engine's metrics, None where it has none.

    `gateway`: a proxy of ours stands before it; `services`: its backends. `slots`: of one replica; `cpus`: that it asks for.
    """

    namespace: str
    waiting: str | None
    running: str | None
    gateway: bool
    services: tuple[str, ...] = ("engine",)
    slots: int = 1
    cpus: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """One query and how much of its number one replica carries.

    `metrics`: what it reads. `always`: whether these exist also while no replica runs.
    """

    name: str
    query: str
    per_replica: float
    metrics: tuple[str, ...]
    always: bool


def check_source(engine: str, source: Source) -> None:
    """Raises InputError where there is nothing to scale on."""
    if source.waiting is None and not source.gateway:
        raise stacks.InputError(
            where="tollgate:fleet.nodes",
            got=f"min below max with engine {engine} and no gateway",
            allowed="min equal to max, or a gateway of kind proxy, whose open requests are counted: "
            "this engine publishes no metric of its queue",
            fix="add tollgate:gateway with kind proxy, or set nodes.min to nodes.max",
        )


def triggers(scaling: stacks.Autoscaling, source: Source, *, replicas_min: int) -> tuple[Trigger, ...]:
    """What KEDA asks, in order. Each query gives exactly one series as long as what it reads exists.

    There is no `or vector(0)` around what must exist: a metric that was renamed would count as an idle service for ever.
    While nobody serves an engine's metrics are rightly missing (keda#6040), and only there they count as 0.
    """
    own = _policy(scaling, source, at_zero=replicas_min == 0)
    return (*own, *_extra(scaling))


def gateway_queue(where: str, proxies: str) -> str:
    """What waits in the proxies for a replica, as one series; `where`, `proxies`: label matchers, a regular expression."""
    return " + ".join(f'sum({metric}{{{where},proxy=~"{proxies}"}})' for metric in GATEWAY_QUEUES)


def _policy(scaling: stacks.Autoscaling, source: Source, *, at_zero: bool) -> tuple[Trigger, ...]:
    where = f'namespace="{source.namespace}"'
    in_use = source.slots * scaling.slots_share
    services = "|".join(source.services)
    counts_queue = source.gateway and source.waiting is not None and scaling.policy in ("queue", "queue-and-slots")

    def engine(name: str, metric: str, per_replica: float, text: str = "sum({})") -> Trigger:
        query = text.format(f"{metric}{{{where}}}")
        if at_zero:
            query = f"({query}) or vector(0)"
        return Trigger(name=name, query=query, per_replica=per_replica, metrics=(metric,), always=False)

    def gateway(name: str, proxies: str, per_replica: float) -> Trigger:
        query = f'sum({GATEWAY_METRIC}{{{where},proxy=~"{proxies}"}})'
        return Trigger(name=name, query=query, per_replica=per_replica, metrics=(GATEWAY_METRIC,), always=True)

    def queued(per_replica: float) -> Trigger:
        return Trigger(
            name="queued",
            query=gateway_queue(where, services),
            per_replica=per_replica,
            metrics=GATEWAY_QUEUES,
            always=True,
        )

    def held(per_replica: float) -> Trigger:
        """What is open at the gateway, beside its queue, while no replica runs anything: it is held there."""
        found = gateway("held", services, per_replica)
        queue = f" - ({gateway_queue(where, services)})" if counts_queue else ""
        served = f"sum({source.running or CPU_METRIC}{{{where}}})" + (" > 0" if source.running else "")
        return dataclasses.replace(found, query=f"({found.query}{queue} unless on() ({served})) or vector(0)")

    if scaling.policy == "simulator":
        return (_simulators(source),)
    if scaling.policy == "cpu":
        busy = engine("cpu", CPU_METRIC, source.cpus * _CPU_TARGET, "sum(rate({}[15s]))")
        return (busy, *([held(scaling.waiting_per_replica)] if at_zero else []))
    if source.waiting is None:
        # A gateway cannot tell who waits inside of the engine: what is open there both waits and runs.
        return (gateway("open", services, in_use),)
    # With many slots a handful of waiting requests is no reason for another GPU: they run in the next moment.
    per_waiting = (
        max(scaling.waiting_per_replica, in_use) if scaling.policy == "queue-and-slots" else scaling.waiting_per_replica
    )
    found = [engine("waiting", source.waiting, per_waiting)]
    if counts_queue:
        found.append(queued(per_waiting))
    if source.running is not None and scaling.policy == "queue-and-slots":
        found.append(engine("running", source.running, in_use))
    elif source.running is not None and at_zero:
        # What still runs keeps the last replica, however short the queue; it asks for no second one.
        found.append(engine("running", source.running, 100_000))
    if at_zero:
        found.append(held(per_waiting))
    return tuple(found)


def _simulators(source: Source) -> Trigger:
    """Half as many more where CPU or added latency have been too high for long, a tenth fewer after a long calm."""
    where = f'namespace="{source.namespace}"'
    n = f'count(up{{{where},pod=~"engine-.+"}} == 1)'
    cpu, added = f"tollgate:cpu_utilisation:ratio{{{where}}}", f"tollgate:added_latency_seconds:p99{{{where}}}"
    high = (
        f"clamp_max(sum(min_over_time({cpu}[{_CPU_HIGH_FOR}]) > bool {_CPU_HIGH})"
        f" + (sum(min_over_time({added}[{_ADDED_HIGH_FOR}]) > bool {_ADDED_HIGH}) or vector(0)), 1)"
    )
    low = f"sum(max_over_time({cpu}[{_CPU_LOW_FOR}]) < bool {_CPU_LOW})"
    return Trigger(
        name="fleet",
        query=f"ceil({n} * (1 + 0.5 * {high})) - (1 - {high}) * {low} * ceil({n} * 0.1)",
        per_replica=1.0,
        metrics=("up", "tollgate:cpu_utilisation:ratio"),
        always=False,
    )


def _extra(scaling: stacks.Autoscaling) -> tuple[Trigger, ...]:
    return tuple(
        Trigger(name=one.name, query=one.query, per_replica=one.per_replica, metrics=(), always=True)
        for one in scaling.queries
    )


def cooldown_seconds(scaling: stacks.Autoscaling, cold_start_seconds: float) -> int:
    """Quiet before replicas are taken away. Raises InputError for one below the cold start.

    Below it KEDA takes a pod away while it loads, and the request that woke it up wakes the next one (superlinked/sie#293).
    """
    cold = scaling.cold_start_seconds or cold_start_seconds
    if scaling.cooldown_seconds is None:
        return min(_LONGEST_WINDOW, max(300, math.ceil(cold * 2)))
    if scaling.cooldown_seconds < cold:
        raise stacks.InputError(
            where="tollgate:autoscaling.cooldown_seconds",
            got=f"{scaling.cooldown_seconds} s",
            allowed=f"at least the cold start of a replica, {cold:.0f} s by plan"
            if scaling.cold_start_seconds is None
            else f"at least the measured cold start, {cold:g} s",
            fix="raise it, or set autoscaling.cold_start_seconds to what has been measured",
        )
    return scaling.cooldown_seconds


def scaled_object(
    scaling: stacks.Autoscaling,
    asked: Sequence[Trigger],
    *,
    target: dict[str, str],
    replicas_min: int,
    replicas_max: int,
    cold_start_seconds: float,
    prometheus_url: str,
) -> dict[str, Any]:
    """The spec of the ScaledObject. Raises InputError for a cooldown below the cold start."""
    cooldown = cooldown_seconds(scaling, cold_start_seconds)
    held = max(1, replicas_min)
    advanced: dict[str, Any] = {
        "horizontalPodAutoscalerConfig": {"behavior": _behaviour(cooldown, replicas_max)},
        "restoreToOriginalReplicaCount": False,
    }
    # Of several triggers an HPA takes the largest; of a queue in two places it is the sum that waits.
    formula = scaling.policy in ("queue", "queue-and-slots") and len(asked) > 1
    if formula:
        advanced["scalingModifiers"] = {
            "formula": " + ".join(f"{one.name} / {one.per_replica:g}" for one in asked),
            "target": "1",
            "activationTarget": "0",
            "metricType": "AverageValue",
        }
    return {
        "scaleTargetRef": target,
        "pollingInterval": scaling.polling_seconds,
        # Of the step to 0 alone; the steps above have the window in `behavior`.
        "cooldownPeriod": cooldown,
        "initialCooldownPeriod": cooldown,
        "minReplicaCount": replicas_min,
        "maxReplicaCount": replicas_max,
        # Whoever is blind holds what he has: neither down while Prometheus is away, nor below what the stack wants.
        "fallback": {
            "failureThreshold": scaling.failures,
            "replicas": held,
            "behavior": "currentReplicasIfHigher",
        },
        "advanced": advanced,
        "triggers": [
            {
                "type": "prometheus",
                "name": one.name,
                **({} if formula else {"metricType": "AverageValue"}),
                "metadata": {
                    "serverAddress": prometheus_url,
                    "query": one.query,
                    "threshold": f"{one.per_replica:g}",
                    # Any request at all wakes the service up, and keeps its last replica.
                    "activationThreshold": "0",
                    # No answer is an error, which the fallback is for, not a zero.
                    "ignoreNullValues": "false",
                },
            }
            for one in asked
        ],
    }


def _behaviour(cooldown: int, replicas_max: int) -> dict[str, Any]:
    """Up at once and all the way, because a queue is measured need and a cold start long; down by halves after the cooldown.

    The window down looks at the highest demand of the whole cooldown: a load that flaps faster changes nothing, and no more
    than one reversal fits into it.
    """
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Pods", "value": max(4, replicas_max), "periodSeconds": 15}],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": cooldown,
            "policies": [
                {"type": "Percent", "value": 50, "periodSeconds": max(1, min(60, cooldown))},
                {"type": "Pods", "value": 1, "periodSeconds": max(1, min(60, cooldown))},
            ],
            "selectPolicy": "Max",
        },
    }
