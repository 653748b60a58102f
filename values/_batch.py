"""A batch as a Kubernetes Job: as many runners as wanted, each index of it started again until all is done.

With PostgreSQL the pods share the queue by leases and not by parts of the input: whoever is faster does more. With a bucket
each index is one shard of the input, whose checkpoints lie beside it. Either way a pod that is preempted finishes what it can
within its grace period and gives back the rest; one that is killed costs what was in flight (and a bucket: the answers of the
last seconds), which its successor asks again. That is why spot machines do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import stacks

# What the runner's metrics are called, and where a pod of ours serves them.
BACKLOG_METRIC = "tollgate_batch_left"
_METRICS_PORT = 9464
_IMAGE = "ghcr.io/tollgate/bench:0.1.0"
_GRACE_SECONDS = 20
# What GKE leaves a pod when a spot machine is taken away is about 25 s; it must be enough for the last commit as well.
_SPOT_GRACE_SECONDS = 10
_COMMIT_SECONDS = 15
_MOST_PODS, _MOST_SHARDS = 1000, 10_000
_SPOT = "cloud.google.com/gke-spot"


def batch_job(
    batch: str, *, endpoints: Sequence[str], pods: int, input: str | None = None, model: str | None = None,
    template: str | None = None, store: str | None = None, secret: str | None = None, shards: int | None = None,
    credentials: str | None = None, service_account: str | None = None, namespace: str = "default", image: str = _IMAGE,
    spot: bool = False, node_selector: Mapping[str, str] | None = None, tolerations: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:  # fmt: skip
    """The Job `batch-<batch>`, as `kubectl apply` takes it.

    `store`: where the queue is, when that is no secret; else `secret`: NAME/KEY of a Secret with its address. `shards`: of a
    batch in a bucket, by default as many as `pods`; more of them than pods even out. `credentials`: a Secret whose keys become
    environment variables, `service_account`: of the pods; for buckets. `input`: submitted by the first pod unless the batch is
    there. `endpoints`: URL[,slots=N,…] as pods reach them, slots for each pod. `spot`: pods are sent to spot machines of GKE.
    Raises InputError.
    """
    if (store is None) == (secret is None) or (secret is not None and secret.count("/") != 1):
        raise stacks.InputError(
            where="--store and --secret", got="both, none, or no NAME/KEY", allowed="one of them; a Secret as NAME/KEY",
            fix="keep a URL with a password in a Secret: --secret queue/url",
        )  # fmt: skip
    if not 1 <= pods <= _MOST_PODS or not endpoints:
        raise stacks.InputError(
            where="--pods and --endpoint", got=f"{pods} pods, {len(endpoints)} endpoints",
            allowed=f"1 to {_MOST_PODS} pods, at least one endpoint", fix="say both",
        )  # fmt: skip
    bucket = store is not None and store.startswith(stacks.BUCKET_SCHEMES)
    if shards is not None and (not bucket or not 1 <= shards <= _MOST_SHARDS):
        raise stacks.InputError(
            where="--shards", got=str(shards), allowed=f"1 to {_MOST_SHARDS}, and only with --store s3://… or gs://…",
            fix="leave it out: elsewhere pods share a batch by leases",
        )  # fmt: skip
    name = _name(batch)
    indexes = (shards or pods) if bucket else pods
    grace = _SPOT_GRACE_SECONDS if spot else _GRACE_SECONDS
    arguments = ["batch", batch, "--grace", str(grace), "--metrics-port", str(_METRICS_PORT)]
    for key, value in (("--input", input), ("--model", model), ("--template", template)):
        arguments += [key, value] if value is not None else []
    if bucket and input is not None:
        arguments += ["--shards", str(indexes)]
    for endpoint in endpoints:
        arguments += ["--endpoint", endpoint]
    where: dict[str, Any] = {"name": "TOLLGATE_BATCHES"}
    if secret is not None:
        holder, _, key = secret.partition("/")
        where["valueFrom"] = {"secretKeyRef": {"name": holder, "key": key}}
    else:
        where["value"] = store
    container: dict[str, Any] = {
        "name": "runner", "image": image, "args": arguments,
        "env": [where, {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "ports": [{"name": "metrics", "containerPort": _METRICS_PORT}],
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    if credentials is not None:
        container["envFrom"] = [{"secretRef": {"name": credentials}}]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace + _COMMIT_SECONDS,
        # What a namespace of level `restricted` asks of every pod.
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    if service_account is not None:
        pod["serviceAccountName"] = service_account
    if selector := {**(node_selector or {}), **({_SPOT: "true"} if spot else {})}:
        pod["nodeSelector"] = selector
    taints = [{"key": _SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}] if spot else []
    if every := [*map(dict, tolerations), *taints]:
        pod["tolerations"] = every
    labels = {"app.kubernetes.io/name": "tollgate-batch", "tollgate.dev/batch": name}
    scraped = {"prometheus.io/scrape": "true", "prometheus.io/port": str(_METRICS_PORT)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "completionMode": "Indexed",
            "completions": indexes,
            "parallelism": min(pods, indexes),
            # An index that is killed again and again is started anew as often: a spot machine is no failure of the batch. A pod
            # that was told wrong things (exit code 2) would never succeed.
            "backoffLimitPerIndex": 50,
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": {"containerName": "runner", "operator": "In", "values": [2]}},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": labels, "annotations": scraped}, "spec": pod},
        },
    }


def _name(batch: str) -> str:
    return "batch-" + "".join(c if c.isalnum() else "-" for c in batch.lower()).strip("-")


def backlog_query(namespace: str, batch: str) -> str:
    """PromQL: how many inputs of a batch wait. Runners that share a queue all say the same of it; those of shards each say
    their own. One series always, 0 while nobody works on it: then nobody would ask an engine either."""
    of = f'namespace="{namespace}",batch="{batch}"'
    return f"sum(max by (shard) ({BACKLOG_METRIC}{{{of}}})) or vector(0)"
