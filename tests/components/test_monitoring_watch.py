"""`tollgate watch` on a cluster that answers from a table: what is shown, and what is said when something is away."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any, cast

import pytest
from rich.console import Console

import stacks
from components.autoscaler_check import Live
from components.autoscaler_policy import Source
from components.monitoring_rules import Facts, expanded
from tollgate.commands.watch import look, shown

FACTS = Facts(
    stack="test",
    model="m",
    region="r",
    source=Source(
        namespace="ns", waiting="vllm:num_requests_waiting", running="vllm:num_requests_running", gateway=False, slots=8
    ),
    dialect="vllm",
    objectives={"ttft_p95_seconds": 1.5, "error_rate": 0.01},
    replicas_min=1,
    replicas_max=4,
    memory_bytes=1e9,
    start_seconds=120.0,
    replica_usd_per_hour=0.9,
    autoscaled=True,
)


def target(name: str, kind: str = "engine") -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"scaleTargetRef": {"name": kind}}}


class Fake:
    """Everything well; what a test breaks it sets."""

    def __init__(self) -> None:
        self.conditions = [{"type": "Ready", "status": "True"}, {"type": "Active", "status": "True"}]
        self.ready, self.wanted = 2, 2
        self.hpas: list[dict[str, Any]] = []
        self.numbers: dict[str, str] = {}
        self.prometheus = self.api = True

    def get(self, path: str) -> dict[str, Any]:
        if not self.api:
            raise stacks.TollgateError("kubectl get --raw: connection refused")
        if "deployments" in path:
            return {"spec": {"replicas": self.wanted}, "status": {"readyReplicas": self.ready}}
        if "horizontal" in path:
            return {"items": self.hpas}
        return {"items": [{**target("engine"), "status": {"conditions": self.conditions}}]}

    def ask(self, query: str) -> Sequence[Any]:
        if not self.prometheus:
            raise stacks.TollgateError("autoscaling: http://prometheus.monitoring.svc:9090 does not answer")
        record = next(record for record, expr in expanded(FACTS).items() if expr == query)
        value = self.numbers.get(record, "1")
        return [{"metric": {}, "value": [0, value]}] if value else []

    @property
    def live(self) -> Live:
        return cast(Live, self)


def text(fake: Fake) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(shown(look(FACTS, fake.live)))
    return console.export_text()


def test_a_well_stack_shows_its_numbers_and_no_problem() -> None:
    fake = Fake()
    fake.numbers = {"tollgate:ttft_seconds:p95": "0.4", "tollgate:errors:ratio5m": "0"}
    view = look(FACTS, fake.live)
    assert view.problems == ()
    assert view.broken == ()
    assert view.scaling == "active"
    said = text(fake)
    assert "2 Ready of 2 (from 1 to 4)" in said
    assert "0.4 s" in said
    assert "promised 1.5 s" in said


def test_a_broken_promise_is_named() -> None:
    fake = Fake()
    fake.numbers = {"tollgate:ttft_seconds:p95": "2.2", "tollgate:errors:ratio5m": "0.5"}
    assert look(FACTS, fake.live).broken == ("ttft_p95_seconds", "error_rate")


def test_what_is_not_known_is_no_number() -> None:
    fake = Fake()
    fake.numbers = {"tollgate:ttft_seconds:p95": "NaN", "tollgate:itl_seconds:p95": ""}
    found = look(FACTS, fake.live).as_json()
    assert found["numbers"]["ttft_seconds:p95"] is None
    assert found["numbers"]["itl_seconds:p95"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"prometheus": False}, "Prometheus does not answer"),
        ({"api": False}, "the API server does not answer"),
        ({"conditions": []}, "KEDA has not seen the ScaledObject"),
        ({"conditions": [{"type": "Ready", "status": "False", "message": "no such metric"}]}, "KEDA: no such metric"),
        (
            {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Fallback", "status": "True"}]},
            "KEDA gets no numbers and holds the replicas",
        ),
        ({"hpas": [target("by-hand")]}, "HorizontalPodAutoscaler/by-hand scales it too"),
        ({"numbers": {"tollgate:queue:sum": ""}}, "no replica publishes vllm:num_requests_waiting: nothing scales"),
        ({"ready": 1}, "1 of 2 replicas are not Ready"),
    ],
)
def test_what_is_wrong_is_said(broken: dict[str, Any], words: str) -> None:
    fake = Fake()
    for name, value in broken.items():
        setattr(fake, name, value)
    assert any(words in problem for problem in look(FACTS, fake.live).problems)
    assert words in " ".join(text(fake).split())


def test_a_fixed_fleet_needs_no_autoscaler() -> None:
    view = look(dataclasses.replace(FACTS, autoscaled=False), Fake().live)
    assert view.scaling == "fixed"
    assert view.problems == ()
