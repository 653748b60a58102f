"""KEDA and Prometheus where the ground does not have them yet: their upstream charts, on clusters that this stack owns.

Deliberately not here: existing clusters (they have their own) and the embedded one (it starts both itself).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pulumi
import pulumi_kubernetes as k8s

from ._base import Component
from .cluster import Cluster

# Where the engines' metrics can be asked for, by target.
PROMETHEUS = {
    "gke": "http://monitoring-kube-prometheus-prometheus.monitoring.svc:9090",
    "kubernetes": "http://monitoring-kube-prometheus-prometheus.monitoring.svc:9090",
    "local": "http://prometheus.monitoring.svc:9090",
}
_KEDA_VERSION = "2.21.0"
_PROMETHEUS_VERSION = "79.5.0"


@dataclass(frozen=True, kw_only=True)
class MonitoringArgs:
    target: Literal["gke", "kubernetes", "local"]


class Monitoring(Component):
    """Attributes: `prometheus_url`; `releases`, the Helm releases made (none where the ground has both)."""

    prometheus_url: str
    releases: tuple[k8s.helm.v3.Release, ...]

    def __init__(
        self, name: str, args: MonitoringArgs, cluster: Cluster, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__(name, {"target": args.target}, opts)
        self.prometheus_url = PROMETHEUS[args.target]
        self.releases = ()
        if args.target == "gke":
            self.releases = (
                self._chart("keda", "https://kedacore.github.io/charts", "keda", _KEDA_VERSION, cluster),
                self._chart(
                    "kube-prometheus-stack",
                    "https://prometheus-community.github.io/helm-charts",
                    "monitoring",
                    _PROMETHEUS_VERSION,
                    cluster,
                ),
            )
        self.register_outputs({"prometheusUrl": self.prometheus_url})

    def _chart(
        self, chart: str, repository: str, namespace: str, version: str, cluster: Cluster
    ) -> k8s.helm.v3.Release:
        return k8s.helm.v3.Release(
            namespace,
            name=namespace,
            namespace=namespace,
            create_namespace=True,
            chart=chart,
            version=version,
            repository_opts={"repo": repository},
            atomic=True,
            timeout=600,
            opts=self._child(provider=cluster.provider),
        )
