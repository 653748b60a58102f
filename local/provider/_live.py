"""What a live object says about the inputs it was made from: drift on refresh, inputs on import."""

from __future__ import annotations

import base64
from typing import Any

from ._diff import same
from ._values import Path

URN_MARK = "tollgate.dev/urn"
AUTONAMED = "pulumi.com/autonamed"

# Keys by which Kubernetes merges lists of objects (`x-kubernetes-list-map-keys` of the built-in types).
_MERGE_KEYS = ("name", "containerPort", "port", "mountPath", "devicePath", "type", "ip", "topologyKey", "uid", "key")
_SERVER_METADATA = (
    "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink", "deletionTimestamp",
    "deletionGracePeriodSeconds", "ownerReferences",
)  # fmt: skip
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def outputs(live: dict[str, Any]) -> dict[str, Any]:
    """A live object as output properties: without the bookkeeping of server-side apply (large, and never read by programs)."""
    metadata = {key: value for key, value in (live.get("metadata") or {}).items() if key != "managedFields"}
    if live.get("kind") == "Secret" and metadata.get("annotations"):
        metadata["annotations"] = {k: v for k, v in metadata["annotations"].items() if k != _LAST_APPLIED}
    return {**live, "metadata": metadata}


def refreshed_inputs(old: dict[str, Any], live: dict[str, Any]) -> dict[str, Any]:
    """The old inputs with the live values in the fields that they set, so that only drift on what is managed shows."""
    result = {}
    for key, value in old.items():
        if key == "stringData":
            result[key] = _string_data(value, live.get("data") or {})
        elif key in ("apiVersion", "kind"):
            result[key] = value  # the API serves one object under several versions: no drift
        elif key in live or not _empty(value):
            merged = _merge(value, live.get(key), (key,))
            if merged is not None:
                result[key] = merged
        else:
            result[key] = value
    return result


def _empty(value: Any) -> bool:
    return value is None or value in ({}, [], "")


def _merge(old: Any, live: Any, path: Path) -> Any:
    if live is None:
        return old if _empty(old) else None
    if isinstance(old, dict) and isinstance(live, dict):
        result = {}
        for key, value in old.items():
            merged = _merge(value, live.get(key), (*path, key))
            if merged is not None:
                result[key] = merged
        return result
    if isinstance(old, list) and isinstance(live, list):
        return _merge_list(old, live, path)
    return old if same(old, live, path) else live


def _merge_list(old: list[Any], live: list[Any], path: Path) -> list[Any]:
    if not all(isinstance(item, dict) for item in [*old, *live]):
        if len(old) == len(live):
            return [_merge(left, right, (*path, i)) for i, (left, right) in enumerate(zip(old, live, strict=True))]
        return live
    keys = [_identity(item) for item in live]
    unique = len(set(keys)) == len(keys) and None not in keys
    if unique and all(_identity(item) is not None for item in old):
        by_key = dict(zip(keys, live, strict=True))
        # Items of others (an injected sidecar) are theirs; ours that are gone are drift.
        return [
            _merge(item, by_key[_identity(item)], (*path, i)) for i, item in enumerate(old) if _identity(item) in by_key
        ]
    if len(old) == len(live):
        return [_merge(left, right, (*path, i)) for i, (left, right) in enumerate(zip(old, live, strict=True))]
    return live


def _identity(item: dict[str, Any]) -> tuple[str, Any] | None:
    for key in _MERGE_KEYS:
        if isinstance(item.get(key), (str, int)):
            return key, item[key]
    return None


def _string_data(old: Any, live: dict[str, Any]) -> Any:
    if not isinstance(old, dict):
        return old
    result = {}
    for key, value in old.items():
        if key in live:
            raw = base64.b64decode(live[key])
            result[key] = value if isinstance(value, str) and raw == value.encode() else raw.decode("utf-8", "replace")
    return result


def imported_inputs(live: dict[str, Any]) -> dict[str, Any]:
    """Inputs for an object that was made elsewhere: all of it but what the server fills in."""
    metadata = {key: value for key, value in (live.get("metadata") or {}).items() if key not in _SERVER_METADATA}
    annotations = {
        key: value
        for key, value in (metadata.pop("annotations", None) or {}).items()
        if key not in (URN_MARK, _LAST_APPLIED, "deployment.kubernetes.io/revision")
    }
    if annotations:
        metadata["annotations"] = annotations
    return {**{key: value for key, value in live.items() if key != "status"}, "metadata": metadata}
