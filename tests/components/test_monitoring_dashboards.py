"""The dashboards as Grafana gets them, without a Grafana."""

from __future__ import annotations

import dataclasses
import json

import stacks
from components.autoscaler_policy import Source
from components.monitoring_dashboards import dashboards, panels, queries
from components.monitoring_rules import Facts

VLLM = Facts(
    stack="test",
    model="m",
    region="r",
    source=Source(
        namespace="ns", waiting="vllm:num_requests_waiting", running="vllm:num_requests_running", gateway=False
    ),
    dialect="vllm",
    objectives={"ttft_p95_seconds": 1.5},
    replicas_min=1,
    replicas_max=2,
    memory_bytes=1000.0,
    start_seconds=120.0,
    replica_usd_per_hour=0.9,
    autoscaled=True,
)


def test_there_are_four_dashboards_whose_panels_all_ask_the_chosen_prometheus() -> None:
    found = dashboards(VLLM, stacks.Autoscaling())
    assert sorted(found) == [f"test-{name}.json" for name in ("business", "performance", "resources", "scaling")]
    uids = set()
    for text in found.values():
        made = json.loads(text)
        uids.add(made["uid"])
        assert made["templating"]["list"][0]["type"] == "datasource"
        assert made["panels"]
        for panel in made["panels"]:
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            letters = [target["refId"] for target in panel["targets"]]
            assert letters
            assert len(set(letters)) == len(letters)
    assert len(uids) == 4


def test_panels_without_a_source_are_left_out_and_not_empty() -> None:
    source = Source(namespace="ns", waiting=None, running=None, gateway=True)
    ollama = dataclasses.replace(VLLM, source=source, dialect="")
    titles = {one.title for shown in panels(ollama, stacks.Autoscaling()).values() for one in shown}
    assert "Requests" in titles
    assert "KV cache" not in titles
    assert "Time to first token" not in titles


def test_the_same_stack_makes_the_same_text() -> None:
    assert dashboards(VLLM, stacks.Autoscaling()) == dashboards(VLLM, stacks.Autoscaling())


def test_no_query_is_asked_of_another_namespace() -> None:
    for _, title, query in queries(panels(VLLM, stacks.Autoscaling())):
        assert 'namespace="ns"' in query or query.startswith("vector("), title
