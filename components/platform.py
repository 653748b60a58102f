"""One stack, whole: gate, what each of its regions has, DNS over them, benchmark.

Deliberately not here: any decision. What runs is the release, how much of it the fleet, how that is sized the planner.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pulumi

import gate
import planner
import stacks
import values
from bench import results

from ._base import Component
from .benchmark import BenchmarkJob, BenchmarkJobArgs, dialect
from .dns import FleetDns, FleetDnsArgs
from .engines import ENGINE_NAME
from .gateway import HEALTH_PATH
from .monitoring_stack import evidence_until
from .preflight import refuse
from .promotion import PromotionCheck, PromotionCheckArgs
from .site import Site, SiteArgs, build_site


@dataclass(frozen=True, kw_only=True)
class PlatformArgs:
    """`root`: the project's folder. `enforce=False`: evaluate only, without asking the gate."""

    stack: stacks.Stack
    root: Path
    enforce: bool = True


class Platform(Component):
    """Raises InputError for a release that cannot run on its fleet and GateRefused for one that may not.

    Attributes: `url`, by DNS where the stack has that; `urls`, by region, inside each one's cluster; `verdict`, `evidence`
    (Outputs; None without a benchmark), `release_digest`, `plan`.
    """

    def __init__(self, name: str, args: PlatformArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        stack = args.stack
        refuse(stack)
        self.plan = planner.plan(stack)
        self.release_digest = values.release_digest(stack.release)
        gatekeeper = PromotionCheck(
            "promotion-check",
            PromotionCheckArgs(stack=stack, release_digest=self.release_digest, root=args.root, enforce=args.enforce),
        )
        candidate = self._candidate(args)
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

        warning = stacks.tag_warning(stack)
        if warning is not None:
            pulumi.log.warn(warning, self)
        regions = stack.fleet.split()
        sites = [
            build_site(
                SiteArgs(
                    stack=stack.model_copy(update={"fleet": fleet}),
                    plan=_part(self.plan, fleet, stack.fleet),
                    release_digest=self.release_digest,
                    root=args.root,
                    # Also where there is one region only: a second one must not rename, and so replace, the first.
                    suffix=f"-{fleet.regions[0]}" if stack.target == "gke" else "",
                    first=fleet is regions[0],
                    candidate=candidate,
                    secrets=args.enforce,
                    evidence_until=evidence_until(stack, args.root, gatekeeper.evidence),
                ),
                self._child,
            )
            for fleet in regions
        ]
        self.urls = {site.region: site.url for site in sites}
        self.url = sites[0].url
        if stack.dns is not None:
            dns = FleetDns(
                "dns",
                FleetDnsArgs(
                    dns=stack.dns,
                    project=stack.project,
                    addresses={site.region: site.address for site in sites if site.address is not None},
                    health_path=HEALTH_PATH,
                ),
                opts=self._child(),
            )
            self.url = pulumi.Output.concat("http://", dns.name)
        self.verdict: pulumi.Output[str] | None = None
        self.evidence: pulumi.Output[str] | None = None
        if stack.benchmark is not None:
            job = BenchmarkJob(
                "benchmark",
                self._measure(args, stack.benchmark, sites[0]),
                sites[0].cluster,
                sites[0].engine,
                opts=self._child(),
            )
            self.verdict, self.evidence = job.verdict, job.evidence
        self.register_outputs({"url": self.url, "verdict": self.verdict, "evidence": self.evidence})

    def _candidate(self, args: PlatformArgs) -> stacks.Release | None:
        """The release beside the stack's own; the gate lets it in or not, as it does the other."""
        stack = args.stack
        if stack.gateway is None or stack.gateway.candidate is None:
            return None
        release = stacks.load_release(stack.gateway.candidate.release, args.root)
        beside = stack.model_copy(update={"release": release})
        refuse(beside)
        PromotionCheck(
            "promotion-check-candidate",
            PromotionCheckArgs(
                stack=beside,
                release_digest=values.release_digest(release),
                root=args.root,
                enforce=args.enforce,
                candidate=True,
            ),
        )
        return release

    def _measure(self, args: PlatformArgs, benchmark: stacks.Benchmark, site: Site) -> BenchmarkJobArgs:
        stack = args.stack

        def measure(benchmark: str) -> gate.Measuring:
            if not args.enforce:
                return gate.Measuring(benchmark=benchmark)
            return gate.to_measure(stack, benchmark, args.root, datetime.now(UTC))

        def record(text: str, measuring: gate.Measuring) -> tuple[str, str]:
            pair = results.read_pair(text)
            evidence = gate.record(
                stack,
                pair.result,
                release_digest=self.release_digest,
                root=args.root,
                now=datetime.now(UTC),
                measuring=measuring,
                against=pair.against,
                parts=values.artifacts(stack.release),
            )
            return evidence.verdict, evidence.digest

        return BenchmarkJobArgs(
            stack=stack,
            benchmark=benchmark,
            namespace=site.namespace.metadata["name"],
            url=site.url,
            release_digest=self.release_digest,
            replicas=self.plan.replicas_max,
            requests=stacks.load_pipeline(args.root).min_requests(stack.name),
            environment=_environment(stack),
            cost_per_hour_usd=self.plan.cost_per_hour_max_usd,
            against=_against(stack, benchmark, args.root),
            measure=measure,
            record=record,
        )


def _environment(stack: stacks.Stack) -> dict[str, str | int | float | bool]:
    return {
        "target": stack.target,
        "accelerator": stack.release.accelerator.gpu,
        "mig_profile": stack.release.accelerator.mig_profile or "",
        "machine_type": stack.fleet.machine_type,
        "region": stack.fleet.regions[0],
        "simulated": stack.simulated,
    }


def _against(stack: stacks.Stack, benchmark: stacks.Benchmark, root: Path) -> dict[str, Any] | None:
    """The service that `benchmark.against` names, as its own files say. Raises InputError where both cannot be compared."""
    if benchmark.against is None:
        return None
    other = stacks.load_stack(benchmark.against, root)
    plan, mine = planner.plan(other), planner.plan(stack)
    same = (other.target, other.cluster, plan.replicas_max) == (stack.target, stack.cluster, mine.replicas_max)
    if other.name == stack.name or not same:
        raise stacks.InputError(
            where=f"stacks/Pulumi.{stack.name}.yaml, tollgate:benchmark.against",
            got=f"{other.name}: {plan.replicas_max} replicas on {other.target} {other.cluster}",
            allowed=f"another stack of the same cluster with {mine.replicas_max} replicas",
            fix="name one that runs the baseline beside this stack, or leave it out and calibrate",
        )
    if other.serving.api_key:
        raise stacks.InputError(
            where=f"stacks/Pulumi.{stack.name}.yaml, tollgate:benchmark.against",
            got=f"{other.name}, which asks for an API key",
            allowed="a stack without serving.api_key: its key is in a Secret of another namespace, which the Job cannot read",
            fix=f"turn serving.api_key off in {other.name}, or leave against out and calibrate",
        )
    return {
        "url": f"http://{ENGINE_NAME}.{other.namespace}.svc:80",
        "engine": dialect(other),
        "model": other.release.source,
        "release": values.release_digest(other.release),
        "stack": other.name,
        "replicas": plan.replicas_max,
        "environment": _environment(other),
        "context_tokens": other.release.context_tokens,
        "cost_per_hour_usd": plan.cost_per_hour_max_usd,
    }


def _part(plan: planner.Plan, fleet: stacks.Fleet, whole: stacks.Fleet) -> planner.Plan:
    """The plan of one region: its share of the nodes, and the replicas that they carry."""
    if fleet is whole:
        return plan

    def replicas(nodes: int) -> int:
        return nodes * plan.replicas_per_node // plan.nodes_per_replica

    expected = min(fleet.nodes.max, max(fleet.nodes.min, -(-plan.nodes_expected // len(whole.regions))))
    return dataclasses.replace(
        plan,
        nodes_min=fleet.nodes.min,
        nodes_max=fleet.nodes.max,
        nodes_expected=expected,
        replicas_min=replicas(fleet.nodes.min),
        replicas_max=replicas(fleet.nodes.max),
        replicas_expected=replicas(expected),
        region=fleet.regions[0],
    )


def deploy(stack_name: str, root: Path, *, enforce: bool = True) -> Platform:
    """The whole Pulumi program: read the stack's files, build its platform, export what its users need."""
    stack = stacks.load_stack(stack_name, root)
    platform = Platform("platform", PlatformArgs(stack=stack, root=root, enforce=enforce))
    pulumi.export("url", platform.url)
    if len(platform.urls) > 1:
        pulumi.export("urls", platform.urls)
    pulumi.export("release", stack.release.name)
    pulumi.export("digest", platform.release_digest)
    pulumi.export("slots", platform.plan.slots)
    if platform.verdict is not None and platform.evidence is not None:
        pulumi.export("verdict", platform.verdict)
        pulumi.export("evidence", platform.evidence)
    return platform
