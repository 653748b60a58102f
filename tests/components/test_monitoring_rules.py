"""Every alert fires on what it is for and is quiet beside it, by `promtool test rules`.

promtool is optional: `tollgate tools build --with promtool`.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import stacks
from bench.simulator import _stats
from components.autoscaler_policy import Source, triggers
from components.monitoring_rules import BOUNDS, Facts, alerts, bound_within, recordings, rule_file
from local import tools

VLLM = Facts(
    stack="test",
    model="m",
    region="r",
    source=Source(
        namespace="ns",
        waiting="vllm:num_requests_waiting",
        running="vllm:num_requests_running",
        gateway=False,
        slots=8,
        cpus=4.0,
    ),
    dialect="vllm",
    objectives={"ttft_p95_seconds": 1.5, "e2e_p95_seconds": 12.0, "error_rate": 0.01, "requests_per_second": 10.0},
    replicas_min=1,
    replicas_max=2,
    memory_bytes=1000.0,
    start_seconds=120.0,
    replica_usd_per_hour=0.9,
    autoscaled=True,
    evidence_until=200_000.0,
)
OLLAMA = dataclasses.replace(
    VLLM, source=Source(namespace="ns", waiting=None, running=None, gateway=True, slots=8, cpus=4.0), dialect=""
)
SGLANG = dataclasses.replace(
    VLLM,
    source=Source(
        namespace="ns",
        waiting="sglang:num_queue_reqs",
        running="sglang:num_running_reqs",
        gateway=True,
        slots=8,
        cpus=4.0,
    ),
    dialect="sglang",
)
FLEET = dataclasses.replace(VLLM, fleet=True)
FACTS = {"vllm": VLLM, "ollama": OLLAMA, "sglang": SGLANG, "fleet": FLEET}

# 15 s apart, half an hour; `{}` stands for the labels of one pod.
_POD = 'namespace="ns",pod="engine-1"'
_UP = {f"up{{{_POD}}}": "1x120"}
_TWO_UP = _UP | {'up{namespace="ns",pod="engine-2"}': "1x120"}
_WAITING = f"vllm:num_requests_waiting{{{_POD}}}"
_DONE = f"vllm:request_success_total{{{_POD}}}"


def histogram(name: str, slow: float, under: str, over: str) -> dict[str, str]:
    """Of 15 answers a step, that share ends between the two bounds, the others below the first."""
    quick = f"0+{15 * (1 - slow):g}x240"
    return {
        f'{name}_bucket{{{_POD},le="{under}"}}': quick,
        f'{name}_bucket{{{_POD},le="{over}"}}': "0+15x240",
        f'{name}_bucket{{{_POD},le="+Inf"}}': "0+15x240",
        f"{name}_count{{{_POD}}}": "0+15x240",
    }


def answers(failed: float) -> dict[str, str]:
    labels = f'{_POD},handler="/v1/chat/completions",method="POST"'
    return {
        f'http_requests_total{{{labels},status="2xx"}}': f"0+{100 - failed:g}x240",
        f'http_requests_total{{{labels},status="5xx"}}': f"0+{failed:g}x240",
    }


def proxied(failed: float) -> dict[str, str]:
    labels = 'namespace="ns",pod="gateway-1",proxy="engine"'
    return {
        f'haproxy_backend_http_responses_total{{{labels},code="2xx"}}': f"0+{100 - failed:g}x240",
        f'haproxy_backend_http_responses_total{{{labels},code="5xx"}}': f"0+{failed:g}x240",
    }


_TTFT, _E2E = "vllm:time_to_first_token_seconds", "vllm:e2e_request_latency_seconds"
_NO_NODE = 'kube_pod_status_scheduled{namespace="ns",pod="engine-2",condition="false"}'
_ON_NODE = 'kube_pod_status_scheduled{namespace="ns",pod="engine-2",condition="true"}'
_UNREADY = 'kube_pod_status_ready{namespace="ns",pod="engine-2",condition="false"}'
_READY = 'kube_pod_status_ready{{namespace="ns",pod="engine-{}",condition="true"}}'
_CPU = 'container_cpu_usage_seconds_total{{namespace="ns",pod="engine-1",container="{}"}}'
_MEMORY = 'container_memory_working_set_bytes{{namespace="ns",pod="engine-1",container="{}"}}'
_HELD = 'haproxy_backend_current_queue{namespace="ns",pod="gateway-1",proxy="engine"}'
_HELD_FOR_ONE = 'haproxy_server_current_queue{namespace="ns",pod="gateway-1",proxy="engine",server="engine1"}'
_SLOW = "sglang:time_to_first_token_seconds"
_HPA = 'kube_horizontalpodautoscaler_info{{namespace="ns",horizontalpodautoscaler="{}",scaletargetref_name="engine"}}'
_FINE = "http_request_duration_highr_seconds"

# (kind, alert, further labels, series it fires on, series it is quiet on, minute of the look)
Case = tuple[str, str, dict[str, str], Mapping[str, str], Mapping[str, str], int]
CASES: list[Case] = [
    ("vllm", "HighLatency", {"objective": "ttft_p95_seconds"}, histogram(_TTFT, 0.5, "1.0", "2.5"),
     histogram(_TTFT, 0.01, "1.0", "2.5"), 15),
    ("vllm", "HighLatency", {"objective": "e2e_p95_seconds"}, histogram(_E2E, 0.5, "10.0", "20.0"),
     histogram(_E2E, 0.01, "10.0", "20.0"), 15),
    ("vllm", "LowThroughput", {}, {_DONE: "0+15x120", _WAITING: "3x120"}, {_DONE: "0+15x120", _WAITING: "0x120"}, 20),
    ("vllm", "HighErrorRate", {}, answers(5), answers(0.5), 10),
    ("vllm", "BudgetBurn", {"objective": "ttft_p95_seconds", "speed": "fast"}, histogram(_TTFT, 0.9, "1.0", "2.5"),
     histogram(_TTFT, 0.5, "1.0", "2.5"), 70),
    ("vllm", "BudgetBurn", {"objective": "ttft_p95_seconds", "speed": "slow"}, histogram(_TTFT, 0.4, "1.0", "2.5"),
     histogram(_TTFT, 0.2, "1.0", "2.5"), 370),
    ("vllm", "BudgetBurn", {"objective": "e2e_p95_seconds", "speed": "fast"}, histogram(_E2E, 0.9, "10.0", "20.0"),
     histogram(_E2E, 0.5, "10.0", "20.0"), 70),
    ("vllm", "BudgetBurn", {"objective": "e2e_p95_seconds", "speed": "slow"}, histogram(_E2E, 0.4, "10.0", "20.0"),
     histogram(_E2E, 0.2, "10.0", "20.0"), 370),
    ("vllm", "BudgetBurn", {"objective": "error_rate", "speed": "fast"}, answers(20), answers(10), 70),
    ("vllm", "BudgetBurn", {"objective": "error_rate", "speed": "slow"}, answers(8), answers(4), 370),
    ("vllm", "ResourceExhaustion", {"resource": "cpu"}, {f"process_cpu_seconds_total{{{_POD}}}": "0+59x120"},
     {f"process_cpu_seconds_total{{{_POD}}}": "0+50x120"}, 12),
    ("vllm", "ResourceExhaustion", {"resource": "memory"}, {f"process_resident_memory_bytes{{{_POD}}}": "950x120"},
     {f"process_resident_memory_bytes{{{_POD}}}": "850x120"}, 12),
    # The kubelet's own numbers count where they are: the engine's leave out its workers. The pod's own cgroup counts twice.
    ("vllm", "ResourceExhaustion", {"resource": "cpu"},
     {f"process_cpu_seconds_total{{{_POD}}}": "0+1x120", _CPU.format("engine"): "0+59x120", _CPU.format(""): "0+60x120"},
     {f"process_cpu_seconds_total{{{_POD}}}": "0+59x120", _CPU.format("engine"): "0+50x120", _CPU.format(""): "0+60x120"}, 12),
    ("vllm", "ResourceExhaustion", {"resource": "memory"}, {_MEMORY.format("engine"): "950x120"},
     {_MEMORY.format("engine"): "850x120", _MEMORY.format(""): "950x120"}, 12),
    ("vllm", "KvCacheFull", {}, {f"vllm:kv_cache_usage_perc{{{_POD}}}": "0.97x120"},
     {f"vllm:kv_cache_usage_perc{{{_POD}}}": "0.9x120"}, 12),
    ("vllm", "Preemptions", {}, {f"vllm:num_preemptions_total{{{_POD}}}": "0+15x120"},
     {f"vllm:num_preemptions_total{{{_POD}}}": "0x120"}, 20),
    ("vllm", "QueueGrowing", {}, _UP | {_WAITING: "0+2x120"}, _UP | {_WAITING: "40x120"}, 20),
    ("vllm", "QueueMetricMissing", {}, _UP, _UP | {_WAITING: "0x120"}, 10),
    # In the middle of an upgrade: the old replica publishes it, the new one does not.
    ("vllm", "QueueMetricMissing", {}, _TWO_UP | {_WAITING: "0x120"}, _TWO_UP | {_WAITING: "0x120",
     'vllm:num_requests_waiting{namespace="ns",pod="engine-2"}': "0x120"}, 10),
    ("vllm", "NothingScraped", {}, {f"up{{{_POD}}}": "0x120"}, _UP, 10),
    # A pod whose image is fetched is Pending, too, but has its node.
    ("vllm", "PodsPending", {}, {_NO_NODE: "1x120"}, {_NO_NODE: "1x20 0x100",
     'kube_pod_status_phase{namespace="ns",pod="engine-2",phase="Pending"}': "1x120"}, 15),
    ("vllm", "SlowColdStart", {}, {_UNREADY: "1x120", _ON_NODE: "1x120"}, {_UNREADY: "1x120", _ON_NODE: "0x120"}, 10),
    ("vllm", "ReplicasAtMax", {}, _TWO_UP | {_WAITING: "3x120"}, _UP | {_WAITING: "3x120"}, 15),
    ("vllm", "KedaDown", {}, {}, {"keda_build_info": "1x120"}, 10),
    ("vllm", "ScalerFailing", {}, {'keda_scaled_object_errors_total{namespace="ns"}': "0+1x120"},
     {'keda_scaled_object_errors_total{namespace="ns"}': "4x120"}, 15),
    ("vllm", "ScalerFailing", {},
     {'keda_scaler_detail_errors_total{namespace="keda",exported_namespace="ns"}': "0+1x120"},
     {'keda_scaler_detail_errors_total{namespace="keda",exported_namespace="other"}': "0+1x120"}, 15),
    # Fallen back: errors are counted no more, what Prometheus says still is.
    ("vllm", "ScalerFailing", {},
     {'keda_scaled_object_errors_total{exported_namespace="ns"}': "6x120",
      'keda_scaler_empty_upstream_responses_total{exported_namespace="ns"}': "0+5x120"},
     {'keda_scaled_object_errors_total{exported_namespace="ns"}': "6x120",
      'keda_scaler_empty_upstream_responses_total{exported_namespace="ns"}': "5x120"}, 25),
    ("vllm", "ScalerFailing", {},
     {'keda_scaler_http_requests_total{namespace="ns",status_code="400"}': "0+5x120"},
     {'keda_scaler_http_requests_total{namespace="ns",status_code="200"}': "0+5x120"}, 25),
    ("vllm", "TwoAutoscalers", {}, {_HPA.format("a"): "1x120", _HPA.format("b"): "1x120"}, {_HPA.format("a"): "1x120"}, 5),
    # A day and a half before Unix second 200,000 and three days before it.
    ("vllm", "EvidenceExpires", {}, {}, {}, 1200),
    ("ollama", "HighLatency", {},
     {'haproxy_backend_total_time_average_seconds{namespace="ns",pod="gateway-1",proxy="engine"}': "13x120"},
     {'haproxy_backend_total_time_average_seconds{namespace="ns",pod="gateway-1",proxy="engine"}': "9x120"}, 15),
    ("ollama", "HighErrorRate", {}, proxied(5), proxied(0.5), 10),
    ("ollama", "BudgetBurn", {"objective": "error_rate", "speed": "fast"}, proxied(20), proxied(10), 70),
    # Nobody scrapes Ollama: its replicas are counted by their state.
    ("ollama", "ReplicasAtMax", {},
     {_READY.format(1): "1x120", _READY.format(2): "1x120", _HELD: "3x120"},
     {_READY.format(1): "1x120", _READY.format(2): "1x120", _HELD: "0x120"}, 15),
    ("ollama", "QueueGrowing", {}, {_READY.format(1): "1x120", _HELD: "0x120", _HELD_FOR_ONE: "0+2x120"},
     {_READY.format(1): "1x120", _HELD: "40x120"}, 20),
    ("ollama", "NothingScraped", {}, {'up{namespace="ns",pod="gateway-1"}': "0x120"},
     {'up{namespace="ns",pod="gateway-1"}': "1x120"}, 10),
    ("sglang", "HighLatency", {"objective": "ttft_p95_seconds"}, histogram(_SLOW, 0.5, "1.0", "2.0"),
     histogram(_SLOW, 0.01, "1.0", "2.0"), 15),
    ("sglang", "HighErrorRate", {}, proxied(5), proxied(0.5), 10),
    ("sglang", "BudgetBurn", {"objective": "ttft_p95_seconds", "speed": "fast"}, histogram(_SLOW, 0.9, "1.0", "2.0"),
     histogram(_SLOW, 0.5, "1.0", "2.0"), 70),
    ("sglang", "QueueMetricMissing", {}, _UP, _UP | {f"sglang:num_queue_reqs{{{_POD}}}": "0x120"}, 10),
    ("sglang", "KvCacheFull", {}, {f"sglang:token_usage{{{_POD}}}": "0.97x120"},
     {f"sglang:token_usage{{{_POD}}}": "0.9x120"}, 12),
    ("fleet", "HighLatency", {}, histogram(_FINE, 0.5, "0.01", "0.025"), histogram(_FINE, 0.001, "0.01", "0.025"), 15),
    ("fleet", "LowThroughput", {}, {_DONE: "0+15x120"}, {_DONE: "0+150000x120"}, 20),
]  # fmt: skip


def promtool(folder: Path, facts: Facts, tests: list[dict[str, Any]], *, step: str = "15s") -> str:
    """What promtool says; empty when all is as expected. `step`: between evaluations, as between samples."""
    try:
        program = tools.path("promtool")
    except stacks.TollgateError:
        pytest.skip("promtool is not there: tollgate tools build --with promtool")
    (folder / "rules.yaml").write_text(yaml.safe_dump(rule_file(facts), sort_keys=False))
    text = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": step,
        "tests": [{**one, "interval": step} for one in tests],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    for arguments in (["check", "rules", "rules.yaml"], ["test", "rules", "test.yaml"]):
        done = subprocess.run(
            [str(program), *arguments], cwd=folder, capture_output=True, text=True, timeout=240, check=False
        )
        if done.returncode:
            return done.stdout + done.stderr
    return ""


def look(case: Case, *, fires: bool) -> dict[str, Any]:
    _, name, labels, firing, quiet, minute = case
    more = "".join(f',{key}="{value}"' for key, value in labels.items())
    expected = [{"labels": f'{{alertname="{name}"}}', "value": 1}] if fires else []
    return {
        "name": f"{name} {labels} {'fires' if fires else 'is quiet'}",
        "input_series": [{"series": one, "values": v} for one, v in (firing if fires else quiet).items()],
        "promql_expr_test": [
            {
                "expr": f'count by (alertname) (ALERTS{{alertstate="firing",alertname="{name}"{more}}})',
                "eval_time": f"{minute}m",
                "exp_samples": expected,
            }
        ],
    }


@pytest.mark.parametrize("kind", FACTS)
def test_every_alert_fires_on_what_it_is_for_and_is_quiet_beside_it(kind: str, tmp_path: Path) -> None:
    mine = [case for case in CASES if case[0] == kind and case[1] != "EvidenceExpires"]
    # What looks back over hours is not asked every few seconds: a quarter of an hour of it is long.
    for step, slow in (("15s", False), ("2m", True)):
        tests = [look(case, fires=fires) for case in mine if (case[5] > 60) is slow for fires in (True, False)]
        assert promtool(tmp_path, FACTS[kind], tests, step=step) == ""


def test_evidence_is_announced_two_days_before_it_expires(tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case[1] == "EvidenceExpires")
    # promtool's clock begins at 0: minute 1200 is within two days of second 200,000, minute 60 is not.
    early = look((*case[:5], 60), fires=False)
    assert promtool(tmp_path, VLLM, [look(case, fires=True), early], step="30m") == ""


def test_the_test_can_fail(tmp_path: Path) -> None:
    case = next(case for case in CASES if case[1] == "HighErrorRate")
    assert "FAILED" in promtool(tmp_path, VLLM, [look((*case[:3], case[4], case[3], case[5]), fires=True)])


def test_no_alert_is_without_its_case() -> None:
    known = {(kind, name) for kind, name, *_ in CASES}
    same = dict.fromkeys(FACTS, "vllm")
    for kind, facts in FACTS.items():
        for one in alerts(facts):
            if one.name != "TollgateAlive":
                assert (kind, one.name) in known or (same[kind], one.name) in known, one.name


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    for facts in FACTS.values():
        for one in alerts(facts):
            assert one.summary
            assert one.action
            assert one.severity in ("critical", "warning", "none")


def test_alerts_read_nothing_that_is_not_recorded() -> None:
    for facts in FACTS.values():
        made = {record for record, _ in recordings(facts)}
        for one in alerts(facts):
            assert set(re.findall(r"tollgate:[a-z0-9_:]+", one.expr)) <= made, one.name


def test_promises_between_two_bounds_are_judged_at_the_lower_one() -> None:
    assert bound_within("vllm", "ttft", 2.0) == 1.0
    assert bound_within("vllm", "ttft", 2.5) == 2.5
    assert bound_within("vllm", "itl", 0.001) == 0.01
    assert bound_within("sglang", "ttft", 2.5) == 2.0


def test_the_bounds_are_those_that_the_engine_serves() -> None:
    assert BOUNDS["vllm"] == {"ttft": _stats.TTFT, "itl": _stats.ITL, "e2e": _stats.LATENCY}


def read(facts: Facts, prefix: str) -> set[str]:
    """The engine's series that recordings, alerts and the autoscaler's queries read."""
    texts = [expr for _, expr in recordings(facts)] + [one.expr for one in alerts(facts)]
    texts += [one.query for one in triggers(stacks.Autoscaling(), facts.source, replicas_min=1)]
    return set(re.findall(rf"\b{prefix}[a-z0-9_:]+", " ".join(texts)))


def test_every_series_that_is_read_of_vllm_was_captured_from_a_real_one() -> None:
    path = Path(__file__).parents[1] / "bench" / "simulator" / "vllm-0.32.0-series.txt"
    captured = {line.partition("{")[0].split()[0] for line in path.read_text().splitlines() if line.strip()}
    asked = read(VLLM, "vllm:") | read(FLEET, "vllm:") | read(FLEET, "http_")
    assert asked
    assert asked <= captured
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes"} <= captured


def test_every_series_that_is_read_of_sglang_is_in_its_source() -> None:
    path = Path(__file__).with_name("sglang-metrics.txt")
    lines = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    known = {name for kind, name, *_ in lines if kind != "histogram"}
    bounds = {name: tuple(map(float, numbers)) for kind, name, *numbers in lines if kind == "histogram"}
    known |= {f"{name}_{end}" for name in bounds for end in ("bucket", "count", "sum")}
    asked = read(SGLANG, "sglang:")
    assert asked
    assert asked <= known
    ours = BOUNDS["sglang"]
    assert [ours["ttft"], ours["itl"], ours["e2e"]] == list(bounds.values())
