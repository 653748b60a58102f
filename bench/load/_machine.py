"""What the machine tells of itself while a load goes on: how long client and service were ready to run and had no core.

A client can know its own lateness, never the service's: over a network, a service that answers late and one that was not let
run look the same. On one machine they do not: Linux counts for every thread how long it waited for a core, and for the
machine how long any thread did. A service that shares its machine with the load is then said to have been starved; it is
not called invalid, because what else runs on that machine may be just what is to be measured.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

import numpy as np

from ._wire import Target

_EVERY_SECONDS = 1.0
# Shares above which the machine, and not the service, is likely to have made part of the latencies.
_SERVICE_SHARE, _PRESSURE_SHARE = 0.10, 0.25
_PRESSURE = Path("/proc/pressure/cpu")


def waited(thread: str = "thread-self") -> float:
    """Seconds that a thread (`thread-self`, or `<pid>/task/<tid>`) was ready and waited for a core; 0 where nobody tells."""
    return _scheduled(thread)[1]


def _scheduled(thread: str) -> tuple[float, float, int]:
    """Seconds on a core, seconds waiting for one, and turns (Documentation/scheduler/sched-stats.rst)."""
    try:
        ran, ready, turns = Path(f"/proc/{thread}/schedstat").read_text().split()
    except (OSError, ValueError):
        return 0.0, 0.0, 0
    return int(ran) / 1e9, int(ready) / 1e9, int(turns)


def pressure() -> float | None:
    """Seconds since boot in which at least one thread of the machine waited for a core; None where nobody tells."""
    try:
        some = _PRESSURE.read_text().splitlines()[0]
        return int(some.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError, IndexError):
        return None


def cores_in_use(seconds: float = 1.0) -> float:
    """How many cores are busy right now, looked at for so long; what is to be timed needs them idle. 0 where nobody tells."""

    def busy() -> float:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return 0.0
        ticks = list(map(int, fields))
        # user, nice, system, idle, iowait, irq, softirq, steal: all but waiting.
        return (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK")

    before, began = busy(), monotonic()
    time.sleep(seconds)
    return max(0.0, busy() - before) / (monotonic() - began)


class Machine:
    """Watches for one run; `look` costs a few small files once a second."""

    def __init__(self, target: Target) -> None:
        self.local = any(map(_is_here, _addresses(target)))
        self._service = _serving(target) if self.local else ()
        self._rows: list[tuple[float, float, float, float, float]] = []

    def look(self) -> None:
        """Remember how much it is by now."""
        now = monotonic()
        if self._rows and now - self._rows[-1][0] < _EVERY_SECONDS:
            return
        ran = ready = turns = 0.0
        for pid in self._service:
            for thread in _threads(pid):
                one = _scheduled(thread)
                ran, ready, turns = ran + one[0], ready + one[1], turns + one[2]
        self._rows.append((now, pressure() or 0.0, ran, ready, turns))

    def between(self, start: float, end: float) -> dict[str, float]:
        """What it was from one monotonic moment to another.

        `machine_pressure_share`: of the time, with at least one thread waiting for a core. Of a service on this machine whose
        processes can be seen: `service_waited_share`, of the time that its threads were ready, waiting for a core;
        `service_waited_mean_seconds`, on average each time that one wanted to run.
        """
        if len(self._rows) < 2 or end <= start:
            return {}
        moments, *columns = np.array(self._rows).T
        pressed, ran, ready, turns = (
            float(last - first) for first, last in (np.interp([start, end], moments, column) for column in columns)
        )
        inside = min(end, float(moments[-1])) - max(start, float(moments[0]))
        found: dict[str, float] = {}
        if inside > 0 and pressure() is not None:
            found["machine_pressure_share"] = min(1.0, max(0.0, pressed / inside))
        if turns > 0 and ran >= 0 and ready >= 0 and ran + ready > 0:
            found["service_waited_share"] = ready / (ran + ready)
            found["service_waited_mean_seconds"] = ready / turns
        return found

    def warnings(self, seen: dict[str, float]) -> tuple[str, ...]:
        """What has to be said of a service that shares this machine."""
        if not self.local:
            return ()
        share = seen.get("service_waited_share")
        if share is not None:
            if share <= _SERVICE_SHARE:
                return ()
            each = seen["service_waited_mean_seconds"]
            return (
                f"the service runs on this machine and waited for a core {share:.0%} of the time that it wanted to run "
                f"({each * 1e3:.1f} ms each time): its latencies are partly the machine's",
            )
        share = seen.get("machine_pressure_share", 0.0)
        if share <= _PRESSURE_SHARE:
            return ()
        return (
            f"the service runs on this machine, where something waited for a core {share:.0%} of the time: its latencies may "
            "be partly the machine's",
        )


def _addresses(target: Target) -> Iterable[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)}
    except OSError:
        return ()


def _is_here(address: str) -> bool:
    """Whether it is one of this machine's own: only those can be bound."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
        if ip.is_loopback:
            return True
        with socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except (OSError, ValueError):
        return False
    return True


def _serving(target: Target) -> tuple[int, ...]:
    """The processes that listen on that port and all that they have started; none where that may not be seen.

    By the kernel's own tables: asking for all connections of the machine takes a tenth of a second.
    """
    wanted = {f"socket:[{inode}]" for inode in _listening(target.port)}
    found = {pid for pid in _pids() if wanted and _holds(pid, wanted)}
    parents = {pid: _parent(pid) for pid in _pids()} if found else {}
    # A server in a process of its own works in others, as Ollama's does in its runners.
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    # A server within this very process would count the client's own threads.
    return tuple(sorted(found - {os.getpid()}))


def _listening(port: int) -> set[str]:
    """Inodes of the sockets that listen on it (Documentation/networking/proc_net_tcp.rst), on whatever address."""
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split(maxsplit=10) if " 0A " in line else ()
                if fields and fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found


def _pids() -> list[int]:
    try:
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except OSError:
        return []


def _holds(pid: int, wanted: set[str]) -> bool:
    try:
        opened = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
    for entry in opened:
        # It may be closed by now.
        with contextlib.suppress(OSError):
            if str(entry.readlink()) in wanted:
                return True
    return False


def _parent(pid: int) -> int:
    try:
        # The name in parentheses may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _threads(pid: int) -> list[str]:
    try:
        return [f"{pid}/task/{thread.name}" for thread in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
