"""A timer of microseconds for the event loop.

uvloop rounds its timers to whole milliseconds, which would shift every send of an open loop by half a millisecond.
Linux has timers as file descriptors; Python 3.11 has no wrapper for them, so libc is called. Elsewhere the loop's timer
serves.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """Calls `callback` once at or after each time it is armed for, in seconds of `time.monotonic()`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop, self._callback = loop, callback
        self._fd = -1
        self._handle: asyncio.TimerHandle | None = None
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            # 0o4000 and 0o2000000 are TFD_NONBLOCK and TFD_CLOEXEC.
            self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, 0o4000 | 0o2000000)
        if self._fd >= 0:
            self._spec = _Itimerspec()
            loop.add_reader(self._fd, self._fired)

    def arm(self, when: float) -> None:
        """Call back at `when` instead of whenever it was armed for before; a time that has passed means now."""
        if self._fd < 0:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = self._loop.call_later(max(0.0, when - self._loop.time()), self._callback)
            return
        whole = max(1, int(when * 1e9))
        self._spec.value.seconds, self._spec.value.nanoseconds = divmod(whole, 1_000_000_000)
        self._libc.timerfd_settime(self._fd, _ABSTIME, ctypes.byref(self._spec), None)

    def close(self) -> None:
        """Never call back again."""
        if self._handle is not None:
            self._handle.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._callback()
