"""What one region of a stack has: ground, GPU pool, operators, the engine with all it needs, gateway and autoscaler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

import planner
import stacks
import values

from .autoscaler import QueueAutoscaler, autoscaler_of, source_of
from .cluster import Cluster, ClusterArgs
from .engines import ENGINE_NAME, SERVICES, EngineArgs, EngineService, service_for
from .gateway import Backend, GatewayArgs, InferenceGateway
from .gpu_pool import GpuPool, GpuPoolArgs
from .monitoring import Monitoring, MonitoringArgs
from .monitoring_rules import facts_of
from .monitoring_stack import StackMonitoring, StackMonitoringArgs
from .preflight import candidate_replicas

CANDIDATE_NAME = "engine-candidate"
# stacks.Serving's field -> the key in the Secret, the key in the stack's configuration.
_SECRETS = {"api_key": ("api-key", "apiKey"), "hugging_face_token": ("hugging-face-token", "huggingFaceToken")}
# Beside its weights a pod on GKE waits for a machine and for its image.
_MACHINE_SECONDS = 1200


@dataclass(frozen=True, kw_only=True)
class SiteArgs:
    """`stack`: with the fleet of this region alone. `suffix`: of every name, empty off GKE.

    `first`: of the stack's regions; what they share is made there. `candidate`: the release beside the stack's own, loaded.
    `secrets`: whether the stack's secrets are there to be read. `evidence_until`: when what let the release in expires.
    """

    stack: stacks.Stack
    plan: planner.Plan
    release_digest: str
    root: Path
    suffix: str = ""
    first: bool = True
    candidate: stacks.Release | None = None
    secrets: bool = True
    evidence_until: float | None = None


@dataclass(frozen=True, kw_only=True)
class Site:
    """`url`: where the service answers inside the cluster, through the gateway if there is one. `address`: its public one."""

    region: str
    cluster: Cluster
    namespace: k8s.core.v1.Namespace
    engine: EngineService
    url: pulumi.Output[str]
    address: pulumi.Output[str] | None


def build_site(args: SiteArgs, child: Callable[..., pulumi.ResourceOptions]) -> Site:
    """Register everything of one region; `child` gives the options of a child of the caller."""
    stack, suffix = args.stack, args.suffix
    region = stack.fleet.regions[0]
    cluster = Cluster(f"cluster{suffix}", _cluster_args(stack, region), opts=child())
    pool = GpuPool(
        f"gpu-pool{suffix}",
        GpuPoolArgs(
            target=stack.target,
            pool=stack.name,
            accelerator=stack.release.accelerator,
            fleet=stack.fleet,
            expected_nodes=args.plan.nodes_expected,
            project=stack.project,
        ),
        cluster,
        opts=child(),
    )
    operators = tuple(
        wanted for wanted in (stack.serving.group.controller, stack.serving.group.gang) if wanted in ("lws", "kueue")
    )
    monitoring = Monitoring(
        f"monitoring{suffix}",
        MonitoringArgs(
            target=stack.target,
            operators=operators if values.nodes_per_replica(stack.release) > 1 else (),
            there=stack.has,
        ),
        cluster,
        opts=child(),
    )
    inside = child(provider=cluster.provider)
    namespace = k8s.core.v1.Namespace(
        f"namespace{suffix}",
        metadata={
            "name": stack.namespace,
            "labels": {"pod-security.kubernetes.io/enforce": stack.serving.pod_security},
        },
        opts=child(provider=cluster.provider, depends_on=list(cluster.ready)),
    )
    needed: list[pulumi.Resource] = [pool, *monitoring.releases.values()]
    needed += _surroundings(args, namespace, inside)
    if "kueue" in monitoring.releases:
        needed += _queue(args, namespace, child(provider=cluster.provider, depends_on=[monitoring.releases["kueue"]]))
    engine, candidate = _engines(args, cluster, namespace, needed, child)
    gateway, address = _gateway(args, cluster, namespace, [one for one in (engine, candidate) if one], child)
    rules: tuple[pulumi.CustomResource, ...] = ()
    if stack.target != "kubernetes" or "prometheus" in stack.has:
        facts = facts_of(
            stack, args.plan, source_of(stack, args.plan), values.render(stack, args.plan), args.evidence_until
        )
        watching = StackMonitoring(
            f"monitoring-stack{suffix}",
            StackMonitoringArgs(facts=facts, scaling=stack.autoscaling, namespace=namespace.metadata["name"]),
            cluster,
            opts=child(depends_on=list(monitoring.releases.values())),
        )
        rules = (watching.rules,)
    if stack.fleet.nodes.min < stack.fleet.nodes.max:
        _autoscaler(args, cluster, namespace, engine, monitoring, rules, child)
    return Site(
        region=region,
        cluster=cluster,
        namespace=namespace,
        engine=engine,
        url=gateway.url if gateway is not None and gateway.url is not None else engine.url,
        address=address,
    )


def _cluster_args(stack: stacks.Stack, region: str) -> ClusterArgs:
    return ClusterArgs(
        target=stack.target,
        name=stacks.cluster_name(stack, region),
        region=region,
        project=stack.project,
        gke=stack.gke,
        gateway_api=stack.gateway is not None and stack.gateway.kind == "inference-extension",
        gcs=stack.serving.cache is not None and stack.serving.cache.kind == "gcs",
    )


def _surroundings(
    args: SiteArgs, namespace: k8s.core.v1.Namespace, inside: pulumi.ResourceOptions
) -> list[pulumi.Resource]:
    """What the engine's pods name: a priority, a secret, an identity that may read the bucket."""
    stack, suffix = args.stack, args.suffix
    found: list[pulumi.Resource] = []
    if stack.serving.priority is not None:
        found.append(
            k8s.scheduling.v1.PriorityClass(
                f"priority{suffix}",
                metadata={"name": f"{stack.name}-engine"},
                value=stack.serving.priority,
                description="Pods of the engine, before what may wait.",
                opts=inside,
            )
        )
    wanted = [field for field in _SECRETS if getattr(stack.serving, field)]
    if wanted and not stack.serving.secret:
        found.append(
            k8s.core.v1.Secret(
                f"secrets{suffix}",
                metadata={"name": values.SECRET, "namespace": namespace.metadata["name"]},
                string_data={_SECRETS[field][0]: _secret(_SECRETS[field][1], args) for field in wanted},
                opts=inside,
            )
        )
    if stack.serving.cache is not None and stack.serving.cache.kind == "gcs":
        found += _bucket(args, stack.serving.cache, namespace, inside)
    return found


