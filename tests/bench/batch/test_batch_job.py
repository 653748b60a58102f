"""A batch as an Indexed Job on the embedded cluster: eight pods, some of them killed at random, exact results."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pulumi
import pytest

import components
import stacks
import values
from bench import batch
from tests.components.recording import Recording, record

NODE = "batch-test-node"
TOTAL = 4000


def test_a_job_says_what_was_asked_for_and_nothing_secret() -> None:
    found = values.batch_job(
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
            values.batch_job("b", **{"endpoints": ["http://e"], "pods": 1, **wrong})


def test_with_a_bucket_each_index_is_a_shard() -> None:
    given = {"endpoints": ["http://e"], "pods": 8, "store": "s3://b/queue", "input": "s3://b/i.jsonl"}
    found = values.batch_job("x", **given, credentials="keys", service_account="runner")["spec"]
    assert (found["completions"], found["parallelism"]) == (8, 8)
    pod = found["template"]["spec"]
    assert pod["serviceAccountName"] == "runner"
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert "--shards" in pod["containers"][0]["args"]
    more = values.batch_job("x", **given, shards=40)["spec"]
    assert (more["completions"], more["parallelism"]) == (40, 8)
    assert values.batch_job("x", **given, shards=2)["spec"]["parallelism"] == 2


def component(**given: Any) -> Recording:
    """What it registers."""

    def program() -> None:
        # An output of another resource, as an engine's URL is.
        urls = pulumi.Output.from_input("http://engine").apply(lambda url: [f"{url},slots=4"])
        components.BatchJob("nightly", {"batch": "nightly", "namespace": "work", "endpoints": urls, **given})

    return record(program)


def test_the_component_makes_a_job_that_nobody_waits_for_and_scales_the_engine_by_what_is_left() -> None:
    scale = {"deployment": "engine", "replicasMax": 6, "inputsPerReplica": 1000}
    made = component(store="s3://b/queue", pods=4, shards=12, spot=True, scale=scale)
    job = made.one("Job").inputs
    assert job["metadata"]["annotations"] == {"pulumi.com/skipAwait": "true"}
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (12, 4)
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"][-2:] == ["--endpoint", "http://engine,slots=4"]
    scaled = made.one("ScaledObject").inputs["spec"]
    assert (scaled["scaleTargetRef"], scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (
        {"name": "engine"},
        0,
        6,
    )
    [trigger] = scaled["triggers"]
    assert trigger["metadata"]["threshold"] == "1000"
    assert 'tollgate_batch_left{namespace="work",batch="nightly"}' in trigger["metadata"]["query"]
    monitor = made.one("PodMonitor").inputs["spec"]
    assert monitor["selector"]["matchLabels"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert made.outputs["nightly"]["job"] == "batch-nightly"


def test_the_component_refuses_what_cannot_work_and_makes_no_more_than_was_asked_for() -> None:
    made = component(storeSecret="queue/url", podMonitor=False)
    assert {one.type.rpartition(":")[2] for one in made.made} == {"BatchJob", "Job"}
    with pytest.raises(stacks.InputError, match="only with --store"):
        component(storeSecret="queue/url", shards=3)
    with pytest.raises(stacks.InputError, match="cooldown"):
        component(store="s3://b/q", scale={"deployment": "e", "replicasMax": 2, "cooldownSeconds": 9})


def test_what_keda_asks_for_is_what_a_runner_serves(
    submit: Callable[..., batch.Queue], serve: Callable[..., Any]
) -> None:
    queue = submit(3)
    metrics = batch.Metrics(queue.id)
    batch.run(queue, [batch.EndpointSettings(url=serve().url)], progress=metrics.tell, signals=False)
    with metrics.served("127.0.0.1", 0) as port:
        text = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        assert httpx2.get(f"http://127.0.0.1:{port}/").status_code == 404
        with (
            pytest.raises(stacks.TollgateError, match=f"127.0.0.1:{port}: Address already in use"),
            metrics.served("127.0.0.1", port),
        ):
            pass
    assert batch.BACKLOG_METRIC == values.BACKLOG_METRIC
    series = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert f'{values.BACKLOG_METRIC}{{batch="{queue.id}",shard=""}}' in series
    assert f'batch="{queue.id}"' in values.backlog_query("work", queue.id)
    if found := shutil.which("promtool"):
        subprocess.run([found, "check", "metrics"], input=text, text=True, check=True, capture_output=True)


@pytest.mark.cluster
@pytest.mark.timeout(500)
def test_eight_shards_killed_at_random_give_exact_results_of_an_engine_that_their_backlog_starts(
    cluster: Any, kubectl: Callable[..., str], fresh_namespace: str, bucket: tuple[Any, str],
    submit: Callable[..., batch.Queue], outputs: Any,
) -> None:  # fmt: skip
    if cluster.rootless:
        pytest.skip("the test's bucket is on this machine's loopback, which a cluster without root does not see")
    store = f"s3://prompts/cluster{bucket[1]}"
    queue = submit(TOTAL, store=store, id="nightly", shards=8)
    here = {"kubernetes.io/hostname": NODE}
    node = {
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": NODE, "labels": {**here, "tollgate.dev/runner": "process"},
            "annotations": {"tollgate.dev/capacity": json.dumps({"cpu": "64", "memory": "64Gi"})},
        },
    }  # fmt: skip
    credentials = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": credentials}
    job = values.batch_job(
        "nightly", endpoints=[f"http://engine.{fresh_namespace}.svc,slots=2,most=2"], pods=8, store=store, credentials="keys",
        namespace=fresh_namespace, node_selector=here,
    )  # fmt: skip
    query = values.backlog_query(fresh_namespace, "nightly")
    scaled = components.batch_scaled(
        {"deployment": "engine", "replicasMax": 2, "inputsPerReplica": TOTAL, "coldStartSeconds": 1.0},
        query, str(cluster.prometheus_url),
    )  # fmt: skip
    scale = {
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": "engine"},
        "spec": {**scaled, "pollingInterval": 1},
    }  # fmt: skip
    for one in (node, secret, *_engine(here), scale, job):
        kubectl("apply", "-n", fresh_namespace, "-f", "-", given=json.dumps(one))
    draw, killed, end = random.Random(5), 0, time.monotonic() + 360

    def asked() -> Counter[str]:
        """By all engines together."""
        where = ("-n", fresh_namespace, "-l", "app=engine", "-o", "jsonpath={.items[*].status.podIP}")
        found = [
            httpx2.get(f"http://{ip}:8000/asked", timeout=60).json()["asked"]
            for ip in kubectl("get", "pods", *where).split()
        ]
        return sum(map(Counter, found), Counter())

    def status() -> dict[str, Any]:
        found = json.loads(kubectl("get", "job", "batch-nightly", "-n", fresh_namespace, "-o", "json"))["status"]
        logs = ("logs", "-n", fresh_namespace, "-l", "tollgate.dev/batch=batch-nightly", "--tail=20")
        failed = [one for one in found.get("conditions", []) if one["type"] in ("Failed", "FailureTarget")]
        assert not failed, f"{failed}\n{kubectl(*logs, check=False)}"
        assert time.monotonic() < end, f"{found}\n{kubectl(*logs, check=False)}"
        return dict(found)

    try:
        while killed < 4:
            while queue.counts().done < (killed + 1) * TOTAL // 8:
                status()
                time.sleep(0.2)
            owners = [runner.owner for runner in queue.runners() if runner.alive]
            # What an owner's name says is the process; killed as the kernel kills for memory. Some end meanwhile.
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(int(draw.choice(owners).split("/")[1]), 9)
                killed += 1
        while status().get("succeeded") != 8:
            time.sleep(0.3)
        again = asked().total() - TOTAL
    finally:
        for kind, name in (("scaledobject", "engine"), ("deployment", "engine"), ("job", "batch-nightly")):
            kubectl("delete", kind, name, "-n", fresh_namespace, "--cascade=foreground", "--timeout=30s", check=False)
        kubectl("delete", "node", NODE, check=False)
    assert queue.info().state == "done"
    good, bad = outputs(queue)
    assert ([line["custom_id"] for line in good], bad) == ([f"p{i}" for i in range(TOTAL)], [])
    # At most what a killed pod had answered since its last checkpoint, five seconds and more where the machine is slow.
    assert 0 <= again <= killed * TOTAL // 8


def _engine(node: dict[str, str]) -> list[dict[str, Any]]:
    """Nobody at first: what is scaled."""
    server = [sys.executable, str(Path(__file__).with_name("asked_server.py")), "--host", "$(POD_IP)", "--port", "8000"]
    container = {
        "name": "engine", "image": "busybox", "command": [*server, "--delay", "0.05"],
        "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
    }  # fmt: skip
    labels = {"app": "engine"}
    pod = {"metadata": {"labels": labels}, "spec": {"nodeSelector": node, "containers": [container]}}
    return [
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "engine"},
            "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": pod},
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "engine"},
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8000}]},
        },
    ]  # fmt: skip
