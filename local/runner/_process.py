"""Container processes: started under a small shell that outlives the runner and writes down how they ended.

A killed runner must not take pods with it, and its successor is not their parent: so each container has a shim, a `sh` of one
megabyte, which waits for the process and leaves its exit code in a file. The runner follows shims by pidfd, parent or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ._mounts import Mount, enter, join

# $1: folder for pid and exit code. A stray signal to the shim is not the process's end, hence the loop.
_SHIM = """
r=$1; shift; trap : TERM INT HUP
"$@" & p=$!
echo $p > "$r/pid.new"; mv "$r/pid.new" "$r/pid"
while :; do wait $p; c=$?; kill -0 $p 2>/dev/null || break; done
echo $c > "$r/exit.new"; mv "$r/exit.new" "$r/exit"
"""
SHIM_FOLDER = "/.tollgate"


class StartError(Exception):
    """The process could not be started; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Shim:
    """A started container. `pid` of the shim with its start time in clock ticks, so that a reused pid is noticed."""

    pid: int
    ticks: int
    folder: Path

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

    async def wait(self) -> int:
        """Until it has ended; gives the exit code, 137 for one that was killed together with its shim."""
        with contextlib.suppress(ProcessLookupError, OSError):
            handle = os.pidfd_open(self.pid)
            try:
                if self.alive:
                    ended = asyncio.get_running_loop().create_future()
                    loop = asyncio.get_running_loop()
                    loop.add_reader(handle, lambda: None if ended.done() else ended.set_result(None))
                    try:
                        await ended
                    finally:
                        loop.remove_reader(handle)
            finally:
                os.close(handle)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        code = self.exit_code()
        return 137 if code is None else code

    def terminate(self) -> None:
        """SIGTERM to the container's process, as a kubelet does; its children are its own business."""
        process = self.process()
        if process is not None and self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to everything in the container."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def start(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    folder: Path,
    log: Path,
    mounts: Sequence[Mount],
    directory: str | None,
) -> Shim:
    """Start a container's process in its own session and view of the files. Raises StartError."""
    root = folder / "root"
    root.mkdir(parents=True, exist_ok=True)
    error = folder / "start-error"
    everything = [*mounts, Mount(source=folder, target=SHIM_FOLDER)]

    def prepare() -> None:
        try:
            enter(root, everything)
            os.chdir(directory or "/")
        except BaseException as reason:
            # Past the fork there is no other way to say why.
            handle = os.open(str(error), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            os.write(handle, str(reason).encode())
            os.close(handle)
            raise

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
            text = error.read_text() if error.is_file() else str(reason)
            raise StartError(text) from None
    ticks = start_ticks(shim.pid)
    # Popen must not reap or warn about it: pidfds follow it from here on.
    shim.returncode = 0
    return Shim(pid=shim.pid, ticks=ticks or 0, folder=folder)


async def run_inside(shim: Shim, command: Sequence[str], env: Mapping[str, str], seconds: float) -> tuple[int, str]:
    """Run a hook's or probe's command in a running container: (exit code, the end of its output); 124 on a time-out."""
    process = shim.process()
    if process is None:
        return 1, "the container is not running"
    target = process
    try:
        child = subprocess.Popen(
            list(command),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: join(target),
        )
    except (OSError, subprocess.SubprocessError, ValueError) as reason:
        return 126, str(reason)
    assert child.stdout is not None
    handle = os.pidfd_open(child.pid)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), seconds)
        code = child.wait()
        os.set_blocking(child.stdout.fileno(), False)
        text = (child.stdout.read(10_000) or b"").decode("utf-8", "replace").strip()
    except TimeoutError:
        code, text = 124, f"took longer than {seconds:g} s"
    finally:
        loop.remove_reader(handle)
        os.close(handle)
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        child.stdout.close()
    return code, text[-1000:]


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None for one that is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
