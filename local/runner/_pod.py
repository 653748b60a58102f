"""One pod: from its first sight to its end, as a kubelet would run it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from . import _images, _probes, _process, _status, _volumes
from ._api import MERGE, Api, ApiError, Object
from ._environment import MissingReference, container_environment, expand, service_variables
from ._events import Events, now
from ._mounts import Mount
from ._process import Shim
from ._settings import Settings

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MARKER = "TOLLGATE_CLUSTER_STATE"
_LOG_LIMIT = 10 * 2**20
_RETRY_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What all pods share."""

    api: Api
    events: Events
    settings: Settings
    services: Callable[[], list[Object]]
    node: Callable[[str], Object | None]


class Pod:
    """Runs one pod. `update` brings a newer object, `finish` is set when nothing of it is left."""

    def __init__(self, machine: Machine, pod: Object, ip: str) -> None:
        self._machine, self.pod, self.ip = machine, pod, ip
        spec = pod["spec"]
        self.uid = str(pod["metadata"]["uid"])
        self.folder = machine.settings.pods_dir / self.uid
        self.inits = [_status.Container(spec=entry, init=True) for entry in spec.get("initContainers") or []]
        self.mains = [_status.Container(spec=entry) for entry in spec["containers"]]
        self._shims: dict[str, Shim] = {}
        self._envs: dict[str, dict[str, str]] = {}
        self._volumes: dict[str, Path] = {}
        self._changed, self._stopping = asyncio.Event(), asyncio.Event()
        self._written: Object = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._ended = False

    # ------------------------------------------------------------------ from outside

    def start(self) -> None:
        """Begin, or go on with what an earlier runner left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        adopted = self._remembered()
        self._tasks = [asyncio.create_task(self._run(adopted)), asyncio.create_task(self._report())]

    def update(self, pod: Object) -> None:
        """Take a newer version of the object; a deletion begins the end."""
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp") and not self._stopping.is_set():
            self._stopping.set()
            self._tasks.append(asyncio.create_task(self._end(delete=True)))

    def gone(self) -> None:
        """The object was removed without waiting for us: stop at once."""
        if not self._ended:
            self._stopping.set()
            self._tasks.append(asyncio.create_task(self._end(delete=False)))

    def kill(self) -> None:
        """Stop every process now; nothing is reported."""
        for shim in self._shims.values():
            shim.kill()

    @property
    def ended(self) -> bool:
        return self._ended

    def logs(self, container: str) -> Path | None:
        """The folder of a container's logs."""
        folder = self.folder / "logs" / container
        return folder if folder.is_dir() else None

    def running(self, container: str) -> bool:
        return any(one.name == container and not one.done for one in [*self.inits, *self.mains]) and not self._ended

    def trim_logs(self) -> None:
        """Keep each log below its limit: the process appends, so cutting the file is safe."""
        for path in self.folder.glob("logs/*/current.log"):
            with contextlib.suppress(OSError):
                if path.stat().st_size > _LOG_LIMIT:
                    shutil.copyfile(path, path.with_name("previous.log"))
                    os.truncate(path, 0)

    # ------------------------------------------------------------------ life

    async def _run(self, adopted: dict[str, Any]) -> None:
        while True:
            try:
                await self._prepare()
                await self._containers(adopted)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - one pod's trouble must not end the runner
                # The runner's own log has the whole story; the pod's events have the short one.
                traceback.print_exc()
                await self._event("Failed", f"the pod runner could not run the pod: {error!r}", warning=True)
                await self._pause(_RETRY_SECONDS)
                if not self._stopping.is_set():
                    continue
            self._touch()
            return

    async def _containers(self, adopted: dict[str, Any]) -> None:
        for one in self.inits:
            await self._container(one, adopted.pop(one.name, None))
            if one.exit_code != 0:
                return
        await asyncio.gather(*(self._container(one, adopted.pop(one.name, None)) for one in self.mains))

    async def _prepare(self) -> None:
        """Images known, references there, volumes made; waits and retries as a kubelet does."""
        wait = _RETRY_SECONDS
        while not self._stopping.is_set():
            unknown = [one for one in [*self.inits, *self.mains] if _images.find(one.spec["image"]) is None]
            if not unknown:
                break
            for one in unknown:
                known = ", ".join(sorted(_images.IMAGES))
                text = f'image "{one.spec["image"]}" has no local command; the pod runner knows {known}'
                waiting = "ErrImagePull" if wait == _RETRY_SECONDS else "ImagePullBackOff"
                one.state = {"waiting": {"reason": waiting, "message": text}}
                await self._event("Failed", f"Error: ErrImagePull: {text}", warning=True)
            self._touch()
            await self._pause(wait)
            wait = min(300.0, wait * 2)
        while not self._stopping.is_set():
            try:
                self._volumes = await _volumes.make(
                    self._machine.api,
                    self.pod,
                    self.folder / "volumes",
                    ip=self.ip,
                    node_ip=self._machine.settings.node_ip,
                )
                return
            except (MissingReference, ApiError, httpx.HTTPError) as error:
                await self._event("FailedMount", str(error), warning=True)
                await self._pause(_RETRY_SECONDS)
            except _volumes.UnsupportedVolume as error:
                await self._event("FailedMount", str(error), warning=True)
                for one in self.mains:
                    one.state = {"waiting": {"reason": "CreateContainerConfigError", "message": str(error)}}
                self._touch()
                await self._stopping.wait()

    async def _container(self, one: _status.Container, adopted: dict[str, Any] | None) -> None:
        """Start a container again and again as its policy asks."""
        if one.done:
            return
        policy = self.pod["spec"].get("restartPolicy", "Always")
        if one.init and policy == "Always":
            policy = "OnFailure"
        crashes = 0
        while not self._stopping.is_set():
            began, at = time.monotonic(), now()
            if adopted is not None:
                shim, at = self._adopt(one, adopted)
                adopted = None
                code, message = await self._follow(one, shim, at)
            else:
                code, message = await self._once(one, at)
            one.state = _status.terminated(code, at, message=message)
            one.started = one.ready = False
            one.done = self._stopping.is_set() or not _status.restarts(policy, code)
            self._remember()
            self._touch()
            if one.done:
                return
            crashes = 1 if time.monotonic() - began > 600 else crashes + 1
            delay = _status.backoff(self._machine.settings.backoff_seconds, crashes)
            if delay:
                text = f"back-off {delay:g}s restarting failed container={one.name}"
                await self._event("BackOff", f"Back-off restarting failed container {one.name}", warning=True)
                one.last, one.state = one.state, {"waiting": {"reason": "CrashLoopBackOff", "message": text}}
                self._touch()
                await self._pause(delay)
            else:
                one.last = one.state
            one.restarts += 1
        one.done = True

    async def _once(self, one: _status.Container, at: str) -> tuple[int, str]:
        try:
            shim = await self._start(one)
        except (_process.StartError, MissingReference) as error:
            await self._event("Failed", f"Error: {error}", warning=True)
            return 128, str(error)
        one.identity = f"process://{self.uid}-{one.name}-{one.restarts}"
        return await self._follow(one, shim, at)

    async def _start(self, one: _status.Container) -> Shim:
        image = _images.find(one.spec["image"])
        assert image is not None
        env = await self._environment(one, image)
        self._envs[one.name] = env
        command = image.command(
            [expand(word, env) for word in one.spec.get("command") or []],
            [expand(word, env) for word in one.spec.get("args") or []],
        )
        folder = self.folder / "run" / f"{one.name}-{one.restarts}"
        logs = self.folder / "logs" / one.name
        for place in (folder, logs):
            place.mkdir(parents=True, exist_ok=True)
        if (logs / "current.log").exists():
            (logs / "current.log").replace(logs / "previous.log")
        termination = folder / "termination"
        termination.touch()
        mounts = self._mounts(one, termination)
        shim = _process.start(
            command, env, folder=folder, log=logs / "current.log", mounts=mounts, directory=one.spec.get("workingDir")
        )
        self._shims[one.name] = shim
        await self._event("Started", f"Started container {one.name}")
        return shim

    async def _environment(self, one: _status.Container, image: _images.Image) -> dict[str, str]:
        node = self._machine.node(self.pod["spec"]["nodeName"]) or {}
        labels = node.get("metadata", {}).get("labels", {})
        limits = one.spec.get("resources", {}).get("limits") or {}
        gpus = sum(int(value) for key, value in limits.items() if key.startswith("nvidia.com/"))
        links = self.pod["spec"].get("enableServiceLinks", True)
        namespace = self.pod["metadata"]["namespace"]
        base = {
            "PATH": f"{_images.SHIMS}:{_DEFAULT_PATH}" if image.shims else _DEFAULT_PATH,
            "HOME": "/root",
            "HOSTNAME": self.pod["spec"].get("hostname") or self.pod["metadata"]["name"],
            "POD_IP": self.ip,
            # By this mark the cluster finds what is left of it, whoever was killed before.
            _MARKER: os.environ.get(_MARKER, ""),
            "TOLLGATE_PYTHON": sys.executable,
            "TOLLGATE_ACCELERATOR": labels.get("cloud.google.com/gke-accelerator", ""),
            "TOLLGATE_GPU_PARTITION": labels.get("cloud.google.com/gke-gpu-partition-size", ""),
            "TOLLGATE_GPU_COUNT": str(gpus),
            **image.environment,
            **service_variables(self._machine.services(), namespace, links=links),
        }
        return await container_environment(
            self.pod,
            one.spec,
            ip=self.ip,
            node_ip=self._machine.settings.node_ip,
            config=self._lookup("configmaps"),
            secret=self._lookup("secrets"),
            base=base,
        )

    def _lookup(self, resource: str) -> Any:
        async def look(name: str, _key: str, _optional: bool) -> dict[str, str] | None:
            path = f"/api/v1/namespaces/{self.pod['metadata']['namespace']}/{resource}/{name}"
            try:
                found = await self._machine.api.request("GET", path)
            except ApiError as error:
                if error.code == 404:
                    return None
                raise
            return {key: value.decode() for key, value in _volumes.contents_of(found, resource).items()}

        return look

    def _mounts(self, one: _status.Container, termination: Path) -> list[Mount]:
        mounts = []
        hosts = self._machine.settings.hosts_file
        if hosts is not None and hosts.is_file():
            mounts.append(Mount(source=hosts, target="/etc/hosts"))
        for entry in one.spec.get("volumeMounts") or []:
            source = self._volumes[entry["name"]]
            if entry.get("subPath"):
                inner = (source / entry["subPath"]).resolve()
                if not inner.is_relative_to(source.resolve()):
                    raise _process.StartError(f"subPath {entry['subPath']!r} leaves its volume")
                if not inner.exists():
                    inner.mkdir(parents=True)
                source = inner
            mounts.append(Mount(source=source, target=entry["mountPath"], read_only=bool(entry.get("readOnly"))))
        path = one.spec.get("terminationMessagePath", "/dev/termination-log")
        return [*mounts, Mount(source=termination, target=path)]

    def _adopt(self, one: _status.Container, known: dict[str, Any]) -> tuple[Shim, str]:
        one.restarts = int(known["restarts"])
        one.identity = f"process://{self.uid}-{one.name}-{one.restarts}"
        shim = Shim(pid=int(known["pid"]), ticks=int(known["ticks"]), folder=Path(known["folder"]))
        self._shims[one.name] = shim
        one.started = bool(known.get("started"))
        one.ready = bool(known.get("ready")) and shim.alive
        return shim, str(known["at"])

    async def _follow(self, one: _status.Container, shim: Shim, at: str) -> tuple[int, str]:
        """From started to ended, with hooks and probes on the way."""
        image = _images.find(one.spec["image"])
        if one.name not in self._envs and image is not None:
            with contextlib.suppress(MissingReference):
                self._envs[one.name] = await self._environment(one, image)
        watchers: list[asyncio.Task[None]] = []
        if shim.alive:
            one.state = {"running": {"startedAt": at}}
            self._remember(at)
            watchers = [asyncio.create_task(self._tend(one, shim, at))]
        self._touch()
        try:
            code = await shim.wait()
        finally:
            for watcher in watchers:
                watcher.cancel()
        message = ""
        with contextlib.suppress(OSError):
            message = (shim.folder / "termination").read_text(errors="replace")
        if not message and code != 0 and one.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            with contextlib.suppress(OSError):
                message = (self.folder / "logs" / one.name / "current.log").read_text(errors="replace")[-2048:]
        return code, message

    async def _tend(self, one: _status.Container, shim: Shim, at: str) -> None:
        """postStart, then the startup probe, then readiness and liveness side by side."""
        hook = (one.spec.get("lifecycle") or {}).get("postStart")
        if hook and not one.started:
            ok, why = await self._hook(one, hook, 600)
            if not ok:
                await self._event("FailedPostStartHook", f"PostStartHook failed: {why}", warning=True)
                await self._stop_container(one, shim, 2)
                return

        def attempt(probe: Object) -> Callable[[], Any]:
            async def run(command: list[str], seconds: float) -> tuple[int, str]:
                return await _process.run_inside(shim, command, self._envs.get(one.name, {}), seconds)

            return lambda: _probes.once(probe, one.spec, self.ip, run)

        async def started(ok: bool, why: str) -> bool:
            if not ok:
                await self._unhealthy(one, shim, "Startup", why)
            one.started = ok
            return True

        async def ready(ok: bool, why: str) -> bool:
            if not ok:
                await self._event("Unhealthy", f"Readiness probe failed: {why}", warning=True)
            one.ready = ok
            self._remember(at)
            self._touch()
            return False

        async def live(ok: bool, why: str) -> bool:
            if ok:
                return False
            await self._unhealthy(one, shim, "Liveness", why)
            return True

        if one.spec.get("startupProbe") and not one.started:
            await _probes.until(one.spec["startupProbe"], attempt(one.spec["startupProbe"]), started)
            if not one.started:
                return
        one.started = True
        if not one.spec.get("readinessProbe"):
            one.ready = True
        self._remember(at)
        self._touch()
        probes = [
            (kind, one.spec[key])
            for kind, key in ((ready, "readinessProbe"), (live, "livenessProbe"))
            if one.spec.get(key)
        ]
        await asyncio.gather(*(_probes.until(probe, attempt(probe), kind) for kind, probe in probes))

    async def _unhealthy(self, one: _status.Container, shim: Shim, kind: str, why: str) -> None:
        await self._event("Unhealthy", f"{kind} probe failed: {why}", warning=True)
        await self._event("Killing", f"Container {one.name} failed {kind.lower()} probe, will be restarted")
        grace = float(self.pod["spec"].get("terminationGracePeriodSeconds", 30))
        # Not awaited inside the probe's own task, which ends with the container.
        self._tasks.append(asyncio.create_task(self._stop_container(one, shim, grace)))

    async def _hook(self, one: _status.Container, hook: Object, seconds: float) -> tuple[bool, str]:
        if "sleep" in hook:
            await asyncio.sleep(min(seconds, float(hook["sleep"]["seconds"])))
            return True, ""
        if "exec" in hook:
            shim = self._shims[one.name]
            # The shim has forked but may not have started the process yet.
            for _ in range(50):
                if shim.process() is not None:
                    break
                await asyncio.sleep(0.02)
            env = self._envs.get(one.name, {})
            code, text = await _process.run_inside(shim, list(hook["exec"]["command"]), env, seconds)
            return code == 0, text or f"exit code {code}"
        return await _probes.once({"timeoutSeconds": seconds, **hook}, one.spec, self.ip, self._no_exec)

    @staticmethod
    async def _no_exec(command: list[str], seconds: float) -> tuple[int, str]:
        return 1, "no exec in this hook"

    # ------------------------------------------------------------------ end

    async def _stop_container(self, one: _status.Container, shim: Shim, grace: float) -> None:
        deadline = time.monotonic() + grace
        hook = (one.spec.get("lifecycle") or {}).get("preStop")
        if hook and shim.alive:
            with contextlib.suppress(TimeoutError):
                ok, why = await asyncio.wait_for(self._hook(one, hook, grace), max(0.1, grace))
                if not ok:
                    await self._event("FailedPreStopHook", f"PreStopHook failed: {why}", warning=True)
        shim.terminate()
        while shim.alive and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        shim.kill()

    async def _end(self, *, delete: bool) -> None:
        meta, spec = self.pod["metadata"], self.pod["spec"]
        grace = meta.get("deletionGracePeriodSeconds", spec.get("terminationGracePeriodSeconds", 30)) if delete else 1
        await asyncio.gather(
            *(
                self._stop_container(one, self._shims[one.name], float(grace))
                for one in [*self.inits, *self.mains]
                if one.name in self._shims and self._shims[one.name].alive
            )
        )
        # The containers' own tasks write down how they ended.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.wait([self._tasks[0]]), 5)
        if delete:
            await self._flush()
            body = {
                "kind": "DeleteOptions",
                "apiVersion": "v1",
                "gracePeriodSeconds": 0,
                "preconditions": {"uid": self.uid},
            }
            path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
            with contextlib.suppress(ApiError, httpx.HTTPError):
                await self._machine.api.request("DELETE", path, body, tries=20)
        for task in self._tasks[:2]:
            task.cancel()
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._ended = True

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    # ------------------------------------------------------------------ memory and reports

    def _remember(self, at: str | None = None) -> None:
        """Write down what a successor needs to take the processes over."""
        path = self.folder / "pod.json"
        try:
            known = json.loads(path.read_text())["containers"]
        except (OSError, ValueError, KeyError):
            known = {}
        for one in [*self.inits, *self.mains]:
            shim = self._shims.get(one.name)
            if shim is None:
                continue
            known[one.name] = {
                "pid": shim.pid,
                "ticks": shim.ticks,
                "folder": str(shim.folder),
                "restarts": one.restarts,
                "started": one.started,
                "ready": one.ready,
                "at": at or known.get(one.name, {}).get("at") or now(),
            }
        temporary = path.with_name(".pod.json.new")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps({"ip": self.ip, "containers": known}))
            temporary.replace(path)

    def _remembered(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / "pod.json").read_text())
            self.ip = found["ip"]
            containers: dict[str, Any] = found["containers"]
            return containers
        except (OSError, ValueError, KeyError):
            return {}

    def _touch(self) -> None:
        self._changed.set()

    async def _report(self) -> None:
        """Write the status after every change; several changes at once are one write."""
        self._touch()
        while True:
            await self._changed.wait()
            await asyncio.sleep(0.01)
            self._changed.clear()
            try:
                await self._flush()
            except (ApiError, httpx.HTTPError):
                await asyncio.sleep(1)
                self._touch()

    async def _flush(self) -> None:
        previous = self._written or self.pod.get("status") or {}
        status = _status.pod_status(
            self.pod,
            self.inits,
            self.mains,
            ip=self.ip,
            node_ip=self._machine.settings.node_ip,
            previous=previous,
        )
        if status == self._written:
            return
        meta = self.pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
        try:
            await self._machine.api.request(
                "PATCH", path, {"metadata": {"uid": self.uid}, "status": status}, kind=MERGE
            )
        except ApiError as error:
            if error.code not in (404, 409):
                raise
        self._written = status

    async def _event(self, reason: str, message: str, *, warning: bool = False) -> None:
        await self._machine.events.write(self.pod, reason, message, warning=warning)
