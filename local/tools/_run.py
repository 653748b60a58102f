"""Child processes that end with us: each in its own process group, all killed when the run stops."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ._locks import Stopped

_GRACE_SECONDS: Final = 2.0


class Processes:
    """Runs commands for several threads; `stop` ends all of them and lets none start again."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        environment: dict[str, str],
        log: Path,
        on_line: Callable[[str], None] | None = None,
        output: Path | None = None,
    ) -> int:
        """Run to the end and return the exit status; `Stopped` where the whole run was stopped meanwhile.

        Standard error goes to `log` (appended), line by line to `on_line` too; standard output to `output` or the log.
        Should this process be killed, the command's next line of progress ends it: the pipe has no reader any more.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as logged, contextlib.ExitStack() as stack:
            out = stack.enter_context(output.open("w")) if output else logged
            with self._lock:
                if self.stopped.is_set():
                    raise Stopped
                process = subprocess.Popen(
                    [str(part) for part in command],
                    cwd=cwd,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                assert process.stderr is not None
                for line in process.stderr:
                    logged.write(line)
                    logged.flush()
                    if on_line:
                        on_line(line.rstrip("\n"))
                code = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
                if process.poll() is None:
                    _signal(process, signal.SIGKILL)
                    process.wait()
        if self.stopped.is_set():
            raise Stopped
        return code

    def stop(self) -> None:
        """End all commands with their children."""
        self.stopped.set()
        with self._lock:
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_GRACE_SECONDS)
            # The group may outlive its leader: compilers that the go command had started.
            _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[str], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
