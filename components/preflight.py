"""What cannot work on this stack's ground, refused before any resource exists, with the field and what would do.

Beside `stacks` (what is well-formed) and `planner.check` (what fits a GPU) this knows the grounds: what GKE has where, what the
embedded cluster lacks, what an existing cluster says that it has.
"""

from __future__ import annotations

import math
import re

import planner
import stacks
import values

from .autoscaler import source_of
from .autoscaler_policy import check_source, cooldown_seconds
from .engines import service_for

# What a stack installs on a GKE cluster, and what the embedded cluster starts by itself.
_INSTALLED = {
    "gke": {"keda", "prometheus", "lws", "kueue", "gateway-api", "gcs-fuse"},
    "local": {"gpu-operator", "keda", "prometheus"},
}
# Families without that type of disk (compute/docs/disks/hd-types/hyperdisk-balanced).
_NO_HYPERDISK = ("a2", "g2")
# The engine's image, its home, and what else a node keeps.
_OTHERS_GB = 20.0
# The kubelet throws pods out when less than a tenth of the disk is free.
_FULL = 0.9
_GKE_NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")


def refuse(stack: stacks.Stack) -> None:
    """Raises InputError for the first thing that cannot work."""
    planner.check(stack.release, stack.fleet, stack.traffic.prefix)
    service_for(stack.release.engine, simulate=stack.serving.simulate)
    if stack.fleet.nodes.min < stack.fleet.nodes.max:
        times = planner.timing(stack.release)
        check_source(stack.release.engine, source_of(stack, planner.plan(stack)))
        cooldown_seconds(stack.autoscaling, times.load_seconds + times.start_seconds)
    _ground(stack)
    _offers(stack)
    _needs(stack)
    _sharing(stack)
    _storage(stack)
    _groups(stack)
    _rendered(stack)


def _ground(stack: stacks.Stack) -> None:
    gke = stack.gke
    if stack.target == "gke" and not _GKE_NAME.match(stack.name):
        raise stacks.InputError(
            where="the stack's name",
            got=stack.name,
            allowed="a-z, 0-9 and -, beginning with a letter: GKE's pools are named after it",
            fix="rename stacks/Pulumi.<name>.yaml",
        )
    if (
        stack.target == "gke"
        and not gke.adopt
        and (len(stack.cluster) > stacks.CLUSTER_NAME_CHARS or not _GKE_NAME.match(stack.cluster))
    ):
        raise stacks.InputError(
            where="tollgate:cluster",
            got=stack.cluster,
            allowed=f"up to {stacks.CLUSTER_NAME_CHARS} of a-z, 0-9 and -, beginning with a letter",
            fix="name the GKE cluster so",
        )
    if stack.benchmark is not None and len(stack.fleet.regions) > 1:
        raise stacks.InputError(
            where="tollgate:benchmark",
            got=f"a benchmark over {len(stack.fleet.regions)} regions",
            allowed="a benchmark on a stack of one region",
            fix="measure in the stage before, which has one region; or remove tollgate:benchmark",
        )
    if stack.serving.digests_only:
        refuse_tags(stack, "serving.digests_only is on")


def refuse_tags(stack: stacks.Stack, because: str) -> None:
    """Raises InputError for the first image without a digest."""
    for field, image in stacks.by_tag(stack):
        raise stacks.InputError(
            where=field,
            got=image,
            allowed=f"repository:tag@sha256:…, because {because}",
            fix="add the digest that the registry shows for this tag",
        )


def _offers(stack: stacks.Stack) -> None:
    """What Google has there, beside the machines by region, which the planner knows."""
    fleet = stack.fleet
    if fleet.reservation and stack.target == "gke" and len(fleet.zones) != 1:
        raise stacks.InputError(
            where="tollgate:fleet.zones",
            got=", ".join(fleet.zones) or "none",
            allowed=f"the one zone of the reservation {fleet.reservation}",
            fix="name it: a reservation is of one zone",
        )
    family = fleet.machine_type.partition("-")[0]
    if stack.target == "gke" and fleet.disk.type == "hyperdisk-balanced" and family in _NO_HYPERDISK:
        raise stacks.InputError(
            where="tollgate:fleet.disk.type",
            got=f"{fleet.disk.type} on {fleet.machine_type}",
            allowed="pd-balanced or pd-ssd",
            fix="choose one: this family of machines has no such disk",
        )


