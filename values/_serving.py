"""What a stack adds to its release's values: how much of it runs, on which nodes, and under what rules."""

from __future__ import annotations

import re
from typing import Any

import planner
import stacks

from ._render import chart_of, load_seconds, nodes_per_replica, release_values, render_template

POOL_LABEL = "tollgate.dev/pool"
# By this GKE fills the pools of one class in an order, and moves pods back to the first.
COMPUTE_CLASS = "cloud.google.com/compute-class"
# Not `engine-secrets`: vllm-stack makes a Secret of its own by that name.
SECRET = "engine-keys"
ACCOUNT = "engine"
# Speaks every dialect without a GPU; the same image as the benchmark's.
SIMULATOR_IMAGE = "ghcr.io/tollgate/bench:0.1.0"
# Beside its engine a node runs GKE's own pods (0.5 vCPU, agents and DNS) and maybe the benchmark's (1 vCPU, 256 MiB).
_OTHERS_VCPUS = 2.0
_OTHERS_GIB = 1.0
_NUMBERED = re.compile(r"^(?P<repository>.*?)(:(?P<tag>[^:@/]+))?(@(?P<digest>sha256:[0-9a-f]{64}))?$")


def render(stack: stacks.Stack, plan: planner.Plan) -> dict[str, Any]:
    """All chart values of one stack: the release's, and how much of it this stack runs.

    `replicas` is None where an autoscaler owns the number (nodes.min < nodes.max). With `serving.simulate` the simulator
    stands in for the engine; with `chart: upstream` the values are those of the engine's upstream chart.
    """
    release, serving = planner.resolve(stack.release), stack.serving
    dialect = release
    if serving.simulate and release.engine not in ("ollama", "vllm"):
        # The simulator has two dialects; the others speak OpenAI's, as vLLM does.
        dialect = release.model_copy(update={"engine": "vllm"})
    own = {**release_values(dialect), **_serving(stack, plan)}
    if stack.fleet.mig == "operator" and release.accelerator.mig_profile:
        own["gpu"] = {**own["gpu"], "resource": f"nvidia.com/mig-{release.accelerator.mig_profile}"}
        own["nodeSelector"] = {}
    if stack.target == "kubernetes" and stack.fleet.labels:
        # The user's own nodes carry the user's labels.
        own["nodeSelector"] = dict(stack.fleet.labels)
    if serving.simulate:
        return _simulated(own, release)
    return own if release.chart != "upstream" else _upstream(own, stack, release)


