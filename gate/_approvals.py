"""Overrides and required approvals: signed statements of their own, never an edit.

An approval names who, why, which release may enter which stack, until when, and for which criteria. Without criteria it is
one of the approvals that the pipeline may ask for; with criteria it also lets those through that the release does not meet.
It is shown in every later verdict that it touches, and nothing outside its scope or after its end is let through by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import stacks

from ._evidence import writable
from ._judge import Criterion
from ._statements import Subject, statement
from ._store import Entry

LONGEST = timedelta(days=90)
_PLAIN = ("runs", "age", "soak", "looks", "environment", "engine", "traffic", "goodput limits", "scale")


@dataclass(frozen=True, kw_only=True)
class Approval:
    """`criteria`: those that are let through although not met; empty for a plain approval. `key`: id of the signing key."""

    digest: str
    who: str
    why: str
    criteria: tuple[str, ...]
    expires: datetime
    key: str


def approvable() -> tuple[str, ...]:
    """The criteria that can be overridden. What ties evidence to the release, the store and the promotion cannot."""
    metrics = tuple(stacks.OBJECTIVES)
    return (*_PLAIN, *metrics, *(f"regression:{metric}" for metric in metrics))


def approve(
    stack: stacks.Stack,
    *,
    release_name: str,
    release_digest: str,
    who: str,
    why: str,
    expires: datetime,
    criteria: Sequence[str] = (),
    root: Path,
    now: datetime,
) -> Approval:
    """Sign that this release may enter this stack until `expires` (at most 90 days). Raises InputError for a vague one."""
    unknown = [name for name in criteria if name not in approvable()]
    if unknown:
        raise _wrong("criterion", unknown[0], ", ".join(approvable()), "name criteria as the refusal names them")
    if not who.strip():
        raise _wrong("by", repr(who), "a name", "say who answers for it")
    if len(why.split()) < 2 or len(why) > 500:
        raise _wrong(
            "why", repr(why[:80]), "a sentence of 2 words to 500 characters", "say why, for those who come later"
        )
    for where, text in (("by", who), ("why", why)):
        if not text.isprintable():
            # It is read on terminals and in reports, where a line break or an escape would forge what stands beside it.
            raise _wrong(where, repr(text[:80]), "one line without control characters", "leave them out")
    if not now < expires <= now + LONGEST:
        raise _wrong("expiry", expires.isoformat(), f"after now and within {LONGEST.days} days", "name an earlier end")

    def make(previous: str, entries: list[Entry]) -> Mapping[str, Any]:
        return statement(
            "approval",
            stack=stack.name,
            subject=Subject(name=release_name, digest=release_digest),
            previous=previous,
            now=now,
            facts={
                "who": who,
                "why": why,
                "criteria": sorted(set(criteria)),
                "expires": expires.astimezone(UTC).isoformat(timespec="seconds"),
            },
        )

    return _approval(writable(stack.evidence, root).append(make, now))


def _wrong(where: str, got: str, allowed: str, fix: str) -> stacks.InputError:
    return stacks.InputError(where=f"approval, {where}", got=got, allowed=allowed, fix=fix)


def _approval(entry: Entry) -> Approval:
    return Approval(
        digest=entry.digest,
        who=str(entry.facts["who"]),
        why=str(entry.facts["why"]),
        criteria=tuple(entry.facts["criteria"]),
        expires=datetime.fromisoformat(str(entry.facts["expires"])),
        key=entry.signed_by,
    )


def approvals_for(entries: Sequence[Entry], stack: str, release_digest: str) -> list[Approval]:
    """All approvals of that release for that stack, oldest first; some may have expired."""
    return [
        _approval(entry)
        for entry in entries
        if entry.kind == "approval" and entry.stack == stack and entry.release == release_digest
    ]


def overridden(lines: Sequence[Criterion], approvals: Sequence[Approval], now: datetime) -> list[Criterion]:
    """The lines, with those approved that an override in force covers; one that has expired is named."""
    found: list[Criterion] = []
    for line in lines:
        mine = [approval for approval in approvals if line.metric in approval.criteria]
        if line.outcome == "pass" or not mine:
            found.append(line)
            continue
        last = max(mine, key=lambda approval: approval.expires)
        until = f"{last.expires:%Y-%m-%d %H:%M} UTC"
        if now < last.expires:
            why = f"{line.outcome} ({line.why}), approved by {last.who} until {until}: {last.why}"
            found.append(replace(line, outcome="approved", why=why))
        else:
            found.append(replace(line, why=f"{line.why}; the approval by {last.who} expired {until}"))
    return found


def required(approvals: Sequence[Approval], needed: int, now: datetime) -> Criterion:
    """Whether enough people approved, each with a key of their own."""
    valid = [approval for approval in approvals if now < approval.expires]
    keys = {approval.key for approval in valid}
    names = ", ".join(sorted({approval.who for approval in valid})) or "nobody yet"
    return Criterion(
        metric="approvals",
        needed=f"≥ {needed}",
        measured=float(len(keys)),
        outcome="pass" if len(keys) >= needed else "inconclusive",
        why=f"{names}; each counts once per signing key",
    )
