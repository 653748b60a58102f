"""What all engines share: a Helm release of one chart behind one Service.

Deliberately not here: how many replicas (`values.render` leaves that to the autoscaler where there is one), and anything that
differs by engine: that is in `values/<engine>.yaml.j2` and in the few facts a service's class states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pulumi
import pulumi_kubernetes as k8s

from values import UpstreamChart

from .._base import Component
from .._chart import chart_at
from ..cluster import Cluster, Inherited

ENGINE_NAME = "engine"


@dataclass(frozen=True, kw_only=True)
class EngineArgs:
    """`chart`: folder of ours, or an upstream one. `values`: rendered for this stack. `wait_seconds`: until all are ready.

    `root`: the program's folder; None for other people's programs. `service`: the name of the Helm release and of the
    Service; a second release of the stack has another.
    """

    namespace: pulumi.Input[str]
    chart: Path | UpstreamChart
    values: Mapping[str, Any]
    release_digest: str
    wait_seconds: int
    root: Path | None
    service: str = ENGINE_NAME


class EngineService(Component):
    """Attributes: `release`, the Helm release; `url`, where the Service answers inside the cluster.

    A service's class states: `engine`, its name in releases; `waiting` and `running`, the metrics of requests that wait and
    that are decoded (None: it has none); `memory_share`, what it takes of a GPU's memory at its start (None: what it
    needs); `health`, a path that answers 200 without an API key once the model is loaded.
    """

    engine: ClassVar[str]
    waiting: ClassVar[str | None] = None
    running: ClassVar[str | None] = None
    memory_share: ClassVar[float | None] = None
    health: ClassVar[str] = "/health"

    release: k8s.helm.v3.Release
    url: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        args: EngineArgs,
        cluster: Cluster | Inherited,
        depends_on: Sequence[pulumi.Resource] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(name, {"serves": self.engine, "digest": args.release_digest}, opts)
        upstream = isinstance(args.chart, UpstreamChart)
        self.release = k8s.helm.v3.Release(
            name,
            name=args.service,
            namespace=args.namespace,
            chart=args.chart.name if isinstance(args.chart, UpstreamChart) else chart_at(args.chart, args.root),
            version=args.chart.version if isinstance(args.chart, UpstreamChart) else None,
            repository_opts={"repo": args.chart.repository} if isinstance(args.chart, UpstreamChart) else None,
            values=dict(args.values),
            atomic=True,
            timeout=args.wait_seconds,
            opts=self._child(provider=cluster.provider, depends_on=list(depends_on)),
        )
        service = f"{args.service}-{self.upstream_service}" if upstream and self.upstream_service else args.service
        self.url = pulumi.Output.concat("http://", service, ".", args.namespace, ".svc:80")
        self.register_outputs({"url": self.url})

    # What the upstream chart appends to the release's name for its Service.
    upstream_service: ClassVar[str] = ""
