"""One container of a pod: started as often as its policy asks, watched by its probes, stopped with its hooks."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import _probes, _process, _status
from ._api import UNREACHABLE, ApiError, Object
from ._environment import MissingReference, expand
from ._events import now, stamp
from ._images import Image
from ._logs import Log, last_bytes
from ._mounts import View
from ._process import Shim

_RETRY_SECONDS = 2.0
_LONGEST_RETRY_SECONDS = 20.0
_STEADY_SECONDS = 600.0
_LEAST_GRACE_SECONDS = 2.0
_POST_START_SECONDS = 600.0
_MESSAGE_BYTES, _MESSAGE_LOG_BYTES, _MESSAGE_LOG_LINES = 4096, 2048, 80


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a container is started with."""

    image: Image
    env: dict[str, str]
    view: View


class Owner(Protocol):
    """The pod, as its containers need it."""

    ip: str
    folder: Path
    stopping: asyncio.Event

    async def prepare(self, spec: Object, folder: Path) -> Prepared: ...
    async def environment(self, spec: Object) -> dict[str, str]: ...
    def note(self, reason: str, message: str, *, warning: bool = False) -> None: ...
    def touch(self) -> None: ...
    def remember(self) -> None: ...


class Run:
    """Runs one container. `facts` are what its status says; `shim` is its process now or last."""

    def __init__(self, owner: Owner, facts: _status.Container, *, policy: str, grace: float, backoff: float) -> None:
        self.facts, self._owner = facts, owner
        self._policy, self._grace, self._backoff = policy, grace, backoff
        self.shim: Shim | None = None
        self.log = Log(owner.folder / "logs" / facts.name)
        self._env: dict[str, str] = {}
        self._at = ""
        self._ending = asyncio.Event()
        self._stopper: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ memory

    def memory(self) -> Object | None:
        """What a successor of this runner needs to take the process over."""
        if self.shim is None:
            return None
        one = self.facts
        return {
            "pid": self.shim.pid,
            "ticks": self.shim.ticks,
            "namespace": self.shim.namespace,
            "folder": str(self.shim.folder),
            "restarts": one.restarts,
            "crashes": one.crashes,
            "started": one.started,
            "ready": one.ready,
            "last": one.last,
            "at": self._at,
        }

    def _adopt(self, known: Object) -> Shim:
        one = self.facts
        one.restarts, one.crashes = int(known["restarts"]), int(known.get("crashes", 0))
        one.last, self._at = dict(known.get("last") or {}), str(known["at"])
        self.shim = Shim(
            pid=int(known["pid"]),
            ticks=int(known["ticks"]),
            folder=Path(known["folder"]),
            namespace=int(known.get("namespace", 0)),
        )
        one.identity = self._identity()
        one.started = bool(known.get("started"))
        one.ready = bool(known.get("ready")) and self.shim.alive
        return self.shim

    def _identity(self) -> str:
        return f"process://{self._owner.folder.name}-{self.facts.name}-{self.facts.restarts}"

    # ------------------------------------------------------------------ life

    async def run(self, known: Object | None) -> None:
        """Start again and again as the policy asks; `known`: what an earlier runner remembered."""
        while True:
            try:
                await self._loop(known)
                return
            except Exception as error:  # noqa: BLE001 - reported, and tried again: the container may not vanish
                # The runner's own log has the whole story; the pod's events have the short one.
                traceback.print_exc(file=sys.stderr)
                self._owner.note(
                    "Failed", f"Error: the pod runner failed on {self.facts.name}: {error!r}", warning=True
                )
                await self._pause(_RETRY_SECONDS)
                known = self.memory() if self.shim is not None and self.shim.alive else None

    async def _loop(self, known: Object | None) -> None:
        one, owner = self.facts, self._owner
        while not self._over():
            began = time.monotonic()
            shim = self._adopt(known) if known is not None else await self._start()
            known = None
            if shim is None:
                break
            await self._follow(shim)
            one.started = one.ready = False
            one.done = self._over() or not _status.restarts(self._policy, one.exit_code or 0)
            steady = time.monotonic() - began > _STEADY_SECONDS
            one.crashes = 1 if steady else one.crashes + 1
            owner.remember()
            owner.touch()
            if one.done:
                return
            await self._back_off()
        one.done = True

    async def _back_off(self) -> None:
        one, owner = self.facts, self._owner
        delay = _status.backoff(self._backoff, one.crashes)
        one.last = one.state
        if delay:
            text = f"back-off {delay:g}s restarting failed container={one.name}"
            owner.note("BackOff", f"Back-off restarting failed container {one.name}", warning=True)
            one.state = {"waiting": {"reason": "CrashLoopBackOff", "message": text}}
            owner.touch()
            await self._pause(delay)
        one.restarts += 1

    def _over(self) -> bool:
        return self._owner.stopping.is_set() or self._ending.is_set()

    async def _pause(self, seconds: float) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self._owner.stopping, self._ending)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _start(self) -> Shim | None:
        """Start once; None when the pod ends before that can be tried, or when it cannot be run at all."""
        one, owner = self.facts, self._owner
        folder = owner.folder / "run" / f"{one.name}-{one.restarts}"
        wait = _RETRY_SECONDS
        while not self._over():
            try:
                prepared = await owner.prepare(one.spec, folder)
                break
            except (MissingReference, _process.StartError, ApiError, *UNREACHABLE) as error:
                self._wait_for("CreateContainerConfigError", str(error))
                owner.note("Failed", f"Error: {error}", warning=True)
                await self._pause(wait)
                wait = min(_LONGEST_RETRY_SECONDS, wait * 1.5)
        else:
            return None
        self._env = prepared.env
        words = [[expand(word, prepared.env) for word in one.spec.get(key) or []] for key in ("command", "args")]
        command = prepared.image.command(words[0], words[1])
        owner.note("Created", f"Created container: {one.name}")
        self.log.begin()
        self._at = now()
        one.identity = self._identity()
        try:
            shim = _process.start(command, prepared.env, folder=folder, log=self.log.path, view=prepared.view)
        except _process.StartError as error:
            owner.note("Failed", f"Error: failed to start container {one.name}: {error}", warning=True)
            # A process that never was, already ended: the rest of a container's life goes on as if it had been one.
            (folder / "exit").write_text("128")
            (folder / "start-error").write_text(str(error))
            self.shim = Shim(pid=0, ticks=-1, folder=folder)
            return self.shim
        self.shim = shim
        owner.note("Started", f"Started container {one.name}")
        return shim

    def _wait_for(self, reason: str, message: str) -> None:
        self.facts.state = {"waiting": {"reason": reason, "message": message}}
        self._owner.touch()

    async def _follow(self, shim: Shim) -> None:
        """From started to ended, with hooks and probes on the way."""
        one, owner = self.facts, self._owner
        watcher: asyncio.Task[None] | None = None
        if shim.alive:
            if not self._env:
                with contextlib.suppress(MissingReference, ApiError, *UNREACHABLE):
                    self._env = await owner.environment(one.spec)
            one.state = {"running": {"startedAt": self._at}}
            owner.remember()
            watcher = asyncio.create_task(self._tend(shim))
            owner.touch()
        try:
            code = await shim.wait()
        finally:
            if watcher is not None:
                watcher.cancel()
        if self._stopper is not None and self._stopper is not asyncio.current_task():
            self._stopper.cancel()
            self._stopper = None
        self.log.look(time.time())
        ended = shim.ended_at()
        reason, message = "", self._message(shim, code)
        with contextlib.suppress(OSError):
            if text := (shim.folder / "start-error").read_text():
                reason, message = "StartError", text
        one.state = _status.terminated(
            code, self._at, stamp(ended) if ended else now(), message=message, reason=reason, identity=one.identity
        )

    def _message(self, shim: Shim, code: int) -> str:
        text = ""
        with contextlib.suppress(OSError), (shim.folder / "termination").open("rb") as file:
            text = file.read(_MESSAGE_BYTES).decode("utf-8", "replace")
        if not text and code != 0 and self.facts.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            text = last_bytes(self.log.path, _MESSAGE_LOG_BYTES, _MESSAGE_LOG_LINES)
        return text

    # ------------------------------------------------------------------ hooks and probes

    async def _tend(self, shim: Shim) -> None:
        """postStart, then the startup probe, then readiness and liveness side by side."""
        one, owner = self.facts, self._owner
        hook = (one.spec.get("lifecycle") or {}).get("postStart")
        if hook and not one.started:
            ok, why = await self._hook(hook, _POST_START_SECONDS)
            if not ok:
                owner.note("FailedPostStartHook", f"PostStartHook failed: {why}", warning=True)
                self._kill_later(f"Container {one.name} failed postStart hook, will be killed")
                return

        def attempt(probe: Object) -> Callable[[], Awaitable[tuple[bool, str]]]:
            async def run(command: list[str], seconds: float) -> tuple[int, str]:
                return await _process.run_inside(shim, command, self._env, seconds)

            return lambda: _probes.once(probe, one.spec, owner.ip, run)

        def unhealthy(kind: str) -> Callable[[str], None]:
            return lambda why: owner.note("Unhealthy", f"{kind} probe failed: {why}", warning=True)

        async def started(ok: bool, _why: str) -> bool:
            one.started = ok
            if not ok:
                self._kill_later(f"Container {one.name} failed startup probe, will be restarted")
            return True

        async def ready(ok: bool, _why: str) -> bool:
            one.ready = ok
            owner.remember()
            owner.touch()
            return False

        async def live(ok: bool, _why: str) -> bool:
            if not ok:
                self._kill_later(f"Container {one.name} failed liveness probe, will be restarted")
            return not ok

        startup = one.spec.get("startupProbe")
        if startup and not one.started:
            await _probes.until(startup, attempt(startup), started, failed=unhealthy("Startup"), eager=True)
            if not one.started:
                return
        one.started = True
        if not one.spec.get("readinessProbe"):
            one.ready = True
        owner.remember()
        owner.touch()
        kinds: list[tuple[str, Any, str]] = [
            ("readinessProbe", ready, "Readiness"),
            ("livenessProbe", live, "Liveness"),
        ]
        await asyncio.gather(
            *(
                _probes.until(
                    one.spec[key], attempt(one.spec[key]), told, failed=unhealthy(name), eager=key == "readinessProbe"
                )
                for key, told, name in kinds
                if one.spec.get(key)
            )
        )

    def _kill_later(self, why: str) -> None:
        """End this run of the container. Not awaited inside the probe's own task, which ends with the container."""
        self._owner.note("Killing", why)
        if self._stopper is None:
            self._stopper = asyncio.create_task(self._stop_process(lambda: self._grace))

    async def _hook(self, hook: Object, seconds: float) -> tuple[bool, str]:
        if "sleep" in hook:
            await asyncio.sleep(min(seconds, float(hook["sleep"]["seconds"])))
            return True, ""
        if "exec" in hook:
            shim = self.shim
            assert shim is not None
            # The shim has forked but may not have started the process yet.
            for _ in range(50):
                if shim.process() is not None or not shim.alive:
                    break
                await asyncio.sleep(0.02)
            code, text = await _process.run_inside(shim, list(hook["exec"]["command"]), self._env, seconds)
            return code == 0, text or f"exit code {code}"

        async def no_exec(_command: Sequence[str], _seconds: float) -> tuple[int, str]:
            return 1, "unreachable"

        return await _probes.once({"timeoutSeconds": seconds, **hook}, self.facts.spec, self._owner.ip, no_exec)

    # ------------------------------------------------------------------ end

    async def stop(self, grace: Callable[[], float]) -> None:
        """End it and do not start it again. `grace` gives the seconds that are left; it may shrink meanwhile."""
        self._ending.set()
        if self.shim is not None and self.shim.alive:
            self._owner.note("Killing", f"Stopping container {self.facts.name}")
            await self._stop_process(grace)

    async def _stop_process(self, grace: Callable[[], float]) -> None:
        shim, owner = self.shim, self._owner
        if shim is None:
            return
        began = time.monotonic()

        def left() -> float:
            return grace() - (time.monotonic() - began)

        hook = (self.facts.spec.get("lifecycle") or {}).get("preStop")
        if hook and shim.alive and self.facts.state.get("running") and left() > 0:
            ok, why = True, ""
            try:
                ok, why = await asyncio.wait_for(self._hook(hook, left()), max(0.1, left()))
            except TimeoutError:
                ok, why = False, "took longer than the grace period"
            if not ok:
                owner.note("FailedPreStopHook", f"PreStopHook failed: {why}", warning=True)
        # A hook that used the whole grace still leaves the process a moment to end by itself, unless it was forced.
        least = _LEAST_GRACE_SECONDS if grace() > 0 else 0.0
        asked = time.monotonic()
        shim.terminate()
        while shim.alive and max(left(), least - (time.monotonic() - asked)) > 0:
            await asyncio.sleep(0.02 if time.monotonic() - asked < 1 else 0.1)
        shim.kill()

    def kill(self) -> None:
        """End it now; nothing is reported."""
        self._ending.set()
        if self.shim is not None:
            self.shim.kill()

    def exec_environment(self) -> Mapping[str, str]:
        """For commands run inside it."""
        return self._env
