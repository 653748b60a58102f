"""The API of resource metrics (metrics.k8s.io) on the embedded cluster, so that a default HPA on CPU has what it reads.

A cluster's metrics-server asks its kubelets; here pods are processes of this machine, found by the mount namespace that the pod
runner gives each container, and their CPU is the kernel's. Served only while a comparison needs it: it is not the cluster's.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ._ground import Ground

GROUP, VERSION = "metrics.k8s.io", "v1beta1"
_ROOT = f"/apis/{GROUP}/{VERSION}"
_PODS = re.compile(rf"{_ROOT}/namespaces/(?P<namespace>[a-z0-9-]+)/pods")
_TICKS = os.sysconf("SC_CLK_TCK")
# Of CPU time that an answer is about; a metrics-server's is 15.
_WINDOW_SECONDS = 5.0
_NAME = "metrics-server"
_PORT = 10251

# A mount namespace's inode -> CPU seconds of the processes in it, those they have waited for included.
Spent = Mapping[int, float]


def spent(proc: Path = Path("/proc")) -> dict[int, float]:
    """Of every mount namespace of this machine."""
    found: dict[int, float] = {}
    for entry in os.scandir(proc):
        if not entry.name.isdigit():
            continue
        # A process may end while it is looked at.
        with contextlib.suppress(OSError, ValueError, IndexError):
            own = str(Path(entry.path, "ns", "mnt").readlink())
            fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            inode = int(own[own.index("[") + 1 : -1])
            found[inode] = found.get(inode, 0.0) + sum(int(one) for one in fields[11:15]) / _TICKS
    return found


def namespaces(state_dir: Path) -> dict[str, dict[str, int]]:
    """uid of each pod that the runner has -> container -> its mount namespace."""
    found = {}
    for path in (state_dir / "runner" / "pods").glob("*/pod.json"):
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text())["containers"]
            found[path.parent.name] = {name: int(one.get("namespace", 0)) for name, one in known.items()}
    return found


def usage(
    pods: list[dict[str, Any]], known: Mapping[str, Mapping[str, int]], before: Spent, now: Spent, seconds: float
) -> list[dict[str, Any]]:
    """PodMetrics of the pods that ran all the time between two looks so many seconds apart; others have none yet."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    items = []
    for pod in pods:
        metadata = pod["metadata"]
        containers = known.get(metadata["uid"], {})
        if not containers or any(inode not in before or inode not in now for inode in containers.values()):
            continue
        cores = {name: max(0.0, now[inode] - before[inode]) / seconds for name, inode in containers.items()}
        items.append(
            {
                "metadata": {key: metadata.get(key) for key in ("name", "namespace", "labels", "creationTimestamp")},
                "timestamp": stamp,
                "window": f"{seconds:.0f}s",
                "containers": [
                    {"name": name, "usage": {"cpu": f"{core * 1e9:.0f}n", "memory": "0"}}
                    for name, core in cores.items()
                ],
            }
        )
    return items


@contextmanager
def served(ground: Ground, address: str) -> Iterator[None]:
    """While the block runs the cluster has that API, for the pods of the ground's namespace, from that address of its node."""
    state_dir = ground.state_dir
    assert state_dir is not None
    looks: deque[tuple[float, dict[int, float]]] = deque()
    lock = threading.Lock()

    def items() -> list[dict[str, Any]]:
        pods = ground.get("pods")["items"]
        with lock:
            at, now = time.monotonic(), spent()
            looks.append((at, now))
            while len(looks) > 2 and at - looks[1][0] >= _WINDOW_SECONDS:
                looks.popleft()
            began, before = looks[0]
        return usage(pods, namespaces(state_dir), before, now, at - began) if at - began >= _WINDOW_SECONDS / 2 else []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].rstrip("/")
            found = _PODS.fullmatch(path)
            if path == _ROOT:
                verbs = {
                    "name": "pods",
                    "singularName": "",
                    "namespaced": True,
                    "kind": "PodMetrics",
                    "verbs": ["list"],
                }
                self.say(
                    {
                        "kind": "APIResourceList",
                        "apiVersion": "v1",
                        "groupVersion": f"{GROUP}/{VERSION}",
                        "resources": [verbs],
                    }
                )
            elif found:
                # Whoever asks for some of the pods by their labels finds them by name.
                own = items() if found["namespace"] == ground.name else []
                self.say({"kind": "PodMetricsList", "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}, "items": own})
            else:
                self.send_error(404)

        def say(self, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    pki = state_dir / "pki"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "front-proxy-ca.crt"))
    context.load_cert_chain(pki / "kubelet-serving.crt", pki / "kubelet-serving.key")
    # The API server alone, which has asked whether the client may.
    context.verify_mode = ssl.CERT_REQUIRED
    server = ThreadingHTTPServer((address, _PORT), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.2,), daemon=True)
    thread.start()
    try:
        ground.apply(*_objects(address, ground.name))
        ground.until(lambda: ground.kubectl("get", "--raw", _ROOT, check=False), f"the API of {GROUP}", 60)
        yield
    finally:
        # Whoever deletes a namespace waits for every API that is announced.
        ground.kubectl("delete", "apiservice", f"{VERSION}.{GROUP}", check=False)
        server.shutdown()
        thread.join(10)
        server.server_close()


def _objects(address: str, namespace: str) -> list[dict[str, Any]]:
    metadata = {"name": _NAME, "namespace": namespace}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"ports": [{"port": 443, "targetPort": _PORT}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": _NAME}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            "ports": [{"port": _PORT}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{VERSION}.{GROUP}"},
            "spec": {
                "service": {**metadata, "port": 443},
                "group": GROUP,
                "version": VERSION,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                # As metrics-server's own manifest has it: its certificate names no Service.
                "insecureSkipTLSVerify": True,
            },
        },
    ]


def default_hpa(ground: Ground, most: int) -> dict[str, Any]:
    """What `kubectl autoscale deployment engine --cpu-percent=80` makes, with no behaviour of its own."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "engine", "namespace": ground.name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"},
            "minReplicas": 1,
            "maxReplicas": most,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
                }
            ],
        },
    }
