"""The load from pods of a real cluster: the same command, begun together, merged, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stacks
from bench.pods import Knob
from bench.pods import Kubectl as Client
from bench.results import Result

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
ROOT = Path(stacks.__file__).parents[1]
Kubectl = Callable[..., str]
MODEL = "google/gemma-3-4b-it"


@pytest.fixture
def shop(kubectl: Kubectl, fresh_namespace: str) -> str:
    """A namespace with two simulated engines behind a Service, on a node of the test's own."""
    meta = {
        "name": "load-node",
        "labels": {"kubernetes.io/hostname": "load-node", "tollgate.dev/runner": "process"},
        "annotations": {"tollgate.dev/capacity": json.dumps({"cpu": "64", "memory": "64Gi"})},
    }
    container = {
        "name": "engine",
        "image": "vllm/vllm-openai:v0.9.0",
        "args": ["--model", MODEL, "--max-num-seqs=64"],
        "env": [{"name": "TOLLGATE_ACCELERATOR", "value": "nvidia-l4"}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
    }
    labels = {"app": "engine"}
    scraped = {"prometheus.io/scrape": "true", "prometheus.io/port": "8000"}
    template = {
        "metadata": {"labels": labels, "annotations": scraped},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
    }
    objects = [
        {"apiVersion": "v1", "kind": "Node", "metadata": meta},
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "engine", "namespace": fresh_namespace},
            "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "engine", "namespace": fresh_namespace},
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8000}]},
        },
    ]  # fmt: skip
    kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    kubectl("rollout", "status", "deployment/engine", "-n", fresh_namespace, "--timeout=60s", seconds=90)
    return fresh_namespace


def command(cluster: Any, shop: str, file: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "tollgate", "bench", "--service", f"{shop}/engine", "--cluster", cluster.name, "--engine",
        "vllm", "--model", MODEL, "--prompt-tokens", "32", "--max-tokens", "8", "--json", str(file), *more,
    ]  # fmt: skip


def left(kubectl: Kubectl, namespace: str) -> str:
    return kubectl("get", "job,service,secret", "-n", namespace, "-l", "app.kubernetes.io/name=bench", "-o", "name")


def test_three_pods_measure_as_one_and_leave_nothing(cluster: Any, kubectl: Kubectl, shop: str, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    done = subprocess.run(
        command(cluster, shop, file, "-c", "7", "--duration", "4", "--pods", "3"),
        cwd=ROOT, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 load generators, their clocks known to" in done.stdout
    result = Result.model_validate_json(file.read_text())
    (run,) = result.runs
    assert result.environment["client_pods"] == 3
    assert run.sent == run.ok + run.failed + run.cut
    assert run.failed == 0
    assert run.ok > 10
    assert run.metrics["concurrency_mean"] == pytest.approx(7, rel=0.1)
    assert run.client["connections"] == 7
    # What the cluster's own Prometheus saw of the two engines.
    assert run.metrics["replicas_max"] == 2
    assert 0 < run.metrics["server_running_mean"] <= 8
    assert run.metrics["nodes_max"] == 1
    assert left(kubectl, shop) == ""


def test_ctrl_c_lets_the_pods_report_what_they_have(cluster: Any, kubectl: Kubectl, shop: str, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    process = subprocess.Popen(
        command(cluster, shop, file, "-c", "4", "--duration", "90", "--pods", "2"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "run 1/1" in line:
            break
    time.sleep(3.0)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=90)
    assert process.returncode == 0, "".join(said) + text
    (run,) = Result.model_validate_json(file.read_text()).runs
    assert "interrupted" in run.invalid_because
    assert run.ok > 0
    assert run.sent == run.ok + run.failed + run.cut
    assert left(kubectl, shop) == ""


def test_a_deployed_engine_s_slots_are_turned_and_turned_back(cluster: Any, kubectl: Kubectl, shop: str) -> None:
    client = Client(environment=cluster.environment(ROOT), namespace=shop)

    def args() -> list[str]:
        found = json.loads(kubectl("get", "deployment", "engine", "-n", shop, "-o", "json"))
        return list(found["spec"]["template"]["spec"]["containers"][0]["args"])

    with Knob(client, "engine", "vllm") as knob:
        assert (knob.replicas, knob.place.value) == (2, 64)
        knob.turn(8)
        assert args()[-1] == "--max-num-seqs=8"
    assert args()[-1] == "--max-num-seqs=64"
