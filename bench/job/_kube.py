"""What the pod may do in its cluster: keep its result in a ConfigMap, and read what the cluster says of itself."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import stacks

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# etcd refuses objects above 1.5 MB; half a megabyte leaves room for what the API server adds.
_PLAIN_BYTES = 500_000
_TRIES = 6
_ACCELERATOR = "cloud.google.com/gke-accelerator"
_DRIVERS = ("nvidia.com/cuda.driver-version.full", "cloud.google.com/gke-gpu-driver-version")


class ConfigMaps:
    """The API server as a pod sees it.

    `account`: folder of the service account's `token` and `ca.crt`; default: where Kubernetes mounts it, or
    `TOLLGATE_SERVICEACCOUNT` where a pod is run without a mount namespace. Raises TollgateError outside a pod.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, account: Path | None = None) -> None:
        self._account = account or Path(environ.get("TOLLGATE_SERVICEACCOUNT") or _ACCOUNT)
        host = environ.get("KUBERNETES_SERVICE_HOST", "")
        if not host:
            raise stacks.TollgateError(
                "KUBERNETES_SERVICE_HOST is not set: the result can be stored only from within a pod"
            )
        self._host = host
        self._port = int(environ.get("KUBERNETES_SERVICE_PORT_HTTPS") or environ.get("KUBERNETES_SERVICE_PORT") or 443)

    def store(self, namespace: str, name: str, text: str, labels: Mapping[str, str]) -> None:
        """Create the ConfigMap with `text` as `result.json`, or replace an older one of that name.

        Raises TollgateError when the API server refuses it, or cannot be reached for about a minute.
        """
        content = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
            **payload(text),
        }
        folder = f"/api/v1/namespaces/{namespace}/configmaps"
        problem = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(min(20.0, 2.0**attempt))
            try:
                status, reply = self._send("POST", folder, content)
                if status == 409:
                    status, reply = self._send("PUT", f"{folder}/{name}", content)
            except (OSError, http.client.HTTPException) as error:
                problem = f"the API server at {self._host}:{self._port} does not answer: {error}"
                continue
            if status in (200, 201):
                return
            problem = f"the API server answers {status}: {reply.get('message', 'no reason given')}"
            if status < 500 and status not in (404, 409, 429):
                break
        raise stacks.TollgateError(f"cannot store the result as ConfigMap {namespace}/{name}: {problem}")

    def surroundings(self, accelerator: str) -> dict[str, str]:
        """The cluster's version, and image, kernel and GPU driver of the nodes with that accelerator, for the record.

        What cannot be read is left out: numbers do not depend on knowing it. Several kinds of nodes are all named.
        """
        found: dict[str, str] = {}
        try:
            status, version = self._send("GET", "/version")
            if status == 200 and version.get("gitVersion"):
                found["cluster_version"] = str(version["gitVersion"])
            status, nodes = self._send("GET", f"/api/v1/nodes?labelSelector={quote(f'{_ACCELERATOR}={accelerator}')}")
        except (OSError, http.client.HTTPException):
            return found
        if status != 200:
            return found
        told: dict[str, set[str]] = {}
        for node in nodes.get("items", []):
            info, labels = node.get("status", {}).get("nodeInfo", {}), node.get("metadata", {}).get("labels", {})
            known = {
                "node_image": info.get("osImage"),
                "kernel": info.get("kernelVersion"),
                "kubelet": info.get("kubeletVersion"),
                # By NVIDIA's feature discovery exactly, by GKE as default or latest.
                "driver": next((labels[key] for key in _DRIVERS if labels.get(key)), None),
            }
            for key, value in known.items():
                if value:
                    told.setdefault(key, set()).add(str(value))
        return {**found, **{key: ", ".join(sorted(values)) for key, values in told.items()}}

    def rollout(self, namespace: str, workload: str) -> str:
        """What the workload's rollout still lacks; nothing where it is whole, or not ours to see.

        `workload`: group, version, plural and name, as `apps/v1/deployments/engine`. Raises OSError or HTTPException.
        """
        where, _, rest = workload.partition("/")
        version, plural, name = rest.split("/")
        status, found = self._send("GET", f"/apis/{where}/{version}/namespaces/{namespace}/{plural}/{name}")
        if status in (403, 404):
            return ""
        if status != 200:
            return f"the API server answers {status}"
        meta, spec, now = (found.get(part) or {} for part in ("metadata", "spec", "status"))
        wanted = spec.get("replicas", 1)
        counts = {"there": "replicas", "updated": "updatedReplicas", "ready": "readyReplicas"}
        seen = {word: now.get(key, 0) for word, key in counts.items()}
        if now.get("observedGeneration", meta.get("generation")) != meta.get("generation"):
            return "its controller has not seen the new specification yet"
        if wanted and all(count == wanted for count in seen.values()):
            return ""
        return f"{wanted} replicas wanted, " + ", ".join(f"{count} {word}" for word, count in seen.items())

    def _send(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        # Read each time: bound tokens are rotated.
        token = (self._account / "token").read_text().strip()
        context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=15, context=context)
        try:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            body = json.dumps(content) if content is not None else None
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        try:
            reply = json.loads(raw)
        except ValueError:
            reply = {}
        return answer.status, reply if isinstance(reply, dict) else {}


def payload(text: str) -> dict[str, dict[str, str]]:
    """`data`, or gzip and base64 under `binaryData` above 500 kB."""
    if len(text.encode()) <= _PLAIN_BYTES:
        return {"data": {"result.json": text}}
    packed = gzip.compress(text.encode(), mtime=0)
    return {"binaryData": {"result.json": base64.b64encode(packed).decode()}}
