"""The alerts: each with what is wrong in one line, and what to do about it in another."""

from __future__ import annotations

from .monitoring_rules import (
    _BUDGET,
    _BURNS,
    _WORDS,
    Alert,
    Facts,
    _latencies,
    bound_within,
    errors_counted,
    queue_known,
)

_ADDED_LIMIT = 0.015
# KEDA's own label `namespace` is called so only where its monitor honours labels, which depends on the chart.
_KEDA_NAMESPACE = ("namespace", "exported_namespace")
# With a fallback KEDA counts an error no more once it has fallen back (`observeMetric` of 2.21 returns none), so its error
# counters stand still while it is blind; what its requests to Prometheus gave is counted always.
_KEDA_FAILURES = (
    ("keda_scaled_object_errors_total", ""),
    ("keda_scaler_detail_errors_total", ""),
    ("keda_scaler_empty_upstream_responses_total", ""),
    ("keda_scaler_http_requests_total", ',status_code!~"2.."'),
)
_FLEET_RPS = 8000.0
_DAYS_BEFORE = 2


def all_of(facts: Facts) -> list[Alert]:
    """See `monitoring_rules.alerts`."""
    ns = f'{{namespace="{facts.source.namespace}"}}'
    return [
        *_promises(facts, ns),
        *_burns(facts, ns),
        *_resources(facts, ns),
        *_queue(facts, ns),
        *_starts(facts),
        *_scaling(facts),
        *_evidence(facts),
        Alert(
            name="TollgateAlive",
            expr="vector(1)",
            minutes=0,
            severity="none",
            summary="Always fires: whoever stops hearing it has lost Prometheus or Alertmanager",
            action="Route it to a dead man's switch",
        ),
    ]


def _promises(facts: Facts, ns: str) -> list[Alert]:
    found = []
    if facts.fleet:
        found.append(
            Alert(
                name="HighLatency",
                expr=f"tollgate:added_latency_seconds:p99{ns} > {_ADDED_LIMIT}",
                minutes=5,
                severity="warning",
                summary="The simulators add {{ $value | humanizeDuration }} at p99, over 15 ms",
                action="Look at CPU: a busy simulator is late; more replicas",
            )
        )
        found.append(
            Alert(
                name="LowThroughput",
                expr=f"tollgate:requests:rate1m{ns} < {_FLEET_RPS:g}",
                minutes=10,
                severity="warning",
                summary="{{ $value | humanize }} requests a second, under 8,000",
                action="Is anybody sending? Else see HighLatency and CPU",
            )
        )
    elif facts.dialect:
        found += [
            Alert(
                name="HighLatency",
                expr=f"tollgate:{kind}_seconds:p95{ns} > {limit:g}",
                minutes=5,
                severity="warning",
                summary=f"p95 of the {_WORDS[kind]} is {{{{ $value | humanizeDuration }}}}, promised {limit:g} s",
                action="Is the queue long (more replicas), are prompts longer than planned, does the cache preempt?",
                labels={"objective": f"{kind}_p95_seconds"},
            )
            for kind, limit in _latencies(facts)
        ]
    elif facts.source.gateway:
        found += [
            Alert(
                name="HighLatency",
                expr=f"tollgate:e2e_seconds:mean{ns} > {limit:g}",
                minutes=5,
                severity="warning",
                summary=f"Even the mean time of an answer is {{{{ $value | humanizeDuration }}}}, promised at p95: {limit:g} s",
                action="This engine has no histograms; measure it with tollgate bench run",
                labels={"objective": "e2e_p95_seconds"},
            )
            for kind, limit in _latencies(facts)
            if kind == "e2e"
        ]
    promised = facts.objectives.get("requests_per_second")
    if promised and not facts.fleet and queue_known(facts.source):
        found.append(
            Alert(
                name="LowThroughput",
                expr=f"tollgate:requests:rate1m{ns} < {promised:g} and tollgate:queue:sum{ns} > 0",
                minutes=10,
                severity="warning",
                summary=f"{{{{ $value | humanize }}}} requests a second while others wait, promised {promised:g}",
                action="Replicas at their maximum? Slower than when it was measured? tollgate bench run compares",
            )
        )
    if errors_counted(facts):
        limit = facts.objectives.get("error_rate", 0.01)
        found.append(
            Alert(
                name="HighErrorRate",
                expr=f"tollgate:errors:ratio2m{ns} > {max(limit, 0.001):g}",
                minutes=2,
                severity="critical",
                summary=f"{{{{ $value | humanizePercentage }}}} of the requests fail, promised at most {limit:.1%}",
                action="kubectl logs of the engine; a release that was just promoted: tollgate rollback",
            )
        )
    return found


