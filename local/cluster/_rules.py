"""PrometheusRule objects in Prometheus' own rule files: what Prometheus' operator does on GKE, for the one kind that stacks use.

Deliberately not here: PodMonitors and ServiceMonitors. What wants to be scraped here says so by annotation.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from pathlib import Path
from typing import Any

import httpx2
import orjson

from ._api import Api

GROUP, VERSION, PLURAL = "monitoring.coreos.com", "v1", "prometheusrules"
_PATH = f"/apis/{GROUP}/{VERSION}/{PLURAL}"
_SETTLE_S = 0.1
_AGAIN_S = 3.0
_TAIL_BYTES = 4096


def definition() -> dict[str, Any]:
    """The kind as Prometheus' operator serves it, as far as rules need it; the API server refuses what has another type."""
    text, texts = {"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}
    rule = {
        "type": "object",
        "required": ["expr"],
        "properties": {
            "alert": text,
            "annotations": texts,
            "expr": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True},
            "for": text,
            "keep_firing_for": text,
            "labels": texts,
            "record": text,
        },
    }
    group = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "interval": text,
            "labels": texts,
            "limit": {"type": "integer"},
            "name": {"type": "string", "minLength": 1},
            "query_offset": text,
            "rules": {"type": "array", "items": rule},
        },
    }
    spec = {
        "type": "object",
        "properties": {
            "groups": {
                "type": "array",
                "items": group,
                "x-kubernetes-list-map-keys": ["name"],
                "x-kubernetes-list-type": "map",
            }
        },
    }
    schema = {"type": "object", "required": ["spec"], "properties": {"spec": spec}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": "PrometheusRule",
                "plural": PLURAL,
                "singular": "prometheusrule",
                "shortNames": ["promrule"],
            },
            "scope": "Namespaced",
            "versions": [{"name": VERSION, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }


class RuleFiles:
    """Keeps one file per object in `folder`. `follow()` runs until cancelled and outlives whoever is away for a while.

    Rules that Prometheus refuses are taken back, so that they stop nobody else's; an Event on the object says so.
    """

    def __init__(self, folder: Path, api: Api, prometheus_url: str, log: Path) -> None:
        self._folder, self._api, self._url, self._log = folder, api, prometheus_url, log
        self._objects: dict[str, dict[str, Any]] = {}
        self._changed = asyncio.Event()
        # Of each file what was last tried, good or not: what was refused is not tried again.
        self._tried: dict[str, bytes] = {}

    async def follow(self) -> None:
        """Watch and write."""
        self._folder.mkdir(exist_ok=True)
        await asyncio.gather(self._api.mirror(_PATH, self._objects, self._changed), self._write())

    async def _write(self) -> None:
        # Not through anybody's proxy: the address is of this machine.
        async with httpx2.AsyncClient(base_url=self._url, trust_env=False, timeout=10) as client:
            while True:
                await self._changed.wait()
                await asyncio.sleep(_SETTLE_S)
                self._changed.clear()
                wanted = {_file_name(one): (one, _groups(one)) for one in self._objects.values()}
                for name in sorted({*self._tried, *wanted}):
                    one, text = wanted.get(name, (None, b""))
                    if self._tried.get(name, b"") != text and not await self._put(client, name, text, one):
                        # Nobody has read it: later, with all others.
                        self._changed.set()
                        await asyncio.sleep(_AGAIN_S)
                        break

    async def _put(self, client: httpx2.AsyncClient, name: str, text: bytes, one: dict[str, Any] | None) -> bool:
        """One file written (or removed) and read by Prometheus; as it was before where Prometheus does not take it."""
        path = self._folder / name
        before = path.read_bytes() if path.exists() else b""
        try:
            _replace(path, text)
        except OSError:
            # A full disk passes.
            return False
        try:
            answer = await client.post("/-/reload")
            refused = answer.status_code != 200
            if refused:
                _replace(path, before)
                if (await client.post("/-/reload")).status_code != 200:
                    # Refused without it, too: it is somebody else's file that is wrong, or the disk is full.
                    return False
        except (httpx2.HTTPError, OSError):
            # A Prometheus that starts with a broken file ends at once, so nothing unread is left lying.
            with contextlib.suppress(OSError):
                _replace(path, before)
            return False
        self._tried[name] = text
        if not text:
            del self._tried[name]
        if refused and one is not None:
            with contextlib.suppress(httpx2.HTTPError):
                await self._say(one, self._reason(name) or answer.text.strip())
        return True

    def _reason(self, name: str) -> str:
        """What Prometheus' log says of that file; its answer says only that something was wrong."""
        with contextlib.suppress(OSError), self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _TAIL_BYTES))
            for line in reversed(log.read().decode(errors="replace").splitlines()):
                if name in line:
                    return line.partition(name)[2].strip(': "')
        return ""

    async def _say(self, one: dict[str, Any], reason: str) -> None:
        metadata = one["metadata"]
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        told = {
            "metadata": {"generateName": f"{metadata['name']}-", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": "PrometheusRule",
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": "Warning",
            "reason": "Refused",
            "message": f"Prometheus refuses these rules, so they do not count: {reason}"[:1000],
            "source": {"component": "tollgate"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        await self._api.post(f"/api/v1/namespaces/{metadata['namespace']}/events", told)


def _file_name(one: dict[str, Any]) -> str:
    # Neither part can hold an underscore.
    return f"{one['metadata']['namespace']}_{one['metadata']['name']}.yaml"


def _groups(one: dict[str, Any]) -> bytes:
    return orjson.dumps({"groups": (one.get("spec") or {}).get("groups") or []})


def _replace(path: Path, text: bytes) -> None:
    if not text:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_suffix(".new")
    temporary.write_bytes(text)
    temporary.replace(path)