def _serving(stack: stacks.Stack, plan: planner.Plan) -> dict[str, Any]:
    serving, fleet = stack.serving, stack.fleet
    autoscaled = fleet.nodes.min < fleet.nodes.max
    found: dict[str, Any] = {
        "replicas": None if autoscaled else plan.replicas_max,
        # A rollout may stop a fifth of the replicas at once: there are no spare GPUs to surge onto.
        "maxUnavailable": max(1, plan.replicas_max // 5),
        "drainSeconds": serving.drain_seconds,
        # How long endpoints take to leave: kube-proxy on this machine at once, load balancers of a cloud in seconds.
        "preStopSeconds": 3 if stack.target == "local" else 10,
        "loadSeconds": load_seconds(stack.release, fleet.disk.gb_per_second if stack.target == "gke" else None),
        # On an existing cluster the nodes are not ours to label.
        "fleetSelector": _fleet_selector(stack),
        "tolerations": _tolerations(stack),
        "resources": _requests(fleet, plan),
        "podSecurity": serving.pod_security,
        "networkPolicy": {"enabled": serving.network_policy, "namespaces": ["monitoring"]},
        # The embedded cluster's Prometheus finds pods by annotation.
        "podMonitor": stack.target == "gke" or "prometheus" in stack.has,
        "headless": stack.gateway is not None and stack.gateway.kind == "proxy",
    }
    if serving.priority is not None:
        found["priorityClassName"] = f"{stack.name}-engine"
    if serving.api_key or serving.hugging_face_token:
        found["secret"] = {
            "name": serving.secret or SECRET,
            "apiKey": serving.api_key,
            "huggingFaceToken": serving.hugging_face_token,
        }
    if serving.cache is not None:
        found["cache"] = _cache(serving.cache)
    if nodes_per_replica(stack.release) > 1:
        group = serving.group
        found["controller"] = group.controller
        found["gang"] = {"kind": group.gang or "", "queue": group.queue or "", "scheduler": group.scheduler}
    return found


def _fleet_selector(stack: stacks.Stack) -> dict[str, str]:
    if stack.target == "kubernetes":
        return {}
    selector = {POOL_LABEL: stack.name}
    return {**selector, COMPUTE_CLASS: stack.name} if stack.fleet.fallback else selector


def _tolerations(stack: stacks.Stack) -> list[dict[str, str]]:
    taints = [(taint.key, taint.value, taint.effect) for taint in stack.fleet.taints]
    if stack.fleet.fallback:
        taints.append((COMPUTE_CLASS, stack.name, "NoSchedule"))
    return [{"key": key, "operator": "Equal", "value": value, "effect": effect} for key, value, effect in taints]


def _requests(fleet: stacks.Fleet, plan: planner.Plan) -> dict[str, str]:
    """One replica's share of its node, beside what else runs there.

    Allocatable as GKE reserves it (kubernetes-engine/docs/concepts/plan-node-sizes): of memory 25 % of the first 4 GiB,
    20 % of the next 4, 10 % of the next 8, 6 % of the next 112, 2 % of the rest, and 100 MiB.
    """
    machine = planner.catalog().machine(fleet.machine_type)
    memory, reserved, rest = machine.memory_gb, 100 / 1024, machine.memory_gb
    for size, share in ((4, 0.25), (4, 0.2), (8, 0.1), (112, 0.06), (float("inf"), 0.02)):
        reserved += min(rest, size) * share
        rest -= min(rest, size)
    cpus = max(machine.vcpus / 2, machine.vcpus - _OTHERS_VCPUS) / plan.replicas_per_node
    gib = max(memory / 2, memory - reserved - _OTHERS_GIB) / plan.replicas_per_node
    return {"cpu": f"{int(cpus * 1000)}m", "memory": f"{int(gib * 1024 * 0.9)}Mi"}


def _cache(cache: stacks.Cache) -> dict[str, Any]:
    return {
        "kind": cache.kind,
        "gb": cache.gb,
        "storageClass": cache.storage_class or "",
        "accessMode": cache.access_mode,
        "path": cache.path,
        "bucket": cache.bucket or "",
        "serviceAccount": ACCOUNT if cache.kind == "gcs" else "",
        "preload": cache.preload,
    }


def _simulated(own: dict[str, Any], release: stacks.Release) -> dict[str, Any]:
    changes = render_template(
        "simulator.yaml.j2", own=own, image=SIMULATOR_IMAGE, partition=release.accelerator.mig_profile or ""
    )
    server = {key: entry for key, entry in own["server"].items() if key != "drainFlag"}
    return {
        **own,
        **changes,
        "server": {**server, **changes["server"]},
        "probes": {**own["probes"], **changes.get("probes", {})},
        "resources": {"cpu": "500m", "memory": "256Mi"},
    }


def _upstream(own: dict[str, Any], stack: stacks.Stack, release: stacks.Release) -> dict[str, Any]:
    """The same in the words of the engine's upstream chart, which has fewer of them."""
    _refuse_upstream(stack, release)
    chart_of(release)
    parts = _NUMBERED.match(release.image)
    assert parts is not None
    tag = (parts["tag"] or "latest") + (f"@{parts['digest']}" if parts["digest"] else "")
    environment = [
        # vllm-stack sets this one itself, and a name may stand there once.
        *(entry for entry in own["server"]["env"] if entry["name"] != "HF_HOME"),
        {"name": "HOME", "value": "/home/engine"},
        {"name": "USER", "value": "engine"},
    ]
    restricted = own["podSecurity"] == "restricted"
    hook = {"preStop": {"exec": {"command": ["/bin/sh", "-c", f"sleep {own['preStopSeconds']}"]}}}
    if "postStart" in own:
        hook["postStart"] = {"exec": {"command": own["postStart"]}}
    # Flags that the chart renders from values of its own are left to it.
    named = ("--tensor-parallel-size", "--port")
    arguments = [entry for entry in own["server"]["args"][1:] if not entry.startswith(named)]
    return render_template(
        f"upstream/{release.engine}.yaml.j2",
        own=own,
        image=(parts["repository"], tag),
        env=environment,
        lifecycle=hook,
        grace=own["preStopSeconds"] + own["drainSeconds"] + 10,
        selector={**own["nodeSelector"], **own["fleetSelector"]},
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}, *own["tolerations"]],
        labels={"tollgate.dev/engine": release.engine},
        pod_security={
            "seccompProfile": {"type": "RuntimeDefault"},
            "fsGroup": 1000,
            **({"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000} if restricted else {}),
        },
        security={
            "allowPrivilegeEscalation": False,
            "runAsNonRoot": restricted,
            **({"capabilities": {"drop": ["ALL"]}} if restricted else {}),
        },
        secret=own.get("secret", {"name": "", "apiKey": False, "huggingFaceToken": False}),
        extra_args=[*arguments, f"{own['server']['drainFlag']}={own['drainSeconds']}"]
        if own["server"].get("drainFlag")
        else arguments,
        tensor=release.parallelism.tensor,
    )


def _refuse_upstream(stack: stacks.Stack, release: stacks.Release) -> None:
    """What only our chart has. Raises InputError."""
    serving = stack.serving
    lacking = {
        "a replica over several nodes": nodes_per_replica(release) > 1,
        "serving.cache": serving.cache is not None,
        "a gateway": stack.gateway is not None,
        # vllm-stack leaves replicas out only where it makes a ScaledObject of its own, on a label that vLLM does not have.
        "an autoscaler": stack.fleet.nodes.min < stack.fleet.nodes.max,
        "an image without a tag": ":" not in release.image.split("@")[0].rpartition("/")[2],
    }
    found = [name for name, present in lacking.items() if present]
    if found:
        raise stacks.InputError(
            where="release, chart",
            got=f"upstream with {' and '.join(found)}",
            allowed="engine, which has all of these; upstream without them",
            fix="set chart to engine",
        )