def _burns(facts: Facts, ns: str) -> list[Alert]:
    """Error budgets by two windows each: the long one for the size, the short one to stop when it is over."""
    ratios = [(f"{kind}_over", _BUDGET, f"{kind}_p95_seconds") for kind, _ in _latencies(facts) if facts.dialect]
    if errors_counted(facts) and facts.objectives.get("error_rate", 0) > 0:
        ratios.append(("errors", facts.objectives["error_rate"], "error_rate"))
    found = []
    for record, budget, objective in ratios:
        for speed, times, long, short, severity in _BURNS:
            # A budget of 5 % cannot burn 20 times as fast; the most that can be seen is everything failing.
            limit = min(times * budget, 0.99)
            bound = ""
            if objective.endswith("_p95_seconds"):
                kind = objective.removesuffix("_p95_seconds")
                within = bound_within(facts.dialect, kind, facts.objectives[objective])
                bound = f" (counted at the engine's bound of {within:g} s)"
            found.append(
                Alert(
                    name="BudgetBurn",
                    expr=f"tollgate:{record}:ratio{long}{ns} > {limit:g} and tollgate:{record}:ratio{short}{ns} > {limit:g}",
                    minutes=0,
                    severity=severity,
                    summary=f"{{{{ $value | humanizePercentage }}}} of the last {long} broke {objective}{bound}",
                    action="At this pace a month's budget lasts days: find the cause or go back",
                    labels={"objective": objective, "speed": speed},
                )
            )
    return found


def _resources(facts: Facts, ns: str) -> list[Alert]:
    found = [
        Alert(
            name="ResourceExhaustion",
            expr=f"tollgate:{what}_utilisation:max{ns} > {limit}",
            minutes=5,
            severity="critical",
            summary=f"A replica uses {{{{ $value | humanizePercentage }}}} of the {words} it asks for",
            action=action,
            labels={"resource": what},
        )
        for what, words, limit, action in (
            ("cpu", "CPU", 0.95, "More CPU per replica, or more replicas"),
            ("memory", "memory", 0.90, "It is killed at its limit: raise it, or lower slots or context"),
        )
    ]
    if facts.dialect:
        found.append(
            Alert(
                name="KvCacheFull",
                expr=f"tollgate:kv_cache:max{ns} > 0.95",
                minutes=5,
                severity="warning",
                summary="A replica's KV cache is {{ $value | humanizePercentage }} full",
                action="Fewer slots, a shorter context or an 8-bit cache: tollgate plan",
            )
        )
    if facts.dialect == "vllm":
        found.append(
            Alert(
                name="Preemptions",
                expr=f"tollgate:preemptions:rate5m{ns} > 0.1",
                minutes=10,
                severity="warning",
                summary="{{ $value | humanize }} requests a second are thrown out of the cache and begun anew",
                action="Fewer slots, or less context: work is done twice",
            )
        )
    return found


def _queue(facts: Facts, ns: str) -> list[Alert]:
    where, source = f'namespace="{facts.source.namespace}"', facts.source
    found = []
    if queue_known(source):
        found.append(
            Alert(
                name="QueueGrowing",
                expr=f"deriv(tollgate:queue:sum{ns}[5m]) > 0 and tollgate:queue:sum{ns} > tollgate:slots:sum{ns}",
                minutes=5,
                severity="warning",
                summary="The queue has grown for minutes and is longer than all slots",
                action="Replicas at their maximum, Pending, or not scaled at all: see the scaling dashboard",
            )
        )
    if source.waiting:
        found.append(
            Alert(
                name="QueueMetricMissing",
                # By replica: in the middle of an upgrade the old ones still publish it, and the sum is too small.
                expr=f'count by (namespace) (up{{{where},pod=~"engine.*"}} == 1 unless on (namespace, pod) '
                f"{source.waiting}{{{where}}})",
                minutes=2,
                severity="critical",
                summary=f"{{{{ $value }}}} replicas are scraped but publish no {source.waiting}: nothing scales on them",
                action="A new engine version may have renamed it: state the new name in components/engines/, or go back",
            )
        )
    # Of an engine without metrics only the gateway is scraped, which stays when no replica runs.
    scraped = "engine" if facts.dialect else "gateway" if source.gateway else ""
    if scraped == "gateway" or (scraped and facts.replicas_min > 0):
        found.append(
            Alert(
                name="NothingScraped",
                expr=f'absent(up{{{where},pod=~"{scraped}.*"}} == 1)',
                minutes=5,
                severity="critical",
                summary=f"Prometheus reaches no pod of the {scraped} in {source.namespace}",
                action="Are there pods? Does a PodMonitor select them, does a NetworkPolicy let Prometheus in?",
            )
        )
    return found


