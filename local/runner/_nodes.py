"""The nodes that the runner stands for: capacity, Ready, and the lease that says it is alive."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
from datetime import UTC, datetime

import httpx

from ._api import MERGE, Api, ApiError, Object
from ._events import now
from ._settings import CAPACITY_ANNOTATION, KUBELET_PORT, Settings

_LEASE_SECONDS = 40
_RENEW_SECONDS = 10
_DEFAULT_CAPACITY = {"cpu": "8", "memory": "32Gi", "pods": "110"}
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


class Nodes:
    """`names` are the nodes whose pods are ours."""

    def __init__(self, api: Api, settings: Settings) -> None:
        self._api, self._settings = api, settings
        self.names: set[str] = set()

    async def handle(self, event: str, node: Object) -> None:
        """Take a node over, keep it Ready, or let it go."""
        if event == "SYNCED":
            return
        name = node["metadata"]["name"]
        if event == "DELETED":
            self.names.discard(name)
            return
        new = name not in self.names
        self.names.add(name)
        status = node.get("status", {})
        ready = any(entry["type"] == "Ready" and entry["status"] == "True" for entry in status.get("conditions", []))
        # Also when the node controller has called it unknown while the API server was away.
        if new or not ready or status.get("capacity") != {**status.get("capacity", {}), **capacity(node)}:
            with contextlib.suppress(ApiError, httpx.HTTPError):
                body = {"status": node_status(node, self._settings)}
                await self._api.request("PATCH", f"/api/v1/nodes/{name}/status", body, kind=MERGE)
                await self._renew(name)

    async def renew_for_ever(self) -> None:
        """Renew every lease in time."""
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            for name in sorted(self.names):
                with contextlib.suppress(ApiError, httpx.HTTPError):
                    await self._renew(name)

    async def _renew(self, name: str) -> None:
        spec = {
            "holderIdentity": name,
            "leaseDurationSeconds": _LEASE_SECONDS,
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        try:
            await self._api.request("PATCH", f"{_LEASES}/{name}", {"spec": spec}, kind=MERGE, tries=2)
        except ApiError as error:
            if error.code != 404:
                raise
            await self._api.request("POST", _LEASES, {"metadata": {"name": name}, "spec": spec}, tries=2)


def capacity(node: Object) -> dict[str, str]:
    """What the node says it has, in its annotation; a default where that is absent or not a mapping."""
    text = node["metadata"].get("annotations", {}).get(CAPACITY_ANNOTATION)
    if text is None:
        return dict(_DEFAULT_CAPACITY)
    try:
        given = json.loads(text)
        return {**_DEFAULT_CAPACITY, **{str(key): str(value) for key, value in given.items()}}
    except (ValueError, AttributeError):
        return dict(_DEFAULT_CAPACITY)


def node_status(node: Object, settings: Settings) -> Object:
    """The status a kubelet would report for this node now."""
    has, at = capacity(node), now()
    fine = {"MemoryPressure": "False", "DiskPressure": "False", "PIDPressure": "False", "Ready": "True"}
    return {
        "capacity": has,
        "allocatable": has,
        "addresses": [
            {"type": "InternalIP", "address": settings.node_ip},
            {"type": "Hostname", "address": node["metadata"]["name"]},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
        "nodeInfo": {
            "architecture": "amd64" if platform.machine() == "x86_64" else platform.machine(),
            "bootID": "",
            "containerRuntimeVersion": "process://0.1.0",
            "kernelVersion": platform.release(),
            "kubeProxyVersion": "",
            "kubeletVersion": "v1.36.3",
            "machineID": "",
            "operatingSystem": "linux",
            "osImage": "tollgate pod runner",
            "systemUUID": "",
        },
        "conditions": [
            {
                "type": kind,
                "status": value,
                "reason": "RunnerReady" if kind == "Ready" else "RunnerHasSufficient",
                "message": "the pod runner is running",
                "lastHeartbeatTime": at,
                "lastTransitionTime": at,
            }
            for kind, value in fine.items()
        ],
    }
