"""One pod: from its first sight to its end, as a kubelet would run it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _images, _status, _volumes
from ._api import STRATEGIC, UNREACHABLE, Api, ApiError, Object
from ._container import Prepared, Run
from ._environment import MissingReference, container_environment, expand, service_variables
from ._events import Events
from ._mounts import Mount, View
from ._process import StartError
from ._settings import Settings

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MARKER = "TOLLGATE_CLUSTER_STATE"
_RETRY_SECONDS = 2.0
_LONGEST_RETRY_SECONDS = 20.0
_LONGEST_PULL_SECONDS = 300.0
_SETTLE_SECONDS = 0.01


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What all pods share. `services`: waits until the Services are known."""

    api: Api
    events: Events
    settings: Settings
    services: Callable[[], Any]
    node: Callable[[str], Object | None]


class Pod:
    """Runs one pod. `update` brings a newer object; `ended` once nothing of it is left."""

    def __init__(self, machine: Machine, pod: Object, ip: str) -> None:
        self._machine, self.pod, self.ip = machine, pod, ip
        spec = pod["spec"]
        self.uid = str(pod["metadata"]["uid"])
        self.folder = machine.settings.pods_dir / self.uid
        self.stopping = asyncio.Event()
        self.ended = False
        self._grace = float(spec.get("terminationGracePeriodSeconds", 30))
        self._inits = [self._make(entry, init=True) for entry in spec.get("initContainers") or []]
        self._mains = [self._make(entry, init=False) for entry in spec["containers"]]
        self._volumes: dict[str, Path] = {}
        self._made = False
        self._changed = asyncio.Event()
        self._written: Object = {}
        self._unremembered = False
        self._failure: _status.Failure | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._end_task: asyncio.Task[None] | None = None

    def _make(self, spec: Object, *, init: bool) -> Run:
        facts = _status.Container(spec=spec, init=init)
        policy = self.pod["spec"].get("restartPolicy", "Always")
        if init and not facts.sidecar and policy == "Always":
            policy = "OnFailure"
        if facts.sidecar:
            policy = "Always"
        return Run(self, facts, policy=policy, grace=self._grace, backoff=self._machine.settings.backoff_seconds)

    @property
    def _all(self) -> list[Run]:
        return [*self._inits, *self._mains]

    @property
    def _facts(self) -> list[_status.Container]:
        return [one.facts for one in self._all]

    # ------------------------------------------------------------------ from outside

    def start(self) -> None:
        """Begin, or go on with what an earlier runner left."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = self._remembered()
        reported = self.pod.get("status") or {}
        finished = reported.get("phase") in ("Succeeded", "Failed")
        if finished:
            # Only its logs and its end are still ours.
            entries = [*(reported.get("initContainerStatuses") or []), *(reported.get("containerStatuses") or [])]
            statuses = {entry["name"]: entry for entry in entries}
            for facts in self._facts:
                facts.restore(statuses.get(facts.name, {}))
            self._made = True
        else:
            self.remember()
            self._tasks = [asyncio.create_task(self._run(known)), asyncio.create_task(self._report())]
            if self.pod["spec"].get("activeDeadlineSeconds"):
                self._tasks.append(asyncio.create_task(self._deadline()))

    def update(self, pod: Object) -> None:
        """Take a newer version of the object; a deletion begins the end, a second one can only make it quicker."""
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self._grace = min(self._grace, float(pod["metadata"].get("deletionGracePeriodSeconds", self._grace)))
            self._finish(delete=True)

    def gone(self) -> None:
        """The object was removed without waiting for us: stop at once."""
        self._grace = 0.0
        self._finish(delete=False)

    def kill(self) -> None:
        """Stop every process now; nothing is reported."""
        self.stopping.set()
        for one in self._all:
            one.kill()

    def find(self, container: str) -> Run | None:
        """One of its containers by name."""
        return next((one for one in self._all if one.facts.name == container), None)

    def look_at_logs(self, moment: float) -> None:
        """Note how far the logs have grown; `moment` in seconds since 1970. Also writes what could not be remembered."""
        if self._unremembered and not self.stopping.is_set():
            self.remember()
        for one in self._all:
            if one.facts.running:
                one.log.look(moment)

    async def refresh(self, reader: _volumes.Reader) -> None:
        """Bring ConfigMaps, Secrets and the pod's own fields in its volumes up to date."""
        if not self._made or self.stopping.is_set() or all(one.facts.done for one in self._mains):
            return
        with contextlib.suppress(MissingReference, ApiError, *UNREACHABLE):
            await _volumes.make(self._context(reader), self.folder / "volumes")

    # ------------------------------------------------------------------ life

    async def _run(self, known: Mapping[str, Any]) -> None:
        while True:
            try:
                await self._prepare()
                break
            except Exception as error:  # noqa: BLE001 - reported, and tried again: the pod may not vanish
                traceback.print_exc(file=sys.stderr)
                self.note("Failed", f"Error: the pod runner failed on the pod: {error!r}", warning=True)
                await self._pause(_RETRY_SECONDS)
        if await self._initialize(known):
            await asyncio.gather(*(one.run(known.get(one.facts.name)) for one in self._mains))
            # The sidecar that was started last is the first to go.
            for one in reversed([one for one in self._inits if one.facts.sidecar]):
                await one.stop(lambda: self._grace)
        self.touch()

    async def _initialize(self, known: Mapping[str, Any]) -> bool:
        """Run the init containers one after the other; False when the main ones may not start."""
        for one in self._inits:
            running = asyncio.create_task(one.run(known.get(one.facts.name)))
            self._tasks.append(running)
            while not (running.done() or (one.facts.sidecar and one.facts.passed)):
                # A sidecar is passed while it runs on; its own changes end this wait.
                await asyncio.wait([running], timeout=0.05 if one.facts.sidecar else None)
            if not one.facts.passed:
                return False
        for main in self._mains:
            if main.facts.state.get("waiting", {}).get("reason") == "PodInitializing":
                main.facts.state = {"waiting": {"reason": "ContainerCreating"}}
        return not self.stopping.is_set()

    async def _deadline(self) -> None:
        limit = float(self.pod["spec"]["activeDeadlineSeconds"])
        await asyncio.sleep(limit)
        if not self.stopping.is_set() and not all(one.facts.done for one in self._mains):
            text = "Pod was active on the node longer than the specified deadline"
            self._failure = _status.Failure(reason="DeadlineExceeded", message=text)
            self.note("DeadlineExceeded", text)
            self.stopping.set()
            await asyncio.gather(*(one.stop(lambda: self._grace) for one in self._all))
            self.touch()

    async def _prepare(self) -> None:
        """Images known, references there, volumes made; waits and retries as a kubelet does."""
        wait = _RETRY_SECONDS
        while not self.stopping.is_set() and self._unknown_images(retried=wait > _RETRY_SECONDS):
            self.touch()
            await self._pause(wait)
            wait = min(_LONGEST_PULL_SECONDS, wait * 2)
        wait = _RETRY_SECONDS
        while not self.stopping.is_set():
            try:
                context = self._context(_volumes.Reader(api=self._machine.api))
                self._volumes = await _volumes.make(context, self.folder / "volumes")
                self._made = True
                break
            except (MissingReference, _volumes.UnsupportedVolume, ApiError, *UNREACHABLE) as error:
                self.note("FailedMount", f"MountVolume.SetUp failed: {error}", warning=True)
                for one in self._facts:
                    one.state = {"waiting": {"reason": "ContainerCreating", "message": str(error)}}
                self.touch()
                await self._pause(wait)
                wait = min(_LONGEST_RETRY_SECONDS, wait * 1.5)
        for one in self._facts:
            if "waiting" in one.state:
                one.state = {"waiting": {"reason": "PodInitializing" if self._inits else "ContainerCreating"}}

    def _unknown_images(self, *, retried: bool) -> bool:
        unknown = False
        for one in self._facts:
            try:
                _images.find(one.spec["image"], one.spec.get("env") or ())
                one.state = {"waiting": {"reason": "ContainerCreating"}}
            except _images.UnknownImage as error:
                unknown = True
                reason = "ImagePullBackOff" if retried else "ErrImagePull"
                one.state = {"waiting": {"reason": reason, "message": str(error)}}
                self.note("Failed", f'Failed to pull image "{one.spec["image"]}": {error}', warning=True)
                self.note("Failed", f"Error: {reason}", warning=True)
        return unknown

    def _context(self, reader: _volumes.Reader) -> _volumes.Context:
        return _volumes.Context(
            api=self._machine.api,
            pod=self.pod,
            ip=self.ip,
            node_ip=self._machine.settings.node_ip,
            allocatable=self._allocatable(),
            reader=reader,
        )

    def _node(self) -> Object:
        return self._machine.node(self.pod["spec"]["nodeName"]) or {}

    def _allocatable(self) -> dict[str, str]:
        return dict(self._node().get("status", {}).get("allocatable") or {})

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    # ------------------------------------------------------------------ what containers ask

    async def prepare(self, spec: Object, folder: Path) -> Prepared:
        """Everything that a start of the container needs; `folder` is this start's own.

        Raises MissingReference, StartError, ApiError.
        """
        image = _images.find(spec["image"], spec.get("env") or ())
        env = await self.environment(spec)
        # Also what the start before had: a container begins with empty private folders, and a crash loop fills no disk.
        for old in (self.folder / "run").glob(f"{spec['name']}-*"):
            if old.name.removeprefix(f"{spec['name']}-").isdigit():
                shutil.rmtree(old, ignore_errors=True)
        for place in ("root", "tmp", "home"):
            (folder / place).mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        (folder / "termination").touch()
        settings = self._machine.settings
        view = View(
            base=folder / "root",
            mounts=self._mounts(spec, folder, image, env),
            private={"/tmp": folder / "tmp", "/root": folder / "home"},
            kept=(*_images.needed_folders(), *image.kept),
            hidden=(settings.kubeconfig.parent.resolve(),),
            directory=spec.get("workingDir"),
        )
        self.note("Pulled", f'Container image "{spec["image"]}" already present on machine')
        return Prepared(image=image, env=env, view=view)

    async def environment(self, spec: Object) -> dict[str, str]:
        """The container's environment: what a node gives, what the image has, what Services and the pod say."""
        image = _images.find(spec["image"], spec.get("env") or ())
        labels = self._node().get("metadata", {}).get("labels") or {}
        limits = spec.get("resources", {}).get("limits") or {}
        gpus = sum(int(value) for key, value in limits.items() if key.startswith("nvidia.com/"))
        links = self.pod["spec"].get("enableServiceLinks", True)
        meta = self.pod["metadata"]
        given = {
            "PATH": f"{_images.BIN}:{_DEFAULT_PATH}" if image.shims else _DEFAULT_PATH,
            "HOME": "/root",
            "HOSTNAME": self.pod["spec"].get("hostname") or meta["name"],
            "POD_IP": self.ip,
            # By this mark the cluster finds what is left of it, whoever was killed before.
            _MARKER: os.environ.get(_MARKER, ""),
            "TOLLGATE_PYTHON": sys.executable,
            "TOLLGATE_ACCELERATOR": labels.get("cloud.google.com/gke-accelerator", ""),
            "TOLLGATE_GPU_PARTITION": labels.get("cloud.google.com/gke-gpu-partition-size", ""),
            "TOLLGATE_GPU_COUNT": str(gpus),
        }
        services = await self._machine.services()
        return await container_environment(
            self.pod,
            spec,
            ip=self.ip,
            node_ip=self._machine.settings.node_ip,
            config=self._lookup("configmaps"),
            secret=self._lookup("secrets"),
            base={
                **given,
                **{name: expand(value, given) for name, value in image.environment.items()},
                **service_variables(services, meta["namespace"], links=links),
            },
            allocatable=self._allocatable(),
        )

    def _lookup(self, resource: str) -> Callable[[str], Any]:
        reader = _volumes.Reader(api=self._machine.api)

        async def look(name: str) -> dict[str, str] | None:
            found = await reader.read(self.pod["metadata"]["namespace"], resource, name)
            return None if found is None else {key: value.decode("utf-8", "replace") for key, value in found.items()}

        return look

    def _mounts(self, spec: Object, folder: Path, image: _images.Image, env: Mapping[str, str]) -> list[Mount]:
        settings, mounts = self._machine.settings, []
        if settings.hosts_file is not None and settings.hosts_file.is_file():
            mounts.append(Mount(source=settings.hosts_file, target="/etc/hosts"))
        shims = _images.write_shims(image, settings.shims_dir)
        if shims is not None:
            mounts.append(Mount(source=shims, target=_images.BIN, read_only=True))
        kinds = {volume["name"]: volume for volume in self.pod["spec"].get("volumes") or []}
        for entry in spec.get("volumeMounts") or []:
            source = self._volumes[entry["name"]]
            part = entry.get("subPath") or expand(entry.get("subPathExpr") or "", env)
            if part:
                source = _inner(source, part)
            # Whatever the API server keeps is read-only in a pod.
            fixed = "emptyDir" not in kinds[entry["name"]]
            mounts.append(
                Mount(source=source, target=entry["mountPath"], read_only=fixed or bool(entry.get("readOnly")))
            )
        path = spec.get("terminationMessagePath") or "/dev/termination-log"
        return [*mounts, Mount(source=folder / "termination", target=path)]

    def note(self, reason: str, message: str, *, warning: bool = False) -> None:
        """An event on the pod."""
        self._machine.events.note(self.pod, reason, message, warning=warning)

    def touch(self) -> None:
        """Something changed that the status has to say."""
        self._changed.set()

    # ------------------------------------------------------------------ end

    def _finish(self, *, delete: bool) -> None:
        if self.ended:
            return
        self.stopping.set()
        if self._end_task is None:
            self._end_task = asyncio.create_task(self._end(delete=delete))

    async def _end(self, *, delete: bool) -> None:
        mains = [one.stop(lambda: self._grace) for one in self._mains]
        rest = [one for one in self._inits if not one.facts.sidecar]
        await asyncio.gather(*mains, *(one.stop(lambda: self._grace) for one in rest))
        for one in reversed([one for one in self._inits if one.facts.sidecar]):
            await one.stop(lambda: self._grace)
        # The containers' own tasks write down how they ended.
        if self._tasks:
            await asyncio.wait(self._tasks[:1], timeout=5)
        if delete:
            with contextlib.suppress(ApiError, *UNREACHABLE):
                await self._flush()
            await self._remove()
        for task in self._tasks:
            task.cancel()
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.ended = True

    async def _remove(self) -> None:
        """Delete the object, this pod and no other of its name; as long as it takes the API server to come back."""
        meta = self.pod["metadata"]
        body = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": self.uid},
        }
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        while True:
            try:
                await self._machine.api.request("DELETE", path, body)
                return
            except ApiError as error:
                if error.code in (404, 409):
                    return
            except UNREACHABLE:
                pass
            await asyncio.sleep(_RETRY_SECONDS)

    # ------------------------------------------------------------------ memory and reports

    def remember(self) -> None:
        """Write down what a successor needs to take the processes over."""
        path = self.folder / "pod.json"
        known = {one.facts.name: memory for one in self._all if (memory := one.memory()) is not None}
        temporary = path.with_name(".pod.json.new")
        try:
            temporary.write_text(json.dumps({"ip": self.ip, "containers": known}))
            temporary.replace(path)
            self._unremembered = False
        except OSError:
            # On a full disk it is tried again: a successor that did not know a process would start a second one beside it.
            self._unremembered = True

    def _remembered(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / "pod.json").read_text())
            self.ip = found["ip"]
            containers: dict[str, Any] = found["containers"]
            return containers
        except (OSError, ValueError, KeyError):
            return {}

    async def _report(self) -> None:
        """Write the status after every change; several changes at once are one write."""
        self.touch()
        while True:
            await self._changed.wait()
            await asyncio.sleep(_SETTLE_SECONDS)
            self._changed.clear()
            try:
                await self._flush()
            except (ApiError, *UNREACHABLE):
                await asyncio.sleep(1)
                self.touch()

    async def _flush(self) -> None:
        status = _status.pod_status(
            [one.facts for one in self._inits],
            [one.facts for one in self._mains],
            ip=self.ip,
            node_ip=self._machine.settings.node_ip,
            previous=self._written or self.pod.get("status") or {},
            sandbox=self._made,
            failure=self._failure,
        )
        if status == self._written:
            return
        meta = self.pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
        body = {"metadata": {"uid": self.uid}, "status": status}
        if "podIPs" in status:
            # Lists are merged by key: the address from before a node was lost would stay beside the new one, and be refused.
            body["status"] = {**status, "podIPs": [*status["podIPs"], {"$patch": "replace"}]}
        try:
            await self._machine.api.request("PATCH", path, body, kind=STRATEGIC)
        except ApiError as error:
            if error.code not in (404, 409):
                raise
        self._written = status


def _inner(volume: Path, part: str) -> Path:
    """A part of a volume, made where it is not there. Raises StartError where it leads out of the volume."""
    inner = (volume / part).resolve()
    if not inner.is_relative_to(volume.resolve()):
        raise StartError(f"subPath {part!r} leaves its volume")
    if not inner.exists():
        inner.mkdir(parents=True)
    return inner
