"""All pods of all our nodes: which are ours, which addresses they have, what an earlier runner left behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

from ._api import Api, Object
from ._events import Events
from ._kubelet import Kubelet
from ._nodes import Nodes
from ._pod import Machine, Pod
from ._process import Shim, start_ticks
from ._settings import RUNNER_LABEL, Settings
from ._volumes import Reader

_FINISHED = ("Succeeded", "Failed")
_LOG_SECONDS = 0.25


class Runner:
    """Everything that one `python -m local.runner` does."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.api = Api(settings.kubeconfig)
        self.nodes = Nodes(self.api, settings)
        self._events = Events(self.api)
        self._services: dict[str, Object] = {}
        self._services_known = asyncio.Event()
        self._pods: dict[str, Pod] = {}
        self._waiting: dict[str, Object] = {}
        self._addresses = settings.pod_addresses()
        self._next_address = 0
        self._left: dict[str, str] = {}
        self._machine = Machine(
            api=self.api,
            events=self._events,
            settings=settings,
            services=self._known_services,
            node=self.nodes.get,
        )

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; pods are then stopped at once, because the cluster goes down with the runner."""
        self.settings.pods_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._left = left_addresses(self.settings.pods_dir)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        kubelet = Kubelet(self.settings, self._find, lambda: [pod.pod for pod in self._pods.values()])
        await kubelet.serve()
        tasks = [
            asyncio.create_task(for_ever(work))
            for work in (
                lambda: self.api.watch("/api/v1/services", "limit=0", self._on_service),
                lambda: self.api.watch("/api/v1/nodes", f"labelSelector={RUNNER_LABEL}", self._on_node),
                lambda: self.api.watch("/api/v1/pods", "fieldSelector=spec.nodeName!=", self._on_pod),
                self.nodes.renew_for_ever,
                self._events.write_for_ever,
                self._look_at_logs,
                self._refresh,
            )
        ]
        await stop.wait()
        for task in tasks:
            task.cancel()
        if not self.settings.keep_pods:
            for pod in self._pods.values():
                pod.kill()
        kubelet.close()

    # ------------------------------------------------------------------ watches

    async def _known_services(self) -> list[Object]:
        """All Services; a pod that starts with the runner waits until they have been listed."""
        await self._services_known.wait()
        return list(self._services.values())

    async def _on_service(self, event: str, service: Object) -> None:
        if event == "SYNCED":
            self._services = {uid: self._services[uid] for uid in service["uids"] if uid in self._services}
            self._services_known.set()
        elif event == "DELETED":
            self._services.pop(service["metadata"]["uid"], None)
        else:
            self._services[service["metadata"]["uid"]] = service

    async def _on_node(self, event: str, node: Object) -> None:
        lost = await self.nodes.handle(event, node)
        for uid, pod in self._pods.items():
            if pod.pod["spec"].get("nodeName") in lost:
                # Should the node come back before they are collected, they begin again, as after a machine's reboot.
                self._waiting[uid] = pod.pod
                pod.gone()
        self._take_waiting()

    def _take_waiting(self) -> None:
        """Those whose node is there by now, and that have no processes left from when it was there before."""
        for uid, waiting in list(self._waiting.items()):
            if waiting["spec"]["nodeName"] in self.nodes.names and (uid not in self._pods or self._pods[uid].ended):
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
        elif uid in self._waiting or pod["spec"]["nodeName"] not in self.nodes.names:
            self._waiting[uid] = pod
        elif uid in self._pods and not self._pods[uid].ended:
            self._pods[uid].update(pod)
        else:
            self._take(pod)

    def _take(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        finished = pod.get("status", {}).get("phase") in _FINISHED
        if finished and not pod["metadata"].get("deletionTimestamp") and not (self.settings.pods_dir / uid).exists():
            return
        worker = Pod(self._machine, pod, self._address(uid, (pod.get("status") or {}).get("podIP", "")))
        self._pods[uid] = worker
        worker.start()
        worker.update(pod)

    # ------------------------------------------------------------------ addresses and leftovers

    def _address(self, uid: str, reported: str) -> str:
        """The pod's own from before, or the next that no pod has: a freed one rests as long as there are others."""
        if uid in self._left:
            return self._left[uid]
        others = {pod.ip for other, pod in self._pods.items() if other != uid}
        # Those that wait for their node come back to the address that is still theirs by their status.
        waiting = {(pod.get("status") or {}).get("podIP", "") for other, pod in self._waiting.items() if other != uid}
        taken = others | waiting | set(self._left.values())
        if reported in self._addresses and reported not in taken:
            return reported
        for step in range(len(self._addresses)):
            place = (self._next_address + step) % len(self._addresses)
            if self._addresses[place] not in taken:
                self._next_address = place + 1
                return self._addresses[place]
        raise RuntimeError(f"all {len(self._addresses)} pod addresses are taken")

    def _forget(self, uids: set[str]) -> None:
        """After a full list: whatever is not in it is gone, also what only an earlier runner knew."""
        for uid, pod in list(self._pods.items()):
            if uid not in uids:
                pod.gone()
        for uid in list(self._waiting):
            if uid not in uids:
                del self._waiting[uid]
        for folder in self.settings.pods_dir.iterdir():
            if folder.name not in uids and folder.name not in self._pods:
                kill_leftovers(folder)
                shutil.rmtree(folder, ignore_errors=True)
                self._left.pop(folder.name, None)

    async def _look_at_logs(self) -> None:
        while True:
            await asyncio.sleep(_LOG_SECONDS)
            moment = time.time()
            for uid, pod in list(self._pods.items()):
                if pod.ended:
                    del self._pods[uid]
                    self._left.pop(uid, None)
                else:
                    pod.look_at_logs(moment)
            self._take_waiting()

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(self.settings.refresh_seconds)
            reader = Reader(api=self.api)
            for pod in list(self._pods.values()):
                await pod.refresh(reader)

    def _find(self, namespace: str, name: str) -> Pod | None:
        found = None
        for pod in self._pods.values():
            meta = pod.pod["metadata"]
            # Of two of one name, the one that is still wanted.
            if (meta["namespace"], meta["name"]) == (namespace, name) and (found is None or found.stopping.is_set()):
                found = pod
        return found


async def for_ever(work: Callable[[], Awaitable[None]]) -> None:
    """A part of the runner that fails is reported and begun again; the others do not notice."""
    while True:
        try:
            await work()
        except Exception:  # noqa: BLE001 - reported, and the alternative is a runner that silently does less
            traceback.print_exc(file=sys.stderr)
        await asyncio.sleep(1)


def left_addresses(pods_dir: Path) -> dict[str, str]:
    """uid -> address of the pods that an earlier runner left in `pods_dir`."""
    found = {}
    for path in pods_dir.glob("*/pod.json"):
        try:
            found[path.parent.name] = str(json.loads(path.read_text())["ip"])
        except (OSError, ValueError, KeyError):
            continue
    return found


def kill_leftovers(folder: Path) -> None:
    """Kill the processes that a pod's folder speaks of, if they are still the same ones."""
    try:
        known = json.loads((folder / "pod.json").read_text())["containers"]
        for entry in known.values():
            pid, ticks = int(entry["pid"]), int(entry["ticks"])
            if pid > 0 and start_ticks(pid) == ticks:
                Shim(pid=pid, ticks=ticks, folder=Path(os.devnull), namespace=int(entry.get("namespace", 0))).kill()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
