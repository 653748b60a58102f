"""Recording rules and alerts of one stack: pure functions from what is known of it to Prometheus' rule file.

Every engine's metrics are recorded under one set of names, `tollgate:…`, which alerts, dashboards and `tollgate watch` read: an
engine that renames a metric changes one line here. A promise on latency is judged on the engine's own histogram, at the
largest of its bounds within the promise: a bound that the histogram does not have would match nothing and never fire.

Deliberately not here: who is told. That is Alertmanager's, and yours.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import planner
import stacks

from .autoscaler_policy import GATEWAY_QUEUES, Source

# Bounds of the histograms, by dialect. vLLM's as 0.32 serves them (tests/bench/simulator/vllm-0.32.0-series.txt); the jump from
# 1.0 to 2.5 is its own. SGLang's as its source states them (tests/components/sglang-metrics.txt says where).
BOUNDS: dict[str, dict[str, tuple[float, ...]]] = {
    "vllm": {
        "ttft": (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
                 160.0, 640.0, 2560.0),
        "itl": (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
        "e2e": (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
                1920.0, 7680.0),
    },
    "sglang": {
        "ttft": (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0, 400.0),
        "itl": (0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 0.6, 0.8,
                1.0, 2.0, 4.0, 6.0, 8.0),
        "e2e": (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0, 400.0, 600.0,
                1200.0, 1800.0, 2400.0),
    },
}  # fmt: skip
_HISTOGRAMS = {"ttft": "time_to_first_token_seconds", "itl": "inter_token_latency_seconds",
               "e2e": "e2e_request_latency_seconds"}  # fmt: skip
_WORDS = {"ttft": "time to first token", "itl": "time between tokens", "e2e": "time to the last token"}
# Google's SRE workbook, chapter 5: a fast burn eats 2 % of a month's budget in an hour, a slow one 5 % in six.
_BURNS = (("fast", 14.4, "1h", "5m", "critical"), ("slow", 6.0, "6h", "30m", "warning"))
_BUDGET = 0.05


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a stack when it is deployed.

    `dialect`: whose metrics its pods have (`vllm`, `sglang`), empty for none. `memory_bytes`: that a replica asks for.
    `start_seconds`: within which a pod must be Ready. `replica_usd_per_hour`: of one replica. `evidence_until`: when what let
    the release in expires, as Unix seconds. `fleet`: a fleet of simulators, judged by what it adds.
    """

    stack: str
    model: str
    region: str
    source: Source
    dialect: str
    objectives: Mapping[str, float]
    replicas_min: int
    replicas_max: int
    memory_bytes: float
    start_seconds: float
    replica_usd_per_hour: float
    autoscaled: bool
    fleet: bool = False
    evidence_until: float | None = None


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One alert. `minutes`: for so long before it fires."""

    name: str
    expr: str
    minutes: float
    severity: str
    summary: str
    action: str
    labels: Mapping[str, str] = field(default_factory=dict)


def bound_within(dialect: str, kind: str, limit: float) -> float:
    """The largest bound of that histogram that is not above the promise; the smallest where all are."""
    bounds = BOUNDS[dialect][kind]
    return max((bound for bound in bounds if bound <= limit), default=bounds[0])


def cpu(pods: str) -> str:
    """Cores in use by each replica, as a query; `pods`: matchers.

    By the kubelet where it is scraped, as kube-prometheus-stack does: an engine's own number leaves out its workers, where it
    has one at all. Else by what the process says of itself. Two minutes, because the kubelet is asked every 30 s.
    """
    return (
        f'(sum by (namespace, pod) (rate(container_cpu_usage_seconds_total{{{pods},container!=""}}[2m]))'
        f" or sum by (namespace, pod) (rate(process_cpu_seconds_total{{{pods}}}[1m])))"
    )


def memory(pods: str) -> str:
    """Bytes in use by each replica, as a query, by the same sources as `cpu`."""
    return (
        f'(sum by (namespace, pod) (container_memory_working_set_bytes{{{pods},container!=""}})'
        f" or sum by (namespace, pod) (process_resident_memory_bytes{{{pods}}}))"
    )


def queue_known(source: Source) -> bool:
    """Whether anybody says how many requests wait: the engine, or a proxy of ours in front of it."""
    return source.waiting is not None or source.gateway


def errors_counted(facts: Facts) -> str:
    """Who counts failed requests: the engine, the gateway, or empty for nobody."""
    return "engine" if facts.dialect == "vllm" else "gateway" if facts.source.gateway else ""


def _shown(value: float) -> str:
    """A bound as Prometheus' client writes it into `le`."""
    return repr(float(value))


# ---------------------------------------------------------------- recordings


