"""A place of its own for a soak: processes, network and file systems that end with it, however it ends.

The kernel takes down everything in a process namespace when its first process ends, network and mounts with it. So a run that
is killed with -9 leaves no process, no route and no full disk, and the next one has nothing to clean up.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

INSIDE = "TOLLGATE_SOAK_INSIDE"
_PR_SET_PDEATHSIG = 1
_CHUNKS = (2**20, 4096)


def run_isolated() -> int:
    """This very command again, in namespaces of its own; its exit code. Signals are handed on to it."""
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    spaces = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    libc = ctypes.CDLL(None)
    process = subprocess.Popen(
        ["unshare", *rights, *spaces, "--", sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, INSIDE: "1"},
        # Ctrl-C reaches it from here alone, once.
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0),
    )

    def hand_on(number: int, _frame: object) -> None:
        with suppress(psutil.Error):
            for child in psutil.Process(process.pid).children():
                child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hand_on)
    return process.wait()


class Disk:
    """A file system in memory of `mib` MiB, mounted on `path`; it can be filled to its last byte and emptied again."""

    def __init__(self, path: Path, mib: int) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "soak", path], check=True)
        self._ballast = path / ".ballast"

    def fill(self) -> None:
        """Take all that is free; called again, also what has become free since."""
        handle = os.open(self._ballast, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            end = os.fstat(handle).st_size
            for chunk in _CHUNKS:
                with suppress(OSError):
                    while True:
                        os.posix_fallocate(handle, end, chunk)
                        end += chunk
        finally:
            os.close(handle)

    def free(self) -> None:
        """Give back what `fill` took."""
        self._ballast.unlink(missing_ok=True)
