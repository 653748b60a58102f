"""The standard error of processes that keep others running: its file may lie on the very disk that is full."""

from __future__ import annotations

import contextlib
import io
import os
import sys


class Patient(io.TextIOBase):
    """Writes to the descriptor `handle` at once; what cannot be written is lost, and nobody is told by an exception."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def write(self, text: str) -> int:
        """All of `text`, as far as it goes."""
        with contextlib.suppress(OSError):
            os.write(self._handle, text.encode("utf-8", "backslashreplace"))
        return len(text)

    def writable(self) -> bool:
        """Always."""
        return True


def make_patient() -> None:
    """Let this process go on where its log is full."""
    sys.stderr = Patient(2)