def _needs(stack: stacks.Stack) -> None:
    """What the cluster must have beside Kubernetes itself."""
    there = _INSTALLED.get(stack.target, set()) | set(stack.has)
    for capability, why, fix in _wanted(stack):
        if capability not in there:
            raise stacks.InputError(
                where="tollgate:has",
                got=f"{', '.join(stack.has) or 'nothing'}, and {why}",
                allowed=f"{capability} among what the cluster has",
                fix=f"install it there and add it to tollgate:has, or {fix}",
            )


def _wanted(stack: stacks.Stack) -> list[tuple[str, str, str]]:
    found = []
    if stack.fleet.nodes.min < stack.fleet.nodes.max:
        fix = "set nodes.min to nodes.max"
        found += [("keda", "nodes.min below nodes.max is KEDA's work", fix)]
        found += [("prometheus", "KEDA asks Prometheus for the queue", fix)]
    if values.nodes_per_replica(stack.release) > 1:
        group = stack.serving.group
        found += [(group.controller, "the release spans nodes", "choose the other serving.group.controller")]
        if group.gang:
            found += [(group.gang, f"serving.group.gang is {group.gang}", "choose another gang, or none")]
    if stack.gateway is not None and stack.gateway.kind == "inference-extension":
        found += [(name, "gateway.kind is inference-extension", "set gateway.kind to proxy")
                  for name in ("gateway-api", "inference-extension")]  # fmt: skip
    if stack.fleet.mig == "operator" and stack.release.accelerator.mig_profile:
        found += [("gpu-operator", "fleet.mig is operator: NVIDIA's cuts the slices", "set fleet.mig to gke")]
    if stack.serving.cache is not None and stack.serving.cache.kind == "gcs":
        found += [("gcs-fuse", "serving.cache mounts a bucket", "choose a cache of kind pvc")]
    return found


