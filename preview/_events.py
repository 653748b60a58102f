"""What would be replaced or deleted, and by which field: from two evaluations, or from what Pulumi itself says.

Two evaluations show what changes, not what a provider makes of it. `replacements.json` says which changes make another resource,
as the providers' own sources do (docs/preview_replacements.py derives it): an entry is that very field or block, and with `.*`
all that is below it, too.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ._model import Model, of_strangers

Resource = Mapping[str, Any]
NODE_POOL = "gcp:container/nodePool:NodePool"

_TABLE = Path(__file__).with_name("replacements.json")
# They hold what cannot be made again, or everything that runs on them.
_STATEFUL = (
    "gcp:container/cluster:Cluster",
    "gcp:compute/address:Address",
    "gcp:compute/disk:Disk",
    "gcp:dns/recordSet:RecordSet",
    "gcp:storage/bucket:Bucket",
    "gcp:sql/",
    "kubernetes:apps/v1:StatefulSet",
    "kubernetes:core/v1:Namespace",
    "kubernetes:core/v1:PersistentVolume",
    "kubernetes:core/v1:Secret",
)
# Named after what they measure, or nodes that a table counts: made and removed as a matter of course.
_PASSING = ("kubernetes:batch/v1:Job", "kubernetes:core/v1:ConfigMap", "kubernetes:core/v1:Node")
_MOST_FIELDS = 4


class Event(Model):
    """A resource that is not merely updated. `fields`: what causes it, as `nodeConfig.guestAccelerators[0].type: a → b`."""

    op: Literal["replace", "delete"]
    type: str
    name: str
    fields: tuple[str, ...] = ()
    stateful: bool = False
    protected: bool = False

    @property
    def kind(self) -> str:
        """The last part of the type, as people call it."""
        return self.type.rpartition(":")[2]

    @property
    def words(self) -> str:
        """One sentence."""
        what = f"{self.kind} {self.name}"
        if self.op == "delete":
            text = f"{what} is deleted"
        elif self.type == NODE_POOL:
            text = f"node pool {self.name} is recreated: all of its nodes go"
        else:
            text = f"{what} is replaced"
        if self.fields:
            text += f" ({'; '.join(self.fields[:_MOST_FIELDS])}{'; …' if len(self.fields) > _MOST_FIELDS else ''})"
        return text + (", it is protected: pulumi up will refuse" if self.protected else "")


@of_strangers
def events(before: Iterable[Resource], after: Iterable[Resource]) -> tuple[Event, ...]:
    """Replacements and deletions between two evaluations, in a stable order; what is passing by nature is left out."""
    old, new = _by_key(before), _by_key(after)
    found = []
    for key, one in old.items():
        if not _counts(one["type"]):
            continue
        other = new.get(key)
        if other is None:
            found.append(_event("delete", one))
            continue
        causes = tuple(
            f"{path}: {_said(was)} → {_said(now)}"
            for path, was, now in differences(one["inputs"], other["inputs"])
            if replaces(one["type"], path, was, now) and not _ignored(path, other.get("ignore") or ())
        )
        if causes:
            found.append(_event("replace", one, causes))
    return tuple(sorted(found, key=lambda event: (event.op, event.type, event.name)))


@of_strangers
def counts(before: Iterable[Resource], after: Iterable[Resource]) -> dict[str, int]:
    """How many resources of a provider would be created, updated and deleted; a replaced one counts as updated."""
    old, new = _by_key(before), _by_key(after)
    changed = [
        key
        for key in old.keys() & new.keys()
        if any(
            not _ignored(path, new[key].get("ignore") or ())
            for path, _, _ in differences(old[key]["inputs"], new[key]["inputs"])
        )
    ]
    found = {"created": new.keys() - old.keys(), "updated": changed, "deleted": old.keys() - new.keys()}
    return {word: number for word, keys in found.items() if (number := sum(_real(key[0]) for key in keys))}


@of_strangers
def stated_counts(steps: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The same from the steps of `pulumi preview --json`."""
    words = {"create": "created", "update": "updated", "replace": "updated", "delete": "deleted"}
    found: dict[str, int] = {}
    for step in steps:
        kind = str((step.get("newState") or step.get("oldState") or {}).get("type"))
        word = words.get(str(step.get("op")))
        if word and _real(kind):
            found[word] = found.get(word, 0) + 1
    return found


def _real(kind: str) -> bool:
    return not kind.startswith(("tollgate:", "pulumi:"))