def _secret(key: str, args: SiteArgs) -> pulumi.Output[str]:
    """A secret of the stack's configuration. Raises InputError where it has not been set."""
    if not args.secrets:
        # What only evaluates a program needs no keys, and a pull request's preview must not have them.
        return pulumi.Output.secret("not read")
    found = pulumi.Config("secrets").get_secret(key)
    if found is None:
        raise stacks.InputError(
            where=f"stacks/Pulumi.{args.stack.name}.yaml, secrets:{key}",
            got="nothing",
            allowed="a secret",
            fix=f"pulumi config set --secret secrets:{key} -s {args.stack.name}, or name an existing one in serving.secret",
        )
    return found


def _bucket(
    args: SiteArgs, cache: stacks.Cache, namespace: k8s.core.v1.Namespace, inside: pulumi.ResourceOptions
) -> list[pulumi.Resource]:
    """The pods' Kubernetes account, which Workload Identity lets use the bucket; no key anywhere."""
    account = k8s.core.v1.ServiceAccount(
        f"engine-account{args.suffix}",
        metadata={"name": values.ACCOUNT, "namespace": namespace.metadata["name"]},
        opts=inside,
    )
    # One identity in all clusters of a project (the pool names no cluster), so one grant for all of them.
    if args.stack.target != "gke" or not args.first:
        return [account]
    from pulumi_gcp import organizations, storage

    project = organizations.get_project_output(
        project_id=args.stack.project, opts=pulumi.InvokeOptions(parent=inside.parent)
    )
    stack = args.stack
    member = pulumi.Output.concat(
        "principal://iam.googleapis.com/projects/",
        project.number,
        f"/locations/global/workloadIdentityPools/{stack.project}.svc.id.goog",
        f"/subject/ns/{stack.namespace}/sa/{values.ACCOUNT}",
    )
    grant = storage.BucketIAMMember(
        "engine-bucket",
        bucket=cache.bucket,
        # The preload Job writes into it; without that, reading is enough.
        role="roles/storage.objectUser" if cache.preload else "roles/storage.objectViewer",
        member=member,
        opts=pulumi.ResourceOptions(parent=inside.parent),
    )
    return [account, grant]


def _queue(args: SiteArgs, namespace: k8s.core.v1.Namespace, inside: pulumi.ResourceOptions) -> list[pulumi.Resource]:
    """Kueue's way from this namespace to the whole pool: what does not fit as a whole waits, holding nothing."""
    stack, machine = args.stack, planner.catalog().machine(args.stack.fleet.machine_type)
    nodes = stack.fleet.nodes.max
    quotas = {
        "cpu": str(nodes * machine.vcpus),
        "memory": f"{int(nodes * machine.memory_gb)}Gi",
        "nvidia.com/gpu": str(nodes * machine.gpus),
    }
    flavor = {"name": stack.name, "resources": [{"name": key, "nominalQuota": value} for key, value in quotas.items()]}
    specs: dict[str, dict[str, Any]] = {
        "ResourceFlavor": {"nodeLabels": {values.POOL_LABEL: stack.name}},
        "ClusterQueue": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": stack.namespace}},
            "resourceGroups": [{"coveredResources": list(quotas), "flavors": [flavor]}],
        },
        "LocalQueue": {"clusterQueue": stack.name},
    }
    return [
        k8s.apiextensions.CustomResource(
            f"queue{args.suffix}-{kind.lower()}",
            api_version="kueue.x-k8s.io/v1beta1",
            kind=kind,
            metadata={"name": stack.serving.group.queue, "namespace": namespace.metadata["name"]}
            if kind == "LocalQueue"
            else {"name": stack.name},
            spec=spec,
            opts=inside,
        )
        for kind, spec in specs.items()
    ]