def _sharing(stack: stacks.Stack) -> None:
    """A GPU shared by N pods has 1/N of its memory for each."""
    sharing, release = stack.fleet.sharing, planner.resolve(stack.release)
    if sharing is None:
        return
    share = service_for(release.engine).memory_share
    if share is not None:
        raise stacks.InputError(
            where="tollgate:fleet.sharing",
            got=f"{sharing.strategy} of {sharing.clients} clients with {release.engine}",
            allowed=f"no sharing with {release.engine}, which takes {share:.0%} of the GPU's memory when it starts",
            fix="remove sharing; a MIG slice (accelerator.mig_profile) divides a GPU for such an engine",
        )
    slots, memory = int(release.parallelism.slots), _memory(release)
    used = memory.used_bytes(slots)
    most = int(memory.usable_bytes // used)
    if most < sharing.clients:
        raise stacks.InputError(
            where="tollgate:fleet.sharing.clients",
            got=f"{sharing.clients} pods of {used / 1e9:.1f} GB on {memory.usable_bytes / 1e9:.1f} GB",
            allowed=f"at most {most} with {slots} slots" if most > 1 else f"no sharing with {slots} slots",
            fix="lower the clients, or the release's slots",
        )


def _memory(release: stacks.Release) -> planner.Memory:
    known = planner.catalog()
    return planner.memory_for(
        engine=known.engine(release.engine),
        model=known.model(release.model),
        quantization=known.quantization(release.quantization),
        gpu=known.gpu(release.accelerator.gpu),
        mig_profile=release.accelerator.mig_profile,
        tensor=release.parallelism.tensor,
        pipeline=release.parallelism.pipeline,
        kv_cache=release.kv_cache,
        context_tokens=release.context_tokens,
    )


def _storage(stack: stacks.Stack) -> None:
    cache, fleet = stack.serving.cache, stack.fleet
    if fleet.preload_disk and (cache is None or cache.kind != "hostpath"):
        raise stacks.InputError(
            where="tollgate:fleet.preload_disk",
            got=f"{fleet.preload_disk} with serving.cache {cache.kind if cache is not None else 'absent'}",
            allowed="with serving.cache of kind hostpath, by which pods see that disk",
            fix="add it with path /mnt/disks/gke-secondary-disks/gke-IMAGE-disk, or remove preload_disk",
        )
    if stack.target == "gke" and not stack.serving.simulate and not fleet.preload_disk:
        _weights_fit(stack)
    if cache is None:
        return
    if stack.target == "local":
        raise stacks.InputError(
            where="tollgate:serving.cache",
            got=cache.kind,
            allowed="no cache: the embedded cluster has no volumes that outlive a pod",
            fix="remove it on this stack",
        )
    if cache.kind == "pvc" and cache.access_mode == "ReadWriteOnce" and stack.fleet.nodes.max > 1:
        raise stacks.InputError(
            where="tollgate:serving.cache.access_mode",
            got=f"ReadWriteOnce with up to {stack.fleet.nodes.max} nodes",
            allowed="ReadWriteMany, or ReadOnlyMany",
            fix="choose one, and a storage_class that has it: a ReadWriteOnce claim is attached to one node",
        )


def _weights_fit(stack: stacks.Stack) -> None:
    """Weights that no cache keeps elsewhere lie on the node's disk, once for every pod, or once in a folder of the node."""
    cache = stack.serving.cache
    if cache is not None and cache.kind != "hostpath":
        return
    weights = _memory(planner.resolve(stack.release)).weights_bytes
    pods = 1 if cache is not None else planner.plan(stack).replicas_per_node
    least = math.ceil((pods * weights / 1e9 + _OTHERS_GB) / _FULL / 1.073741824)
    if stack.fleet.disk.gb < least:
        raise stacks.InputError(
            where="tollgate:fleet.disk.gb",
            got=f"{stack.fleet.disk.gb} GiB for {pods} × {weights / 1e9:.0f} GB of weights",
            allowed=f"at least {least}",
            fix="raise it, or keep the weights elsewhere by serving.cache",
        )


def _groups(stack: stacks.Stack) -> None:
    group = stack.serving.group
    one_by_one = "coscheduling" if group.gang == "coscheduling" else "kuberay" if group.controller == "kuberay" else ""
    if values.nodes_per_replica(stack.release) > 1 and stack.fleet.nodes.min < stack.fleet.nodes.max and one_by_one:
        raise stacks.InputError(
            where="tollgate:fleet.nodes",
            got=f"min below max with {one_by_one}",
            allowed="min equal to max: every replica is an object of its own there, which no autoscaler can count",
            fix="set nodes.min to nodes.max, or use lws without coscheduling",
        )
    if group.controller == "kuberay" and stack.release.engine != "vllm":
        raise stacks.InputError(
            where="tollgate:serving.group.controller",
            got=f"kuberay with {stack.release.engine}",
            allowed="lws; kuberay with vllm",
            fix="set it to lws",
        )


def _rendered(stack: stacks.Stack) -> None:
    """The values and the chart of every region's engine: what they lack is said now, not after the cluster stands."""
    plan = planner.plan(stack)
    values.chart_of(stack.release)
    values.render(stack, plan)
    server = values.release_values(stack.release)["server"]
    if stack.serving.api_key and not server.get("apiKeyVariable"):
        raise stacks.InputError(
            where="tollgate:serving.api_key",
            got=f"true with {stack.release.engine}",
            allowed=f"false: {stack.release.engine} lets everybody in who reaches it, whatever key they send",
            fix="remove it; serving.network_policy keeps out everybody but the namespace's own pods and the monitoring",
        )
    if stack.gateway is not None and stack.gateway.candidate is not None:
        for fleet in stack.fleet.split():
            replicas = fleet.nodes.max * plan.replicas_per_node // plan.nodes_per_replica
            candidate_replicas(replicas, stack.gateway.candidate.percent)


def candidate_replicas(replicas: int, percent: float) -> int:
    """How many of the replicas a candidate with that share of the requests takes: at least one, and one is left.

    Raises InputError where there are not two.
    """
    if replicas < 2:
        raise stacks.InputError(
            where="tollgate:gateway.candidate",
            got=f"a second release on a fleet of {replicas} replica",
            allowed="a fleet of at least 2 replicas",
            fix="raise fleet.nodes.max: two releases side by side need a replica each",
        )
    return min(replicas - 1, max(1, round(replicas * percent / 100)))
