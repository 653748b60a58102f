"""Ending a benchmark early, by whoever runs it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Stopper:
    """Set from anywhere (a signal handler, another thread) to end a benchmark early; what was measured is kept."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def stop(self) -> None:
        """End it."""
        self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()


@contextlib.contextmanager
def stopped_by_signals(stopper: Stopper, then: Callable[[], None] = lambda: None) -> Iterator[None]:
    """SIGINT and SIGTERM set `stopper` and call `then` instead of ending the process; the second one acts as it would have.

    Outside of the main thread, where Python takes no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handler(number: int, _frame: object) -> None:
        if stopper:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)
        stopper.stop()
        then()

    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
