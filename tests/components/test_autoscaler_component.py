"""The component as the program runs it: nothing is asked in a preview, and a wrong query stops the deployment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import components
import planner
import stacks
import values
from components.autoscaler import autoscaler_of
from components.autoscaler_check import Live
from components.engines import EngineArgs, service_for
from local import tools
from tests.components.recording import Recording, record


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path and query; all is well."""
    found: list[str] = []

    def get(self: Live, path: str) -> dict[str, Any]:
        found.append(path)
        if path.endswith("/scaledobjects/engine"):
            return {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        return {"items": []}

    def ask(self: Live, query: str) -> Sequence[Any]:
        found.append(query)
        return [{"metric": {}, "value": [0, "1"]}]

    monkeypatch.setattr(Live, "get", get)
    monkeypatch.setattr(Live, "ask", ask)
    return found


def program() -> None:
    stack = stacks.load_stack("local-vllm").model_copy(
        update={"fleet": stacks.load_stack("local-vllm").fleet.model_copy(update={"nodes": stacks.Nodes(min=1, max=4)})}
    )
    plan = planner.plan(stack)
    cluster = components.Cluster(
        "cluster", components.ClusterArgs(target="local", name="default", region="us-central1")
    )
    engine = service_for("vllm")(
        "engine",
        EngineArgs(
            namespace="ns", chart=Path("charts/engine"), values={}, release_digest="sha256:0", wait_seconds=1, root=None
        ),
        cluster,
    )
    components.QueueAutoscaler(
        "autoscaler", autoscaler_of(stack, plan, "http://prometheus.monitoring.svc:9090", check=True), cluster, engine
    )


def test_every_query_is_asked_before_the_object_and_keda_after_it(asked: list[str]) -> None:
    made = record(program)
    spec = made.one("ScaledObject").inputs["spec"]
    for trigger in spec["triggers"]:
        assert trigger["metadata"]["query"] in asked
    assert asked[-1].endswith("/scaledobjects/engine")


def test_a_preview_asks_nobody(asked: list[str]) -> None:
    record(program, preview=True)
    assert asked == []


def test_a_wrong_query_stops_the_deployment_before_the_object(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Live, "ask", lambda *_: [{"metric": {"pod": name}} for name in "ab"])
    into = Recording()
    with pytest.raises(Exception, match=r"gives 2 series where KEDA needs one"):
        record(program, into=into)
    assert into.of("ScaledObject") == []


def test_a_chart_whose_null_was_lost_on_the_way_renders_no_number_of_replicas(tmp_path: Path) -> None:
    stack = stacks.load_stack("local-vllm")
    stack = stack.model_copy(update={"fleet": stack.fleet.model_copy(update={"nodes": stacks.Nodes(min=1, max=4)})})
    given = values.render(stack, planner.plan(stack))
    assert given.pop("replicas") is None
    (tmp_path / "values.json").write_text(json.dumps(given))
    chart = values.chart_of(stack.release)
    command = [str(tools.path("helm")), "template", "engine", str(chart), "-f", str(tmp_path / "values.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    (deployment,) = (one for one in yaml.safe_load_all(done.stdout) if one and one["kind"] == "Deployment")
    # A number here would set the fleet back at every upgrade, under load.
    assert "replicas" not in deployment["spec"]