def _starts(facts: Facts) -> list[Alert]:
    """By kube-state-metrics, which comes with kube-prometheus-stack."""
    where = f'namespace="{facts.source.namespace}",pod=~"engine.*"'
    minutes = max(1.0, facts.start_seconds / 60)
    return [
        Alert(
            name="PodsPending",
            expr=f'sum by (namespace) (kube_pod_status_scheduled{{{where},condition="false"}}) > 0',
            minutes=10,
            severity="warning",
            summary="{{ $value }} replicas have had no node for 10 minutes",
            action="GPU stock-out or quota: another zone, fleet.fallback: on-demand, or a smaller maximum",
        ),
        Alert(
            name="SlowColdStart",
            # From the node on: images, weights that an init container fetches, the engine's own start.
            expr=f'sum by (namespace) (kube_pod_status_ready{{{where},condition="false"}} '
            f'and on (namespace, pod) kube_pod_status_scheduled{{{where},condition="true"}} == 1) > 0',
            minutes=minutes,
            severity="warning",
            summary=f"{{{{ $value }}}} replicas have a node but are not Ready after {facts.start_seconds:.0f} s",
            action="Slow disk or registry, or a crash loop: kubectl describe pod; weights nearer: serving.cache",
        ),
    ]


def _scaling(facts: Facts) -> list[Alert]:
    if not facts.autoscaled:
        return []
    where = f'namespace="{facts.source.namespace}"'
    ns = f"{{{where}}}"
    return [
        Alert(
            name="ReplicasAtMax",
            expr=f"tollgate:replicas:count{ns} >= {facts.replicas_max} and tollgate:queue:sum{ns} > 0",
            minutes=10,
            severity="warning",
            summary=f"All {facts.replicas_max} replicas run and requests wait",
            action="Raise fleet.nodes.max (and the quota), or accept the queue",
        ),
        Alert(
            name="KedaDown",
            expr="absent(keda_build_info)",
            minutes=5,
            severity="critical",
            summary="KEDA is away: the number of replicas stays as it is",
            action="kubectl get pods -n keda",
        ),
        Alert(
            name="ScalerFailing",
            expr=" or ".join(
                f'sum(increase({metric}{{{label}="{facts.source.namespace}"{more}}}[5m])) > 0'
                for metric, more in _KEDA_FAILURES
                for label in _KEDA_NAMESPACE
            ),
            minutes=5,
            severity="critical",
            summary="KEDA gets no number for its query; it holds the replicas",
            action="kubectl describe scaledobject -n NAMESPACE; does Prometheus answer?",
        ),
        Alert(
            name="TwoAutoscalers",
            expr=f"count by (namespace, scaletargetref_name) (kube_horizontalpodautoscaler_info{ns}) > 1",
            minutes=1,
            severity="critical",
            summary="Two autoscalers have {{ $labels.scaletargetref_name }}: they undo each other's work",
            action="kubectl get hpa: delete the one that is not KEDA's",
        ),
    ]


def _evidence(facts: Facts) -> list[Alert]:
    if facts.evidence_until is None:
        return []
    return [
        Alert(
            name="EvidenceExpires",
            expr=f"vector({facts.evidence_until:.0f}) - time() < {_DAYS_BEFORE * 86400}",
            minutes=0,
            severity="warning",
            summary="The evidence that let this release in expires in {{ $value | humanizeDuration }}",
            action="Measure the stage before anew and promote: an expired release cannot be deployed again",
        )
    ]
