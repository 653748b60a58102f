"""Container processes: started under a small shell that outlives the runner and writes down how they ended.

A killed runner must not take pods with it, and its successor is not their parent: so each container has a shim, a `sh` of one
megabyte, which waits for the process and leaves its exit code in a file. The runner follows shims by pidfd, parent or not.
Which processes belong to a container is told by its mount namespace, which no child of it leaves by accident.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ._mounts import Mount, View, enter, join, require

# $1: folder for pid and exit code. A stray signal to the shim is not the process's end, hence the loop.
_SHIM = """
r=$1; shift; trap : TERM INT HUP
"$@" & p=$!
echo $p > "$r/pid"
while :; do wait $p; c=$?; kill -0 $p 2>/dev/null || break; done
echo $c > "$r/exit"
"""
SHIM_FOLDER = "/.tollgate"
KILLED = 137
_OUTPUT_LIMIT = 10_000


class StartError(Exception):
    """The process could not be started; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Shim:
    """A started container. `pid` of the shim with its start time in clock ticks, so that a reused pid is noticed;
    `namespace`: the inode of its mount namespace, 0 where unknown."""

    pid: int
    ticks: int
    folder: Path
    namespace: int = 0

    @property
    def alive(self) -> bool:
        return start_ticks(self.pid) == self.ticks

    def process(self) -> int | None:
        """The container's own process, once it runs."""
        try:
            return int((self.folder / "pid").read_text())
        except (OSError, ValueError):
            return None

    def exit_code(self) -> int | None:
        """How it ended: 128 + the signal where one ended it; None where nobody could write it down."""
        try:
            return int((self.folder / "exit").read_text())
        except (OSError, ValueError):
            return None

    def ended_at(self) -> float | None:
        """When the exit code was written, in seconds since 1970."""
        try:
            return (self.folder / "exit").stat().st_mtime
        except OSError:
            return None

    async def wait(self) -> int:
        """Until it has ended; gives the exit code, 137 for one that was killed together with its shim.

        Whatever else ran in the container is killed then, as a container's end is the end of all its processes.
        """
        if self.alive:
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(self.pid)
                try:
                    # Looked at again, now that the number can't be given to another process unnoticed.
                    if self.alive:
                        with self._held() as held:
                            await _readable(handle)
                            if held:
                                self._sweep()
                finally:
                    os.close(handle)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)
        code = self.exit_code()
        return KILLED if code is None else code

    def terminate(self) -> None:
        """SIGTERM to the container's process, as a kubelet does; its children are its own business."""
        process = self.process()
        if process is not None and self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to everything in the container."""
        if self.alive:
            with self._held() as held:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                if held:
                    self._sweep()

    @contextlib.contextmanager
    def _held(self) -> Iterator[bool]:
        """Keeps the container's mount namespace while its last process ends; whether that was possible.

        The number of one that is gone is given to the next at once: without this, what is swept may be another container, which
        was started just then.
        """
        try:
            handle = os.open(f"/proc/{self.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            yield False
            return
        try:
            yield os.fstat(handle).st_ino == self.namespace
        finally:
            os.close(handle)

    def _sweep(self) -> None:
        """SIGKILL to every process that is still in the container's mount namespace, which is held."""
        mark = f"mnt:[{self.namespace}]"
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if str(Path(f"/proc/{entry.name}/ns/mnt").readlink()) == mark:
                        os.kill(int(entry.name), signal.SIGKILL)


def start(command: Sequence[str], env: Mapping[str, str], *, folder: Path, log: Path, view: View) -> Shim:
    """Start a container's process in its own session and view of the files. Raises StartError."""
    shown = replace(view, mounts=[*view.mounts, Mount(source=folder, target=SHIM_FOLDER)])

    def prepare() -> None:
        # Past the fork there is no other way to say why; opened first, for the view does not show this path.
        error = os.open(str(folder / "start-error"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        try:
            enter(shown)
            require(command[0], env.get("PATH", ""))
        except BaseException as reason:
            os.write(error, str(reason).encode())
            raise
        finally:
            os.close(error)

    with log.open("ab") as output:
        try:
            shim = subprocess.Popen(
                ["/bin/sh", "-c", _SHIM, "shim", SHIM_FOLDER, *command],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=prepare,
            )
        except (OSError, subprocess.SubprocessError, ValueError) as reason:
            raise StartError(_reason(folder, reason)) from None
    ticks = start_ticks(shim.pid)
    namespace = 0
    with contextlib.suppress(OSError):
        namespace = Path(f"/proc/{shim.pid}/ns/mnt").stat().st_ino
    # Popen must not reap or warn about it: pidfds follow it from here on.
    shim.returncode = 0
    return Shim(pid=shim.pid, ticks=ticks or 0, folder=folder, namespace=namespace)


def _reason(folder: Path, otherwise: BaseException) -> str:
    with contextlib.suppress(OSError):
        return (folder / "start-error").read_text() or str(otherwise)
    return str(otherwise)


async def run_inside(shim: Shim, command: Sequence[str], env: Mapping[str, str], seconds: float) -> tuple[int, str]:
    """Run a hook's or probe's command in a running container: (exit code, the end of its output); 124 on a time-out."""
    try:
        child = inside(shim, command, env, output=subprocess.PIPE)
    except StartError as reason:
        return 126, str(reason)
    assert child.stdout is not None
    handle = os.pidfd_open(child.pid)
    os.set_blocking(child.stdout.fileno(), False)
    text = bytearray()
    loop = asyncio.get_running_loop()

    def drain() -> None:
        assert child.stdout is not None
        data = child.stdout.read(65_536)
        if data:
            # A chatty probe must neither block on a full pipe nor fill this process's memory.
            text.extend(data)
            del text[:-_OUTPUT_LIMIT]
        elif data is not None:
            loop.remove_reader(child.stdout.fileno())

    loop.add_reader(child.stdout.fileno(), drain)
    try:
        await asyncio.wait_for(_readable(handle), seconds)
        code = child.wait()
        drain()
        said = text.decode("utf-8", "replace").strip()
    except TimeoutError:
        code, said = 124, f"took longer than {seconds:g} s"
    finally:
        loop.remove_reader(child.stdout.fileno())
        os.close(handle)
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        child.stdout.close()
    return code, said[-1000:]


def inside(
    shim: Shim,
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    output: int,
    errors: int = subprocess.STDOUT,
    given: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start `command` in a running container's view. `output`, `errors`, `given`: as for Popen. Raises StartError."""
    process = shim.process() if shim.alive else None
    if process is None:
        raise StartError("the container is not running")
    target = process
    told, tell = os.pipe()

    def prepare() -> None:
        try:
            join(target)
            require(command[0], env.get("PATH", ""))
        except BaseException as reason:
            os.write(tell, str(reason).encode())
            raise

    try:
        return subprocess.Popen(
            list(command),
            env=dict(env),
            stdin=given,
            stdout=output,
            stderr=errors,
            start_new_session=True,
            preexec_fn=prepare,
        )
    except (OSError, subprocess.SubprocessError, ValueError) as reason:
        os.set_blocking(told, False)
        why = str(reason)
        with contextlib.suppress(BlockingIOError):
            why = os.read(told, 1000).decode("utf-8", "replace") or why
        raise StartError(why) from None
    finally:
        os.close(told)
        os.close(tell)


async def _readable(handle: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(handle)


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None for one that is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
