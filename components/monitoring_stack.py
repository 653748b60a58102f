"""What watches one stack: its alert rules and dashboards, as the objects that Prometheus' operator and Grafana look for.

Deliberately not here: the embedded cluster, which has neither of the two; `tollgate watch` and the rule file serve there.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

import stacks

from ._base import Component
from .cluster import Cluster
from .monitoring_dashboards import dashboards
from .monitoring_rules import Facts, rule_file


@dataclass(frozen=True, kw_only=True)
class StackMonitoringArgs:
    """`facts`: of the stack; `scaling`: how its replicas are counted."""

    facts: Facts
    scaling: stacks.Autoscaling
    namespace: pulumi.Input[str]


class StackMonitoring(Component):
    """Attribute: `rules`, the PrometheusRule. Grafana's sidecar finds the ConfigMaps by their label."""

    rules: k8s.apiextensions.CustomResource

    def __init__(
        self, name: str, args: StackMonitoringArgs, cluster: Cluster, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__(name, {"stack": args.facts.stack}, opts)
        self.rules = k8s.apiextensions.CustomResource(
            f"{name}-rules",
            api_version="monitoring.coreos.com/v1",
            kind="PrometheusRule",
            metadata={"name": f"tollgate-{args.facts.stack}", "namespace": args.namespace},
            spec=rule_file(args.facts),
            opts=self._child(provider=cluster.provider),
        )
        k8s.core.v1.ConfigMap(
            f"{name}-dashboards",
            metadata={
                "name": f"tollgate-{args.facts.stack}-dashboards",
                "namespace": args.namespace,
                "labels": {"grafana_dashboard": "1"},
            },
            data=dashboards(args.facts, args.scaling),
            opts=self._child(provider=cluster.provider),
        )
        self.register_outputs({})
