"""The clusters that stacks name: reachable, and with what the stacks need there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import stacks
from local import cluster as local
from values import nodes_per_replica

from ._finding import Finding

_SECONDS = 20.0
# What shows that an operator is there: its custom resource, by the name of the capability in `tollgate:has`.
_CRDS = {
    "keda": "scaledobjects.keda.sh",
    "prometheus": "podmonitors.monitoring.coreos.com",
    "lws": "leaderworkersets.leaderworkerset.x-k8s.io",
    "kueue": "localqueues.kueue.x-k8s.io",
    "kuberay": "rayclusters.ray.io",
    "coscheduling": "podgroups.scheduling.x-k8s.io",
    "gateway-api": "gateways.gateway.networking.k8s.io",
    "inference-extension": "inferencepools.inference.networking.k8s.io",
}


def capabilities(stack: stacks.Stack) -> tuple[str, ...]:
    """What an existing cluster has to have for this stack, beside what the stack says that it has."""
    needed = set(stack.has)
    if stack.fleet.nodes.min < stack.fleet.nodes.max:
        needed |= {"keda", "prometheus"}
    if nodes_per_replica(stack.release) > 1:
        needed |= {stack.serving.group.controller}
    return tuple(sorted(needed))


def clusters(wanted: Sequence[stacks.Stack], env: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """`env`: for kubectl; this process' by default. GKE's clusters are the cloud's to answer for."""
    for stack in wanted:
        if stack.target == "kubernetes":
            yield from _existing(stack, env)
    for name in dict.fromkeys(stack.cluster for stack in wanted if stack.target == "local"):
        phase = local.status(name).phase
        up = "tollgate local up" + ("" if name == "default" else f" --name {name}")
        ready = phase == "ready"
        yield Finding(
            area="cluster", about=f"embedded cluster {name}", level="good" if ready else "warning", said=phase,
            fix="" if ready else up,
        )  # fmt: skip


def _existing(stack: stacks.Stack, env: Mapping[str, str] | None) -> Iterator[Finding]:
    about = f"cluster {stack.cluster} ({stack.name})"
    kubectl = shutil.which("kubectl", path=None if env is None else env.get("PATH"))
    if kubectl is None:
        yield Finding(
            area="cluster",
            about=about,
            level="unknown",
            said="no kubectl on PATH",
            fix="install it, or tollgate tools build",
        )
        return
    command = [kubectl, "--context", stack.cluster, "get", "crd", "-o", "name", "--request-timeout=10s"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, env=env, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding(area="cluster", about=about, level="unknown", said=str(error)[:200], fix="try kubectl by hand")
        return
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
        yield Finding(
            area="cluster",
            about=about,
            level="bad",
            said=said,
            fix=f"kubectl --context {stack.cluster} get nodes, until it works",
        )
        return
    there = {line.strip().rpartition("/")[2] for line in done.stdout.splitlines()}
    missing = False
    for capability in capabilities(stack):
        if _CRDS[capability] not in there:
            missing = True
            yield Finding(
                area="cluster", about=about, level="bad", said=f"{capability} is not installed: no {_CRDS[capability]}",
                fix=f"install {capability} there, or change what {_file(stack)} asks for",
            )  # fmt: skip
    if not missing:
        yield Finding(
            area="cluster",
            about=about,
            level="good",
            said=f"reachable, with {', '.join(capabilities(stack)) or 'all it needs'}",
        )


def _file(stack: stacks.Stack) -> str:
    return str(Path("stacks") / f"Pulumi.{stack.name}.yaml")
