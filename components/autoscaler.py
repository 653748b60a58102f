"""Replicas by the length of the queue: a KEDA ScaledObject on what the engine says is waiting.

Deliberately not here: scaling to zero. vLLM's own metric does not exist at zero replicas (keda#6040), so waking
up needs a metric in front of the engine; until there is one, the minimum is one replica.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

import stacks

from ._base import Component
from .cluster import Cluster, Inherited


@dataclass(frozen=True, kw_only=True)
class QueueAutoscalerArgs:
    """`waiting`: the engine's metric of its queue, or None. `waiting_per_replica`: queued requests that justify one more.

    `scaled`: the name of what is scaled; `groups`: it is a LeaderWorkerSet, each of whose replicas spans nodes.
    `cold_start_seconds`: of one replica.
    """

    engine: str
    waiting: str | None
    namespace: pulumi.Input[str]
    scaled: str
    replicas_min: int
    replicas_max: int
    cold_start_seconds: float
    prometheus_url: str
    waiting_per_replica: int = 5
    groups: bool = False


class QueueAutoscaler(Component):
    """Attribute: `scaled_object`. Raises InputError for an engine that has no metric of its queue."""

    scaled_object: k8s.apiextensions.CustomResource

    def __init__(
        self,
        name: str,
        args: QueueAutoscalerArgs,
        cluster: Cluster | Inherited,
        engine: pulumi.Resource,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        check_queue(args.engine, args.waiting)
        super().__init__(name, {"min": args.replicas_min, "max": args.replicas_max}, opts)
        # The query must give exactly one element: several are an error to KEDA, none counts as 0.
        query = pulumi.Output.concat(f'sum({args.waiting}{{namespace="', args.namespace, '"}) or vector(0)')
        target = {"name": args.scaled}
        if args.groups:
            target |= {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet"}
        self.scaled_object = k8s.apiextensions.CustomResource(
            name,
            api_version="keda.sh/v1alpha1",
            kind="ScaledObject",
            metadata={"name": args.scaled, "namespace": args.namespace},
            spec={
                "scaleTargetRef": target,
                "pollingInterval": 5,
                # Below the cold start KEDA would take the pod away while it loads.
                "cooldownPeriod": max(300, int(args.cold_start_seconds * 2)),
                "minReplicaCount": max(1, args.replicas_min),
                "maxReplicaCount": args.replicas_max,
                "fallback": {"failureThreshold": 3, "replicas": max(1, args.replicas_min)},
                "triggers": [
                    {
                        "type": "prometheus",
                        "metadata": {
                            "serverAddress": args.prometheus_url,
                            "query": query,
                            "threshold": str(args.waiting_per_replica),
                            "activationThreshold": "0",
                        },
                    }
                ],
            },
            opts=self._child(provider=cluster.provider, depends_on=[engine]),
        )
        self.register_outputs({})


def check_queue(engine: str, waiting: str | None) -> None:
    """Raises InputError where there is nothing to scale on."""
    if waiting is None:
        raise stacks.InputError(
            where="tollgate:fleet.nodes",
            got=f"min below max with engine {engine}",
            allowed="min equal to max: this engine publishes no metric of its queue",
            fix="set nodes.min to nodes.max, or serve the model with vllm",
        )
