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
    `nodes`: those of the stack's pool. `asked`: how kubectl was asked, with its context. `unseen`: which of several clusters
    did not answer, and why."""

    why: str = ""
    asked: str = "kubectl"
    unseen: str = ""
    pods: Mapping[str, bool] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


def live(stack: stacks.Stack, root: Path) -> Live:
    """Ask the stack's clusters for its engine's pods and its nodes; what stands in the way is said, never raised.

    On GKE and on existing clusters kubectl is asked with this machine's kubeconfig, which may well lead nowhere from here.
    """
    found, refused = [], []
    for place in _places(stack):
        try:
            found.append(_one(stack, _kubectl(stack, place, root)))
        except stacks.TollgateError as error:
            refused.append(" ".join(str(error).split())[:240])
    # Where nothing runs there may be something in another region.
    seen = [one for one in found if not one.why] or found
    if not seen:
        return Live(why="; ".join(refused))
    first = seen[0]
    return Live(
        why=first.why,
        pods={name: ready for one in seen for name, ready in one.pods.items()},
        environment=first.environment,
        arguments=first.arguments,
        nodes=tuple(sorted(name for one in found for name in one.nodes)),
        asked=first.asked,
        unseen="; ".join(refused),
    )


def _one(stack: stacks.Stack, kubectl: Kubectl) -> Live:
    found = kubectl.get("pods", "-l", _PODS.format(stack.release.engine), "--request-timeout=8s")
    nodes = _names(kubectl.get("nodes", "-l", f"{POOL_LABEL}={stack.name}", "--request-timeout=8s"))
    asked = f"kubectl --context {kubectl.context}" if kubectl.context else "kubectl"
    if not found["items"]:
        return Live(why=f"nothing of it runs in namespace {stack.namespace}", nodes=nodes, asked=asked)
    first = found["items"][0]["spec"]["containers"][0]
    env = {one["name"]: one["value"] for one in first.get("env", ()) if "value" in one}
    arguments = (*first.get("command", ()), *first.get("args", ()))
    pods = {one["metadata"]["name"]: _ready(one) for one in found["items"]}
    return Live(pods=pods, environment=env, arguments=tuple(map(str, arguments)), nodes=nodes, asked=asked)


def _places(stack: stacks.Stack) -> tuple[str, ...]:
    """Contexts of the kubeconfig; on GKE one for each region, as `gcloud container clusters get-credentials` names them."""
    if stack.target != "gke":
        return (stack.cluster,)
    return tuple(f"gke_{stack.project}_{region}_{stacks.cluster_name(stack, region)}" for region in stack.fleet.regions)


def _kubectl(stack: stacks.Stack, place: str, root: Path) -> Kubectl:
    if stack.target == "local":
        found = cluster.load(place)
        found.enter()
        return Kubectl(environment=found.environment(root), namespace=stack.namespace)
    # Asked for a context that is not there, kubectl names no fix.
    known = (
        Kubectl(environment=os.environ, namespace=stack.namespace).run("config", "get-contexts", "-o", "name").split()
    )
    if place not in known:
        raise stacks.TollgateError(
            f"no context {place} in this machine's kubeconfig; fix: {_credentials(stack, place)}"
        )
    return Kubectl(environment=os.environ, namespace=stack.namespace, context=place)


def _credentials(stack: stacks.Stack, place: str) -> str:
    if stack.target != "gke":
        return "kubectl config get-contexts shows those that there are"
    # Nothing of it has an underscore of its own.
    _, project, region, name = place.split("_")
    return f"gcloud container clusters get-credentials {name} --region {region} --project {project}"


def _names(found: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(one["metadata"]["name"] for one in found["items"]))


def _ready(pod: Mapping[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
