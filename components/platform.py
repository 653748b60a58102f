"""One stack, whole: gate, ground, GPU pool, engine, autoscaler, monitoring, benchmark.

Deliberately not here: any decision. What runs is the release, how much of it the fleet, how that is sized the planner.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pulumi
import pulumi_kubernetes as k8s

import gate
import planner
import stacks
import values
from bench import results

from ._base import Component
from .autoscaler import QueueAutoscaler, QueueAutoscalerArgs
from .benchmark import BenchmarkJob, BenchmarkJobArgs
from .cluster import Cluster, ClusterArgs
from .engine import ENGINE_NAME, Engine, EngineArgs
from .gpu_pool import GpuPool, GpuPoolArgs
from .monitoring import Monitoring, MonitoringArgs
from .promotion import PromotionCheck, PromotionCheckArgs


@dataclass(frozen=True, kw_only=True)
class PlatformArgs:
    """`root`: the project's folder. `enforce=False`: evaluate only, without asking the gate."""

    stack: stacks.Stack
    root: Path
    enforce: bool = True


class Platform(Component):
    """Raises InputError for a release that cannot run on its fleet and GateRefused for one that may not.

    Attributes: `url`, `verdict`, `evidence` (Outputs; None without a benchmark), `release_digest`, `plan`.
    """

    def __init__(self, name: str, args: PlatformArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        stack = args.stack
        planner.check(stack.release, stack.fleet)
        self.plan = planner.plan(stack)
        self.release_digest = values.release_digest(stack.release)
        gatekeeper = PromotionCheck(
            "promotion-check",
            PromotionCheckArgs(stack=stack, release_digest=self.release_digest, root=args.root, enforce=args.enforce),
        )
        facts = {
            "stack": stack.name,
            "target": stack.target,
            "release": stack.release.name,
            "digest": self.release_digest,
            "engine": stack.release.engine,
            "model": stack.release.model,
            "slots": self.plan.slots,
            "replicas": self.plan.replicas_max,
            "evidence": gatekeeper.evidence,
        }
        super().__init__(
            name, facts, pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[gatekeeper]))
        )

        cluster = Cluster(
            "cluster",
            ClusterArgs(target=stack.target, name=stack.cluster, region=stack.fleet.regions[0], project=stack.project),
            opts=self._child(),
        )
        pool = GpuPool(
            "gpu-pool",
            GpuPoolArgs(
                target=stack.target,
                pool=stack.name,
                accelerator=stack.release.accelerator,
                fleet=stack.fleet,
                expected_nodes=self.plan.nodes_expected,
            ),
            cluster,
            opts=self._child(),
        )
        monitoring = Monitoring("monitoring", MonitoringArgs(target=stack.target), cluster, opts=self._child())
        namespace = k8s.core.v1.Namespace(
            "namespace", metadata={"name": stack.namespace}, opts=self._child(provider=cluster.provider)
        )
        engine = Engine(
            "engine",
            EngineArgs(
                namespace=namespace.metadata["name"],
                chart=values.chart_path(stack.release.chart),
                values=values.render(stack, self.plan),
                release_digest=self.release_digest,
                wait_seconds=600,
                root=args.root,
            ),
            cluster,
            depends_on=[pool],
            opts=self._child(),
        )
        if stack.fleet.nodes.min < stack.fleet.nodes.max:
            QueueAutoscaler(
                "autoscaler",
                QueueAutoscalerArgs(
                    engine=stack.release.engine,
                    namespace=namespace.metadata["name"],
                    deployment=ENGINE_NAME,
                    replicas_min=self.plan.replicas_min,
                    replicas_max=self.plan.replicas_max,
                    cold_start_seconds=planner.timing(stack.release).load_seconds,
                    prometheus_url=monitoring.prometheus_url,
                ),
                cluster,
                engine,
                opts=self._child(),
            )
        self.url = engine.url
        self.verdict: pulumi.Output[str] | None = None
        self.evidence: pulumi.Output[str] | None = None
        if stack.benchmark is not None:
            job = BenchmarkJob(
                "benchmark",
                self._measure(args, stack.benchmark, namespace, engine),
                cluster,
                engine,
                opts=self._child(),
            )
            self.verdict, self.evidence = job.verdict, job.evidence
        self.register_outputs({"url": self.url, "verdict": self.verdict, "evidence": self.evidence})

    def _measure(
        self, args: PlatformArgs, benchmark: stacks.Benchmark, namespace: k8s.core.v1.Namespace, engine: Engine
    ) -> BenchmarkJobArgs:
        stack = args.stack

        def measure(benchmark: str) -> gate.Measuring:
            if not args.enforce:
                return gate.Measuring(benchmark=benchmark)
            return gate.to_measure(stack, benchmark, args.root, datetime.now(UTC))

        def record(text: str, measuring: gate.Measuring) -> tuple[str, str]:
            evidence = gate.record(
                stack,
                results.Result.model_validate_json(text),
                release_digest=self.release_digest,
                root=args.root,
                now=datetime.now(UTC),
                measuring=measuring,
            )
            return evidence.verdict, evidence.digest

        return BenchmarkJobArgs(
            stack=stack,
            benchmark=benchmark,
            namespace=namespace.metadata["name"],
            url=engine.url,
            release_digest=self.release_digest,
            replicas=self.plan.replicas_max,
            environment={
                "target": stack.target,
                "accelerator": stack.release.accelerator.gpu,
                "mig_profile": stack.release.accelerator.mig_profile or "",
                "machine_type": stack.fleet.machine_type,
                "region": stack.fleet.regions[0],
                "simulated": stack.target == "local",
            },
            cost_per_hour_usd=self.plan.cost_per_hour_max_usd,
            measure=measure,
            record=record,
        )


def deploy(stack_name: str, root: Path, *, enforce: bool = True) -> Platform:
    """The whole Pulumi program: read the stack's files, build its platform, export what its users need."""
    stack = stacks.load_stack(stack_name, root)
    platform = Platform("platform", PlatformArgs(stack=stack, root=root, enforce=enforce))
    pulumi.export("url", platform.url)
    pulumi.export("release", stack.release.name)
    pulumi.export("digest", platform.release_digest)
    pulumi.export("slots", platform.plan.slots)
    if platform.verdict is not None and platform.evidence is not None:
        pulumi.export("verdict", platform.verdict)
        pulumi.export("evidence", platform.evidence)
    return platform
