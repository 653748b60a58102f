"""The ground a stack stands on: an embedded cluster, an existing one, or a GKE cluster that this stack owns.

Deliberately not here: node pools (`gpu_pool`), what runs in the cluster, DNS and certificates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pulumi
import pulumi_kubernetes as k8s

from ._base import Component


@dataclass(frozen=True, kw_only=True)
class ClusterArgs:
    """`name`: the embedded cluster, the kubeconfig context, or the GKE cluster to make, by target."""

    target: Literal["gke", "kubernetes", "local"]
    name: str
    region: str
    project: str | None = None


class Cluster(Component):
    """Attributes: `provider`, which everything inside the cluster uses; `name`, an Output on GKE."""

    provider: k8s.Provider
    name: pulumi.Input[str]

    def __init__(self, name: str, args: ClusterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, {"target": args.target, "cluster": args.name, "region": args.region}, opts)
        self.name = args.name
        self.gke: Any = None
        if args.target == "gke":
            self._make_gke(name, args)
        elif args.target == "kubernetes":
            self.provider = k8s.Provider(name, context=args.name, enable_server_side_apply=True, opts=self._child())
        else:
            # The kubeconfig comes from KUBECONFIG, which `tollgate local shell` sets: a path would differ by machine
            # and its contents are a key, and neither belongs in the state.
            self.provider = k8s.Provider(name, enable_server_side_apply=True, opts=self._child())
        self.register_outputs({"name": self.name})

    def _make_gke(self, name: str, args: ClusterArgs) -> None:
        # Imported here: loading the Google Cloud SDK takes half a second that other targets need not pay.
        from pulumi_gcp import container

        cluster = container.Cluster(
            name,
            name=args.name,
            location=args.region,
            project=args.project,
            deletion_protection=True,
            # The default pool is replaced by ours; Google's API wants one at creation.
            remove_default_node_pool=True,
            initial_node_count=1,
            networking_mode="VPC_NATIVE",
            ip_allocation_policy={},
            datapath_provider="ADVANCED_DATAPATH",
            enable_shielded_nodes=True,
            release_channel={"channel": "REGULAR"},
            private_cluster_config={"enable_private_nodes": True},
            workload_identity_config={"workload_pool": f"{args.project}.svc.id.goog"},
            opts=self._child(ignore_changes=["initialNodeCount"]),
        )
        self.gke = cluster
        self.name = cluster.name
        parts: pulumi.Output[list[Any]] = pulumi.Output.all(cluster.name, cluster.endpoint, cluster.master_auth)
        config: pulumi.Output[str] = parts.apply(_kubeconfig)
        # The SDK types `secret` for plain values only; an Output stays one.
        secret: pulumi.Output[str] = pulumi.Output.secret(config)
        self.provider = k8s.Provider(name, kubeconfig=secret, enable_server_side_apply=True, opts=self._child())


def _kubeconfig(parts: list[Any]) -> str:
    """A kubeconfig that asks Google's own credential plugin at each call, so that it holds no secret that lasts."""
    name, endpoint, auth = parts
    authority = auth["cluster_ca_certificate"] if isinstance(auth, dict) else auth.cluster_ca_certificate
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1beta1",
            "command": "gke-gcloud-auth-plugin",
            "installHint": "install gke-gcloud-auth-plugin",
            "provideClusterInfo": True,
        }
    }
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": name, "cluster": {"server": f"https://{endpoint}", "certificate-authority-data": authority}}
            ],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        }
    )
