"""Rules, alerts and dashboards on the embedded cluster: alerts that fire and go again, and an engine that renames its metric."""

from __future__ import annotations

import dataclasses
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import planner
import stacks
from benchmarks.alerts import firing, groups, rule_object, rules
from benchmarks.scaling import Ground, ask_at_once, settings_of, stack_of
from components.autoscaler import bounds, source_of
from components.autoscaler_check import Live, WrongQuery, taken_over, verify
from components.autoscaler_policy import triggers
from components.engines import SERVICES
from components.monitoring_dashboards import panels, queries
from components.monitoring_rules import Facts, bound_within, facts_of
from local import tools

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
NAMESPACE, NODES = "watch-live", 2
WAITING, RENAMED = "vllm:num_requests_waiting", "vllm:requests_waiting_now"
ALIVE = {"TollgateAlive"}


def facts_in(ground: Ground, stack: stacks.Stack) -> Facts:
    plan = planner.plan(stack)
    return facts_of(stack, plan, source_of(stack, plan), ground.values)


def until(ground: Ground, check: Callable[[set[str]], bool], what: str) -> None:
    """Waits until the alerts that fire are as they should be."""
    seen: set[str] = set()

    def look() -> bool:
        seen.clear()
        seen.update(firing(ground))
        return check(seen)

    try:
        ground.until(look, what, 180)
    except TimeoutError as error:
        raise AssertionError(f"{error}; firing: {sorted(seen)}") from None


def test_a_healthy_stack_has_its_rules_in_prometheus_and_only_the_one_that_always_fires(ground: Ground) -> None:
    made = rules(facts_in(ground, stack_of(ground.name, NODES)))
    ground.apply(made)
    until(ground, lambda names: names == ALIVE, "a quiet stack")
    found = groups(ground.prometheus_url, ground.name)
    asked = {one["name"]: len(one["rules"]) for one in made["spec"]["groups"]}
    assert {one["name"]: len(one["rules"]) for one in found} == asked
    assert [rule["lastError"] for group in found for rule in group["rules"] if rule["health"] != "ok"] == []


def test_rules_that_prometheus_refuses_stop_nobody_elses_and_an_event_says_why(ground: Ground) -> None:
    wrong = {"groups": [{"name": "wrong", "rules": [{"alert": "Wrong", "expr": "sum("}]}]}
    ground.apply(rule_object(ground.name, "wrong", wrong))

    def said() -> str:
        field = "--field-selector=reason=Refused"
        return ground.kubectl("get", "events", field, "-o", "jsonpath={.items[*].message}")

    ground.until(said, "an event", 30)
    assert "unclosed left parenthesis" in said()
    assert groups(ground.prometheus_url, ground.name)
    ground.kubectl("delete", "prometheusrule", "wrong")


def test_pods_without_a_node_slow_ones_and_a_second_autoscaler_are_alarms_until_they_are_gone(ground: Ground) -> None:
    until(ground, lambda names: names == ALIVE, "a quiet stack")
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"}
    for name in ("one", "two"):
        ground.apply(
            {
                "apiVersion": "autoscaling/v2",
                "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": name, "namespace": ground.name},
                # They find no number to scale on: what is tested is that they are seen.
                "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": NODES + 1},
            }
        )
    # The new pod takes the last node and is long in starting; for what comes after it there is none.
    ground.kubectl("set", "env", "deploy/engine", "TOLLGATE_SIM_COLD_START=90s")
    until(ground, lambda names: "SlowColdStart" in names, "a slow start")
    ground.kubectl("scale", "deploy", "engine", f"--replicas={NODES + 1}")
    wrong = {"PodsPending", "SlowColdStart", "TwoAutoscalers"}
    until(ground, lambda names: names >= wrong, "all three")
    ground.kubectl("delete", "hpa", "one", "two")
    ground.kubectl("rollout", "undo", "deploy/engine")
    ground.kubectl("scale", "deploy", "engine", "--replicas=1")
    until(ground, lambda names: names == ALIVE, "none of them")


def test_a_metric_that_a_new_engine_renames_is_an_alarm_stops_deployments_and_the_service_goes_on(
    ground: Ground, live: Live, cluster: Any
) -> None:
    stack = stack_of(ground.name, NODES)
    plan = planner.plan(stack)
    asked = triggers(stack.autoscaling, source_of(stack, plan), replicas_min=bounds(stack.autoscaling, plan)[0])
    ground.autoscale()
    taken_over(live.get, ground.name, "engine")
    verify(asked, live.ask, ground.name, replicas_min=1)

    def condition(kind: str) -> str:
        found = (ground.get("scaledobject", "engine").get("status") or {}).get("conditions") or []
        return "".join(one["status"] for one in found if one["type"] == kind)

    with relabelled(cluster, renamed(ground.name, {WAITING: RENAMED})):
        until(ground, lambda names: "QueueMetricMissing" in names, "the alert")
        with pytest.raises(WrongQuery, match=rf"(?s)publish no {WAITING}.*{RENAMED}"):
            verify(asked, live.ask, ground.name, replicas_min=1, seconds=0)
        ground.until(lambda: condition("Fallback") == "True", "KEDA says that it is blind", 180)
        assert ground.wanted() >= 1
        done = ask_at_once(ground.url(), ground.values["model"], 2, seconds=180)
        assert [one.status for one in done.answers] == ["200"] * 2
    until(ground, lambda names: "QueueMetricMissing" not in names, "quiet")


