"""GPU nodes: GKE node pools, or Node objects with the same labels, capacity and taint on the embedded cluster.

Deliberately not here: an existing cluster's nodes (`target: kubernetes` brings its own), and which release they carry.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pulumi
import pulumi_kubernetes as k8s

import planner
import stacks
from values import COMPUTE_CLASS, POOL_LABEL

from ._base import Component
from .cluster import Cluster, Inherited

# GKE's own limit.
_POOL_NAME = 40
_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
_EFFECTS = {"NoSchedule": "NO_SCHEDULE", "PreferNoSchedule": "PREFER_NO_SCHEDULE", "NoExecute": "NO_EXECUTE"}
_DRIVERS = {"default": "DEFAULT", "latest": "LATEST", "disabled": "INSTALLATION_DISABLED"}
_SHARING = {"time-sharing": "TIME_SHARING", "mps": "MPS"}


@dataclass(frozen=True, kw_only=True)
class GpuPoolArgs:
    """`fleet`: of one region. `expected_nodes`: how many the plan says will run at the stack's traffic; what costs money."""

    target: Literal["gke", "kubernetes", "local"]
    pool: str
    accelerator: stacks.Accelerator
    fleet: stacks.Fleet
    expected_nodes: int
    project: str | None = None


class GpuPool(Component):
    """Attributes: `nodes`, the Node objects of the embedded cluster; `node_pools`, GKE's, in the order in which they are
    filled; `compute_class`, GKE's object that says so (spot with a fallback). What the target does not have is empty."""

    nodes: tuple[k8s.core.v1.Node, ...]
    node_pools: tuple[Any, ...]
    compute_class: k8s.apiextensions.CustomResource | None

    def __init__(
        self, name: str, args: GpuPoolArgs, cluster: Cluster | Inherited, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        fleet = args.fleet
        facts = {
            "pool": args.pool,
            "machineType": fleet.machine_type,
            "gpu": args.accelerator.gpu,
            "migProfile": args.accelerator.mig_profile,
            "region": fleet.regions[0],
            "spot": fleet.spot,
            "nodesMin": fleet.nodes.min,
            "nodesExpected": args.expected_nodes,
            "nodesMax": fleet.nodes.max,
        }
        super().__init__(name, facts, opts)
        self.nodes, self.node_pools, self.compute_class = (), (), None
        if args.target == "local":
            # There is no node autoscaler on the embedded cluster, so the pool stands at its maximum.
            self.nodes = tuple(self._node(args, cluster, index) for index in range(fleet.nodes.max))
        elif args.target == "gke":
            self.node_pools = (self._gke(name, args, cluster, spot=fleet.spot),)
            if fleet.fallback:
                self.node_pools += (self._gke(f"{name}-on-demand", args, cluster, spot=False),)
                self.compute_class = self._order(name, args, cluster)
        self.register_outputs({"nodes": fleet.nodes.max if args.target == "local" else None})

    def _node(self, args: GpuPoolArgs, cluster: Cluster | Inherited, index: int) -> k8s.core.v1.Node:
        fleet = args.fleet
        machine = planner.catalog().machines[fleet.machine_type]
        node = stacks.fit(f"{args.pool}-{args.accelerator.gpu.removeprefix('nvidia-')}-{index:03d}", 63)
        zones = fleet.zones or tuple(f"{fleet.regions[0]}-{letter}" for letter in "abc")
        labels = {
            **_labels(args),
            "kubernetes.io/hostname": node,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "node.kubernetes.io/instance-type": fleet.machine_type,
            "topology.kubernetes.io/region": fleet.regions[0],
            "topology.kubernetes.io/zone": zones[index % len(zones)],
            "cloud.google.com/gke-accelerator": args.accelerator.gpu,
            "cloud.google.com/gke-accelerator-count": str(machine.gpus),
            "tollgate.dev/runner": "process",
        }
        if args.accelerator.mig_profile and fleet.mig == "gke":
            labels["cloud.google.com/gke-gpu-partition-size"] = args.accelerator.mig_profile
        if fleet.sharing:
            labels["cloud.google.com/gke-gpu-sharing-strategy"] = fleet.sharing.strategy
            labels["cloud.google.com/gke-max-shared-clients-per-gpu"] = str(fleet.sharing.clients)
        if fleet.spot:
            labels["cloud.google.com/gke-spot"] = "true"
        if fleet.fallback:
            labels[COMPUTE_CLASS] = args.pool
        capacity = {
            "cpu": str(machine.vcpus),
            "memory": f"{int(machine.memory_gb)}Gi",
            "pods": "110",
            _resource(args): str(
                machine.gpus * _slices(args.accelerator) * (fleet.sharing.clients if fleet.sharing else 1)
            ),
        }
        taints = [_TAINT, *(taint.model_dump() for taint in fleet.taints)]
        return k8s.core.v1.Node(
            node,
            metadata={
                "name": node,
                "labels": labels,
                "annotations": {"tollgate.dev/capacity": json.dumps(capacity, sort_keys=True)},
            },
            spec={"taints": taints},
            # The runner and the node controller write taints, addresses and a pod range of their own.
            opts=self._child(provider=cluster.provider, ignore_changes=["spec"]),
        )

    def _gke(self, name: str, args: GpuPoolArgs, cluster: Cluster | Inherited, *, spot: bool) -> Any:
        # Imported here: loading the Google Cloud SDK takes half a second that other targets need not pay.
        from pulumi_gcp import container

        fleet = args.fleet
        tail = "" if spot == fleet.spot else "-on-demand"
        policy = fleet.location_policy or ("any" if spot or fleet.reservation else "balanced")
        return container.NodePool(
            name,
            name=stacks.fit(args.pool + tail, _POOL_NAME),
            cluster=cluster.name,
            location=fleet.regions[0],
            project=args.project,
            node_locations=list(fleet.zones) or None,
            initial_node_count=0 if fleet.nodes.min == 0 or tail else -(-fleet.nodes.min // (len(fleet.zones) or 3)),
            # Totals, not per zone: the promise is about nodes, wherever GPUs are to be had.
            autoscaling={
                "total_min_node_count": 0 if tail else fleet.nodes.min,
                "total_max_node_count": fleet.nodes.max,
                "location_policy": policy.upper(),
            },
            management={"auto_repair": True, "auto_upgrade": True},
            upgrade_settings=_upgrade(fleet.upgrade),
            placement_policy={"type": "COMPACT"} if fleet.placement else None,
            node_config=_node_config(args, cluster, spot=spot),
            opts=self._child(
                # A change of the first would recreate the whole pool, and the autoscaler owns the number anyway. GKE writes
                # its own taints, and what its plugins label; taking them back would recreate the pool, too.
                ignore_changes=list(
                    dict.fromkeys(
                        [
                            "initialNodeCount",
                            "nodeConfig.effectiveTaints",
                            "nodeConfig.resourceLabels",
                            *fleet.ignore,
                        ]
                    )
                ),
                custom_timeouts=pulumi.CustomTimeouts(create="60m", update="120m", delete="60m"),
            ),
        )

    def _order(self, name: str, args: GpuPoolArgs, cluster: Cluster | Inherited) -> k8s.apiextensions.CustomResource:
        """Spot first, on demand where there is none, and back as soon as there is some again."""
        pools = [stacks.fit(args.pool, _POOL_NAME), stacks.fit(f"{args.pool}-on-demand", _POOL_NAME)]
        return k8s.apiextensions.CustomResource(
            f"{name}-class",
            api_version="cloud.google.com/v1",
            kind="ComputeClass",
            metadata={"name": args.pool},
            spec={
                "priorities": [{"nodepools": [pool]} for pool in pools],
                "activeMigration": {"optimizeRulePriority": True},
                "whenUnsatisfiable": "DoNotScaleUp",
            },
            opts=self._child(provider=cluster.provider, depends_on=list(self.node_pools)),
        )


def _node_config(args: GpuPoolArgs, cluster: Cluster | Inherited, *, spot: bool) -> dict[str, Any]:
    fleet, accelerator = args.fleet, args.accelerator
    machine = planner.catalog().machines[fleet.machine_type]
    operated = accelerator.mig_profile is not None and fleet.mig == "operator"
    gpu: dict[str, Any] = {
        "type": accelerator.gpu,
        "count": machine.gpus,
        "gpu_driver_installation_config": {
            # NVIDIA's operator brings the driver and the partitions itself.
            "gpu_driver_version": _DRIVERS["disabled" if operated else fleet.driver]
        },
    }
    if accelerator.mig_profile and not operated:
        gpu["gpu_partition_size"] = accelerator.mig_profile
    if fleet.sharing:
        gpu["gpu_sharing_config"] = {
            "gpu_sharing_strategy": _SHARING[fleet.sharing.strategy],
            "max_shared_clients_per_gpu": fleet.sharing.clients,
        }
    labels = _labels(args)
    if operated:
        labels["gke-no-default-nvidia-gpu-device-plugin"] = "true"
        labels["nvidia.com/mig.config"] = f"all-{accelerator.mig_profile}"
    taints = [{"key": _TAINT["key"], "value": _TAINT["value"], "effect": "NO_SCHEDULE"}]
    if fleet.fallback:
        labels[COMPUTE_CLASS] = args.pool
        taints.append({"key": COMPUTE_CLASS, "value": args.pool, "effect": "NO_SCHEDULE"})
    taints += [{"key": t.key, "value": t.value, "effect": _EFFECTS[t.effect]} for t in fleet.taints]
    config: dict[str, Any] = {
        "machine_type": fleet.machine_type,
        "spot": spot,
        "labels": labels,
        "guest_accelerators": [gpu],
        "taints": taints,
        "image_type": fleet.image_type,
        "disk_size_gb": fleet.disk.gb,
        "disk_type": fleet.disk.type,
        "gcfs_config": {"enabled": True},
        "gvnic": {"enabled": True},
        "workload_metadata_config": {"mode": "GKE_METADATA"},
        # Secure boot is off: drivers that are not signed by Google, such as `latest`, would not load.
        "shielded_instance_config": {"enable_integrity_monitoring": True, "enable_secure_boot": False},
        "oauth_scopes": ["https://www.googleapis.com/auth/cloud-platform"],
    }
    if cluster.node_account is not None:
        config["service_account"] = cluster.node_account
    if fleet.preload_disk:
        config["secondary_boot_disks"] = [{"disk_image": fleet.preload_disk}]
    if fleet.reservation:
        config["reservation_affinity"] = {
            "consume_reservation_type": "SPECIFIC_RESERVATION",
            "key": "compute.googleapis.com/reservation-name",
            "values": [fleet.reservation],
        }
    return config


def _upgrade(upgrade: stacks.Upgrade) -> dict[str, Any]:
    if upgrade.strategy == "surge":
        return {"strategy": "SURGE", "max_surge": upgrade.max_surge, "max_unavailable": upgrade.max_unavailable}
    return {
        "strategy": "BLUE_GREEN",
        "blue_green_settings": {
            "node_pool_soak_duration": f"{upgrade.soak_seconds}s",
            "standard_rollout_policy": {
                "batch_node_count": upgrade.batch_nodes,
                "batch_soak_duration": f"{upgrade.batch_soak_seconds}s",
            },
        },
    }


def _labels(args: GpuPoolArgs) -> dict[str, str]:
    return {POOL_LABEL: args.pool, **args.fleet.labels}


def _resource(args: GpuPoolArgs) -> str:
    if args.accelerator.mig_profile and args.fleet.mig == "operator":
        return f"nvidia.com/mig-{args.accelerator.mig_profile}"
    return "nvidia.com/gpu"


def _slices(accelerator: stacks.Accelerator) -> int:
    if accelerator.mig_profile is None:
        return 1
    return planner.catalog().gpus[accelerator.gpu].mig[accelerator.mig_profile].count
