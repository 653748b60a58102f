"""What watches one stack: its alert rules and dashboards, as the objects that Prometheus' operator and Grafana look for.

The embedded cluster has no operator, but honours the rules as one would (`local/cluster/_rules.py`). Deliberately not here:
Grafana, which is nowhere of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pulumi
import pulumi_kubernetes as k8s

import gate
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


def evidence_until(stack: stacks.Stack, root: Path, evidence: str | None) -> float | None:
    """When the evidence that let the stack's release in expires, in Unix seconds; None where there is none."""
    stage = stacks.load_pipeline(root).stage(stack.name)
    if evidence is None or stage is None or stage.after is None:
        return None
    source = stacks.load_stack(str(stage.after), root)
    entries = gate.open_store(source.evidence, root, gate.load_keys(root)).entries()
    signed = [entry.signed_at for entry in entries if entry.digest == evidence]
    return signed[0].timestamp() + stage.criteria.max_evidence_age_hours * 3600 if signed else None
