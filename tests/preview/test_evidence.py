"""Whether the gate would have evidence for a release that is new to a gated stack, as the preview says it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gate
import preview as room
from tollgate.commands import preview as command

DIGEST = "sha256:" + "ab" * 32


def change(digest: str = DIGEST, before: str = "sha256:" + "00" * 32, **gated: Any) -> room.Change:
    gate_facts = {"gated": True, "after": "local-dev", "criteria": None, **gated}

    def shape(one: str) -> room.Shape:
        return room.Shape(stack="local-staging", digest=one, gate=gate_facts)

    return room.Change(stack="local-staging", before=shape(before), after=shape(digest))


def found(given: room.Change, root: Path, *, offline: bool = True) -> room.Evidence | None:
    evidence: room.Evidence | None = command._with_evidence(given, root, offline=offline).evidence
    return evidence


def test_none_is_said_with_where_it_has_to_be_measured(project: Path) -> None:
    evidence = found(change(), project)
    assert evidence is not None
    assert evidence.state == "missing"
    assert (
        evidence.words
        == "none of release abababababab on local-dev: the gate will refuse it until it is measured there"
    )


def test_what_was_measured_is_said_with_its_verdict(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def newest(stack: Any, root: Path, digest: str) -> Any:
        asked.append((stack.name, root, digest))
        at = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
        return SimpleNamespace(facts={"verdict": {"outcome": "pass"}}, signed_at=at, digest="sha256:0123456789abcdef")

    monkeypatch.setattr(gate, "newest", newest)
    evidence = found(change(), project)
    assert evidence is not None
    assert evidence.state == "found"
    assert evidence.words == "release abababababab was measured on local-dev: pass, 2026-11-20 12:00 UTC (0123456789ab)"
    assert asked == [("local-dev", project, DIGEST)]


def test_a_store_that_needs_credentials_is_not_looked_at_offline(project: Path) -> None:
    path = project / "stacks" / "Pulumi.local-dev.yaml"
    path.write_text(path.read_text().replace("config:\n", "config:\n  tollgate:evidence: s3://our-evidence\n", 1))
    evidence = found(change(), project)
    assert evidence is not None
    assert evidence.state == "not looked at"
    assert "s3://our-evidence" in evidence.words


def test_a_store_that_cannot_be_trusted_is_not_called_empty(project: Path) -> None:
    store = project / ".tollgate" / "evidence"
    store.mkdir(parents=True)
    (store / "000001.json").write_text("{}")
    evidence = found(change(), project)
    assert evidence is not None
    assert evidence.state == "not looked at"


def test_nobody_asks_where_the_release_stays_or_nothing_is_gated(project: Path) -> None:
    assert found(change(before=DIGEST), project) is None
    assert found(change(gated=False), project) is None
