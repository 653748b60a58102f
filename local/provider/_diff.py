"""Differences between two sets of inputs, as the API server would see them, and which of them cannot be made in place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ._kinds import Kind
from ._values import UNKNOWN, Path, plain

# A quantity: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
_QUANTITY = re.compile(r"^([+-]?[0-9.]+)([eE][+-]?[0-9]+|Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)?$")
_SCALE = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_SCALE |= {f"{letter}i": 1024.0 ** (power + 1) for power, letter in enumerate("KMGTPE")}
_QUANTITY_PARENTS = frozenset({"limits", "requests", "capacity", "allocatable", "hard", "overhead", "podFixed", "used"})
_QUANTITY_KEYS = frozenset({"sizeLimit", "averageValue", "divisor"})
# Maps where "empty" and "absent" mean the same (elsewhere `{}` is a value: `emptyDir: {}`, `podSelector: {}`).
_PLAIN_MAPS = frozenset(
    {"labels", "annotations", "nodeSelector", "matchLabels", "data", "stringData", "binaryData", "limits", "requests"}
)

# Fields that the API server does not let change (validation code of each kind); a dry run finds what is missing here.
_IMMUTABLE: dict[tuple[str, str], tuple[str, ...]] = {
    ("apps", "Deployment"): ("spec.selector",),
    ("apps", "ReplicaSet"): ("spec.selector",),
    ("apps", "DaemonSet"): ("spec.selector",),
    ("apps", "StatefulSet"): (
        "spec.selector", "spec.serviceName", "spec.volumeClaimTemplates", "spec.podManagementPolicy",
    ),
    ("batch", "Job"): (
        "spec.template", "spec.selector", "spec.completions", "spec.completionMode", "spec.manualSelector",
        "spec.podFailurePolicy", "spec.backoffLimitPerIndex", "spec.managedBy", "spec.successPolicy",
    ),
    ("", "Service"): ("spec.clusterIP", "spec.clusterIPs", "spec.loadBalancerClass"),
    ("", "PersistentVolumeClaim"): (
        "spec.accessModes", "spec.selector", "spec.storageClassName", "spec.volumeMode", "spec.volumeName",
        "spec.dataSource", "spec.dataSourceRef",
    ),
    ("", "Secret"): ("type",),
    ("rbac.authorization.k8s.io", "RoleBinding"): ("roleRef",),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): ("roleRef",),
    ("storage.k8s.io", "StorageClass"): ("provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"),
    ("scheduling.k8s.io", "PriorityClass"): ("value", "preemptionPolicy"),
    ("node.k8s.io", "RuntimeClass"): ("handler",),
    ("networking.k8s.io", "IngressClass"): ("spec.controller",),
    ("discovery.k8s.io", "EndpointSlice"): ("addressType",),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): ("spec.group", "spec.scope", "spec.names.kind", "spec.names.plural"),
}  # fmt: skip
_POD_CHANGEABLE = re.compile(
    r"^spec\.(containers|initContainers)\.\d+\.image$|^spec\.(activeDeadlineSeconds|tolerations|terminationGracePeriodSeconds)\b"
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference: `op` is "add", "delete" or "update"."""

    path: Path
    op: str
    replace: bool = False


def quantity(text: Any) -> float | None:
    """A quantity as a number; None where it is none."""
    found = _QUANTITY.match(str(text))
    if isinstance(text, bool) or not found:
        return None
    number, suffix = found.groups()
    try:
        return (
            float(number + suffix)
            if suffix and suffix[0] in "eE" and len(suffix) > 1 and suffix != "Ei"
            else (float(number) * _SCALE.get(suffix or "", 1.0))
        )
    except ValueError:
        return None


def _nothing(value: Any, key: Any) -> bool:
    """Whether the member is as good as absent."""
    return value is None or value == [] or (value == {} and key in _PLAIN_MAPS)