def recordings(facts: Facts) -> list[tuple[str, str]]:
    """(record, expr) pairs. What a stack has no source for is left out, and so is what would be read from it."""
    ns, source = f'namespace="{facts.source.namespace}"', facts.source
    pods = f'{ns},pod=~"engine.*"'
    # An engine without metrics is not scraped: its replicas are known from their state alone.
    there = (
        f"count by (namespace) (up{{{pods}}} == 1)"
        if facts.dialect
        else f'sum by (namespace) (kube_pod_status_ready{{{pods},condition="true"}})'
    )
    found = [
        ("tollgate:replicas:count", there),
        ("tollgate:slots:sum", f"{there} * {source.slots}"),
        ("tollgate:cpu_utilisation:ratio", f"avg by (namespace) {cpu(pods)} / {source.cpus:g}"),
        ("tollgate:cpu_utilisation:max", f"max by (namespace) {cpu(pods)} / {source.cpus:g}"),
        ("tollgate:memory_utilisation:max", f"max by (namespace) {memory(pods)} / {facts.memory_bytes:.0f}"),
    ]
    if queue_known(source):
        found.append(("tollgate:queue:sum", _queue(source, ns)))
    if source.running:
        found.append(("tollgate:running:sum", f"sum by (namespace) ({source.running}{{{ns}}})"))
    if facts.dialect:
        found += _engine(facts, ns)
    elif source.gateway:
        found += _gateway(ns)
    if errors_counted(facts) == "gateway":
        found += _failed(ns)
    if any(record == "tollgate:output_tokens:rate1m" for record, _ in found):
        found.append(
            (
                "tollgate:cost_per_million_tokens:usd",
                f"tollgate:replicas:count{{{ns}}} * {facts.replica_usd_per_hour:g}"
                f" / (tollgate:output_tokens:rate1m{{{ns}}} * 3600 / 1e6)",
            )
        )
    return found


def _queue(source: Source, ns: str) -> str:
    engines = f"sum by (namespace) ({source.waiting}{{{ns}}})"
    if not source.gateway:
        return engines
    # Beyond the slots requests wait in the proxies; while these are not scraped, the engines' queue is what is known.
    proxies = f"sum by (namespace) ({' or '.join(f'{metric}{{{ns}}}' for metric in GATEWAY_QUEUES)})"
    return f"{engines} + ({proxies} or 0 * {engines})" if source.waiting else proxies


def _engine(facts: Facts, ns: str) -> list[tuple[str, str]]:
    vllm = facts.dialect == "vllm"
    done = "vllm:request_success_total" if vllm else "sglang:num_requests_total"
    kv = "vllm:kv_cache_usage_perc" if vllm else "sglang:token_usage"
    found = [
        ("tollgate:requests:rate1m", f"sum by (namespace) (rate({done}{{{ns}}}[1m]))"),
        ("tollgate:requests:increase1h", f"sum by (namespace) (increase({done}{{{ns}}}[1h]))"),
        (
            "tollgate:output_tokens:rate1m",
            f"sum by (namespace) (rate({facts.dialect}:generation_tokens_total{{{ns}}}[1m]))",
        ),
        ("tollgate:input_tokens:rate1m", f"sum by (namespace) (rate({facts.dialect}:prompt_tokens_total{{{ns}}}[1m]))"),
        ("tollgate:kv_cache:max", f"max by (namespace) ({kv}{{{ns}}})"),
    ]
    if vllm:
        all_requests = f'http_requests_total{{{ns},handler!~"/metrics|/health|/v1/models|none"}}'
        failed = f'http_requests_total{{{ns},handler!~"/metrics|/health|/v1/models|none",status="5xx"}}'
        found += [
            ("tollgate:preemptions:rate5m", f"sum by (namespace) (rate(vllm:num_preemptions_total{{{ns}}}[5m]))"),
            (
                "tollgate:added_latency_seconds:p99",
                "histogram_quantile(0.99, sum by (namespace, le) "
                f"(rate(http_request_duration_highr_seconds_bucket{{{ns}}}[1m])))",
            ),
            *[
                (
                    f"tollgate:errors:ratio{window}",
                    f"((sum by (namespace) (rate({_over(failed, window)}))) or 0 * sum by (namespace) "
                    f"(rate({_over(all_requests, window)}))) / (sum by (namespace) (rate({_over(all_requests, window)})) > 0)",
                )
                for window in ("2m", "5m", "30m", "1h", "6h")
            ],
        ]
    for kind, short in _HISTOGRAMS.items():
        name = f"{facts.dialect}:{short}"
        for share in (50, 95, 99):
            found.append(
                (
                    f"tollgate:{kind}_seconds:p{share}",
                    f"histogram_quantile({share / 100:g}, sum by (namespace, le) (rate({name}_bucket{{{ns}}}[1m])))",
                )
            )
    # Shares of requests over the promise.
    for kind, limit in _latencies(facts):
        name, bound = f"{facts.dialect}:{_HISTOGRAMS[kind]}", _shown(bound_within(facts.dialect, kind, limit))
        for window in ("5m", "30m", "1h", "6h"):
            within = f'sum by (namespace) (rate({name}_bucket{{{ns},le="{bound}"}}[{window}]))'
            found.append(
                (
                    f"tollgate:{kind}_over:ratio{window}",
                    f"1 - {within} / (sum by (namespace) (rate({name}_count{{{ns}}}[{window}])) > 0)",
                )
            )
    return found


