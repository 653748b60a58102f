"""Making evidence of a result, and reading a result back out of evidence."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import stacks
from bench.results import Result

from ._envelope import load_keys
from ._judge import Verdict, judge
from ._store import Entry, open_store

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
# test-result v0.1 knows three words; the exact one is in our own part.
_WORDS = {"pass": "PASSED", "fail": "FAILED"}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was recorded. `digest`: of the stored file, the evidence's name everywhere."""

    digest: str
    verdict: str
    entry: Entry


def record(stack: stacks.Stack, result: Result, *, release_digest: str, root: Path, now: datetime) -> Evidence:
    """Judge a result against its own stack's promise, sign it and append it to the stack's store.

    The same result is recorded once. Raises TollgateError when the result is of another release or stack.
    """
    if result.release != release_digest:
        raise stacks.TollgateError(
            f"the benchmark measured release {result.release[:19]}…, but {stack.name} deploys {release_digest[:19]}…"
        )
    if result.stack != stack.name:
        raise stacks.TollgateError(f"the benchmark measured stack {result.stack!r}, not {stack.name!r}")
    stage = stacks.load_pipeline(root).stage(stack.name)
    criteria = stage.criteria if stage is not None else stacks.Criteria()
    planned = stack.benchmark.runs if stack.benchmark is not None else None
    verdict = judge(stack.objectives, criteria, result, planned_runs=planned)
    measured = _without_histograms(result)
    identity = stacks.digest(measured)
    keys = load_keys(root, create=stack.evidence.startswith("file://"))
    # Reloaded, because a key made just now is trusted from here on.
    store = open_store(stack.evidence, root, load_keys(root) if keys.signer else keys)

    def make(previous: str, entries: list[Entry]) -> Mapping[str, Any] | Entry:
        for entry in entries:
            if entry.facts.get("result_digest") == identity:
                return entry
        return _statement(stack, release_digest, verdict, measured, identity, previous, now, root, planned)

    entry = store.append(make)
    return Evidence(digest=entry.digest, verdict=str(entry.facts["verdict"]["outcome"]), entry=entry)


def result_of(entry: Entry) -> Result:
    """The result that evidence carries, validated again. Raises EvidenceBroken via pydantic's ValueError text upstream."""
    return Result.model_validate(entry.facts["result"])


def signed_at(entry: Entry) -> datetime:
    """When the evidence was signed, in UTC."""
    return datetime.fromisoformat(str(entry.facts["signed_at"]))


def _without_histograms(result: Result) -> dict[str, Any]:
    plain = result.model_dump(mode="json")
    for run in plain["runs"]:
        run["histograms"] = {name: {"digest": stacks.digest(sketch)} for name, sketch in run["histograms"].items()}
    return plain


def _statement(
    stack: stacks.Stack,
    release_digest: str,
    verdict: Verdict,
    measured: dict[str, Any],
    identity: str,
    previous: str,
    now: datetime,
    root: Path,
    planned: int | None,
) -> dict[str, Any]:
    by_outcome: dict[str, list[str]] = {"pass": [], "fail": [], "inconclusive": []}
    for line in verdict.criteria:
        by_outcome.setdefault(line.outcome, []).append(line.metric)
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": stack.release.name, "digest": {"sha256": release_digest.removeprefix("sha256:")}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "result": _WORDS.get(verdict.outcome, "WARNED"),
            "configuration": [
                {"name": "traffic", "digest": {"sha256": stacks.digest(measured["traffic"]).removeprefix("sha256:")}}
            ],
            "passedTests": by_outcome["pass"],
            "warnedTests": by_outcome["inconclusive"],
            "failedTests": by_outcome["fail"],
            "tollgate": {
                "stack": stack.name,
                "signed_at": now.astimezone(UTC).isoformat(timespec="seconds"),
                "previous": previous,
                "result_digest": identity,
                "planned_runs": planned,
                "objectives": stack.objectives.model_dump(mode="json", exclude_none=True),
                "verdict": verdict.plain(),
                "result": measured,
                "source": _source(root),
            },
        },
    }


def _source(root: Path) -> dict[str, str | bool]:
    """Commit of the project, and whether files differed from it; empty outside of a repository."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "dirty": bool(changes.strip())}
