"""Bringing clusters up and down, and finding those that run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from stacks import TollgateError

from . import _network, _nft, _slots, _system
from ._components import MARKER, code_root
from ._layout import Addresses, Layout, cluster_home, layout
from ._plan import DATA, PROGRAMS, Plan

_PLUGIN = code_root() / "local" / "provider" / "bin" / "pulumi-resource-kubernetes"
_NEEDED_BYTES = 500 * 2**20
_START_LIMIT_SECONDS = 180
_STOP_LIMIT_SECONDS = 20

Say = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A running embedded cluster. `kubeconfig` is the administrator's; addresses are reachable as they are for root, and
    after `enter` without root."""

    name: str
    slot: int
    state_dir: Path
    kubeconfig: Path
    api_url: str
    prometheus_url: str
    rootless: bool
    supervisor_pid: int

    def enter(self) -> None:
        """Go on inside the cluster's network, where that is not the machine's own, by starting this command again in there.

        A process may only change its user namespace while it has one thread, which numerical libraries do not promise.
        """
        inside = f"/proc/{self.supervisor_pid}/ns/net"
        if not self.rootless or Path("/proc/self/ns/net").stat().st_ino == Path(inside).stat().st_ino:
            return
        sys.stdout.flush()
        where = [f"--target={self.supervisor_pid}", "--user", "--net", "--preserve-credentials"]
        os.execvp("nsenter", ["nsenter", *where, "--", *sys.orig_argv])

    def environment(self, root: Path) -> dict[str, str]:
        """What pulumi, kubectl and helm need to work on this cluster for the project at `root`; what is set already stays."""
        from local import tools

        env = dict(os.environ)
        folders = [str(Path(sys.executable).parent), str(tools.bin_dir())]
        state = root / ".tollgate"
        if "PULUMI_HOME" not in env:
            env["PULUMI_HOME"] = str(_home(state / "pulumi-home"))
        elif not any(Path(env["PULUMI_HOME"], "plugins").glob("resource-kubernetes-v*")):
            # Nothing is put into a home of the user's: other clusters are not for the stand-in.
            folders.append(str(_PLUGIN.parent))
        env["PATH"] = os.pathsep.join([*folders, env.get("PATH", os.defpath)])
        env["KUBECONFIG"] = str(self.kubeconfig)
        env["TOLLGATE_CLUSTER"] = self.name
        env["TOLLGATE_PYTHON"] = sys.executable
        (state / "pulumi").mkdir(parents=True, exist_ok=True)
        env.setdefault("PULUMI_BACKEND_URL", f"file://{state / 'pulumi'}")
        env.setdefault("PULUMI_CONFIG_PASSPHRASE", "")
        env["PULUMI_SKIP_UPDATE_CHECK"] = "true"
        env["PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION"] = "true"
        for key in ("NO_PROXY", "no_proxy"):
            env[key] = ",".join(filter(None, [env.get(key), "10.77.0.0/16", "10.96.0.0/16"]))
        return env


@dataclass(frozen=True, kw_only=True)
class ComponentStatus:
    """One process. `memory_bytes`: resident; `ready_after`: seconds from its start."""

    name: str
    phase: str
    pid: int | None
    ready_after: float | None
    restarts: int
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class ClusterStatus:
    """`phase`: ready, starting, failed, stopping or down."""

    name: str
    slot: int
    phase: str
    ready_after: float | None
    components: tuple[ComponentStatus, ...]


def up(name: str = "default", *, progress: Say | None = None) -> Cluster:
    """The cluster of that name, started if it does not run; missing tools are built first.

    `progress(component, seconds)` is called as each component becomes ready. Raises TollgateError; nothing is then left.
    """
    # The supervisor imports this package too and needs nothing of the tools.
    from local import tools

    place = layout(name)
    with _locked(place):
        running = _running(place)
        if running is not None:
            return running
        programs = tools.ensure(PROGRAMS)
        clean(place)
        place.home.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place.home).free
        if free < _NEEDED_BYTES:
            raise TollgateError(
                f"no space for a cluster in {place.home}: {free / 2**20:.0f} MiB free, {_NEEDED_BYTES // 2**20} MiB needed\n"
                "  fix:     free some, or set TOLLGATE_HOME to a folder on a larger disk"
            )
        place.state_dir.mkdir(parents=True, mode=0o700)
        plan = Plan(
            programs={one: str(programs[one]) for one in PROGRAMS},
            data={one: str(tools.data(one)) for one in DATA},
            rootless=not _system.can_administer_network(),
        )
        plan.write(place.state_dir / "plan.json")
        process = _spawn(place)
        try:
            return _started(place, process, progress or (lambda _name, _seconds: None))
        except BaseException:
            _stop(process.pid)
            clean(place)
            raise


def down(name: str = "default") -> bool:
    """End the cluster: no process, route or file of it is left. False when there was nothing to end."""
    place = layout(name)
    with _locked(place):
        state = _state(place)
        if state and _alive(state):
            _stop(int(state["pid"]))
        there = place.state_dir.exists()
        clean(place)
        return there


def load(name: str = "default") -> Cluster:
    """A cluster that runs. Raises TollgateError with the fix."""
    found = _running(layout(name))
    if found is None:
        suffix = "" if name == "default" else f" --name {name}"
        raise TollgateError(f"the embedded cluster {name!r} is not up\n  fix:     tollgate local up{suffix}")
    return found