def _over(selector: str, window: str) -> str:
    return f"{selector}[{window}]"


def _gateway(ns: str) -> list[tuple[str, str]]:
    """What the proxy knows of an engine without metrics. Its times are means of the last 1024 requests, not percentiles."""
    answers = "haproxy_backend_http_responses_total"
    return [
        ("tollgate:open:sum", f"sum by (namespace) (haproxy_backend_current_sessions{{{ns}}})"),
        ("tollgate:requests:rate1m", f'sum by (namespace) (rate({answers}{{{ns},code="2xx"}}[1m]))'),
        ("tollgate:requests:increase1h", f'sum by (namespace) (increase({answers}{{{ns},code="2xx"}}[1h]))'),
        ("tollgate:e2e_seconds:mean", f"max by (namespace) (haproxy_backend_total_time_average_seconds{{{ns}}})"),
    ]


def _failed(ns: str) -> list[tuple[str, str]]:
    answers = "haproxy_backend_http_responses_total"
    return [
        (
            f"tollgate:errors:ratio{window}",
            f'sum by (namespace) (rate({answers}{{{ns},code="5xx"}}[{window}]))'
            f" / (sum by (namespace) (rate({answers}{{{ns}}}[{window}])) > 0)",
        )
        for window in ("2m", "5m", "30m", "1h", "6h")
    ]


def _latencies(facts: Facts) -> tuple[tuple[str, float], ...]:
    """The promised latencies as (kind, seconds)."""
    return tuple(
        (name.removesuffix("_p95_seconds"), limit)
        for name, limit in facts.objectives.items()
        if name.endswith("_p95_seconds")
    )


def expanded(facts: Facts) -> dict[str, str]:
    """The recordings as queries that need no recording: for a Prometheus that has not been given the rules."""
    found: dict[str, str] = {}
    for record, expr in recordings(facts):
        # What a recording reads stands before it.
        for known, text in found.items():
            # As a function: a query may hold backslashes.
            put = functools.partial(_same, f"({text})")
            expr = re.sub(rf"{re.escape(known)}(\{{[^}}]*\}})?(?![a-z0-9_:])", put, expr)
        found[record] = expr
    return found


def _same(text: str, _: re.Match[str]) -> str:
    return text


# ---------------------------------------------------------------- alerts


def alerts(facts: Facts) -> list[Alert]:
    """All alerts of a stack that something can be known of, the ones people are woken for first."""
    from .monitoring_alerts import all_of

    return all_of(facts)


def rule_file(facts: Facts) -> dict[str, Any]:
    """Prometheus' rule file, and the `spec` of a PrometheusRule: two groups, recordings before what reads them."""
    own = {"stack": facts.stack, "model": facts.model, "region": facts.region}
    return {
        "groups": [
            {
                "name": f"tollgate-{facts.stack}-recordings",
                "rules": [{"record": record, "expr": expr, "labels": own} for record, expr in recordings(facts)],
            },
            {
                "name": f"tollgate-{facts.stack}-alerts",
                "rules": [
                    {
                        "alert": one.name,
                        "expr": one.expr,
                        **({"for": f"{one.minutes * 60:.0f}s"} if one.minutes else {}),
                        "labels": {"severity": one.severity, **own, **one.labels},
                        "annotations": {"summary": one.summary, "action": one.action},
                    }
                    for one in alerts(facts)
                ],
            },
        ]
    }


def facts_of(
    stack: stacks.Stack,
    plan: planner.Plan,
    source: Source,
    rendered: Mapping[str, Any],
    evidence_until: float | None = None,
) -> Facts:
    """From a stack's files, its plan and its chart's values."""
    from .autoscaler import bounds

    least, most = bounds(stack.autoscaling, plan)
    autoscaled = stack.fleet.nodes.min < stack.fleet.nodes.max
    memory = str((rendered.get("resources") or {}).get("memory", "8Gi"))
    unit = {"Mi": 2**20, "Gi": 2**30}[memory[-2:]]
    dialect = (source.waiting or "").partition(":")[0]
    return Facts(
        stack=stack.name,
        model=stack.release.model,
        region=plan.region,
        source=source,
        dialect=dialect,
        objectives=dict(stack.objectives.items()),
        replicas_min=least if autoscaled else plan.replicas_max,
        replicas_max=most,
        memory_bytes=float(memory[:-2]) * unit,
        start_seconds=float(rendered.get("loadSeconds") or 300),
        replica_usd_per_hour=plan.cost_per_hour_max_usd / max(1, plan.replicas_max),
        autoscaled=autoscaled,
        fleet=stack.autoscaling.policy == "simulator",
        evidence_until=evidence_until if evidence_until is None or math.isfinite(evidence_until) else None,
    )
