"""A small client of the API server, for the supervisor's own objects and for `tollgate local logs`."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import orjson

from stacks import TollgateError

_PLURALS = {
    "APIService": ("apiregistration.k8s.io/v1", "apiservices", False),
    "ClusterRole": ("rbac.authorization.k8s.io/v1", "clusterroles", False),
    "ClusterRoleBinding": ("rbac.authorization.k8s.io/v1", "clusterrolebindings", False),
    "ConfigMap": ("v1", "configmaps", True),
    "CustomResourceDefinition": ("apiextensions.k8s.io/v1", "customresourcedefinitions", False),
    "EndpointSlice": ("discovery.k8s.io/v1", "endpointslices", True),
    "Namespace": ("v1", "namespaces", False),
    "Node": ("v1", "nodes", False),
    "Role": ("rbac.authorization.k8s.io/v1", "roles", True),
    "RoleBinding": ("rbac.authorization.k8s.io/v1", "rolebindings", True),
    "Service": ("v1", "services", True),
    "ServiceAccount": ("v1", "serviceaccounts", True),
}


def collection(kind: str, namespace: str = "") -> str:
    """The path of all objects of `kind`, in `namespace` where the kind has one."""
    version, plural, namespaced = _PLURALS[kind]
    root = "/api/v1" if version == "v1" else f"/apis/{version}"
    return f"{root}/namespaces/{namespace}/{plural}" if namespaced else f"{root}/{plural}"


def tls(pki: Path, user: str = "admin") -> ssl.SSLContext:
    """Trust in the cluster's authority, and the certificate of `user`."""
    context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    context.load_cert_chain(pki / f"{user}.crt", pki / f"{user}.key")
    return context


class Api:
    """Requests to the API server at `url`; one connection pool, closed by `aclose`."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        limits = httpx2.Limits(max_connections=16, keepalive_expiry=5)
        # trust_env off: a proxy from the environment has no way to the cluster's addresses.
        self.url = url
        self._client = httpx2.AsyncClient(base_url=url, verify=context, timeout=10, trust_env=False, limits=limits)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def get(self, path: str) -> httpx2.Response:
        """GET whatever the status; `httpx2.HTTPError` when there is no answer."""
        return await self._client.get(path)

    async def post(self, path: str, document: dict[str, Any]) -> httpx2.Response:
        """POST whatever the status; `httpx2.HTTPError` when there is no answer."""
        return await self._client.post(
            path, content=orjson.dumps(document), headers={"Content-Type": "application/json"}
        )

    async def create(self, document: dict[str, Any]) -> None:
        """Create the object; one that exists stays as it is. `TollgateError` with the server's words otherwise."""
        metadata = document["metadata"]
        path = collection(document["kind"], metadata.get("namespace", ""))
        answer = await self._client.post(
            path, content=orjson.dumps(document), headers={"Content-Type": "application/json"}, timeout=30
        )
        if answer.status_code not in (200, 201, 409):
            raise TollgateError(f"{document['kind']} {metadata['name']}: {answer.status_code} {_message(answer)}")

    async def delete(self, path: str) -> None:
        """Delete the object at `path`; one that is gone is fine."""
        answer = await self._client.delete(path)
        if answer.status_code not in (200, 202, 404):
            raise TollgateError(f"DELETE {path}: {answer.status_code} {_message(answer)}")

    @asynccontextmanager
    async def watch(self, path: str, version: str, selector: str = "") -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Events after `version`, until the server ends the stream."""
        parameters = {"watch": "1", "resourceVersion": version, "timeoutSeconds": "300", "allowWatchBookmarks": "true"}
        if selector:
            parameters["labelSelector"] = selector
        timeout = httpx2.Timeout(10, read=None)
        async with self._client.stream("GET", path, params=parameters, timeout=timeout) as answer:
            answer.raise_for_status()
            yield _events(answer)

    async def mirror(
        self, path: str, objects: MutableMapping[str, dict[str, Any]], changed: asyncio.Event, selector: str = ""
    ) -> None:
        """Keep `objects` (by uid) as the objects at `path` are, and set `changed` with each change; until cancelled."""
        while True:
            # Whatever ends a watch (a time-out, a restart of the API server, a version too old), the cure is to
            # list again; the pause keeps that from becoming a busy loop.
            with contextlib.suppress(httpx2.HTTPError, KeyError, ValueError):
                listed = (await self.get(f"{path}?labelSelector={selector}")).json()
                found = {item["metadata"]["uid"]: item for item in listed["items"]}
                objects.clear()
                objects.update(found)
                changed.set()
                async with self.watch(path, listed["metadata"]["resourceVersion"], selector) as events:
                    async for event in events:
                        if event["type"] == "ERROR":
                            break
                        if event["type"] == "BOOKMARK":
                            continue
                        uid = event["object"]["metadata"]["uid"]
                        if event["type"] == "DELETED":
                            objects.pop(uid, None)
                        else:
                            objects[uid] = event["object"]
                        changed.set()
            await asyncio.sleep(0.5)


async def _events(answer: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.aiter_lines():
        if line:
            yield orjson.loads(line)


def _message(answer: httpx2.Response) -> str:
    try:
        return str(answer.json().get("message", answer.text))
    except ValueError:
        return answer.text[:300]
