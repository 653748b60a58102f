"""What happened on a stack, from the signed statements alone: what was measured, let in, approved, taken back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import stacks

from ._keys import load_keys
from ._store import Entry, open_store


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of a stack's history. `by`: the name of the key's file; `what`: in words."""

    at: datetime
    kind: str
    release_name: str
    release: str
    what: str
    by: str
    statement: str


def history(stack: str, root: Path) -> list[Event]:
    """Everything that was signed about that stack, oldest first, verified. Raises EvidenceBroken."""
    keys = load_keys(root)
    entries = open_store(stacks.load_stack(stack, root).evidence, root, keys).entries()
    return [_event(entry, keys.names.get(entry.signed_by, "")) for entry in entries if entry.stack == stack]


def _event(entry: Entry, by: str) -> Event:
    facts = entry.facts
    kind = entry.kind
    if kind == "promotion" and facts.get("rollback") is not None:
        kind = "rollback"
    return Event(
        at=entry.signed_at,
        kind=kind,
        release_name=entry.release_name,
        release=entry.release,
        what=_words(entry, kind),
        by=by,
        statement=entry.digest,
    )


def _words(entry: Entry, kind: str) -> str:
    facts = entry.facts
    if kind == "measurement":
        return f"measured: {facts['verdict']['outcome']} in {facts['verdict']['runs']} runs"
    if kind == "promotion":
        given = f", {len(facts['approvals'])} approval(s)" if facts["approvals"] else ""
        return f"entered from {facts['from']} on evidence {facts['evidence'][7:19]}{given}"
    if kind == "rollback":
        return f"returned to it on evidence {facts['evidence'][7:19]}: {facts['rollback']['why']}"
    if kind == "approval":
        scope = ", ".join(facts["criteria"]) or "the promotion"
        return f"{facts['who']} approved {scope} until {facts['expires']}: {facts['why']}"
    return f"noise measured in {facts['sessions']} sessions"