def same(old: Any, new: Any, path: Path) -> bool:
    """Whether two leaves mean the same to the API server."""
    if type(old) is type(new) and old == new:
        return True
    if isinstance(old, bool) or isinstance(new, bool) or isinstance(old, (dict, list)) or isinstance(new, (dict, list)):
        return False
    if isinstance(old, (int, float)) and isinstance(new, (int, float)):
        return old == new
    if path and (path[-1] in _QUANTITY_KEYS or (len(path) > 1 and path[-2] in _QUANTITY_PARENTS)):
        left, right = quantity(old), quantity(new)
        return left is not None and right is not None and abs(left - right) <= 1e-9 * max(abs(left), abs(right))
    return False


def changes(old: Any, new: Any, path: Path = ()) -> list[Change]:
    """The differences from `old` to `new` (plain values), deepest paths first found."""
    if new is UNKNOWN or old is UNKNOWN:
        return [] if old is new else [Change(path=path, op="update")]
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[Change] = []
        for key in sorted({*old, *new}):
            left, right = old.get(key), new.get(key)
            if left is not UNKNOWN and right is not UNKNOWN and _nothing(left, key) and _nothing(right, key):
                continue
            if _nothing(left, key):
                found.append(Change(path=(*path, key), op="add"))
            elif _nothing(right, key):
                found.append(Change(path=(*path, key), op="delete"))
            else:
                found += changes(left, right, (*path, key))
        return found
    if isinstance(old, list) and isinstance(new, list):
        found = []
        for index in range(max(len(old), len(new))):
            if index >= len(old):
                found.append(Change(path=(*path, index), op="add"))
            elif index >= len(new):
                found.append(Change(path=(*path, index), op="delete"))
            else:
                found += changes(old[index], new[index], (*path, index))
        return found
    return [] if same(old, new, path) else [Change(path=path, op="update")]


def immutable(kind: Kind, change: Change, old: dict[str, Any]) -> bool:
    """Whether this change needs a new object, by what is known of the kind."""
    dotted = ".".join(str(step) for step in change.path)
    if dotted in ("kind", "metadata.name", "metadata.namespace", "metadata"):
        return dotted != "metadata" or "name" in (old.get("metadata") or {})
    if (kind.group, kind.kind) == ("", "Pod"):
        return dotted.startswith("spec") and not _POD_CHANGEABLE.match(dotted)
    if (kind.group, kind.kind) in (("", "ConfigMap"), ("", "Secret")) and old.get("immutable") is True:
        return change.path[0] in ("data", "stringData", "binaryData", "immutable", "type")
    if (kind.group, kind.kind) == ("", "Service") and change.op == "add":
        return False  # the server had chosen an address; asking for that one by name is no change
    if (kind.group, kind.kind) == ("", "Secret") and change.op != "update":
        return False  # absent means Opaque; the dry run judges the rest
    return any(
        dotted == field or dotted.startswith(field + ".") for field in _IMMUTABLE.get((kind.group, kind.kind), ())
    )


def compare(kind: Kind, old: dict[str, Any], new: dict[str, Any], *, default_namespace: str | None) -> list[Change]:
    """Every change from old to new inputs with its need for replacement.

    `default_namespace`: where the object lies by default, for inputs that leave the namespace out; None for kinds without.
    """
    before, after = (_normal(plain(inputs), default_namespace) for inputs in (old, new))
    found = []
    for change in changes(before, after):
        if change.path == ("apiVersion",):
            groups = [str(inputs.get("apiVersion", "")).rpartition("/")[0] for inputs in (before, after)]
            found.append(Change(path=change.path, op=change.op, replace=groups[0] != groups[1]))
            continue
        found.append(Change(path=change.path, op=change.op, replace=not kind.patch and immutable(kind, change, before)))
    return found


def _normal(inputs: dict[str, Any], default_namespace: str | None) -> dict[str, Any]:
    metadata = inputs.get("metadata")
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    if default_namespace and metadata.get("namespace") is None:
        metadata["namespace"] = default_namespace
    return {**{key: value for key, value in inputs.items() if key != "__tollgate"}, "metadata": metadata}
