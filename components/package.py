"""The components as programs in any Pulumi language use them: plain arguments, as the files of `stacks/` have them.

`pulumi package add <this folder>` makes an SDK of them. They bring no gate, no ground and no benchmark: what is inside a
cluster goes to the Kubernetes provider that the caller passes on (`providers`), and a pool into a cluster that is there.
"""

# No postponed annotations here: the package's schema is read off them as they are.
from typing import Any, Optional, TypedDict

import pulumi

import planner
import stacks
import values

from ._base import Component
from .autoscaler import QueueAutoscaler, autoscaler_of
from .batch import BatchJob
from .cluster import Inherited
from .engines import EngineArgs, service_for
from .gpu_pool import GpuPool, GpuPoolArgs
from .monitoring import PROMETHEUS
from .preflight import refuse

_TRAFFIC = {"arrival": "closed", "users": 10, "prompt_tokens": 512, "output_tokens": 128}
_OBJECTIVES = {"error_rate": 0.01}


class LlmServiceArgs(TypedDict):
    """`release`, `fleet`, `serving`: as in `stacks/releases/*.yaml` and `stacks/Pulumi.*.yaml`. `has`: what the cluster has.

    `wait_seconds`: until all replicas must be ready; by default as long as loading the model may take.
    """

    namespace: str
    release: dict[str, Any]
    fleet: dict[str, Any]
    serving: Optional[dict[str, Any]]  # noqa: UP045 - the package's analyzer reads this form
    has: Optional[list[str]]  # noqa: UP045
    prometheus_url: Optional[str]  # noqa: UP045
    wait_seconds: Optional[int]  # noqa: UP045


class LlmService(Component):
    """An engine with one model, sized by the planner, on an existing cluster; autoscaled where nodes.min < nodes.max.

    Outputs: `url`, inside the cluster; `digest`, of the release; `slots`, per replica; `replicas`, at the most.
    """

    url: pulumi.Output[str]
    digest: pulumi.Output[str]
    slots: pulumi.Output[int]
    replicas: pulumi.Output[int]

    def __init__(self, name: str, args: LlmServiceArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        stack = _stack(name, args)
        refuse(stack)
        plan, digest = planner.plan(stack), values.release_digest(stack.release)
        super().__init__(name, {"release": stack.release.name}, opts)
        engine = service_for(stack.release.engine, simulate=stack.serving.simulate)(
            f"{name}-engine",
            EngineArgs(
                namespace=stack.namespace,
                chart=values.chart_of(stack.release),
                values=values.render(stack, plan),
                release_digest=digest,
                wait_seconds=args.get("wait_seconds") or 600 + values.load_seconds(stack.release),
                root=None,
            ),
            Inherited(),
            opts=self._child(),
        )
        if stack.fleet.nodes.min < stack.fleet.nodes.max:
            QueueAutoscaler(
                f"{name}-autoscaler",
                autoscaler_of(stack, plan, args.get("prometheus_url") or PROMETHEUS["kubernetes"]),
                Inherited(),
                engine,
                opts=self._child(),
            )
        self.url = engine.url
        self.digest = pulumi.Output.from_input(digest)
        self.slots = pulumi.Output.from_input(plan.slots)
        self.replicas = pulumi.Output.from_input(plan.replicas_max)
        self.register_outputs({"url": self.url, "digest": self.digest, "slots": self.slots, "replicas": self.replicas})


class GkeGpuPoolArgs(TypedDict):
    """`accelerator`, `fleet`: as in the files of `stacks/`; the pool is made in the first of the fleet's regions."""

    project: str
    cluster: pulumi.Input[str]
    pool: str
    accelerator: dict[str, Any]
    fleet: dict[str, Any]


class GkeGpuPool(Component):
    """GPU nodes in an existing GKE cluster. Output: `nodePools`, their names in the order in which they are filled."""

    node_pools: pulumi.Output[list[str]]

    def __init__(self, name: str, args: GkeGpuPoolArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, {"pool": args["pool"]}, opts)
        fleet = stacks.Fleet.model_validate(args["fleet"])
        pool = GpuPool(
            f"{name}-pool",
            GpuPoolArgs(
                target="gke",
                pool=args["pool"],
                accelerator=stacks.Accelerator.model_validate(args["accelerator"]),
                fleet=fleet,
                expected_nodes=fleet.nodes.max,
                project=args["project"],
            ),
            Inherited(name=args["cluster"]),
            opts=self._child(),
        )
        self.node_pools = pulumi.Output.all(*(made.name for made in pool.node_pools)).apply(list)
        self.register_outputs({"nodePools": self.node_pools})


COMPONENTS: list[type[pulumi.ComponentResource]] = [LlmService, GkeGpuPool, BatchJob]


def _stack(name: str, args: LlmServiceArgs) -> stacks.Stack:
    # What their cluster has is theirs to know: without a word about it, whatever a service may need is taken to be there.
    everything = ("keda", "prometheus", "lws", "gateway-api", "gcs-fuse", "gpu-operator")
    return stacks.Stack.model_validate(
        {
            "name": name,
            "target": "kubernetes",
            "namespace": args["namespace"],
            "release": {"name": name, **args["release"]},
            "fleet": args["fleet"],
            "serving": args.get("serving") or {},
            "has": args.get("has") or everything,
            "traffic": _TRAFFIC,
            "objectives": _OBJECTIVES,
        }
    )
