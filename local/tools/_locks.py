"""Locks between processes: one builds a module, the others wait for it and say so.

`flock` is released by the kernel when its holder ends, however it ends, so there are no stale locks to clean up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from typing import IO, Final

from stacks import TollgateError

from . import _places

_POLL_SECONDS: Final = 0.2


def _open(name: str) -> IO[str]:
    file = _places.cache() / "locks" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.open("a+")


@contextlib.contextmanager
def held(name: str, *, on_wait: Callable[[str], None], stop: threading.Event) -> Iterator[None]:
    """Hold the lock `name`; while another process has it, `on_wait` gets its process id once, and `stop` ends the wait."""
    with _open(name) as file:
        said = False
        while not _try(file, fcntl.LOCK_EX):
            if not said:
                file.seek(0)
                on_wait(file.read().strip() or "?")
                said = True
            if stop.wait(_POLL_SECONDS):
                raise Stopped
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def building() -> Iterator[Callable[[], bool]]:
    """Count as one of the processes that build; yields a question: is this the last one?

    Once it has answered yes, others wait to begin until this block ends, so shared build caches may be removed.
    """
    with _open("building") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield lambda: _try(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def building_alone() -> Iterator[None]:
    """Keep others from building; `TollgateError` where one does already."""
    with _open("building") as file:
        if not _try(file, fcntl.LOCK_EX):
            raise TollgateError(
                "tools are being built by another process\n  fix: wait for it to finish, then try again"
            )
        yield


class Stopped(Exception):
    """Waiting or building ended because the whole run is ending; never shown."""


def _try(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
