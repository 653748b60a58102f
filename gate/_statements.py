"""The four kinds of signed statement, all in-toto Statement v1 with the release as subject.

measurement   what a benchmark measured on a stack, and what its own promise makes of that   (test-result v0.1)
promotion     a release enters a stack on a measurement; a rollback is one, back to an earlier release
approval      somebody answers for a release: as a required approval, or for named criteria that it does not meet
calibration   the noise of an environment
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ._store import Entry

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
MEASUREMENT = "https://in-toto.io/attestation/test-result/v0.1"
_OWN = "https://tollgate.dev/attestation/{kind}/v0.1"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The release that a statement is about, or a part of it. `digest`: `sha256:…`."""

    name: str
    digest: str


def statement(
    kind: str,
    *,
    stack: str,
    subject: Subject,
    previous: str,
    now: datetime,
    facts: Mapping[str, Any],
    outer: Mapping[str, Any] | None = None,
    parts: Sequence[Subject] = (),
) -> dict[str, Any]:
    """A statement; `facts`: our own part of the predicate, `outer`: what the predicate's type itself asks for.

    `parts`: what the release is made of; subjects as well, after the release itself.
    """
    subjects = [subject, *parts]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": one.name, "digest": {"sha256": one.digest.removeprefix("sha256:")}} for one in subjects],
        "predicateType": MEASUREMENT if kind == "measurement" else _OWN.format(kind=kind),
        "predicate": {
            **(outer or {}),
            "tollgate": {
                **facts,
                "kind": kind,
                "stack": stack,
                "signed_at": now.astimezone(UTC).isoformat(timespec="seconds"),
                "previous": previous,
            },
        },
    }


def newest(entries: Sequence[Entry], kind: str, stack: str, release_digest: str | None = None) -> Entry | None:
    """The last statement of that kind about that stack (and release), or None."""
    return next(
        (
            entry
            for entry in reversed(entries)
            if entry.kind == kind and entry.stack == stack and release_digest in (None, entry.release)
        ),
        None,
    )