def test_every_panel_of_sglang_has_data_where_metrics_have_its_names(ground: Ground, cluster: Any) -> None:
    stack = stack_of(ground.name, NODES)
    facts = facts_in(ground, stack)
    source = dataclasses.replace(facts.source, waiting=SERVICES["sglang"].waiting, running=SERVICES["sglang"].running)
    sglang = dataclasses.replace(facts, source=source, dialect="sglang")
    # What vLLM's dialect publishes under the names of SGLang's source, and in the one bound that is asked for.
    names = {WAITING: source.waiting, "vllm:num_requests_running": source.running}
    names |= {
        "vllm:request_success_total": "sglang:num_requests_total",
        "vllm:kv_cache_usage_perc": "sglang:token_usage",
    }
    histograms = "time_to_first_token|inter_token_latency|e2e_request_latency"
    same = f"(?:prompt|generation)_tokens_total|(?:{histograms})_seconds_.+"
    rename = [*renamed(ground.name, names), relabel(f"{ground.name};vllm:({same})", "sglang:$1")]
    bound = {
        "source_labels": ["__name__", "le"],
        "regex": r"sglang:e2e_request_latency_seconds_bucket;5\.0",
        "target_label": "le",
        "replacement": f"{bound_within('sglang', 'e2e', facts.objectives['e2e_p95_seconds']):.1f}",
    }
    with relabelled(cluster, [*rename, bound]):
        ground.apply(rules(sglang))
        all_have_data(ground, set(queries(panels(sglang, stack.autoscaling))), ground.url())
    ground.apply(rules(facts))


def relabel(regex: str, name: str) -> dict[str, Any]:
    return {
        "source_labels": ["namespace", "__name__"],
        "regex": regex,
        "target_label": "__name__",
        "replacement": name,
    }


def renamed(namespace: str, names: Mapping[str, str | None]) -> list[dict[str, Any]]:
    return [relabel(f"{namespace};{old}", str(new)) for old, new in names.items()]


@contextmanager
def relabelled(cluster: Any, configs: list[dict[str, Any]]) -> Iterator[None]:
    """What Prometheus is told by all pods, meanwhile, as if each were of a version that calls it otherwise."""
    path = cluster.state_dir / "prometheus" / "prometheus.yml"
    before = path.read_text()
    config = yaml.safe_load(before)
    (pods,) = (one for one in config["scrape_configs"] if one["job_name"] == "pods")
    pods["metric_relabel_configs"] = configs

    def tell(text: str) -> None:
        path.write_text(text)
        request = urllib.request.Request(f"{cluster.prometheus_url}/-/reload", method="POST")
        urllib.request.urlopen(request, timeout=60).close()

    try:
        tell(yaml.safe_dump(config))
        yield
    finally:
        tell(before)


def all_have_data(ground: Ground, asked: set[tuple[str, str, str]], url: str) -> None:
    """Each of (dashboard, panel, query) has data while requests come."""
    assert len(asked) > 10
    stop, model = threading.Event(), ground.values["model"]

    def load() -> None:
        while not stop.is_set():
            ask_at_once(url, model, 2, seconds=60)

    asking = threading.Thread(target=load)
    asking.start()
    try:
        end = time.monotonic() + 240
        while asked and time.monotonic() < end:
            asked = {one for one in asked if not ground.ask(one[2])}
            time.sleep(0.5)
        assert not asked
    finally:
        stop.set()
        asking.join(120)


def test_rules_end_with_their_object(ground: Ground) -> None:
    assert groups(ground.prometheus_url, ground.name)
    ground.kubectl("delete", "prometheusrule", "rules")
    ground.until(lambda: not groups(ground.prometheus_url, ground.name), "no rules", 120)


def test_every_panel_of_ollama_behind_the_gateway_has_data(cluster: Any, tmp_path: Path) -> None:
    try:
        tools.path("haproxy")
    except stacks.TollgateError:
        pytest.skip("haproxy is not there: tollgate tools build --with haproxy")
    gateway = {"kind": "proxy", "replicas": 1}
    changed = settings_of(NODES, release="gemma-3-4b-ollama-8", gateway=gateway)
    made = Ground(cluster.environment(tmp_path), cluster.prometheus_url, "watch-ollama", settings=changed)
    stack = stack_of(
        "watch-ollama",
        NODES,
        release=stacks.load_stack("local-dev").release,
        gateway=stacks.Gateway.model_validate(gateway),
    )
    try:
        made.deploy()
        facts = facts_in(made, stack)
        made.apply(rules(facts))
        asked = {one for one in queries(panels(facts, stack.autoscaling)) if one[1] not in NO_KUBELET}
        all_have_data(made, asked, made.url("gateway"))
        until(made, lambda names: names == ALIVE, "a quiet stack")
    finally:
        made.remove()


# The kubelet of the embedded cluster counts no CPU and no memory, and Ollama says nothing of its own.
NO_KUBELET = {"CPU", "Memory", "Memory by replica"}
