"""The objects a new cluster starts with: Prometheus' Service and rights, KEDA's definitions, rights and API."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import yaml

from ._api import Api, collection
from ._layout import KEDA_ADAPTER_PORT, PROMETHEUS_PORT, Addresses
from ._pki import PROMETHEUS_USER
from ._plan import files
from ._rules import definition

_ESTABLISHED_POLL_S = 0.1
# kube-proxy waits half a minute for "its" Node before it programs anything, and here no Node is its own. It gets one
# for the moment of its start. Cordoned and without the runner's label, nothing can land on it.
PROXY_NODE = "tollgate-kube-proxy"


def proxy_node(addresses: Addresses) -> dict[str, Any]:
    """The Node kube-proxy looks for at its start."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": PROXY_NODE},
        "spec": {"unschedulable": True, "taints": [{"key": "tollgate.dev/kube-proxy", "effect": "NoExecute"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": addresses.control_plane}]},
    }


def _service(name: str, namespace: str, address: str, port: int, target: int, label: str) -> list[dict[str, Any]]:
    """A Service without selector and its one endpoint: a process of the control plane under a Service's name."""
    metadata = {"name": name, "namespace": namespace}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"ports": [{"name": label, "port": port, "targetPort": target, "protocol": "TCP"}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                **metadata,
                "labels": {
                    "kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "tollgate",
                },
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            "ports": [{"name": label, "port": target, "protocol": "TCP"}],
        },
    ]


def _namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def monitoring(addresses: Addresses) -> list[dict[str, Any]]:
    """Namespace `monitoring` with Service `prometheus`, and what its discovery may read."""
    group = "rbac.authorization.k8s.io"
    return [
        _namespace("monitoring"),
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": PROMETHEUS_USER.split(":")[-1], "namespace": "monitoring"},
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "tollgate:prometheus"},
            "rules": [
                {
                    "apiGroups": [""],
                    "resources": ["nodes", "services", "endpoints", "pods", "namespaces"],
                    "verbs": ["get", "list", "watch"],
                },
                {
                    "apiGroups": ["discovery.k8s.io"],
                    "resources": ["endpointslices"],
                    "verbs": ["get", "list", "watch"],
                },
            ],
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "tollgate:prometheus"},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "tollgate:prometheus"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": PROMETHEUS_USER}],
        },
        *_service("prometheus", "monitoring", addresses.control_plane, PROMETHEUS_PORT, PROMETHEUS_PORT, "http"),
    ]


def external_metrics(addresses: Addresses, authority: bytes) -> list[dict[str, Any]]:
    """KEDA's adapter as the API of external metrics; `authority`: the PEM that signed its certificate."""
    version, group = "v1beta1", "external.metrics.k8s.io"
    return [
        *_service("keda-metrics-apiserver", "keda", addresses.control_plane, 443, KEDA_ADAPTER_PORT, "https"),
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{version}.{group}"},
            "spec": {
                "service": {"name": "keda-metrics-apiserver", "namespace": "keda", "port": 443},
                "group": group,
                "version": version,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "caBundle": base64.b64encode(authority).decode(),
            },
        },
    ]


def documents(path: Path) -> list[dict[str, Any]]:
    """All objects of the YAML file, or of the folder's YAML files, at `path`."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: list[dict[str, Any]] = []
    for file in files(path):
        found += [document for document in yaml.load_all(file.read_text(), Loader=loader) if document]
    return found


async def create_monitoring(api: Api, addresses: Addresses) -> None:
    """Create `monitoring` and the kind of rules, and wait until the API server serves that."""
    rules = definition()
    await asyncio.gather(_create(api, monitoring(addresses)), api.create(rules))
    await _established(api, rules["metadata"]["name"])


async def create_keda(api: Api, addresses: Addresses, *, crds: Path, rbac: Path, authority: Path) -> None:
    """Create KEDA's definitions and rights and wait until the API server serves the definitions."""
    definitions = documents(crds)
    await _create(api, [_namespace("keda")])
    await asyncio.gather(
        *(api.create(document) for document in definitions),
        _create(api, documents(rbac)),
        _create(api, external_metrics(addresses, authority.read_bytes())),
    )
    await asyncio.gather(*(_established(api, document["metadata"]["name"]) for document in definitions))


async def _create(api: Api, objects: list[dict[str, Any]]) -> None:
    """Namespaces first, then all others side by side."""
    await asyncio.gather(*(api.create(o) for o in objects if o["kind"] == "Namespace"))
    await asyncio.gather(*(api.create(o) for o in objects if o["kind"] != "Namespace"))


async def _established(api: Api, name: str) -> None:
    path = f"{collection('CustomResourceDefinition')}/{name}"
    while True:
        conditions = (await api.get(path)).json().get("status", {}).get("conditions") or ()
        if any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
            return
        await asyncio.sleep(_ESTABLISHED_POLL_S)
