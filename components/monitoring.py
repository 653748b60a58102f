"""The operators that a cluster of ours needs, by their upstream charts, pinned: KEDA, Prometheus; LeaderWorkerSet, Kueue.

Deliberately not here: existing clusters (they have their own, see `tollgate:has`) and the embedded one (it starts KEDA and
Prometheus itself). Grafana is left out: the chart would start it with a password that everybody knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

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


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An upstream chart: `chart` with its `repository`, or an OCI address as `chart`; installed as and into `namespace`."""

    chart: str
    version: str
    namespace: str
    repository: str | None = None


OPERATORS = {
    "keda": Operator(chart="keda", version="2.21.0", namespace="keda", repository="https://kedacore.github.io/charts"),
    "prometheus": Operator(
        chart="kube-prometheus-stack",
        version="79.5.0",
        namespace="monitoring",
        repository="https://prometheus-community.github.io/helm-charts",
    ),
    "lws": Operator(chart="oci://registry.k8s.io/lws/charts/lws", version="0.7.0", namespace="lws-system"),
    "kueue": Operator(chart="oci://registry.k8s.io/kueue/charts/kueue", version="0.14.4", namespace="kueue-system"),
}
_VALUES: dict[str, dict[str, Any]] = {
    # So that its absence and its errors can be seen.
    "keda": {
        "prometheus": {
            "metricServer": {"enabled": True, "podMonitor": {"enabled": True}},
            "operator": {"enabled": True, "podMonitor": {"enabled": True}},
        }
    },
    "prometheus": {
        "grafana": {"enabled": False},
        # Also what other Helm releases ask to be scraped.
        "prometheus": {
            "prometheusSpec": {
                "podMonitorSelectorNilUsesHelmValues": False,
                "ruleSelectorNilUsesHelmValues": False,
                "serviceMonitorSelectorNilUsesHelmValues": False,
            }
        },
    },
    "kueue": {
        "managerConfig": {
            "controllerManagerConfigYaml": (
                "apiVersion: config.kueue.x-k8s.io/v1beta1\nkind: Configuration\n"
                "integrations: {frameworks: [leaderworkerset.x-k8s.io/leaderworkerset, pod, ray.io/raycluster]}\n"
            )
        }
    },
}


@dataclass(frozen=True, kw_only=True)
class MonitoringArgs:
    """`operators`: names of `OPERATORS` that this stack needs beside KEDA and Prometheus. `there`: what the cluster has."""

    target: Literal["gke", "kubernetes", "local"]
    operators: tuple[str, ...] = ()
    there: tuple[str, ...] = ()


class Monitoring(Component):
    """Attributes: `prometheus_url`; `releases`, the Helm releases made, by operator (none where the ground has them)."""

    prometheus_url: str
    releases: dict[str, k8s.helm.v3.Release]

    def __init__(
        self, name: str, args: MonitoringArgs, cluster: Cluster, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__(name, {"target": args.target}, opts)
        self.prometheus_url = PROMETHEUS[args.target]
        self.releases = {}
        if args.target == "gke":
            # Prometheus first: KEDA's PodMonitors are objects of its operator.
            for wanted in dict.fromkeys(("prometheus", "keda", *args.operators)):
                if wanted not in args.there:
                    self.releases[wanted] = self._install(name, wanted, cluster)
        self.register_outputs({"prometheusUrl": self.prometheus_url})

    def _install(self, name: str, wanted: str, cluster: Cluster) -> k8s.helm.v3.Release:
        operator = OPERATORS[wanted]
        return k8s.helm.v3.Release(
            f"{name}-{wanted}",
            name=operator.namespace,
            namespace=operator.namespace,
            create_namespace=True,
            chart=operator.chart,
            version=operator.version,
            repository_opts={"repo": operator.repository} if operator.repository else None,
            values=_VALUES.get(wanted, {}),
            atomic=True,
            timeout=600,
            opts=self._child(
                provider=cluster.provider,
                depends_on=[*cluster.ready, *(self.releases[one] for one in self.releases if wanted == "keda")],
            ),
        )
