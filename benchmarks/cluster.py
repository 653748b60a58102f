"""Times of the embedded cluster: `python benchmarks/cluster.py`. Medians of `--rounds` whole rounds; nothing is asserted.

A round: up, ten GPU pods by the pod runner, 500 nodes and 500 pods by kwok, down.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local import cluster

ROOT = Path(__file__).resolve().parents[1]
GPU_PODS, KWOK = 10, 500
_LIMIT_SECONDS = 300


def node(name: str, **annotations: str) -> dict[str, Any]:
    """A node with a GPU and room for all pods of this script."""
    runner = {} if "kwok.x-k8s.io/node" in annotations else {"tollgate.dev/runner": "process"}
    group = "fake" if "kwok.x-k8s.io/node" in annotations else "gpu"
    meta = {"name": name, "labels": {"bench": group, **runner}, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Node", "metadata": meta}


def deployment(name: str, replicas: int, container: dict[str, Any], group: str) -> dict[str, Any]:
    """Pods that may run on one group of nodes alone."""
    labels = {"app": name}
    spec = {
        "nodeSelector": {"bench": group},
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", **container}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


class Bench:
    """kubectl on one cluster, and the clock."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def kubectl(self, *arguments: str, given: object = None) -> str:
        """Its standard output. Raises CalledProcessError."""
        done = subprocess.run(
            ["kubectl", *arguments],
            env=self._environment,
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=True,
        )
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Server-side, in one call."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--server-side", "-f", "-", given=items)

    def until(self, check: Callable[[], bool]) -> None:
        """Look ten times a second."""
        end = time.monotonic() + _LIMIT_SECONDS
        while not check():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {_LIMIT_SECONDS} s")
            time.sleep(0.1)

    def ready(self, name: str, replicas: int) -> Callable[[], bool]:
        """Whether all pods of a deployment are ready."""
        query = ("get", "deploy", name, "-o", "jsonpath={.status.readyReplicas}")
        return lambda: self.kubectl(*query) == str(replicas)


def once(times: dict[str, list[float]]) -> None:
    """One round; adds its figures to `times`."""

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        times[what].append(time.monotonic() - began)

    name = f"bench-{os.getpid()}"
    try:
        with timed("up, s"):
            found = cluster.up(name)
        found.enter()
        bench = Bench(found.environment(ROOT))
        memory = sum(one.memory_bytes for one in cluster.status(name).components)
        times["memory after up, GiB"].append(memory / 2**30)
        capacity = json.dumps({"cpu": "8", "memory": "32Gi", "pods": "110", "nvidia.com/gpu": "1"})
        bench.apply(*(node(f"gpu-{index}", **{"tollgate.dev/capacity": capacity}) for index in range(GPU_PODS)))
        script = "trap 'exit 0' TERM; while :; do sleep 1; done"
        container = {
            "image": "busybox:1",
            "command": ["/bin/sh", "-c", script],
            "resources": {"limits": {"nvidia.com/gpu": 1}},
        }
        with timed(f"{GPU_PODS} GPU pods ready after apply, s"):
            bench.apply(deployment("gpu", GPU_PODS, container, "gpu"))
            bench.until(bench.ready("gpu", GPU_PODS))
        # One simulator a pod: what a release's pods cost on top, without a model's load.
        engine = {
            "image": "vllm/vllm-openai:v0.32.0",
            "args": ["--model", "tiny", "--port", "8000", "--ttft", "1", "--itl", "1"],
            "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
        }
        bench.kubectl("delete", "deploy", "gpu")
        with timed(f"{GPU_PODS} simulator pods ready after apply, s"):
            bench.apply(deployment("engine", GPU_PODS, engine, "gpu"))
            bench.until(bench.ready("engine", GPU_PODS))
        with timed(f"{KWOK} kwok nodes and {KWOK} pods ready, s"):
            bench.apply(*(node(f"fake-{index}", **{"kwok.x-k8s.io/node": "fake"}) for index in range(KWOK)))
            bench.apply(deployment("many", KWOK, {"image": "fake"}, "fake"))
            bench.until(bench.ready("many", KWOK))
    finally:
        with timed("down, s"):
            cluster.down(name)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = defaultdict(list)
    # Whoever is told to end (a time limit) takes the cluster down first, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as home:
        os.environ["TOLLGATE_HOME"] = home
        for _ in range(rounds):
            once(times)
    for what, found in times.items():
        print(f"{what:45} median {statistics.median(found):6.2f}   min {min(found):6.2f}   max {max(found):6.2f}")


if __name__ == "__main__":
    main()
