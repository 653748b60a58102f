"""Ports for programs that must be told theirs."""

from __future__ import annotations

import os
import random
import re
import socket

# Below what the kernel hands out by itself (32768 and up), so that no connection of another test takes the port between the
# look and the program's own bind; above what is usually listened on.
_FIRST, _EACH, _WORKERS = 20_000, 2_500, 4
_given: list[int] = []


def free_port(address: str = "127.0.0.1") -> int:
    """A port of this worker's own on which nobody listens; never the same twice."""
    worker = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0) % _WORKERS
    first = _FIRST + worker * _EACH
    for _ in range(_EACH):
        # From somewhere within, as other sessions run on the same machine.
        port = _given[-1] + 1 if _given else random.SystemRandom().randrange(first, first + _EACH)
        port = first + (port - first) % _EACH
        _given.append(port)
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
        return port
    raise AssertionError(f"no port between {first} and {first + _EACH} is free on {address}")
