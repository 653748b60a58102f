"""What runs now, where the cluster can be asked from here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stacks
from bench.pods import Kubectl
from local import cluster
from values import POOL_LABEL

# As charts/engine labels them; the Helm release is called engine in every stack.
_PODS = "app.kubernetes.io/instance=engine,app.kubernetes.io/name={}"


@dataclass(frozen=True, kw_only=True)
class Live:
    """`why`: empty, or why nothing is known. `pods`: name -> ready. `environment`, `arguments`: of the first pod's engine.
    `nodes`: those of the stack's pool."""

    why: str = ""
    pods: Mapping[str, bool] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


def live(stack: stacks.Stack, root: Path) -> Live:
    """Ask the stack's cluster for its engine's pods and its nodes; what stands in the way is said, never raised."""
    if stack.target == "gke":
        return Live(why="a cluster of GKE is not asked from here: see kubectl get pods with its context")
    try:
        kubectl = _kubectl(stack, root)
        found = kubectl.get("pods", "-l", _PODS.format(stack.release.engine), "--request-timeout=8s")
        nodes = kubectl.get("nodes", "-l", f"{POOL_LABEL}={stack.name}", "--request-timeout=8s")
    except stacks.TollgateError as error:
        return Live(why=str(error).splitlines()[0][:200])
    if not found["items"]:
        return Live(why=f"nothing of it runs in namespace {stack.namespace}", nodes=_names(nodes))
    first = found["items"][0]["spec"]["containers"][0]
    env = {one["name"]: one["value"] for one in first.get("env", ()) if "value" in one}
    arguments = (*first.get("command", ()), *first.get("args", ()))
    pods = {one["metadata"]["name"]: _ready(one) for one in found["items"]}
    return Live(pods=pods, environment=env, arguments=tuple(map(str, arguments)), nodes=_names(nodes))


def _kubectl(stack: stacks.Stack, root: Path) -> Kubectl:
    if stack.target == "kubernetes":
        return Kubectl(environment=os.environ, namespace=stack.namespace, context=stack.cluster)
    found = cluster.load(stack.cluster)
    found.enter()
    return Kubectl(environment=found.environment(root), namespace=stack.namespace)


def _names(found: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(one["metadata"]["name"] for one in found["items"]))


def _ready(pod: Mapping[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
