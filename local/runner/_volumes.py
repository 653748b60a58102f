"""A pod's volumes as folders of its own, made before its containers start and kept current while they run."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ._api import Api, ApiError, Object
from ._environment import MissingReference, resource
from ._environment import field as pod_field

# Longer than most embedded clusters live, so that hardly a token has to be renewed under a running process.
_TOKEN_SECONDS = 86_400
_RENEW_TOKEN_SECONDS = _TOKEN_SECONDS / 2
_DEFAULT_MODE = 0o644


class UnsupportedVolume(Exception):
    """A kind of volume that a process on this machine cannot have."""


@dataclass(kw_only=True)
class Reader:
    """Reads ConfigMaps and Secrets, each once."""

    api: Api
    _found: dict[str, dict[str, bytes] | None] = field(default_factory=dict)
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def read(self, namespace: str, resource: str, name: str) -> dict[str, bytes] | None:
        """Key -> bytes; None where it does not exist."""
        path = f"/api/v1/namespaces/{namespace}/{resource}/{name}"
        async with self._locks.setdefault(path, asyncio.Lock()):
            if path not in self._found:
                try:
                    self._found[path] = contents_of(await self.api.request("GET", path), resource)
                except ApiError as error:
                    if error.code != 404:
                        raise
                    self._found[path] = None
        return self._found[path]


@dataclass(frozen=True, kw_only=True)
class Context:
    """Whose volumes they are."""

    api: Api
    pod: Object
    ip: str
    node_ip: str
    allocatable: Mapping[str, str]
    reader: Reader


@dataclass(frozen=True)
class _File:
    data: bytes
    mode: int


async def make(context: Context, folder: Path) -> dict[str, Path]:
    """Volume name -> folder; what is there already is brought up to date.

    Raises MissingReference (try again later) or UnsupportedVolume (never).
    """
    volumes = context.pod["spec"].get("volumes") or []
    places = {volume["name"]: folder / volume["name"] for volume in volumes}
    contents = await asyncio.gather(*(_contents(context, volume, places[volume["name"]]) for volume in volumes))
    for volume, files in zip(volumes, contents, strict=True):
        place = places[volume["name"]]
        if not place.is_dir():
            place.mkdir(parents=True)
            place.chmod(0o777 if files is None else 0o755)
        if files is not None:
            _bring_up_to_date(place, files)
    return places


async def _contents(context: Context, volume: Object, place: Path) -> dict[str, _File] | None:
    """What has to be in the volume; None for one that belongs to the pod alone."""
    if "emptyDir" in volume:
        return None
    if "projected" in volume:
        given = volume["projected"]
        mode = int(given.get("defaultMode", _DEFAULT_MODE))
        parts = await asyncio.gather(*(_project(context, source, mode, place) for source in given.get("sources") or []))
        return {name: file for part in parts for name, file in part.items()}
    for kind in ("configMap", "secret", "downwardAPI"):
        if kind in volume:
            given = dict(volume[kind])
            given.setdefault("name", given.get("secretName"))
            return await _project(context, {kind: given}, int(given.get("defaultMode", _DEFAULT_MODE)), place)
    kinds = ", ".join(key for key in volume if key != "name")
    raise UnsupportedVolume(
        f'volume "{volume["name"]}" is a {kinds}; the pod runner has emptyDir, configMap, secret, downwardAPI and projected'
    )


async def _project(context: Context, source: Object, mode: int, place: Path) -> dict[str, _File]:
    if "serviceAccountToken" in source:
        return await _token(context, source["serviceAccountToken"], mode, place)
    if "downwardAPI" in source:
        return _downward(context, source["downwardAPI"], mode)
    namespace: str = context.pod["metadata"]["namespace"]
    found: dict[str, _File] = {}
    for kind, kind_resource in (("configMap", "configmaps"), ("secret", "secrets")):
        if kind in source:
            contents = await context.reader.read(namespace, kind_resource, source[kind]["name"])
            found |= _keys(kind.lower(), source[kind], contents, mode)
    return found


async def _token(context: Context, wanted: Object, mode: int, place: Path) -> dict[str, _File]:
    there = place / wanted["path"]
    if there.is_file() and time.time() - there.stat().st_mtime < _RENEW_TOKEN_SECONDS:
        return {wanted["path"]: _File(there.read_bytes(), mode)}
    meta = context.pod["metadata"]
    account = context.pod["spec"].get("serviceAccountName", "default")
    body = {
        "spec": {
            "audiences": [wanted["audience"]] if wanted.get("audience") else [],
            "expirationSeconds": max(int(wanted.get("expirationSeconds", 3600)), _TOKEN_SECONDS),
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]},
        }
    }
    path = f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{account}/token"
    answer = await context.api.request("POST", path, body)
    return {wanted["path"]: _File(answer["status"]["token"].encode(), mode)}


def _downward(context: Context, source: Object, mode: int) -> dict[str, _File]:
    found = {}
    containers = {one["name"]: one for one in context.pod["spec"]["containers"]}
    for item in source.get("items") or []:
        if "fieldRef" in item:
            value = pod_field(context.pod, item["fieldRef"]["fieldPath"], ip=context.ip, node_ip=context.node_ip)
        else:
            reference = item["resourceFieldRef"]
            value = resource(containers.get(reference.get("containerName"), {}), reference, context.allocatable)
        found[item["path"]] = _File(value.encode(), int(item.get("mode", mode)))
    return found


def _keys(kind: str, source: Object, contents: dict[str, bytes] | None, mode: int) -> dict[str, _File]:
    optional = bool(source.get("optional"))
    if contents is None:
        if optional:
            return {}
        raise MissingReference(f'{kind} "{source["name"]}" not found')
    found = {}
    for item in source.get("items") or [{"key": key, "path": key} for key in contents]:
        if item["key"] in contents:
            found[item["path"]] = _File(contents[item["key"]], int(item.get("mode", mode)))
        elif not optional:
            raise MissingReference(f'{kind} "{source["name"]}" references non-existent key: {item["key"]}')
    return found


def contents_of(found: Object, resource: str) -> dict[str, bytes]:
    """Key -> bytes of a ConfigMap or Secret."""
    if resource == "secrets":
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    text = {key: value.encode() for key, value in (found.get("data") or {}).items()}
    return text | {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}


def _bring_up_to_date(place: Path, files: Mapping[str, _File]) -> None:
    """Each file is replaced as a whole, so that a reader sees the old or the new one; what is not wanted any more goes."""
    for name, file in files.items():
        target = place / name
        # The API server refuses `..` in these paths; a volume that leaves its folder is refused here all the same.
        if not Path(os.path.normpath(target)).is_relative_to(place):
            raise UnsupportedVolume(f"path {name!r} leaves its volume")
        if target.is_file() and target.read_bytes() == file.data:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.writing")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
            output.write(file.data)
        temporary.chmod(file.mode)
        temporary.replace(target)
    wanted = {os.path.normpath(name) for name in files}
    for path in place.rglob("*"):
        if path.is_file() and str(path.relative_to(place)) not in wanted:
            path.unlink()
