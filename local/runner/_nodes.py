"""The nodes that the runner stands for: capacity, Ready, and the lease that says it is alive."""

from __future__ import annotations

import asyncio
import json
import platform
import re
from datetime import UTC, datetime

from ._api import STRATEGIC, UNREACHABLE, Api, ApiError, Object
from ._events import now
from ._settings import CAPACITY_ANNOTATION, KUBELET_PORT, Settings

_LEASE_SECONDS = 40
_RENEW_SECONDS = 10.0
_DEFAULT_CAPACITY = {"cpu": "8", "memory": "32Gi", "pods": "110"}
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_QUANTITY = re.compile(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i?|[kmun]|[eE][0-9]{1,3})?")
# With this the API server hands `kubectl exec` on as it is, a WebSocket, instead of turning it into SPDY.
_FEATURES = ["ExtendWebSocketsToKubelet"]


class Nodes:
    """`names` are the nodes whose pods are ours."""

    def __init__(self, api: Api, settings: Settings) -> None:
        self._api, self._settings = api, settings
        self._nodes: dict[str, Object] = {}
        self._unwritten: set[str] = set()

    @property
    def names(self) -> set[str]:
        return set(self._nodes)

    def get(self, name: str) -> Object | None:
        """The node as it was last seen."""
        return self._nodes.get(name)

    async def handle(self, event: str, node: Object) -> set[str]:
        """Take a node over, keep it Ready, or let it go; gives the names of those that are gone."""
        if event == "SYNCED":
            there = set(node["uids"])
            lost = {name for name, known in self._nodes.items() if known["metadata"]["uid"] not in there}
            for name in lost:
                del self._nodes[name]
            return lost
        name = node["metadata"]["name"]
        if event == "DELETED":
            self._nodes.pop(name, None)
            self._unwritten.discard(name)
            return {name}
        known = self._nodes.get(name)
        self._nodes[name] = node
        if known is None or known["metadata"]["uid"] != node["metadata"]["uid"]:
            await self._write(name, first=True)
        elif not is_current(node) or capacity(node) != capacity(known):
            # Also when the node controller has called it unknown while the API server was away.
            await self._write(name)
        return set()

    async def renew_for_ever(self) -> None:
        """Renew every lease in time, spread over the interval; write what could not be written before."""
        while True:
            names = sorted(self._nodes)
            for name in names:
                await asyncio.sleep(_RENEW_SECONDS / len(names))
                if name in self._unwritten:
                    await self._write(name)
                elif name in self._nodes:
                    try:
                        await self._renew(name)
                    except (ApiError, *UNREACHABLE):
                        continue
            if not names:
                await asyncio.sleep(1)

    async def _write(self, name: str, *, first: bool = False) -> None:
        node = self._nodes[name]
        self._unwritten.add(name)
        try:
            body = {"status": node_status(node, self._settings)}
            await self._api.request("PATCH", f"/api/v1/nodes/{name}/status", body, kind=STRATEGIC, tries=2)
            await self._renew(name, first=first)
        except (ApiError, *UNREACHABLE):
            return
        self._unwritten.discard(name)

    async def _renew(self, name: str, *, first: bool = False) -> None:
        node = self._nodes.get(name)
        if node is None:
            return
        spec = {
            "holderIdentity": name,
            "leaseDurationSeconds": _LEASE_SECONDS,
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
        document = {"metadata": {"name": name, "ownerReferences": [owner]}, "spec": spec}
        # A new node most likely has no lease, an old one most likely has.
        ways = [("POST", _LEASES, document), ("PATCH", f"{_LEASES}/{name}", {"spec": spec})]
        for number, (method, path, body) in enumerate(ways if first else reversed(ways)):
            try:
                kind = STRATEGIC if method == "PATCH" else "application/json"
                await self._api.request(method, path, body, kind=kind, tries=2)
                return
            except ApiError as error:
                if number == 1 or error.code not in (404, 409):
                    raise


def capacity(node: Object) -> dict[str, str]:
    """What the node says it has, in its annotation; a default where that is absent or not a mapping of quantities."""
    text = (node["metadata"].get("annotations") or {}).get(CAPACITY_ANNOTATION)
    try:
        given = json.loads(text) if text is not None else {}
        found = {str(key): str(value) for key, value in given.items()}
    except (ValueError, AttributeError, RecursionError):
        return dict(_DEFAULT_CAPACITY)
    return {**_DEFAULT_CAPACITY, **{key: value for key, value in found.items() if _QUANTITY.fullmatch(value)}}


def is_current(node: Object) -> bool:
    """Whether the node's status says what we would say."""
    status = node.get("status") or {}
    has = status.get("capacity") or {}
    ready = any(entry["type"] == "Ready" and entry["status"] == "True" for entry in status.get("conditions") or [])
    return ready and all(has.get(key) is not None for key in capacity(node))


def node_status(node: Object, settings: Settings) -> Object:
    """The status a kubelet would report for this node now."""
    has, at = capacity(node), now()
    return {
        "capacity": has,
        "allocatable": has,
        "addresses": [
            {"type": "InternalIP", "address": settings.node_ip},
            {"type": "Hostname", "address": node["metadata"]["name"]},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
        "declaredFeatures": _FEATURES,
        "nodeInfo": {
            "architecture": "amd64" if platform.machine() == "x86_64" else "arm64",
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
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": at,
                "lastTransitionTime": at,
            }
            for kind, value, reason, message in (
                ("MemoryPressure", "False", "KubeletHasSufficientMemory", "memory is not counted here"),
                ("DiskPressure", "False", "KubeletHasNoDiskPressure", "disk is not counted here"),
                ("PIDPressure", "False", "KubeletHasSufficientPID", "processes are not counted here"),
                ("Ready", "True", "KubeletReady", "the pod runner is running"),
            )
        ],
    }
