"""A hosts file that follows the cluster's Services: what the embedded cluster has instead of DNS.

The file is mounted over `/etc/hosts` for the cluster's processes, so it is written in place: a renamed file would leave
the mount on the old one. Names without their namespace can't be had, for the file is one for all namespaces.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ._api import Api

_HEADLESS = "service.kubernetes.io/headless"
_SETTLE_S = 0.05

Objects = dict[str, dict[str, Any]]


def _line(address: str, name: str, namespace: str) -> str:
    stem = f"{name}.{namespace}"
    return f"{address} {stem}.svc {stem}.svc.cluster.local {stem}"


def render(own: str, services: Iterable[Mapping[str, Any]], slices: Iterable[Mapping[str, Any]]) -> str:
    """The file: the machine's own lines, then Services by cluster address, headless ones by their ready endpoints."""
    lines = []
    for service in services:
        metadata, spec = service["metadata"], service["spec"]
        address = spec.get("clusterIP")
        if address and address != "None":
            lines.append(_line(address, metadata["name"], metadata["namespace"]))
    for piece in slices:
        metadata = piece["metadata"]
        service_name = metadata.get("labels", {}).get("kubernetes.io/service-name")
        if not service_name:
            continue
        for endpoint in piece.get("endpoints") or ():
            # `ready` unset means ready, says the API.
            if endpoint.get("conditions", {}).get("ready") is False:
                continue
            for address in endpoint["addresses"]:
                lines.append(_line(address, service_name, metadata["namespace"]))
                if endpoint.get("hostname"):
                    lines.append(_line(address, f"{endpoint['hostname']}.{service_name}", metadata["namespace"]))
    return "\n".join([own.rstrip("\n"), "# Services of the cluster", *sorted(lines)]) + "\n"


def write_in_place(path: Path, text: str) -> None:
    """Replace the content but keep the file: one write, then the cut, so that a reader never meets an empty file."""
    content = text.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def machine_hosts() -> str:
    """The machine's own `/etc/hosts`; to be read before ours is mounted over it."""
    try:
        return Path("/etc/hosts").read_text(errors="replace")
    except OSError:
        return "127.0.0.1 localhost\n::1 localhost\n"


class HostsFile:
    """Keeps `path` current; `follow()` runs until cancelled and outlives an API server that goes away."""

    def __init__(self, path: Path, own: str, api: Api) -> None:
        self._path, self._own, self._api = path, own, api
        self._services: Objects = {}
        self._slices: Objects = {}
        self._changed = asyncio.Event()
        self._written = ""

    async def follow(self) -> None:
        """Watch and write."""
        await asyncio.gather(
            self._api.mirror("/api/v1/services", self._services, self._changed),
            self._api.mirror("/apis/discovery.k8s.io/v1/endpointslices", self._slices, self._changed, _HEADLESS),
            self._write(),
        )

    async def _write(self) -> None:
        while True:
            await self._changed.wait()
            # Many Services often change together: one write for all of them.
            await asyncio.sleep(_SETTLE_S)
            self._changed.clear()
            text = render(self._own, self._services.values(), self._slices.values())
            if text != self._written:
                try:
                    write_in_place(self._path, text)
                except OSError:
                    # A full disk passes; until then names are as they were.
                    await asyncio.sleep(1)
                    self._changed.set()
                    continue
                self._written = text
