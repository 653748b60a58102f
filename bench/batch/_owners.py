"""Who holds a lease: a process of a machine, which can be asked whether it still runs where it is this machine."""

from __future__ import annotations

import os
import platform
import secrets
from pathlib import Path

import psutil


def this_owner() -> str:
    """This process as an owner of leases: machine, boot, process and its start, so that a number used again is no one else's."""
    return f"{_machine()}/{os.getpid()}/{psutil.Process().create_time():.2f}/{secrets.token_hex(3)}"


def is_alive(owner: str) -> bool | None:
    """Whether that process runs; None where it is of another machine."""
    machine, _, rest = owner.rpartition("/")[0].partition("/")
    pid, _, began = rest.partition("/")
    if machine != _machine() or not pid.isdigit():
        return None
    try:
        process = psutil.Process(int(pid))
        return abs(process.create_time() - float(began)) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):
        return False


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        boot = "0"
    return f"{platform.node().replace('/', '-')}.{boot}"
