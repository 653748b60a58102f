"""An engine with one model behind one Service: a Helm release of one of our charts.

Deliberately not here: how many replicas (`values.render` leaves that to the autoscaler where there is one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from ._base import Component
from .cluster import Cluster

ENGINE_NAME = "engine"


@dataclass(frozen=True, kw_only=True)
class EngineArgs:
    """`chart`: folder of the chart. `values`: rendered for this stack. `wait_seconds`: until all must be ready."""

    namespace: pulumi.Input[str]
    chart: Path
    values: Mapping[str, Any]
    release_digest: str
    wait_seconds: int
    root: Path


class Engine(Component):
    """Attributes: `release`, the Helm release; `url`, where the Service answers inside the cluster."""

    release: k8s.helm.v3.Release
    url: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        args: EngineArgs,
        cluster: Cluster,
        depends_on: Sequence[pulumi.Resource] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(name, {"digest": args.release_digest}, opts)
        self.release = k8s.helm.v3.Release(
            name,
            name=ENGINE_NAME,
            namespace=args.namespace,
            # Relative to the program where possible, so that the state is the same in every checkout.
            chart=_relative(args.chart, args.root),
            values=dict(args.values),
            atomic=True,
            timeout=args.wait_seconds,
            opts=self._child(provider=cluster.provider, depends_on=list(depends_on)),
        )
        self.url = pulumi.Output.concat("http://", ENGINE_NAME, ".", args.namespace, ".svc:80")
        self.register_outputs({"url": self.url})


def _relative(chart: Path, root: Path) -> str:
    return f"./{chart.relative_to(root)}" if chart.is_relative_to(root) else str(chart)
