"""A batch as a Kubernetes Job: as many runners as wanted, which share the queue by leases and not by parts of the input.

A pod that is preempted gives its leases back within its grace period; one that is killed loses them by time. Either is
replaced and goes on with whatever is left, so that spot machines do. The queue must be reached by all: PostgreSQL, or a
folder that all pods see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import stacks

IMAGE = "ghcr.io/tollgate/bench:0.1.0"
_GRACE_SECONDS = 40
_MOST_PODS = 1000


def job(
    batch: str, *, endpoints: Sequence[str], pods: int, input: str | None = None, model: str | None = None,
    template: str | None = None, store: str | None = None, secret: str | None = None, namespace: str = "default",
    image: str = IMAGE, spot: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The Job `batch-<batch>`, as `kubectl apply` takes it.

    `store`: where the queue is, when that is no secret; else `secret`: NAME/KEY of a Secret with its address. `input`:
    submitted by the first pod unless the batch is there. `endpoints`: URL[,slots=N,…] as pods reach them, slots for each pod.
    `spot`: pods are sent to spot machines of GKE. Raises InputError.
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
    name = "batch-" + "".join(c if c.isalnum() else "-" for c in batch.lower()).strip("-")
    arguments = ["batch", batch]
    for key, value in (("--input", input), ("--model", model), ("--template", template)):
        arguments += [key, value] if value is not None else []
    for endpoint in endpoints:
        arguments += ["--endpoint", endpoint]
    where: dict[str, Any] = {"name": "TOLLGATE_BATCHES"}
    if secret is not None:
        holder, _, key = secret.partition("/")
        where["valueFrom"] = {"secretKeyRef": {"name": holder, "key": key}}
    else:
        where["value"] = store
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "containers": [
            {
                "name": "runner", "image": image, "args": arguments, "env": [where],
                "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
            }
        ],
    }  # fmt: skip
    if spot:
        pod["nodeSelector"] = {"cloud.google.com/gke-spot": "true"}
        pod["tolerations"] = [
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        ]
    labels = {"app.kubernetes.io/name": "tollgate-batch", "tollgate.dev/batch": name}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            # An index that is killed again and again is started anew as often: a spot machine is no failure of the batch. A pod
            # that was told wrong things (exit code 2) would never succeed.
            "backoffLimitPerIndex": 50,
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": {"containerName": "runner", "operator": "In", "values": [2]}},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }  # fmt: skip