def _engines(
    args: SiteArgs,
    cluster: Cluster,
    namespace: k8s.core.v1.Namespace,
    needed: list[pulumi.Resource],
    child: Callable[..., pulumi.ResourceOptions],
) -> tuple[EngineService, EngineService | None]:
    stack, plan = args.stack, args.plan
    shared = 0
    if args.candidate is not None and stack.gateway is not None and stack.gateway.candidate is not None:
        shared = candidate_replicas(plan.replicas_max, stack.gateway.candidate.percent)

    def make(name: str, service: str, release: stacks.Release, digest: str, replicas: int) -> EngineService:
        own = stack.model_copy(update={"release": release})
        wait = (
            600
            if stack.target == "local"
            else _MACHINE_SECONDS + values.load_seconds(release, stack.fleet.disk.gb_per_second)
        )
        part = dataclasses.replace(plan, replicas_max=replicas)
        given = values.render(own, part)
        if service == CANDIDATE_NAME and given.get("replicas", 0) is None:
            given["replicas"] = replicas
        return service_for(release.engine, simulate=stack.serving.simulate)(
            name,
            EngineArgs(
                namespace=namespace.metadata["name"],
                chart=values.chart_of(release),
                values=given,
                release_digest=digest,
                wait_seconds=wait,
                root=args.root,
                service=service,
            ),
            cluster,
            depends_on=needed,
            opts=child(),
        )

    engine = make(f"engine{args.suffix}", ENGINE_NAME, stack.release, args.release_digest, plan.replicas_max - shared)
    if args.candidate is None or not shared:
        return engine, None
    digest = values.release_digest(args.candidate)
    return engine, make(f"candidate{args.suffix}", CANDIDATE_NAME, args.candidate, digest, shared)


def _gateway(
    args: SiteArgs,
    cluster: Cluster,
    namespace: k8s.core.v1.Namespace,
    engines: list[EngineService],
    child: Callable[..., pulumi.ResourceOptions],
) -> tuple[InferenceGateway | None, pulumi.Output[str] | None]:
    stack, gateway = args.stack, args.stack.gateway
    if gateway is None:
        return None, None
    releases = [stack.release, *([args.candidate] if args.candidate is not None else [])]
    percent = gateway.candidate.percent if gateway.candidate is not None and len(engines) > 1 else 0.0
    backends = []
    for release, service, share in zip(releases, (ENGINE_NAME, CANDIDATE_NAME), (100 - percent, percent), strict=False):
        given: dict[str, Any] = values.render(stack.model_copy(update={"release": release}), args.plan)
        slots = planner.resolve(release).parallelism.slots
        assert isinstance(slots, int)
        backends.append(
            Backend(
                service=service,
                engine=given["engine"],
                port=given["server"]["port"],
                health=SERVICES[release.engine].health,
                most=args.plan.replicas_max,
                slots=slots,
                percent=share,
            )
        )
    address: pulumi.Output[str] | None = None
    if gateway.external and stack.target == "gke":
        from pulumi_gcp import compute

        reserved = compute.Address(
            f"address{args.suffix}",
            name=stacks.fit(f"{stack.cluster}-{stack.name}{args.suffix}", 63),
            region=stack.fleet.regions[0],
            project=stack.project,
            # The name's records point here: another address would be an outage until every cache has forgotten it.
            opts=child(protect=stack.gke.deletion_protection),
        )
        address = reserved.address
    made = InferenceGateway(
        f"gateway{args.suffix}",
        GatewayArgs(
            gateway=gateway,
            namespace=namespace.metadata["name"],
            namespace_name=stack.namespace,
            backends=backends,
            drain_seconds=stack.serving.drain_seconds,
            address=address,
            hold_seconds=stack.autoscaling.hold_seconds,
            sleeps=stack.autoscaling.replicas_min == 0,
            embedded=stack.target == "local",
            monitored=stack.target == "gke" or "prometheus" in stack.has,
        ),
        cluster,
        depends_on=engines,
        opts=child(),
    )
    return made, address


def _autoscaler(
    args: SiteArgs,
    cluster: Cluster,
    namespace: k8s.core.v1.Namespace,
    engine: EngineService,
    monitoring: Monitoring,
    rules: tuple[pulumi.CustomResource, ...],
    child: Callable[..., pulumi.ResourceOptions],
) -> None:
    plan = args.plan
    shared = args.stack.gateway.candidate if args.stack.gateway is not None and args.candidate is not None else None
    others = candidate_replicas(plan.replicas_max, shared.percent) if shared is not None else 0
    QueueAutoscaler(
        f"autoscaler{args.suffix}",
        autoscaler_of(
            args.stack,
            plan,
            monitoring.prometheus_url,
            namespace=namespace.metadata["name"],
            others=others,
            services=(ENGINE_NAME, CANDIDATE_NAME) if others else (ENGINE_NAME,),
            check=args.secrets,
            rules=rules,
        ),
        cluster,
        engine,
        opts=child(),
    )
