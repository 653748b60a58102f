"""What the operations on objects and releases share: one operation's description, its results, and small pure helpers."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any

from ._diff import Change
from ._errors import ApiError, ProviderError, Redactor
from ._kinds import Kind
from ._values import UNKNOWN, Path, Secret, secret_strings


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a create, an update or a read leaves: id, output properties, inputs (reads), and why it is not ready yet."""

    id: str
    properties: dict[str, Any]
    inputs: dict[str, Any] | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The answer to Diff."""

    changes: list[Change]
    delete_first: bool = False


@dataclass(frozen=True, kw_only=True)
class Work:
    """One operation on one resource."""

    urn: str
    kind: Kind
    inputs: dict[str, Any]
    preview: bool = False
    seconds: float = 0.0
    ignore: tuple[str, ...] = ()
    redact: Redactor = field(default_factory=Redactor)


def mark_of(urn: str) -> str:
    """The value of the annotation by which an object is known to be this resource's (a URN is too long and says too much)."""
    return hashlib.sha256(urn.encode()).hexdigest()[:32]


def random_suffix(seed: bytes) -> str:
    """Eight hex digits: from the engine's seed where it gives one, so that a repeated check gives the same name."""
    return random.Random(seed).randbytes(4).hex() if seed else random.SystemRandom().randbytes(4).hex()


def redactor(kind: Kind | None, *values: dict[str, Any]) -> Redactor:
    """Takes the secrets of these properties out of messages; of a Secret object, every value."""
    found: list[str] = []
    for value in values:
        found += secret_strings(value)
        if kind and (kind.group, kind.kind) == ("", "Secret"):
            for member in ("data", "stringData"):
                found += secret_strings(Secret(value.get(member)))
    return Redactor(found)


def split_id(identity: str) -> tuple[str | None, str]:
    """An id `namespace/name` or `name` as (namespace, name)."""
    namespace, _, name = identity.rpartition("/")
    return namespace or None, name


def identity_of(live: dict[str, Any]) -> str:
    metadata = live["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if metadata.get("namespace") else str(metadata["name"])


def shape_failures(kind: Kind, metadata: dict[str, Any]) -> list[tuple[str, str]]:
    failures = []
    for key in ("name", "namespace"):
        if key in metadata and not isinstance(metadata[key], (str, Secret)) and metadata[key] is not UNKNOWN:
            failures.append((f"metadata.{key}", f"must be a string, got {metadata[key]!r}"))
    for key in ("labels", "annotations"):
        values = metadata.get(key)
        values = values.value if isinstance(values, Secret) else values
        if isinstance(values, dict):
            for name, value in values.items():
                if not isinstance(value, (str, Secret)) and value is not UNKNOWN and value is not None:
                    failures.append((f"metadata.{key}", f"{name} must be a string (in quotes), got {value!r}"))
    if kind.patch and "name" not in metadata:
        failures.append(("metadata.name", f"a {kind.kind}Patch has to name the object that it changes"))
    return failures


def covers(field: str, path: Path) -> bool:
    dotted = ".".join(str(step) for step in path)
    return bool(field) and (dotted == field or dotted.startswith(field + ".") or field.startswith(dotted + "."))


def conflict_error(error: ApiError, action: str) -> ProviderError:
    held = "; ".join(f"{name} is held by {manager!r}" for manager, name in error.conflicts())
    return ProviderError(
        f"{action}: conflict with another field manager: {held}. Fix: leave the field to it with ignore_changes, or take it over "
        'with the annotation pulumi.com/patchForce: "true"'
    )


def is_ignored(name: str, ignore: tuple[str, ...]) -> bool:
    dotted = name.lstrip(".")
    return any(dotted == path or dotted.startswith((path + ".", path + "[")) for path in ignore)


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    head, _, rest = name.lstrip(".").partition(".")
    if not rest:
        return {key: value for key, value in body.items() if key != head}
    inner = body.get(head)
    return {**body, head: without(inner, rest)} if isinstance(inner, dict) else body


def expected(work: Work) -> dict[str, Any]:
    """What is known of the outputs before anything is made."""
    result = {**work.inputs, "status": UNKNOWN}
    spec = result.get("spec")
    if (work.kind.group, work.kind.kind) == ("", "Service") and isinstance(spec, dict) and "clusterIP" not in spec:
        result["spec"] = {**spec, "clusterIP": UNKNOWN, "clusterIPs": UNKNOWN}
    return result


def hide_volatile(kind: Kind, made: dict[str, Any]) -> dict[str, Any]:
    """Outputs of a dry run without what the real run will decide anew."""
    metadata = {
        key: value
        for key, value in made["metadata"].items()
        if key not in ("uid", "resourceVersion", "creationTimestamp", "generation")
    }
    result = {**made, "metadata": metadata, "status": UNKNOWN}
    if (kind.group, kind.kind) == ("", "Service") and isinstance(made.get("spec"), dict):
        spec = dict(made["spec"])
        if spec.get("clusterIP") not in (None, "None"):
            spec |= {"clusterIP": UNKNOWN, "clusterIPs": UNKNOWN}
        result["spec"] = spec
    return result
