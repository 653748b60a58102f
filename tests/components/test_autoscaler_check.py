"""The check of queries at deployment, against a Prometheus that answers from a table."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import stacks
from components.autoscaler_check import (
    Live,
    WrongQuery,
    judge,
    measured_cold_start,
    others,
    refuse_others,
    taken_over,
    too_soon,
    verify,
)
from components.autoscaler_policy import Trigger

WAITING = Trigger(
    name="waiting",
    query='sum(vllm:num_requests_waiting{namespace="ns"})',
    per_replica=5,
    metrics=("vllm:num_requests_waiting",),
    always=False,
)
PODS = 'up{namespace="ns",pod=~"engine.*"} == 1'
METRIC = 'vllm:num_requests_waiting{namespace="ns"}'
ONE = [{"metric": {}, "value": [0, "3"]}]


def answering(table: dict[str, Sequence[Any]]) -> Callable[[str], Sequence[Any]]:
    return lambda query: table.get(query, [])


def test_a_query_that_gives_one_series_is_good() -> None:
    table = {PODS: ONE, METRIC: ONE, WAITING.query: ONE}
    assert judge(WAITING, answering(table), "ns", replicas_min=1) is None


def test_a_metric_that_replicas_do_not_publish_is_named_with_what_looks_alike() -> None:
    near = [{"metric": {"__name__": "vllm:requests_waiting"}}]
    table = {PODS: ONE, 'count by (__name__) ({namespace="ns",__name__=~".*waiting.*"})': near}
    fault = judge(WAITING, answering(table), "ns", replicas_min=1)
    assert fault is not None
    reason = fault.reason
    assert (
        "1 scraped pods of ns publish no vllm:num_requests_waiting; what looks alike there: vllm:requests_waiting"
        in reason
    )


def test_no_replica_is_a_wrong_scrape_where_one_must_be_and_nothing_where_none_has_to() -> None:
    fault = judge(WAITING, answering({}), "ns", replicas_min=1)
    assert fault is not None
    assert "scrapes no replica in ns" in fault.reason
    assert not fault.final
    zero = Trigger(name="waiting", query="zero", per_replica=5, metrics=WAITING.metrics, always=False)
    assert judge(zero, answering({"zero": ONE}), "ns", replicas_min=0) is None


def test_a_gateways_metric_must_be_there_even_at_zero() -> None:
    held = Trigger(name="held", query="held", per_replica=5, metrics=("haproxy_backend_current_sessions",), always=True)
    assert judge(held, answering({"held": ONE}), "ns", replicas_min=0) is not None


def test_no_series_and_several_are_both_wrong_and_say_so() -> None:
    own = Trigger(name="own", query="own", per_replica=1, metrics=(), always=True)
    nothing = judge(own, answering({}), "ns", replicas_min=1)
    assert nothing is not None
    assert "gives no series" in nothing.reason
    several = [{"metric": {"pod": name}} for name in "abcd"]
    fault = judge(own, answering({"own": several}), "ns", replicas_min=1)
    assert fault is not None
    # No next scrape makes one of them.
    assert fault.final
    reason = fault.reason
    assert "gives 4 series where KEDA needs one" in reason
    assert '{pod="a"}' in reason
    assert "sum(" in reason


def test_a_pod_that_is_scraped_a_moment_later_is_waited_for() -> None:
    rounds = itertools.count()

    def ask(query: str) -> Sequence[Any]:
        return ONE if next(rounds) > 8 else []

    verify([WAITING], ask, "ns", replicas_min=1, seconds=30, sleep=lambda _: None)
    assert next(rounds) > 9


def test_a_wrong_query_stops_the_deployment_with_the_reason() -> None:
    with pytest.raises(WrongQuery, match=r"(?s)query 'waiting' would never scale.*scrapes no replica"):
        verify([WAITING], answering({}), "ns", replicas_min=1, seconds=0)


def hpa(name: str, target: str, owner: str = "") -> dict[str, Any]:
    owners = [{"name": owner}] if owner else []
    return {"metadata": {"name": name, "ownerReferences": owners}, "spec": {"scaleTargetRef": {"name": target}}}


def api(hpas: list[Any], objects: list[Any]) -> Callable[[str], dict[str, Any]]:
    return lambda path: {"items": hpas if "horizontalpod" in path else objects}


def test_a_second_autoscaler_of_the_target_is_refused_by_name() -> None:
    ours = api([hpa("keda-hpa-engine", "engine", owner="engine")], [hpa("engine", "engine")])
    assert others(ours, "ns", "engine") == []
    theirs = api([hpa("by-hand", "engine"), hpa("elsewhere", "other")], [hpa("second", "engine")])
    assert others(theirs, "ns", "engine") == ["HorizontalPodAutoscaler/by-hand", "ScaledObject/second"]
    with pytest.raises(stacks.TollgateError, match=r"(?s)by-hand.*undo each other's work.*kubectl delete -n ns"):
        refuse_others(theirs, "ns", "engine")


def test_what_keda_says_of_the_object_is_what_the_deployment_says() -> None:
    def get(_: str) -> dict[str, Any]:
        return {"status": {"conditions": [{"type": "Ready", "status": "False", "message": "no such deployment"}]}}

    with pytest.raises(stacks.TollgateError, match="no such deployment"):
        taken_over(get, "ns", "engine", seconds=0)
    with pytest.raises(stacks.TollgateError, match="is its operator up"):
        taken_over(lambda _: {}, "ns", "engine", seconds=0)
    taken_over(lambda _: {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, "ns", "engine", seconds=0)


def started(seconds: int, *, ready: str = "True", restarts: int = 0) -> dict[str, Any]:
    return {
        "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
        "status": {
            "conditions": [
                {
                    "type": "Ready",
                    "status": ready,
                    "lastTransitionTime": f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}Z",
                }
            ],
            "containerStatuses": [{"restartCount": restarts}],
        },
    }


def test_the_cold_start_is_that_of_the_quickest_replica_that_started_once() -> None:
    asked: list[str] = []

    def get(path: str) -> dict[str, Any]:
        asked.append(path)
        return {"items": [started(95), started(140), started(3, restarts=1), started(5, ready="False")]}

    assert measured_cold_start(get, "ns", "engine") == 95.0
    assert asked == ["/api/v1/namespaces/ns/pods?labelSelector=app.kubernetes.io%2Finstance%3Dengine"]
    assert measured_cold_start(lambda _: {}, "ns", "engine") is None


def test_a_cooldown_below_the_measured_cold_start_is_said_with_the_line_to_write() -> None:
    said = too_soon(60, 94.2)
    assert "took 94 s from its creation to Ready, and is taken away after 60 s of quiet" in said
    assert "set autoscaling.cold_start_seconds to 95" in said
    assert too_soon(300, 94.2) == ""
    assert too_soon(300, None) == ""


def test_a_prometheus_that_is_away_is_said_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    live = Live("http://prometheus.monitoring.svc:9090")

    def away(self: Live, path: str) -> dict[str, Any]:
        assert path.startswith("/api/v1/namespaces/monitoring/services/prometheus:9090/proxy/api/v1/query?query=")
        raise stacks.TollgateError("kubectl get --raw: ServiceUnavailable")

    monkeypatch.setattr(Live, "get", away)
    with pytest.raises(stacks.TollgateError, match=r"(?s)prometheus.monitoring.svc:9090 does not answer.*fix:"):
        live.ask("up")


def test_a_query_that_prometheus_cannot_read_is_wrong_and_a_scalar_is_no_series(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = Live("http://prometheus.monitoring.svc:9090")

    def refused(self: Live, path: str) -> dict[str, Any]:
        raise stacks.TollgateError("kubectl get --raw: the server rejected our request: bad_data parse error")

    monkeypatch.setattr(Live, "get", refused)
    with pytest.raises(WrongQuery, match="cannot read the query sum"):
        live.ask("sum(")
    monkeypatch.setattr(Live, "get", lambda *_: {"data": {"resultType": "scalar", "result": [0, "1"]}})
    assert live.ask("1") == []
