"""A hosts file that follows the cluster's Services: what its programs have instead of DNS.

The file is mounted over `/etc/hosts` for the cluster's processes, so it is written in place: a renamed file would leave
the mount on the old one. Names without their namespace can't be had, for the file is one for all namespaces.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ._api import Api

_HEADLESS = "service.kubernetes.io/headless"
_SETTLE_S = 0.05

Objects = dict[str, dict[str, Any]]


def names(services: Iterable[Mapping[str, Any]], slices: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """`NAME.NAMESPACE` -> Services' cluster addresses, headless ones' ready endpoints, which may be none."""
    found: dict[str, list[str]] = {}
    for service in services:
        metadata, address = service["metadata"], service["spec"].get("clusterIP")
        found[f"{metadata['name']}.{metadata['namespace']}"] = [address] if address and address != "None" else []
    for piece in slices:
        metadata = piece["metadata"]
        service_name = metadata.get("labels", {}).get("kubernetes.io/service-name")
        if not service_name:
            continue
        for endpoint in piece.get("endpoints") or ():
            # `ready` unset means ready, says the API.
            if endpoint.get("conditions", {}).get("ready") is False:
                continue
            stem = f"{service_name}.{metadata['namespace']}"
            for name in (stem, f"{endpoint['hostname']}.{stem}") if endpoint.get("hostname") else (stem,):
                found.setdefault(name, []).extend(endpoint["addresses"])
    return found


def render(own: str, known: Mapping[str, Sequence[str]]) -> str:
    """The file: the machine's own lines, then the cluster's `names`."""
    lines = [
        f"{address} {stem}.svc {stem}.svc.cluster.local {stem}"
        for stem, addresses in known.items()
        for address in addresses
    ]
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
    """Keeps `path` and `names` current; `follow()` runs until cancelled and outlives an API server that goes away."""

    def __init__(self, path: Path, own: str, api: Api) -> None:
        self._path, self._own, self._api = path, own, api
        self._services: Objects = {}
        self._slices: Objects = {}
        self._changed = asyncio.Event()
        self._written = ""
        self.names: dict[str, list[str]] = {}

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
            self.names = names(self._services.values(), self._slices.values())
            text = render(self._own, self.names)
            if text != self._written:
                try:
                    write_in_place(self._path, text)
                except OSError:
                    # A full disk passes; until then names are as they were.
                    await asyncio.sleep(1)
                    self._changed.set()
                    continue
                self._written = text
