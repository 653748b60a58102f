"""Waiting for what takes as long as the machine is busy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(check: Callable[[], Any], what: str = "what was awaited", seconds: float = 120) -> Any:
    """The first of `check`'s answers that says something; fails after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
