"""Replicas by demand: a KEDA ScaledObject on what waits and what runs, checked against the live Prometheus before it counts.

Deliberately not here: what is asked and how fast it scales (`autoscaler_policy`), and nodes, which follow the pods.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

import planner
import stacks
import values

from ._base import Component
from .autoscaler_check import Live, measured_cold_start, refuse_others, taken_over, too_soon, verify
from .autoscaler_policy import Source, Trigger, cooldown_seconds, scaled_object, triggers
from .cluster import Cluster, Inherited
from .engines import ENGINE_NAME, EngineService, running_metric, waiting_metric


@dataclass(frozen=True, kw_only=True)
class QueueAutoscalerArgs:
    """`source`: where the demand can be read. `scaled`: the name of what is scaled; `groups`: it is a LeaderWorkerSet, each
    of whose replicas spans nodes. `cold_start_seconds`: of one replica by plan.

    `rules`: what has to exist before the queries can be asked. `check`: whether they are asked of the cluster's Prometheus
    while it is deployed; `embedded`: on the embedded one.
    """

    scaling: stacks.Autoscaling
    source: Source
    namespace: pulumi.Input[str]
    scaled: str
    replicas_min: int
    replicas_max: int
    cold_start_seconds: float
    prometheus_url: str
    groups: bool = False
    check: bool = False
    embedded: bool = False
    rules: tuple[pulumi.CustomResource, ...] = ()


class QueueAutoscaler(Component):
    """Attribute: `scaled_object`. A query that gives nothing or several series, a second autoscaler of the target, and a KEDA
    that does not take it over each fail the deployment with the reason.
    """

    scaled_object: k8s.apiextensions.CustomResource

    def __init__(
        self,
        name: str,
        args: QueueAutoscalerArgs,
        cluster: Cluster | Inherited,
        engine: EngineService,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        facts = {"min": args.replicas_min, "max": args.replicas_max, "policy": args.scaling.policy}
        super().__init__(name, facts, opts)
        asked = triggers(args.scaling, args.source, replicas_min=args.replicas_min)
        target = {"name": args.scaled}
        if args.groups:
            target |= {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet"}
        url = args.scaling.prometheus or args.prometheus_url
        # A preview has no cluster to ask, and a name that is not known there would read as a replacement.
        live = args.check and not pulumi.runtime.is_dry_run()
        self.scaled_object = k8s.apiextensions.CustomResource(
            name,
            api_version="keda.sh/v1alpha1",
            kind="ScaledObject",
            metadata={
                "name": args.scaled,
                "namespace": self._checked(args, asked, url, cluster, engine) if live else args.namespace,
            },
            spec=scaled_object(
                args.scaling,
                asked,
                target=target,
                replicas_min=args.replicas_min,
                replicas_max=args.replicas_max,
                cold_start_seconds=args.cold_start_seconds,
                prometheus_url=url,
            ),
            opts=self._child(provider=cluster.provider, depends_on=[engine]),
        )
        outputs: dict[str, Any] = {}
        if live:
            outputs["scaled"] = pulumi.Output.all(self.scaled_object.id, *_access(cluster)).apply(
                lambda got: asyncio.to_thread(_after, args, url, str(got[1]), str(got[2]))
            )
        self.register_outputs(outputs)

    def _checked(
        self,
        args: QueueAutoscalerArgs,
        asked: tuple[Trigger, ...],
        url: str,
        cluster: Cluster | Inherited,
        engine: EngineService,
    ) -> pulumi.Output[str]:
        """The namespace, once the engine stands and every query has been asked; the ScaledObject waits for it."""

        def check(namespace: str, kubeconfig: str, context: str) -> str:
            live = Live(url, kubeconfig=kubeconfig, context=context, embedded=args.embedded)
            with _said():
                refuse_others(live.get, namespace, args.scaled)
                verify(asked, live.ask, namespace, replicas_min=args.replicas_min)
                measured = measured_cold_start(live.get, namespace, args.scaled)
            cooldown = cooldown_seconds(args.scaling, args.cold_start_seconds)
            if said := too_soon(cooldown, measured):
                pulumi.log.warn(f"autoscaling of {namespace}: {said}", self)
            return namespace

        # In a thread: what else the program registers, the rules whose recordings are asked for among it, does not wait.
        needed = [engine.release.status, *(one.id for one in args.rules)]
        checked: pulumi.Output[str] = pulumi.Output.all(args.namespace, *_access(cluster), *needed).apply(
            lambda got: asyncio.to_thread(check, str(got[0]), str(got[1]), str(got[2]))
        )
        return checked


@contextmanager
def _said() -> Iterator[None]:
    """What Pulumi prints of an error in an output: the reason, and no traceback."""
    try:
        yield
    except stacks.TollgateError as error:
        raise pulumi.RunError(str(error)) from None


def _after(args: QueueAutoscalerArgs, url: str, kubeconfig: str, context: str) -> str:
    live = Live(url, kubeconfig=kubeconfig, context=context, embedded=args.embedded)
    with _said():
        taken_over(live.get, args.source.namespace, args.scaled)
    return args.scaled


def _access(cluster: Cluster | Inherited) -> tuple[pulumi.Input[str], pulumi.Input[str]]:
    """Kubeconfig and context with which kubectl reaches the cluster; empty: those of this process."""
    return getattr(cluster, "kubeconfig", None) or "", getattr(cluster, "context", None) or ""


def source_of(stack: stacks.Stack, plan: planner.Plan, services: tuple[str, ...] = (ENGINE_NAME,)) -> Source:
    """Where that stack's demand can be read."""
    asks = values.render(stack, plan).get("resources") or {}
    cpus = str(asks.get("cpu", "1"))
    return Source(
        namespace=stack.namespace,
        waiting=waiting_metric(stack),
        running=running_metric(stack),
        gateway=stack.gateway is not None and stack.gateway.kind == "proxy",
        services=services,
        slots=plan.slots,
        cpus=float(cpus[:-1]) / 1000 if cpus.endswith("m") else float(cpus),
    )


def bounds(scaling: stacks.Autoscaling, plan: planner.Plan, others: int = 0) -> tuple[int, int]:
    """Least and most replicas: what the stack asks for, within what its nodes carry beside `others`."""
    most = min(plan.replicas_max - others, scaling.replicas_max or plan.replicas_max)
    least = max(1, plan.replicas_min) if scaling.replicas_min is None else scaling.replicas_min
    return min(least, most), most


def autoscaler_of(stack: stacks.Stack, plan: planner.Plan, prometheus_url: str, **given: Any) -> QueueAutoscalerArgs:
    """The arguments of a stack's autoscaler; `given`: `namespace` where it is an output, `check`, `others`, `services`."""
    times = planner.timing(stack.release)
    least, most = bounds(stack.autoscaling, plan, given.pop("others", 0))
    return QueueAutoscalerArgs(
        scaling=stack.autoscaling,
        source=source_of(stack, plan, given.pop("services", (ENGINE_NAME,))),
        namespace=given.pop("namespace", stack.namespace),
        scaled=ENGINE_NAME,
        replicas_min=least,
        replicas_max=most,
        cold_start_seconds=times.load_seconds + times.start_seconds,
        prometheus_url=prometheus_url,
        groups=plan.nodes_per_replica > 1,
        embedded=stack.target == "local",
        **given,
    )
