"""All pods of all our nodes: which are ours, which addresses they have, what an earlier runner left behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path

from ._api import Api, Object
from ._events import Events
from ._kubelet import serve
from ._nodes import Nodes
from ._pod import Machine, Pod
from ._process import start_ticks
from ._settings import RUNNER_LABEL, Settings

_FINISHED = ("Succeeded", "Failed")


class Runner:
    """Everything that one `python -m local.runner` does."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.api = Api(settings.kubeconfig)
        self.nodes = Nodes(self.api, settings)
        self._node_objects: dict[str, Object] = {}
        self._services: dict[str, Object] = {}
        self._pods: dict[str, Pod] = {}
        self._waiting: dict[str, Object] = {}
        self._machine = Machine(
            api=self.api,
            events=Events(self.api),
            settings=settings,
            services=lambda: list(self._services.values()),
            node=self._node_objects.get,
        )

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; pods are then stopped at once, because the cluster goes down with the runner."""
        self.settings.pods_dir.mkdir(parents=True, exist_ok=True)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server = await serve(self.settings, self._logs, self._running)
        tasks = [
            asyncio.create_task(self.api.watch("/api/v1/services", "limit=0", self._on_service)),
            asyncio.create_task(self.api.watch("/api/v1/nodes", f"labelSelector={RUNNER_LABEL}", self._on_node)),
            asyncio.create_task(self.api.watch("/api/v1/pods", "fieldSelector=spec.nodeName!=", self._on_pod)),
            asyncio.create_task(self.nodes.renew_for_ever()),
            asyncio.create_task(self._housekeep()),
        ]
        await stop.wait()
        for task in tasks:
            task.cancel()
        for pod in self._pods.values():
            pod.kill()
        if server is not None:
            server.close()

    # ------------------------------------------------------------------ watches

    async def _on_service(self, event: str, service: Object) -> None:
        if event == "SYNCED":
            self._services = {uid: self._services[uid] for uid in service["uids"] if uid in self._services}
        elif event == "DELETED":
            self._services.pop(service["metadata"]["uid"], None)
        else:
            self._services[service["metadata"]["uid"]] = service

    async def _on_node(self, event: str, node: Object) -> None:
        if event not in ("SYNCED", "DELETED"):
            self._node_objects[node["metadata"]["name"]] = node
        await self.nodes.handle(event, node)
        if event == "DELETED":
            name = node["metadata"]["name"]
            self._node_objects.pop(name, None)
            for pod in self._pods.values():
                if pod.pod["spec"].get("nodeName") == name:
                    pod.gone()
        for uid, waiting in list(self._waiting.items()):
            if waiting["spec"]["nodeName"] in self.nodes.names:
                del self._waiting[uid]
                self._take(waiting)

    async def _on_pod(self, event: str, pod: Object) -> None:
        if event == "SYNCED":
            self._forget(set(pod["uids"]))
            return
        uid = pod["metadata"]["uid"]
        if event == "DELETED":
            self._waiting.pop(uid, None)
            if uid in self._pods:
                self._pods[uid].gone()
        elif uid in self._pods:
            self._pods[uid].update(pod)
        elif pod["spec"]["nodeName"] in self.nodes.names:
            self._take(pod)
        else:
            self._waiting[uid] = pod

    def _take(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        finished = pod.get("status", {}).get("phase") in _FINISHED
        if finished and not pod["metadata"].get("deletionTimestamp") and not (self.settings.pods_dir / uid).exists():
            return
        worker = Pod(self._machine, pod, self._address())
        self._pods[uid] = worker
        worker.start()
        worker.update(pod)

    # ------------------------------------------------------------------ addresses and leftovers

    def _address(self) -> str:
        """The lowest address that no pod has, also none that an earlier runner started and we have not seen yet."""
        taken = {pod.ip for pod in self._pods.values()} | _left_addresses(self.settings.pods_dir)
        return next(address for address in self.settings.pod_addresses() if address not in taken)

    def _forget(self, uids: set[str]) -> None:
        """After a full list: whatever is not in it is gone, also what only an earlier runner knew."""
        for uid, pod in list(self._pods.items()):
            if uid not in uids:
                pod.gone()
        for folder in self.settings.pods_dir.iterdir():
            if folder.name not in uids and folder.name not in self._pods:
                kill_leftovers(folder)
                shutil.rmtree(folder, ignore_errors=True)

    async def _housekeep(self) -> None:
        while True:
            await asyncio.sleep(5)
            for uid, pod in list(self._pods.items()):
                if pod.ended:
                    del self._pods[uid]
                else:
                    pod.trim_logs()

    # ------------------------------------------------------------------ logs

    def _find(self, namespace: str, name: str) -> Pod | None:
        for pod in self._pods.values():
            meta = pod.pod["metadata"]
            if (meta["namespace"], meta["name"]) == (namespace, name):
                return pod
        return None

    def _logs(self, namespace: str, name: str, container: str) -> Path | None:
        pod = self._find(namespace, name)
        return pod.logs(container) if pod is not None else None

    def _running(self, namespace: str, name: str, container: str) -> bool:
        pod = self._find(namespace, name)
        return pod is not None and pod.running(container)


def _left_addresses(pods_dir: Path) -> set[str]:
    found = set()
    for path in pods_dir.glob("*/pod.json"):
        try:
            found.add(str(json.loads(path.read_text())["ip"]))
        except (OSError, ValueError, KeyError):
            continue
    return found


def kill_leftovers(folder: Path) -> None:
    """Kill the processes that a pod's folder speaks of, if they are still the same ones."""
    try:
        known = json.loads((folder / "pod.json").read_text())["containers"]
    except (OSError, ValueError, KeyError):
        return
    for entry in known.values():
        if start_ticks(int(entry["pid"])) == int(entry["ticks"]):
            try:
                os.killpg(int(entry["pid"]), signal.SIGKILL)
            except ProcessLookupError:
                continue
