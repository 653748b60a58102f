"""What a stack is scaled on and how fast: the spec that KEDA gets, without a cluster."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import stacks
from components.autoscaler_policy import Source, check_source, cooldown_seconds, scaled_object, triggers
from components.monitoring_rules import recordings
from tests.components.test_monitoring_rules import SGLANG

VLLM = Source(
    namespace="ns",
    waiting="vllm:num_requests_waiting",
    running="vllm:num_requests_running",
    gateway=False,
    slots=10,
)
OLLAMA = Source(namespace="ns", waiting=None, running=None, gateway=True, slots=8)


def scaling(**given: Any) -> stacks.Autoscaling:
    return stacks.Autoscaling.model_validate(given)


def spec(source: Source = VLLM, least: int = 1, most: int = 10, cold: float = 60.0, **given: Any) -> dict[str, Any]:
    wanted = scaling(**given)
    return scaled_object(
        wanted,
        triggers(wanted, source, replicas_min=least),
        target={"name": "engine"},
        replicas_min=least,
        replicas_max=most,
        cold_start_seconds=cold,
        prometheus_url="http://prometheus.monitoring.svc:9090",
    )


def test_what_waits_and_what_runs_is_added_up_in_replicas() -> None:
    made = spec()
    # 8 of 10 slots shall be in use; a queue of fewer than that is gone with the next finished requests.
    assert made["advanced"]["scalingModifiers"] == {
        "formula": "waiting / 8 + running / 8",
        "target": "1",
        "activationTarget": "0",
        "metricType": "AverageValue",
    }
    assert [one["metadata"]["query"] for one in made["triggers"]] == [
        'sum(vllm:num_requests_waiting{namespace="ns"})',
        'sum(vllm:num_requests_running{namespace="ns"})',
    ]


def test_few_slots_wait_for_a_queue_of_five() -> None:
    source = Source(namespace="ns", waiting="w", running="r", gateway=False, slots=2)
    assert spec(source)["advanced"]["scalingModifiers"]["formula"] == "waiting / 5 + running / 1.6"


def test_the_queue_alone_has_the_threshold_as_it_is_written() -> None:
    made = spec(policy="queue")
    assert "scalingModifiers" not in made["advanced"]
    (trigger,) = made["triggers"]
    assert trigger["metadata"]["threshold"] == "5"
    assert trigger["metricType"] == "AverageValue"


def test_a_metric_that_is_gone_is_an_error_and_never_reads_as_idle() -> None:
    made = spec()
    for trigger in made["triggers"]:
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert "vector(0)" not in trigger["metadata"]["query"]
    assert made["fallback"] == {"failureThreshold": 3, "replicas": 1, "behavior": "currentReplicasIfHigher"}


def test_from_zero_the_gateway_wakes_and_missing_engines_count_as_nothing() -> None:
    source = Source(namespace="ns", waiting="w", running="r", gateway=True, slots=10)
    made = spec(source, least=0)
    assert made["minReplicaCount"] == 0
    assert made["fallback"]["replicas"] == 1
    queries = {one["name"]: one["metadata"]["query"] for one in made["triggers"]}
    assert queries["waiting"] == '(sum(w{namespace="ns"})) or vector(0)'
    open_requests = 'sum(haproxy_backend_current_sessions{namespace="ns",proxy=~"engine"})'
    idle = 'unless on() (sum(r{namespace="ns"}) > 0)'
    # What is held and what is queued is told apart, and counted once.
    assert queries["held"] == f"({open_requests} - ({queries['queued']}) {idle}) or vector(0)"
    assert made["advanced"]["scalingModifiers"]["formula"] == "waiting / 8 + queued / 8 + running / 8 + held / 8"


def test_the_queue_alone_keeps_the_last_replica_while_it_runs_something() -> None:
    source = Source(namespace="ns", waiting="w", running="r", gateway=True, slots=10)
    made = spec(source, least=0, policy="queue")
    assert [one["name"] for one in made["triggers"]] == ["waiting", "queued", "running", "held"]
    # It asks for no second one.
    assert made["advanced"]["scalingModifiers"]["formula"] == "waiting / 5 + queued / 5 + running / 100000 + held / 5"


@pytest.mark.parametrize("policy", ["queue", "queue-and-slots"])
def test_what_waits_in_the_gateway_is_added_to_what_waits_in_the_engines(policy: str) -> None:
    source = Source(namespace="ns", waiting="w", running="r", gateway=True, services=("engine", "engine-candidate"))
    made = spec(source, policy=policy)
    queries = {one["name"]: one["metadata"]["query"] for one in made["triggers"]}
    matchers = 'namespace="ns",proxy=~"engine|engine-candidate"'
    assert queries["queued"] == (
        f"sum(haproxy_backend_current_queue{{{matchers}}}) + sum(haproxy_server_current_queue{{{matchers}}})"
    )
    # An HPA would take the larger of two triggers: the formula adds them up.
    assert "waiting / 5 + queued / 5" in made["advanced"]["scalingModifiers"]["formula"]


def test_the_recorded_queue_is_what_waits_in_both_places() -> None:
    facts = dataclasses.replace(SGLANG, source=Source(namespace="ns", waiting="w", running="r", gateway=True))
    own = 'sum by (namespace) (w{namespace="ns"})'
    proxies = (
        'sum by (namespace) (haproxy_backend_current_queue{namespace="ns"} '
        'or haproxy_server_current_queue{namespace="ns"})'
    )
    assert dict(recordings(facts))["tollgate:queue:sum"] == f"{own} + ({proxies} or 0 * {own})"


def test_ollama_is_scaled_on_what_is_open_in_front_of_it() -> None:
    (trigger,) = spec(OLLAMA)["triggers"]
    query = 'sum(haproxy_backend_current_sessions{namespace="ns",proxy=~"engine"})'
    assert trigger["metadata"]["query"] == query
    assert trigger["metadata"]["threshold"] == "6.4"
    (held,) = spec(OLLAMA, least=0)["triggers"]
    assert held["metadata"]["query"] == query


def test_an_engine_without_metrics_and_without_gateway_is_refused() -> None:
    with pytest.raises(stacks.InputError, match="add tollgate:gateway with kind proxy"):
        check_source("ollama", Source(namespace="ns", waiting=None, running=None, gateway=False))


def test_up_at_once_and_down_after_the_cooldown() -> None:
    behaviour = spec(cooldown_seconds=90)["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behaviour["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert behaviour["scaleUp"]["policies"] == [{"type": "Pods", "value": 10, "periodSeconds": 15}]
    assert behaviour["scaleDown"]["stabilizationWindowSeconds"] == 90
    assert spec(cooldown_seconds=90)["cooldownPeriod"] == 90


@pytest.mark.parametrize(("cold", "expected"), [(10.0, 300), (400.0, 800), (4000.0, 3600)])
def test_the_cooldown_is_twice_the_cold_start_and_within_what_the_controller_takes(cold: float, expected: int) -> None:
    assert cooldown_seconds(scaling(), cold) == expected


def test_a_cooldown_below_the_cold_start_is_refused() -> None:
    with pytest.raises(stacks.InputError, match=r"(?s)cooldown_seconds.*at least the cold start of a replica, 60 s"):
        spec(cooldown_seconds=30)
    # What has been measured counts more than what was planned.
    assert spec(cooldown_seconds=30, cold_start_seconds=12)["cooldownPeriod"] == 30
    with pytest.raises(ValueError, match="taken away while it loads"):
        scaling(cooldown_seconds=10, cold_start_seconds=12)


def test_a_fleet_of_simulators_grows_on_cpu_or_latency_and_shrinks_when_calm() -> None:
    (trigger,) = spec(policy="simulator")["triggers"]
    query = trigger["metadata"]["query"]
    for part in ("[5m]) > bool 0.75", "[2m]) > bool 0.015", "[10m]) < bool 0.4"):
        assert part in query
    assert trigger["metadata"]["threshold"] == "1"


def test_queries_of_ones_own_are_asked_beside_the_policys() -> None:
    made = spec(queries=[{"name": "mine", "query": "sum(up)", "per_replica": 3}])
    assert made["triggers"][-1]["metadata"]["query"] == "sum(up)"
    assert made["advanced"]["scalingModifiers"]["formula"].endswith(" + mine / 3")


def test_two_queries_of_one_name_and_bounds_the_wrong_way_are_refused() -> None:
    query = {"name": "mine", "query": "sum(up)", "per_replica": 3}
    with pytest.raises(ValueError, match="two queries have one name"):
        scaling(queries=[query, query])
    with pytest.raises(ValueError, match=r"replicas_min \(5\) must not be above replicas_max \(2\)"):
        scaling(replicas_min=5, replicas_max=2)
