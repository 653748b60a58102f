"""The state of pods and autoscalers as metrics, under kube-state-metrics' names: what a stack's alerts read of it, no more.

On GKE kube-state-metrics itself comes with kube-prometheus-stack; here a full one would be one more program to build.
Names and labels are those of its docs/metrics/workload (pods at commit 04ee634c83a9, autoscalers at 04b7f64eb045).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from ._api import Api

_CONDITIONS = ("true", "false", "unknown")
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"

Object = Mapping[str, Any]


def exposition(pods: Iterable[Object], autoscalers: Iterable[Object]) -> str:
    """`kube_pod_status_ready`, `kube_pod_status_scheduled` and `kube_horizontalpodautoscaler_info` of all of them."""
    conditions: dict[str, list[str]] = {"Ready": [], "PodScheduled": []}
    scalers = []
    for pod in pods:
        metadata, status = pod["metadata"], pod.get("status") or {}
        own = f'namespace="{metadata["namespace"]}",pod="{metadata["name"]}",uid="{metadata["uid"]}"'
        for condition in status.get("conditions") or ():
            # A pod without that condition, as one without a node has none of Ready, has no series.
            if condition["type"] in conditions:
                name = "ready" if condition["type"] == "Ready" else "scheduled"
                said = str(condition["status"]).lower()
                conditions[condition["type"]] += [
                    f'kube_pod_status_{name}{{{own},condition="{one}"}} {int(one == said)}' for one in _CONDITIONS
                ]
    for one in autoscalers:
        metadata, target = one["metadata"], one["spec"]["scaleTargetRef"]
        scalers.append(
            f'kube_horizontalpodautoscaler_info{{namespace="{metadata["namespace"]}",'
            f'horizontalpodautoscaler="{metadata["name"]}",scaletargetref_api_version="{target.get("apiVersion", "")}",'
            f'scaletargetref_kind="{target["kind"]}",scaletargetref_name="{target["name"]}"}} 1'
        )
    lines = []
    for name, samples in (
        ("kube_pod_status_ready", conditions["Ready"]),
        ("kube_pod_status_scheduled", conditions["PodScheduled"]),
        ("kube_horizontalpodautoscaler_info", scalers),
    ):
        lines += [f"# TYPE {name} gauge", *samples]
    return "\n".join(lines) + "\n"


class StateMetrics:
    """Serves `/metrics` on `address`:`port`; `follow()` runs until cancelled."""

    def __init__(self, api: Api, address: str, port: int) -> None:
        self._api, self._address, self._port = api, address, port
        self._pods: dict[str, dict[str, Any]] = {}
        self._autoscalers: dict[str, dict[str, Any]] = {}

    async def follow(self) -> None:
        """Watch and serve."""
        changed = asyncio.Event()
        async with await asyncio.start_server(self._answer, self._address, self._port):
            await asyncio.gather(
                self._api.mirror("/api/v1/pods", self._pods, changed),
                self._api.mirror("/apis/autoscaling/v2/horizontalpodautoscalers", self._autoscalers, changed),
            )

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # Whatever is asked for, here is one page.
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            page = exposition(self._pods.values(), self._autoscalers.values()).encode()
            writer.write(_HEAD % len(page) + page)
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()