@of_strangers
def stated(steps: Iterable[Mapping[str, Any]]) -> tuple[Event, ...]:
    """The same from the steps of `pulumi preview --json`."""
    found = []
    for step in steps:
        op, state = step.get("op"), step.get("oldState") or {}
        if op not in ("replace", "delete") or not _counts(str(state.get("type"))):
            continue
        one = {"type": state["type"], "name": str(step["urn"]).rpartition("::")[2], "protect": state.get("protect")}
        detailed = step.get("detailedDiff") or {}
        causes = [path for path, diff in detailed.items() if str(diff.get("kind", "")).endswith("replace")]
        reasons = tuple(dict.fromkeys(causes or step.get("replaceReasons") or ()))
        inputs = (state.get("inputs") or {}), ((step.get("newState") or {}).get("inputs") or {})
        changed = {path: f"{path}: {_said(was)} → {_said(now)}" for path, was, now in differences(*inputs)}
        # Google's provider names the field, Kubernetes' the part of it: say what changes there.
        fields = tuple(
            words for reason in reasons for words in _below(changed, reason) or ([reason] if op == "replace" else [])
        )
        found.append(_event(op, one, fields))
    return tuple(sorted(found, key=lambda event: (event.op, event.type, event.name)))


def _below(changed: Mapping[str, str], reason: str) -> list[str]:
    return [words for path, words in changed.items() if path == reason or path.startswith((f"{reason}.", f"{reason}["))]


def _event(op: Literal["replace", "delete"], one: Resource, fields: tuple[str, ...] = ()) -> Event:
    kind = str(one["type"])
    return Event(
        op=op,
        type=kind,
        name=str(one["name"]),
        fields=fields,
        stateful=kind.startswith(_STATEFUL),
        protected=bool(one.get("protect")),
    )


def _counts(kind: str) -> bool:
    return kind.startswith(("gcp:", "kubernetes:", "aws:", "azure")) and kind not in _PASSING


def _by_key(resources: Iterable[Resource]) -> dict[tuple[str, str, str], Resource]:
    """By type and name; the parent tells apart what a program names twice."""
    found: dict[tuple[str, str, str], Resource] = {}
    for one in resources:
        key = (str(one["type"]), str(one["name"]), "")
        found[key if key not in found else (*key[:2], str(one.get("parent")))] = one
    return found


@functools.cache
def _table() -> Mapping[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = json.loads(_TABLE.read_text(encoding="utf-8"))["resources"]
    return found


def replaces(kind: str, path: str, was: Any, now: Any) -> bool:
    """Whether that change of a field, or of anything in a block that comes or goes, makes another resource."""
    table = _table()
    entries = [table.get(kind, {}), table.get("kubernetes:*", {}) if kind.startswith("kubernetes:") else {}]
    fields = [field for entry in entries for field in entry.get("fields", ())]
    for below in _paths(re.sub(r"\[\d+\]", "", path), was if now is None else now):
        if any(
            below == field or (f"{below}.".startswith(field.removesuffix("*")) and field[-1] == "*") for field in fields
        ):
            return True
    condition = entries[0].get("if", {}).get(path)
    if condition == "less":
        return isinstance(was, int | float) and isinstance(now, int | float) and now < was
    return condition == "off" and was is True and now is not True


def _paths(path: str, value: Any) -> Iterator[str]:
    """The field, and everything in it."""
    yield path
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _paths(f"{path}.{key}", entry)
    if isinstance(value, list):
        for entry in value:
            if isinstance(entry, Mapping):
                yield from _paths(path, entry)


def _ignored(path: str, patterns: Iterable[str]) -> bool:
    plain = re.sub(r"\[\d+\]", "", path)
    return any(plain == pattern or plain.startswith(f"{pattern}.") for pattern in patterns)


def differences(before: Any, after: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(path, before, after) of every leaf that differs; None for what is not there (and for what is not known yet)."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        found = []
        for key in sorted({*before, *after}):
            below = f"{path}.{key}" if path else str(key)
            found += differences(before.get(key), after.get(key), below)
        return found
    if isinstance(before, list) and isinstance(after, list):
        found = []
        for index in range(max(len(before), len(after))):
            pair = [items[index] if index < len(items) else None for items in (before, after)]
            found += differences(pair[0], pair[1], f"{path}[{index}]")
        return found
    return [] if before == after else [(path, before, after)]


def _said(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
