"""A batch as an Indexed Job on the embedded cluster: eight pods, some of them killed at random, exact results."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stacks
from bench import batch

NODE = "batch-test-node"
TOTAL = 4000


def test_a_job_says_what_was_asked_for_and_nothing_secret() -> None:
    found = batch.job(
        "Nightly_1", endpoints=["http://e,slots=4"], pods=8, secret="queue/url", spot=True, input="s3://b/i.jsonl"
    )
    assert found["metadata"]["name"] == "batch-nightly-1"
    spec = found["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 8, 8)
    [container] = spec["template"]["spec"]["containers"]
    assert container["args"] == [
        "batch", "Nightly_1", "--grace", "10", "--metrics-port", "9464", "--input", "s3://b/i.jsonl", "--endpoint", "http://e,slots=4"
    ]  # fmt: skip
    where = {"name": "TOLLGATE_BATCHES", "valueFrom": {"secretKeyRef": {"name": "queue", "key": "url"}}}
    assert container["env"][0] == where
    # What a runner needs after it was told to stop must fit into what a spot machine leaves it.
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 25
    assert spec["template"]["spec"]["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    for wrong in (
        {"secret": "x"},
        {"store": "a", "secret": "b/c"},
        {},
        {"store": "a", "pods": 0},
        {"store": "a", "endpoints": []},
        {"store": "a", "shards": 4},
        {"store": "s3://b/q", "shards": 0},
    ):
        with pytest.raises(stacks.InputError):
            batch.job("b", **{"endpoints": ["http://e"], "pods": 1, **wrong})


def test_with_a_bucket_each_index_is_a_shard() -> None:
    given = {"endpoints": ["http://e"], "pods": 8, "store": "s3://b/queue", "input": "s3://b/i.jsonl"}
    found = batch.job("x", **given, credentials="keys", service_account="runner")["spec"]
    assert (found["completions"], found["parallelism"]) == (8, 8)
    pod = found["template"]["spec"]
    assert pod["serviceAccountName"] == "runner"
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert "--shards" in pod["containers"][0]["args"]
    more = batch.job("x", **given, shards=40)["spec"]
    assert (more["completions"], more["parallelism"]) == (40, 8)
    assert batch.job("x", **given, shards=2)["spec"]["parallelism"] == 2


@pytest.mark.cluster
@pytest.mark.timeout(240)
def test_eight_pods_killed_at_random_give_exact_results(
    cluster: Any,
    kubectl: Callable[..., str],
    fresh_namespace: str,
    serve: Callable[..., Any],
    postgres: str,
    submit: Callable[..., batch.Queue],
    tmp_path: Path,
    outputs: Any,
) -> None:
    if cluster.rootless:
        pytest.skip("the test's endpoint is on this machine's loopback, which a cluster without root does not see")
    labels = {"kubernetes.io/hostname": NODE, "tollgate.dev/runner": "process"}
    annotations = {"tollgate.dev/capacity": json.dumps({"cpu": "64", "memory": "64Gi"})}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE, "labels": labels, "annotations": annotations},
    }
    kubectl("apply", "-f", "-", given=json.dumps(node))
    log = tmp_path / "log"
    server = serve(delay=0.05, log=log)
    queue = submit(TOTAL, store=postgres, id="nightly")
    endpoints = [f"{server.url},slots=2,most=2"]
    made = batch.job("nightly", endpoints=endpoints, pods=8, store=postgres, namespace=fresh_namespace)
    made["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": NODE}
    kubectl("apply", "-f", "-", given=json.dumps(made))
    draw, killed, end = random.Random(5), 0, time.monotonic() + 100

    def asked() -> int:
        return len(log.read_text().splitlines()) if log.exists() else 0

    def status() -> dict[str, Any]:
        found = json.loads(kubectl("get", "job", "batch-nightly", "-n", fresh_namespace, "-o", "json"))["status"]
        logs = ("logs", "-n", fresh_namespace, "-l", "tollgate.dev/batch=batch-nightly", "--tail=20")
        failed = [one for one in found.get("conditions", []) if one["type"] in ("Failed", "FailureTarget")]
        assert not failed, f"{failed}\n{kubectl(*logs, check=False)}"
        assert time.monotonic() < end, f"{found}\n{kubectl(*logs, check=False)}"
        return dict(found)

    try:
        while killed < 4:
            while asked() < (killed + 1) * TOTAL // 8:
                status()
                time.sleep(0.1)
            owners = [runner.owner for runner in queue.runners() if runner.alive]
            # What an owner's name says is the process; killed as the kernel kills for memory.
            os.kill(int(draw.choice(owners).split("/")[1]), 9)
            killed += 1
        while status().get("succeeded") != 8:
            time.sleep(0.3)
    finally:
        kubectl(
            "delete",
            "job",
            "batch-nightly",
            "-n",
            fresh_namespace,
            "--cascade=foreground",
            "--timeout=30s",
            check=False,
        )
        kubectl("delete", "node", NODE, check=False)
    good, bad = outputs(queue)
    assert ([line["custom_id"] for line in good], bad) == ([f"p{i}" for i in range(TOTAL)], [])
    queue.close()
    batch.remove(postgres, "nightly")
    again = sum(Counter(log.read_text().splitlines()).values()) - TOTAL
    assert 0 <= again <= killed * (64 + 2)