def list_clusters() -> list[str]:
    """Names of all clusters of this user that have a state folder, sorted."""
    return sorted(path.name for path in (cluster_home() / "clusters").glob("*") if path.is_dir())


def status(name: str = "default") -> ClusterStatus:
    """What each process of the cluster does."""
    place = layout(name)
    state = _state(place)
    if not state or not _alive(state):
        return ClusterStatus(name=name, slot=-1, phase="down", ready_after=None, components=())
    parts = tuple(
        ComponentStatus(
            name=component,
            phase=found["phase"],
            pid=found["pid"],
            ready_after=found["ready_after"],
            restarts=found["restarts"],
            memory_bytes=_memory(found["pid"]),
        )
        for component, found in state.get("components", {}).items()
    )
    return ClusterStatus(
        name=name, slot=state["slot"], phase=state["phase"], ready_after=state.get("ready_after"), components=parts
    )


def clean(place: Layout) -> None:
    """Remove whatever a cluster that no longer runs has left: processes, routes, rules, files."""
    for process in leftovers(place.state_dir):
        with contextlib.suppress(psutil.Error):
            process.kill()
    state = _state(place)
    if state and not state.get("rootless") and _system.can_administer_network() and "slot" in state:
        number = int(state["slot"])
        with _slots.hold_slot(number) as free:
            if free and number in _network.slots_with_traces() | _nft.slots_with_tables():
                _nft.remove(Addresses(slot=number))
                _network.remove(Addresses(slot=number))
    shutil.rmtree(place.state_dir, ignore_errors=True)


def leftovers(state_dir: Path) -> list[psutil.Process]:
    """All processes that carry the cluster's mark in their environment."""
    mark = f"{MARKER}={state_dir}".encode()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(process)
    return found


# ---------------------------------------------------------------------- inside


def _spawn(place: Layout) -> subprocess.Popen[bytes]:
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(code_root()), env.get("PYTHONPATH"))))
    env[MARKER] = str(place.state_dir)
    with (place.state_dir / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "local.cluster.supervisor", str(place.home), place.name],
            env=env,
            cwd=place.state_dir,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _started(place: Layout, process: subprocess.Popen[bytes], say: Say) -> Cluster:
    end, told = time.monotonic() + _START_LIMIT_SECONDS, set()
    while time.monotonic() < end:
        ended = process.poll()
        state = _state(place) or {}
        for component, found in state.get("components", {}).items():
            if found["phase"] == "ready" and component not in told:
                told.add(component)
                say(component, found["ready_after"])
        if state.get("phase") == "failed":
            raise TollgateError(f"the embedded cluster could not start: {state['error']}")
        if ended is not None:
            text = (place.state_dir / "supervisor.log").read_text(errors="replace")
            raise TollgateError(f"the embedded cluster could not start:\n{_tail(text)}")
        running = _running(place)
        if running is not None:
            return running
        time.sleep(0.05)
    slow = [name for name, found in (_state(place) or {}).get("components", {}).items() if found["phase"] != "ready"]
    texts = [
        f"{name}:\n{_tail(place.log(name).read_text(errors='replace'))}" for name in slow if place.log(name).is_file()
    ]
    raise TollgateError(f"not ready after {_START_LIMIT_SECONDS} s: {', '.join(slow)}\n" + "\n".join(texts))


def _tail(text: str) -> str:
    return "\n".join(f"  {line[:300]}" for line in text.strip().splitlines()[-8:])


def _state(place: Layout) -> dict[str, Any] | None:
    try:
        found = json.loads(place.state.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _alive(state: dict[str, Any]) -> bool:
    """Whether the supervisor of that state runs; another process with its number does not count."""
    try:
        process = psutil.Process(int(state["pid"]))
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - state.get("created", 0)) < 1
    except (psutil.Error, KeyError, ValueError):
        return False


def _running(place: Layout) -> Cluster | None:
    state = _state(place)
    if not state or state.get("phase") != "ready" or not _alive(state):
        return None
    addresses = Addresses(slot=int(state["slot"]))
    return Cluster(
        name=place.name,
        slot=int(state["slot"]),
        state_dir=place.state_dir,
        kubeconfig=place.kubeconfig,
        api_url=addresses.api_url,
        prometheus_url=addresses.prometheus_url,
        rootless=bool(state["rootless"]),
        supervisor_pid=int(state["pid"]),
    )


def _stop(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_LIMIT_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(5)


def _memory(pid: int | None) -> int:
    if pid is None:
        return 0
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _home(home: Path) -> Path:
    """A home for Pulumi with a `kubernetes` plugin of the version that its SDK asks for: the official one where the user has
    it, else ours. On PATH ours would be found too, but with two warnings in every command."""
    folder = Path("plugins") / f"resource-kubernetes-v{metadata.version('pulumi-kubernetes')}"
    official = Path.home() / ".pulumi" / folder / _PLUGIN.name
    link = home / folder / _PLUGIN.name
    link.parent.mkdir(parents=True, exist_ok=True)
    aside = link.with_name(f".{link.name}-{os.getpid()}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(official if official.is_file() else _PLUGIN)
    aside.replace(link)
    return home


@contextlib.contextmanager
def _locked(place: Layout) -> Iterator[None]:
    try:
        place.lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TollgateError(f"the clusters' folder {place.home} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
