"""The real KEDA, HPA and Prometheus under real load: up when requests wait, from zero with none lost, and what is checked.

benchmarks/autoscaling.py has the long scenarios.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

import planner
import stacks
from benchmarks.alerts import firing, rules
from benchmarks.scaling import QUICK, Ground, Outcome, Watcher, ask_at_once, send, settings_of, stack_of
from components.autoscaler import bounds, source_of
from components.autoscaler_check import Live, WrongQuery, refuse_others, taken_over, verify
from components.autoscaler_policy import Trigger, triggers
from components.monitoring_dashboards import panels, queries
from components.monitoring_rules import facts_of
from local import tools
from tollgate.commands.watch import look

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
NAMESPACE, NODES = "scale-live", 4


def asked(name: str) -> tuple[Trigger, ...]:
    stack = stack_of(name, NODES)
    plan = planner.plan(stack)
    return triggers(stack.autoscaling, source_of(stack, plan), replicas_min=bounds(stack.autoscaling, plan)[0])


def test_the_stacks_queries_are_good_and_wrong_ones_stop_the_deployment(ground: Ground, live: Live) -> None:
    verify(asked(ground.name), live.ask, ground.name, replicas_min=1)
    where = f'namespace="{ground.name}"'
    renamed = Trigger(
        name="waiting", query="sum(x)", per_replica=5, metrics=("vllm:requests_waiting_now",), always=False
    )
    with pytest.raises(WrongQuery, match=r"(?s)publish no vllm:requests_waiting_now.*vllm:num_requests_waiting"):
        verify([renamed], live.ask, ground.name, replicas_min=1, seconds=0)
    nothing = Trigger(
        name="own", query=f'sum(vllm:num_requests_waiting{{{where},pod="x"}})', per_replica=1, metrics=(), always=True
    )
    with pytest.raises(WrongQuery, match="gives no series"):
        verify([nothing], live.ask, ground.name, replicas_min=1, seconds=0)
    several = Trigger(
        name="own", query=f"vllm:request_success_total{{{where}}}", per_replica=1, metrics=(), always=True
    )
    with pytest.raises(WrongQuery, match=r"gives \d+ series where KEDA needs one"):
        verify([several], live.ask, ground.name, replicas_min=1, seconds=0)
    broken = Trigger(name="own", query="sum(", per_replica=1, metrics=(), always=True)
    with pytest.raises(WrongQuery, match="cannot read the query"):
        verify([broken], live.ask, ground.name, replicas_min=1, seconds=0)
    with pytest.raises(stacks.TollgateError, match="does not answer"):
        Live("http://elsewhere.monitoring.svc:9090", embedded=True).ask("up")


def test_a_step_is_answered_by_more_replicas_and_every_panel_has_data(ground: Ground, live: Live) -> None:
    stack = stack_of(ground.name, NODES)
    plan = planner.plan(stack)
    facts = facts_of(stack, plan, source_of(stack, plan), ground.values)
    ground.apply(rules(facts))
    ground.autoscale()
    taken_over(live.get, ground.name, "engine")
    outcome: list[Outcome] = []
    watcher = Watcher(ground)
    url, model = ground.url(), ground.values["model"]
    load = threading.Thread(target=lambda: outcome.append(send(url, model, [(24, 10, 10)])))
    with watcher.watching():
        load.start()
        ground.until(lambda: ground.wanted() == NODES, "as many replicas as there may be", 120)
        ground.until(lambda: ground.ready() == NODES, "all of them ready", 120)
        ground.until(lambda: "ReplicasAtMax" in firing(ground), "the alert that there are no more", 60)
        empty = set(queries(panels(facts, stack.autoscaling)))
        end = time.monotonic() + 60
        while empty and time.monotonic() < end:
            empty = {one for one in empty if not ground.ask(one[2])}
            time.sleep(0.5)
        assert not empty
        view = look(facts, live)
        assert view.problems == ()
        assert view.numbers["tollgate:requests:rate1m"]
        assert view.numbers["tollgate:cost_per_million_tokens:usd"]
        load.join(240)
    (done,) = outcome
    assert done.answers
    assert done.lost == 0
    queued = watcher.first(lambda one: one.waiting > 0)
    decided = watcher.first(lambda one: one.wanted > 1)
    # 5 s on an idle machine (benchmarks/autoscaling.py); this one may be busy with other tests.
    assert decided - queued < 60
    assert "TollgateAlive" in firing(ground)


def test_a_second_autoscaler_of_the_same_target_is_found(ground: Ground, live: Live) -> None:
    refuse_others(live.get, ground.name, "engine")
    ground.apply(
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "by-hand", "namespace": ground.name},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"},
                "maxReplicas": 2,
            },
        }
    )
    try:
        with pytest.raises(stacks.TollgateError, match="HorizontalPodAutoscaler/by-hand"):
            refuse_others(live.get, ground.name, "engine")
    finally:
        ground.kubectl("delete", "hpa", "by-hand")


def test_from_zero_requests_are_held_and_none_is_lost(cluster: Any, tmp_path: Path) -> None:
    try:
        tools.path("haproxy")
    except stacks.TollgateError:
        pytest.skip("haproxy is not there: tollgate tools build --with haproxy")
    changed = settings_of(
        1,
        fleet={"machine_type": "g2-standard-8", "nodes": {"min": 0, "max": 1}},
        gateway={"kind": "proxy", "replicas": 1},
        autoscaling={**QUICK, "replicas_min": 0},
    )
    sleeping = Ground(cluster.environment(tmp_path), cluster.prometheus_url, "scale-zero", settings=changed)
    try:
        sleeping.deploy()
        sleeping.autoscale()
        there = 'up{namespace="scale-zero",pod=~"gateway.*"} == 1'
        sleeping.until(lambda: sleeping.ask(there), "the gateway is scraped", 180)

        def pods() -> list[str]:
            names = [one["metadata"]["name"] for one in sleeping.get("pods")["items"]]
            return [name for name in names if name.startswith("engine")]

        sleeping.until(lambda: sleeping.wanted() == 0 and not pods(), "nobody serves", 240)
        done = ask_at_once(sleeping.url("gateway"), sleeping.values["model"], 4, seconds=240)
        assert [one.status for one in done.answers] == ["200"] * 4
        assert done.lost == 0
        # Held, not refused: nobody was there before a replica had started.
        assert min(one.ttft for one in done.answers) > 1.0
    finally:
        sleeping.remove()
