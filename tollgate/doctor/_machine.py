"""This machine: Python, tools, disk, memory, addresses."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

import stacks
from local import cluster, tools

from ._finding import Finding

_PYTHON = (3, 11)
# Building all of them: the caches of Go grow to 8 GB and are removed afterwards.
_BUILD_BYTES = 12 * 10**9
# Of a running cluster with its logs.
_RUN_BYTES = 2 * 10**9
_MEMORY_BYTES = 3 * 2**29
_GB = 10**9


def machine() -> Iterator[Finding]:
    """Everything that concerns no project."""
    yield _python()
    yield _interpreter()
    missing = []
    for tool in tools.status():
        if tool.origin == "missing" and not tool.optional:
            missing.append(tool.name)
    if missing:
        yield Finding(
            area="machine",
            about="tools",
            level="warning",
            said=f"missing: {', '.join(missing)}",
            fix="tollgate tools build",
        )
    else:
        yield Finding(area="machine", about="tools", level="good", said="all that the embedded cluster and Pulumi need")
    yield _disk(_BUILD_BYTES if missing else _RUN_BYTES)
    yield _memory()
    yield _privileges()
    yield from _ports()


def _python() -> Finding:
    said = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < _PYTHON:
        return Finding(area="machine", about="python", level="bad", said=said, fix="install Python 3.11 or newer")
    if sys.platform != "linux":
        return Finding(
            area="machine", about="python", level="warning", said=f"{said}: no embedded cluster here, all else works",
            fix="use a Linux machine for `tollgate local` and `make demo`",
        )  # fmt: skip
    return Finding(area="machine", about="python", level="good", said=said)


def _interpreter() -> Finding:
    """Pulumi's language host runs a project's program by the first python on PATH."""
    found = shutil.which("python3") or shutil.which("python")
    if found is not None and Path(found).parent.resolve() == Path(sys.executable).parent.resolve():
        return Finding(area="machine", about="python on PATH", level="good", said=found)
    return Finding(
        area="machine", about="python on PATH", level="warning",
        said=f"{found or 'none'} is not the Python of this Tollgate; plain `pulumi up` would run the program by it",
        fix=f"source {Path(sys.executable).parent}/activate, or work in `tollgate local shell`",
    )  # fmt: skip


def _disk(needed: int) -> Finding:
    place = tools.cache_dir()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    said = f"{free / _GB:.0f} GB free at {place}"
    if free < needed:
        return Finding(
            area="machine", about="disk", level="bad", said=f"{said}, {needed / _GB:.0f} GB are needed",
            fix="make room, or set TOLLGATE_CACHE to a folder on another disk; tollgate tools clean removes old builds",
        )  # fmt: skip
    return Finding(area="machine", about="disk", level="good", said=said)


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    said = f"{free / 2**30:.1f} GiB available"
    if free < _MEMORY_BYTES:
        return Finding(
            area="machine", about="memory", level="warning", said=f"{said}; an embedded cluster takes 1.1 GiB and its pods",
            fix="end something, or use a larger machine",
        )  # fmt: skip
    return Finding(area="machine", about="memory", level="good", said=said)


def _privileges() -> Finding:
    """Addresses for pods: as root on the machine itself, otherwise in namespaces of the user's own."""
    if os.geteuid() == 0:
        return Finding(area="machine", about="network", level="good", said="root: the cluster adds its own addresses")
    limit = Path("/proc/sys/user/max_user_namespaces")
    allowed = limit.is_file() and limit.read_text().strip() not in ("", "0") and shutil.which("unshare") is not None
    if allowed:
        return Finding(
            area="machine", about="network", level="good", said="user namespaces: the cluster lives in its own"
        )
    return Finding(
        area="machine", about="network", level="bad", said="neither root nor user namespaces: no embedded cluster here",
        fix="sysctl user.max_user_namespaces=15000 and install util-linux, or run as root",
    )  # fmt: skip


def _ports() -> Iterator[Finding]:
    """A listener on every address takes the cluster's ports, too."""
    wanted = cluster.ports()
    try:
        listeners = [one for one in psutil.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    except (psutil.Error, OSError):
        yield Finding(area="machine", about="ports", level="unknown", said="may not list listeners", fix="run as root")
        return
    taken = {one.laddr.port: one.pid for one in listeners if one.laddr and one.laddr.ip in ("0.0.0.0", "::")}
    found = False
    for port, component in sorted(wanted.items()):
        if port in taken:
            found = True
            pid = taken[port]
            yield Finding(
                area="machine", about="ports", level="bad",
                said=f"{_name(pid)} listens on port {port} of every address, which {component} needs",
                fix="end it, or have it listen on one address",
            )  # fmt: skip
    if not found:
        yield Finding(area="machine", about="ports", level="good", said=f"all {len(wanted)} are free")


def _name(pid: int | None) -> str:
    try:
        return f"{psutil.Process(pid).name()} ({pid})" if pid is not None else "something"
    except psutil.Error:
        return f"process {pid}"


def pulumi() -> Finding:
    """The Pulumi that a plain shell would use."""
    try:
        path = shutil.which("pulumi") or str(tools.path("pulumi"))
    except stacks.TollgateError:
        return Finding(
            area="machine", about="pulumi", level="bad", said="not on PATH and not built",
            fix="tollgate tools build, or install Pulumi",
        )  # fmt: skip
    return Finding(area="machine", about="pulumi", level="good", said=path)
