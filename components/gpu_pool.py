"""GPU nodes: a GKE node pool, or Node objects with the same labels, capacity and taint on the embedded cluster.

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

from ._base import Component
from .cluster import Cluster

POOL_LABEL = "tollgate.dev/pool"
_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


@dataclass(frozen=True, kw_only=True)
class GpuPoolArgs:
    """`expected_nodes`: how many the plan says will run at the stack's traffic; the number that costs money."""

    target: Literal["gke", "kubernetes", "local"]
    pool: str
    accelerator: stacks.Accelerator
    fleet: stacks.Fleet
    expected_nodes: int


class GpuPool(Component):
    """Attributes: `nodes`, the Node objects of the embedded cluster; `node_pool`, GKE's; one of them is empty."""

    nodes: tuple[k8s.core.v1.Node, ...]
    node_pool: Any

    def __init__(
        self, name: str, args: GpuPoolArgs, cluster: Cluster, opts: pulumi.ResourceOptions | None = None
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
        self.nodes, self.node_pool = (), None
        if args.target == "local":
            # There is no node autoscaler on the embedded cluster, so the pool stands at its maximum.
            self.nodes = tuple(self._node(args, cluster, index) for index in range(fleet.nodes.max))
        elif args.target == "gke":
            self.node_pool = self._gke(name, args, cluster)
        self.register_outputs({"nodes": fleet.nodes.max if args.target == "local" else None})

    def _node(self, args: GpuPoolArgs, cluster: Cluster, index: int) -> k8s.core.v1.Node:
        machine = planner.catalog().machines[args.fleet.machine_type]
        node = f"{args.pool}-{args.accelerator.gpu.removeprefix('nvidia-')}-{index:03d}"
        labels = {
            **_labels(args),
            "kubernetes.io/hostname": node,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "node.kubernetes.io/instance-type": args.fleet.machine_type,
            "topology.kubernetes.io/region": args.fleet.regions[0],
            "topology.kubernetes.io/zone": f"{args.fleet.regions[0]}-{'abc'[index % 3]}",
            "cloud.google.com/gke-accelerator": args.accelerator.gpu,
            "cloud.google.com/gke-accelerator-count": str(machine.gpus),
            "tollgate.dev/runner": "process",
        }
        if args.accelerator.mig_profile:
            labels["cloud.google.com/gke-gpu-partition-size"] = args.accelerator.mig_profile
        if args.fleet.spot:
            labels["cloud.google.com/gke-spot"] = "true"
        capacity = {
            "cpu": str(machine.vcpus),
            "memory": f"{int(machine.memory_gb)}Gi",
            "pods": "110",
            "nvidia.com/gpu": str(machine.gpus * _slices(args.accelerator)),
        }
        return k8s.core.v1.Node(
            node,
            metadata={
                "name": node,
                "labels": labels,
                "annotations": {"tollgate.dev/capacity": json.dumps(capacity, sort_keys=True)},
            },
            spec={"taints": [_TAINT]},
            # The runner and the node controller write taints, addresses and a pod range of their own.
            opts=self._child(provider=cluster.provider, ignore_changes=["spec"]),
        )

    def _gke(self, name: str, args: GpuPoolArgs, cluster: Cluster) -> Any:
        # Imported here: loading the Google Cloud SDK takes half a second that other targets need not pay.
        from pulumi_gcp import container

        machine = planner.catalog().machines[args.fleet.machine_type]
        accelerator = {
            "type": args.accelerator.gpu,
            "count": machine.gpus,
            "gpu_driver_installation_config": {"gpu_driver_version": "LATEST"},
        }
        if args.accelerator.mig_profile:
            accelerator["gpu_partition_size"] = args.accelerator.mig_profile
        node_config: dict[str, Any] = {
            "machine_type": args.fleet.machine_type,
            "spot": args.fleet.spot,
            "labels": _labels(args),
            "guest_accelerators": [accelerator],
            "taints": [{"key": _TAINT["key"], "value": _TAINT["value"], "effect": "NO_SCHEDULE"}],
            "gcfs_config": {"enabled": True},
            "workload_metadata_config": {"mode": "GKE_METADATA"},
        }
        if args.fleet.reservation:
            node_config["reservation_affinity"] = {
                "consume_reservation_type": "SPECIFIC_RESERVATION",
                "key": "compute.googleapis.com/reservation-name",
                "values": [args.fleet.reservation],
            }
        return container.NodePool(
            name,
            name=args.pool,
            cluster=cluster.name,
            location=args.fleet.regions[0],
            initial_node_count=args.fleet.nodes.min,
            autoscaling={
                "total_min_node_count": args.fleet.nodes.min,
                "total_max_node_count": args.fleet.nodes.max,
                "location_policy": "ANY" if args.fleet.spot or args.fleet.reservation else "BALANCED",
            },
            management={"auto_repair": True, "auto_upgrade": True},
            upgrade_settings={"strategy": "SURGE", "max_surge": 0, "max_unavailable": 1},
            node_config=node_config,
            # A change of it would recreate the whole pool, and the autoscaler owns the number anyway.
            opts=self._child(ignore_changes=["initialNodeCount"]),
        )


def _labels(args: GpuPoolArgs) -> dict[str, str]:
    return {POOL_LABEL: args.pool}


def _slices(accelerator: stacks.Accelerator) -> int:
    if accelerator.mig_profile is None:
        return 1
    return planner.catalog().gpus[accelerator.gpu].mig[accelerator.mig_profile].count
