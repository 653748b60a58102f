"""A batch in a cluster: a Job of runners, and the engine that they ask scaled by what is left.

The Job is not waited for: a batch takes hours, and its queue knows how far it is. Whoever changes the Job (more pods, another
image) loses nothing: the new one goes on with what is left.
"""

# No postponed annotations here: the package's schema is read off them as they are.
from typing import Any, Optional, TypedDict

import pulumi
import pulumi_kubernetes as k8s

import stacks
import values

from ._base import Component
from .autoscaler_policy import Trigger, scaled_object
from .monitoring import PROMETHEUS

# Of a batch for each replica: one alone would have some minutes of work.
_INPUTS_PER_REPLICA = 500
# Until an engine whose model is in nobody's memory answers; what is loaded when the last answer is given is soon idle.
_COLD_START_SECONDS = 180.0


class BatchScale(TypedDict):
    """An engine without an autoscaler of its own, scaled by a batch: `deployment` in the batch's namespace.

    `inputsPerReplica`: of what is left; `coldStartSeconds`: from a pod's creation to its first answer. An engine that has an
    autoscaler takes the output `backlogQuery` as one of its `queries` instead: two would fight.
    """

    deployment: str
    replicasMin: Optional[int]  # noqa: UP045 - the package's analyzer reads this form
    replicasMax: int
    inputsPerReplica: Optional[int]  # noqa: UP045
    coldStartSeconds: Optional[float]  # noqa: UP045
    cooldownSeconds: Optional[int]  # noqa: UP045


class BatchJobArgs(TypedDict):
    """`endpoints`: URL[,slots=N,…] as pods reach them. `store`: s3://…, gs://… or a URL of PostgreSQL without a password, else
    `storeSecret`: NAME/KEY of a Secret with its address. `input`: submitted by the first pod unless the batch is there.

    `pods`: at once (8); `shards`: of a batch in a bucket, as many as pods. `credentials`: Secret whose keys become environment
    variables. `spot`: on spot machines of GKE. `podMonitor`: whether to make one (yes); without the Prometheus operator say no.
    """

    batch: str
    namespace: str
    endpoints: pulumi.Input[list[str]]
    store: Optional[str]  # noqa: UP045
    storeSecret: Optional[str]  # noqa: UP045
    input: Optional[str]  # noqa: UP045
    model: Optional[str]  # noqa: UP045
    template: Optional[str]  # noqa: UP045
    pods: Optional[int]  # noqa: UP045
    shards: Optional[int]  # noqa: UP045
    credentials: Optional[str]  # noqa: UP045
    serviceAccount: Optional[str]  # noqa: UP045
    image: Optional[str]  # noqa: UP045
    spot: Optional[bool]  # noqa: UP045
    nodeSelector: Optional[dict[str, str]]  # noqa: UP045
    tolerations: Optional[list[dict[str, Any]]]  # noqa: UP045
    scale: Optional[BatchScale]  # noqa: UP045
    podMonitor: Optional[bool]  # noqa: UP045
    prometheusUrl: Optional[str]  # noqa: UP045


class BatchJob(Component):
    """An Indexed Job of runners; a ScaledObject where `scale` is given.

    Outputs: `job`, its name; `backlogQuery`, PromQL of how many inputs wait. Wrong arguments raise InputError.
    """

    job: pulumi.Output[str]
    backlogQuery: pulumi.Output[str]

    def __init__(self, name: str, args: BatchJobArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        pods = args.get("pods") or 8
        super().__init__(name, {"batch": args["batch"], "pods": pods}, opts)
        # With some endpoint, so that what is wrong is said also where the real ones are not known yet.
        plain = _job(args, ["http://engine"], pods)
        meta = plain["metadata"]
        query = values.backlog_query(args["namespace"], args["batch"])
        job = k8s.batch.v1.Job(
            f"{name}-job",
            metadata={**meta, "annotations": {"pulumi.com/skipAwait": "true"}},
            spec=pulumi.Output.from_input(args["endpoints"]).apply(lambda urls: _job(args, urls, pods)["spec"]),
            # Its spec cannot be changed and its name is the batch's: the old one goes first, its pods commit what they have.
            opts=self._child(delete_before_replace=True),
        )
        if args.get("podMonitor") is not False:
            k8s.apiextensions.CustomResource(
                f"{name}-monitor",
                api_version="monitoring.coreos.com/v1",
                kind="PodMonitor",
                metadata=meta,
                spec={
                    "selector": {"matchLabels": meta["labels"]},
                    "podMetricsEndpoints": [{"port": "metrics", "interval": "5s"}],
                },
                opts=self._child(),
            )
        if scale := args.get("scale"):
            k8s.apiextensions.CustomResource(
                f"{name}-scale",
                api_version="keda.sh/v1alpha1",
                kind="ScaledObject",
                metadata=meta,
                spec=batch_scaled(scale, query, args.get("prometheusUrl") or PROMETHEUS["kubernetes"]),
                opts=self._child(),
            )
        self.job = job.metadata["name"]
        self.backlogQuery = pulumi.Output.from_input(query)
        self.register_outputs({"job": self.job, "backlogQuery": self.backlogQuery})


def batch_scaled(scale: BatchScale, query: str, prometheus_url: str) -> dict[str, Any]:
    """The spec of the ScaledObject: as many replicas as what is left is worth, none (unless `replicasMin`) when nothing is."""
    return scaled_object(
        stacks.Autoscaling(policy="queue", cooldown_seconds=scale.get("cooldownSeconds")),
        [
            Trigger(
                name="backlog",
                query=query,
                per_replica=float(scale.get("inputsPerReplica") or _INPUTS_PER_REPLICA),
                metrics=(values.BACKLOG_METRIC,),
                always=False,
            )
        ],
        target={"name": scale["deployment"]},
        replicas_min=scale.get("replicasMin") or 0,
        replicas_max=scale["replicasMax"],
        cold_start_seconds=scale.get("coldStartSeconds") or _COLD_START_SECONDS,
        prometheus_url=prometheus_url,
    )


def _job(args: BatchJobArgs, endpoints: list[str], pods: int) -> dict[str, Any]:
    image = args.get("image")
    return values.batch_job(
        args["batch"],
        endpoints=endpoints,
        pods=pods,
        input=args.get("input"),
        model=args.get("model"),
        template=args.get("template"),
        store=args.get("store"),
        secret=args.get("storeSecret"),
        shards=args.get("shards"),
        credentials=args.get("credentials"),
        service_account=args.get("serviceAccount"),
        namespace=args["namespace"],
        spot=bool(args.get("spot")),
        node_selector=args.get("nodeSelector"),
        tolerations=args.get("tolerations") or (),
        **({"image": image} if image else {}),
    )
