"""The ground a stack stands on: an embedded cluster, an existing one, or a GKE cluster that this stack owns.

Deliberately not here: GPU pools (`gpu_pool`), what runs in the cluster, VPC networks and certificates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pulumi
import pulumi_kubernetes as k8s

import stacks

from ._base import Component

# GKE's own limits.
_ACCOUNT_NAME = 30


@dataclass(frozen=True, kw_only=True)
class ClusterArgs:
    """`name`: the embedded cluster, the kubeconfig context, or the GKE cluster to make or adopt, by target.

    `gateway_api`: GKE's Gateway controller is wanted. `gcs`: pods mount buckets.
    """

    target: Literal["gke", "kubernetes", "local"]
    name: str
    region: str
    project: str | None = None
    gke: stacks.Gke = field(default_factory=stacks.Gke)
    gateway_api: bool = False
    gcs: bool = False


@dataclass(frozen=True, kw_only=True)
class Inherited:
    """Somebody else's cluster: its provider is the one that the parent was given. `name`: GKE's name of it, for pools."""

    name: pulumi.Input[str] = ""
    provider: None = None
    node_account: None = None


class Cluster(Component):
    """Attributes: `provider`, which everything inside the cluster uses; `name`, an Output on GKE; `node_account`, the Google
    service account of its nodes (GKE that this stack made); `ready`, what has to exist before anything runs there;
    `kubeconfig` (GKE) and `context` (an existing cluster), with which kubectl reaches it, None where its own will do."""

    provider: k8s.Provider
    name: pulumi.Input[str]
    node_account: pulumi.Output[str] | None
    ready: tuple[pulumi.Resource, ...]
    kubeconfig: pulumi.Output[str] | None
    context: str | None

    def __init__(self, name: str, args: ClusterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, {"target": args.target, "cluster": args.name, "region": args.region}, opts)
        self.name = args.name
        self.gke: Any = None
        self.node_account, self.ready = None, ()
        self.kubeconfig, self.context = None, args.name if args.target == "kubernetes" else None
        if args.target == "gke":
            parts = self._adopt(args) if args.gke.adopt else self._make(name, args)
            config: pulumi.Output[str] = parts.apply(_kubeconfig)
            # The SDK types `secret` for plain values only; an Output stays one.
            secret: pulumi.Output[str] = pulumi.Output.secret(config)
            self.kubeconfig = secret
            self.provider = k8s.Provider(name, kubeconfig=secret, enable_server_side_apply=True, opts=self._child())
        elif args.target == "kubernetes":
            self.provider = k8s.Provider(name, context=args.name, enable_server_side_apply=True, opts=self._child())
        else:
            # The kubeconfig comes from KUBECONFIG, which `tollgate local shell` sets: a path would differ by machine
            # and its contents are a key, and neither belongs in the state.
            self.provider = k8s.Provider(name, enable_server_side_apply=True, opts=self._child())
        self.register_outputs({"name": self.name})

    def _adopt(self, args: ClusterArgs) -> pulumi.Output[list[Any]]:
        # Imported here: loading the Google Cloud SDK takes half a second that other targets need not pay.
        from pulumi_gcp import container

        found = container.get_cluster_output(
            name=args.name, location=args.region, project=args.project, opts=pulumi.InvokeOptions(parent=self)
        )
        return pulumi.Output.all(args.name, found.endpoint, found.master_auths.apply(lambda auths: auths[0]))

    def _make(self, name: str, args: ClusterArgs) -> pulumi.Output[list[Any]]:
        from pulumi_gcp import container

        gke, project = args.gke, args.project
        account = self._account(name, args)
        cluster = container.Cluster(
            name,
            name=args.name,
            location=args.region,
            project=project,
            deletion_protection=gke.deletion_protection,
            # The default pool is replaced by ours; Google's API wants one at creation.
            remove_default_node_pool=True,
            initial_node_count=1,
            networking_mode="VPC_NATIVE",
            network=gke.network,
            subnetwork=gke.subnetwork,
            ip_allocation_policy={
                "cluster_secondary_range_name": gke.pods_range,
                "services_secondary_range_name": gke.services_range,
            }
            if gke.pods_range
            else {},
            datapath_provider="ADVANCED_DATAPATH",
            enable_shielded_nodes=True,
            release_channel={"channel": gke.release_channel.upper()},
            private_cluster_config={
                "enable_private_nodes": True,
                "enable_private_endpoint": gke.private_endpoint,
            },
            master_authorized_networks_config={
                "cidr_blocks": [{"cidr_block": entry} for entry in gke.authorized_networks]
            }
            if gke.authorized_networks or gke.private_endpoint
            else None,
            workload_identity_config={"workload_pool": f"{project}.svc.id.goog"},
            maintenance_policy={"recurring_window": _window(gke.maintenance)},
            # Image streaming for every pool: an engine's image is 5 to 10 GB.
            node_pool_defaults={"node_config_defaults": {"gcfs_config": {"enabled": True}}},
            addons_config={"gcs_fuse_csi_driver_config": {"enabled": args.gcs}},
            gateway_api_config={"channel": "CHANNEL_STANDARD" if args.gateway_api else "CHANNEL_DISABLED"},
            # Idle GPU nodes are the most expensive thing here.
            cluster_autoscaling={"autoscaling_profile": "OPTIMIZE_UTILIZATION"},
            cost_management_config={"enabled": True},
            resource_labels={"managed-by": "tollgate"},
            opts=self._child(
                protect=gke.deletion_protection,
                # Both describe the default pool, which is gone; a difference in either would recreate the cluster.
                ignore_changes=["initialNodeCount", "nodeConfig"],
                custom_timeouts=pulumi.CustomTimeouts(create="60m", update="90m", delete="60m"),
            ),
        )
        system = container.NodePool(
            f"{name}-system",
            name="system",
            cluster=cluster.name,
            location=args.region,
            project=project,
            initial_node_count=1,
            autoscaling={"total_min_node_count": 1, "total_max_node_count": 6, "location_policy": "ANY"},
            management={"auto_repair": True, "auto_upgrade": True},
            node_config={
                "machine_type": gke.system_machine_type,
                "service_account": account.email,
                "oauth_scopes": ["https://www.googleapis.com/auth/cloud-platform"],
                "shielded_instance_config": {"enable_secure_boot": True, "enable_integrity_monitoring": True},
                "workload_metadata_config": {"mode": "GKE_METADATA"},
                "gcfs_config": {"enabled": True},
            },
            opts=self._child(ignore_changes=["initialNodeCount"]),
        )
        self.gke, self.name, self.ready = cluster, cluster.name, (system,)
        return pulumi.Output.all(cluster.name, cluster.endpoint, cluster.master_auth)

    def _account(self, name: str, args: ClusterArgs) -> Any:
        """Nodes get an account that may write logs and metrics and read images; the default one may edit the project."""
        from pulumi_gcp import projects, serviceaccount

        account = serviceaccount.Account(
            f"{name}-nodes",
            account_id=stacks.fit(f"{args.name}-nodes", _ACCOUNT_NAME),
            display_name=f"Nodes of the GKE cluster {args.name}",
            project=args.project,
            opts=self._child(),
        )
        for role in ("roles/container.defaultNodeServiceAccount", "roles/artifactregistry.reader"):
            projects.IAMMember(
                f"{name}-nodes-{role.rpartition('.')[2].lower()}",
                project=args.project,
                role=role,
                member=account.member,
                opts=self._child(),
            )
        self.node_account = account.email
        if args.gke.nat:
            self._nat(name, args)
        return account

    def _nat(self, name: str, args: ClusterArgs) -> None:
        """Private nodes have no address of their own: without this they reach no registry but Google's."""
        from pulumi_gcp import compute

        router = compute.Router(
            f"{name}-router",
            name=args.name,
            network=args.gke.network or "default",
            region=args.region,
            project=args.project,
            opts=self._child(),
        )
        compute.RouterNat(
            f"{name}-nat",
            name=args.name,
            router=router.name,
            region=args.region,
            project=args.project,
            nat_ip_allocate_option="AUTO_ONLY",
            source_subnetwork_ip_ranges_to_nat="ALL_SUBNETWORKS_ALL_IP_RANGES",
            opts=self._child(),
        )


def _window(maintenance: stacks.Maintenance) -> dict[str, str]:
    """A weekly window as GKE wants it: a first time in the past, its end, and RFC 5545's rule."""
    hour, minute = (int(part) for part in maintenance.start.split(":"))
    end = hour + maintenance.hours
    return {
        "start_time": f"2026-01-01T{hour:02d}:{minute:02d}:00Z",
        "end_time": f"2026-01-{1 + end // 24:02d}T{end % 24:02d}:{minute:02d}:00Z",
        "recurrence": f"FREQ=WEEKLY;BYDAY={','.join(dict.fromkeys(maintenance.days))}",
    }


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
