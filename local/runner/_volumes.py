"""A pod's volumes as folders of its own, made before its containers start."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from ._api import Api, ApiError, Object
from ._environment import MissingReference, field


class UnsupportedVolume(Exception):
    """A kind of volume that a process on this machine cannot have."""


async def make(api: Api, pod: Object, folder: Path, *, ip: str, node_ip: str) -> dict[str, Path]:
    """Volume name -> folder. Raises MissingReference (try again later) or UnsupportedVolume (never)."""
    made: dict[str, Path] = {}
    for volume in pod["spec"].get("volumes") or []:
        place = folder / volume["name"]
        place.mkdir(parents=True, exist_ok=True)
        await _fill(api, pod, volume, place, ip, node_ip)
        made[volume["name"]] = place
    return made


async def _fill(api: Api, pod: Object, volume: Object, place: Path, ip: str, node_ip: str) -> None:
    if "emptyDir" in volume:
        return
    if "projected" in volume:
        for source in volume["projected"].get("sources") or []:
            await _project(api, pod, source, place, ip, node_ip)
        return
    for kind in ("configMap", "secret", "downwardAPI"):
        if kind in volume:
            source = dict(volume[kind])
            source.setdefault("name", source.get("secretName"))
            await _project(api, pod, {kind: source}, place, ip, node_ip)
            return
    kinds = ", ".join(key for key in volume if key != "name")
    raise UnsupportedVolume(
        f'volume "{volume["name"]}" is a {kinds}; the pod runner has emptyDir, configMap, secret, downwardAPI and projected'
    )


async def _project(api: Api, pod: Object, source: Object, place: Path, ip: str, node_ip: str) -> None:
    namespace = pod["metadata"]["namespace"]
    if "serviceAccountToken" in source:
        wanted = source["serviceAccountToken"]
        account = pod["spec"].get("serviceAccountName", "default")
        bound = {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
        body = {
            "spec": {
                "audiences": [wanted["audience"]] if wanted.get("audience") else [],
                # Longer than any embedded cluster lives, so that no token has to be renewed under a running process.
                "expirationSeconds": max(int(wanted.get("expirationSeconds", 3600)), 86_400),
                "boundObjectRef": bound,
            }
        }
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        answer = await api.request("POST", path, body)
        _write(place, wanted["path"], answer["status"]["token"].encode(), 0o600)
    elif "downwardAPI" in source:
        for item in source["downwardAPI"].get("items") or []:
            if "fieldRef" in item:
                value = field(pod, item["fieldRef"]["fieldPath"], ip=ip, node_ip=node_ip)
                _write(place, item["path"], value.encode(), 0o644)
    else:
        for kind, resource in (("configMap", "configmaps"), ("secret", "secrets")):
            if kind in source:
                await _keys(api, namespace, source[kind], resource, place)


async def _keys(api: Api, namespace: str, source: Object, resource: str, place: Path) -> None:
    try:
        found = await api.request("GET", f"/api/v1/namespaces/{namespace}/{resource}/{source['name']}")
    except ApiError as error:
        if error.code == 404 and source.get("optional"):
            return
        if error.code == 404:
            raise MissingReference(f'{resource.removesuffix("s")} "{source["name"]}" not found') from None
        raise
    contents = contents_of(found, resource)
    default = 0o600 if resource == "secrets" else 0o644
    items = source.get("items") or [{"key": key, "path": key} for key in contents]
    for item in items:
        if item["key"] not in contents:
            if source.get("optional"):
                continue
            raise MissingReference(f'key "{item["key"]}" of "{source["name"]}" not found')
        _write(place, item["path"], contents[item["key"]], default)


def contents_of(found: Object, resource: str) -> dict[str, bytes]:
    """Key -> bytes of a ConfigMap or Secret."""
    if resource == "secrets":
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    plain = {key: value.encode() for key, value in (found.get("data") or {}).items()}
    return plain | {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}


def _write(place: Path, name: str, data: bytes, mode: int) -> None:
    target = place / name
    # The API server refuses `..` in these paths; a volume that leaves its folder is refused here all the same.
    if not target.resolve().is_relative_to(place.resolve()):
        raise UnsupportedVolume(f"path {name!r} leaves its volume")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.writing")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
    temporary.replace(target)
