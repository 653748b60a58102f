"""Letting a release in: the check inside the program, and the promotion that makes it pass."""

from __future__ import annotations

import fcntl
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML

import stacks

from ._envelope import load_keys
from ._errors import EvidenceBroken, GateRefused
from ._evidence import result_of, signed_at
from ._judge import Criterion, Outcome, Verdict, combine, judge
from ._scale import scale
from ._store import Entry, open_store

# What must be the same where evidence was made and where it is used. The simulator's numbers never admit real GPUs.
_MATCHING = ("accelerator", "mig_profile", "machine_type", "simulated")
# Clocks of two machines may differ by this much; evidence from further in the future is refused.
_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class Admission:
    """The gate's yes. `gated` is False for a stack that the pipeline lets in without evidence."""

    gated: bool
    evidence: str | None = None
    verdict: Verdict | None = None


def check(stack: stacks.Stack, *, release_digest: str, root: Path, now: datetime) -> Admission:
    """Whether this stack may deploy this release now. Raises GateRefused with the whole reason."""
    stage = stacks.load_pipeline(root).stage(stack.name)
    if stage is None or stage.after is None:
        return Admission(gated=False)
    how = f"fix: pulumi up -s {stage.after}, then tollgate promote {stage.after} {stack.name}"
    if stack.promotion is None:
        raise GateRefused(
            f"{stack.name} is gated and nothing was promoted into it\n"
            f"  missing: passing evidence of release {stack.release.name} ({release_digest[:19]}…) on {stage.after}\n  {how}"
        )
    if stack.promotion.source != stage.after:
        raise GateRefused(
            f"{stack.name} takes releases from {stage.after}, its promotion record says {stack.promotion.source}\n  {how}"
        )
    if stack.promotion.release != release_digest:
        raise GateRefused(
            f"{stack.name} would deploy another release than was promoted: a file was edited after the promotion\n"
            f"  promoted: {stack.promotion.release}\n  found:    {release_digest}\n  {how}"
        )
    entries = _entries(stack, root)
    entry = next((entry for entry in entries if entry.digest == stack.promotion.evidence), None)
    if entry is None:
        raise GateRefused(
            f"the evidence of the promotion is not in the store of {stack.name}\n"
            f"  missing: {stack.promotion.evidence}\n  {how}"
        )
    newest = _newest(entries, stage.after, release_digest)
    # A later measurement of the same release counts too: a promotion does not outlive a failure.
    for candidate in (entry, newest):
        if candidate is not None:
            verdict = _admit(stack, stage, candidate, release_digest, now)
            if verdict.outcome != "pass":
                raise GateRefused(_refusal(stack, stage.after, candidate, verdict, how))
    return Admission(gated=True, evidence=entry.digest, verdict=verdict)


def promote(source: str, target: str, root: Path, *, release_digest: str, now: datetime) -> tuple[Admission, bool]:
    """Write the source's release and the promotion record into the target's stack file, if the evidence admits it.

    `release_digest` is that of the source's release. Nothing else of the file changes. Gives the admission, and whether the
    file changed (False when it said so already). Raises GateRefused or InputError; the file is then untouched.
    """
    origin, goal = stacks.load_stack(source, root), stacks.load_stack(target, root)
    stage = stacks.load_pipeline(root).stage(target)
    if stage is None or stage.after != source:
        after = stage.after if stage is not None else None
        raise stacks.InputError(
            where="stacks/pipeline.yaml",
            got=f"promotion from {source} into {target}",
            allowed=f"{target} takes releases from {after}" if after else f"{target} is not gated",
            fix=f"tollgate promote {after} {target}"
            if after
            else f"set tollgate:release in its file and run pulumi up -s {target}",
        )
    entries = _entries(origin, root)
    entry = _newest(entries, source, release_digest)
    if entry is None:
        raise GateRefused(
            f"no evidence of release {origin.release.name} ({release_digest[:19]}…) on {source}\n"
            f"  fix: pulumi up -s {source}, which measures it"
        )
    candidate = goal.model_copy(update={"release": origin.release})
    verdict = _admit(candidate, stage, entry, release_digest, now)
    if verdict.outcome != "pass":
        raise GateRefused(
            _refusal(goal, source, entry, verdict, f"fix: improve the release, then pulumi up -s {source}")
        )
    changed = _write(stacks.stack_path(target, root), origin, release_digest, entry.digest, now)
    return Admission(gated=True, evidence=entry.digest, verdict=verdict), changed


def newest(stack: stacks.Stack, root: Path, release_digest: str) -> Entry | None:
    """The newest evidence of this release on this stack, verified, or None."""
    return _newest(_entries(stack, root), stack.name, release_digest)


def _entries(stack: stacks.Stack, root: Path) -> list[Entry]:
    return open_store(stack.evidence, root, load_keys(root)).entries()


def _newest(entries: list[Entry], stack: str, release_digest: str) -> Entry | None:
    wanted = release_digest.removeprefix("sha256:")
    return next(
        (
            entry
            for entry in reversed(entries)
            if entry.facts.get("stack") == stack and entry.statement["subject"][0]["digest"]["sha256"] == wanted
        ),
        None,
    )


def _admit(stack: stacks.Stack, stage: stacks.Stage, entry: Entry, release_digest: str, now: datetime) -> Verdict:
    """Judge evidence anew, from its numbers, by the promise of the stack that wants to use it."""
    try:
        result = result_of(entry)
    except ValidationError as error:
        raise EvidenceBroken(
            f"evidence {entry.digest[:19]}…: its result is not one: {error.errors()[0]['msg']}"
        ) from None
    criteria = stage.criteria
    planned = entry.facts.get("planned_runs")
    verdict = judge(stack.objectives, criteria, result, planned_runs=planned if isinstance(planned, int) else None)
    lines = [
        _subject(entry, release_digest, stage),
        _freshness(entry, criteria, now),
        *_environment(stack, result.environment),
        *verdict.criteria,
        scale(stack, criteria, result),
    ]
    return combine(lines, criteria.confidence, verdict.runs)


def _line(metric: str, needed: str, outcome: Outcome, why: str) -> Criterion:
    return Criterion(metric=metric, needed=needed, measured=None, bound=None, outcome=outcome, why=why)


def _subject(entry: Entry, release_digest: str, stage: stacks.Stage) -> Criterion:
    found = "sha256:" + str(entry.statement["subject"][0]["digest"]["sha256"])
    measured_on = entry.facts.get("stack")
    same = found == release_digest == entry.facts["result"]["release"] and measured_on == stage.after
    why = "this release, measured on the stage before" if same else f"it is of {found[:19]}… on {measured_on}"
    return _line("subject", release_digest[:19] + "…", "pass" if same else "mismatch", why)


def _freshness(entry: Entry, criteria: stacks.Criteria, now: datetime) -> Criterion:
    age = now - signed_at(entry)
    needed = f"≤ {criteria.max_evidence_age_hours:g} h old"
    if age < -_CLOCK_SKEW:
        return _line("age", needed, "stale", "signed in the future: a clock is wrong")
    hours = max(0.0, age.total_seconds() / 3600)
    fresh = hours <= criteria.max_evidence_age_hours
    return _line("age", needed, "pass" if fresh else "stale", f"{hours:.1f} h old")


def _environment(stack: stacks.Stack, measured: dict[str, str | int | float | bool]) -> Iterator[Criterion]:
    wanted: dict[str, str | bool] = {
        "accelerator": stack.release.accelerator.gpu,
        "mig_profile": stack.release.accelerator.mig_profile or "",
        "machine_type": stack.fleet.machine_type,
        "simulated": stack.target == "local",
    }
    for key in _MATCHING:
        same = measured.get(key) == wanted[key]
        shown = "none" if wanted[key] == "" else str(wanted[key])
        yield _line(
            key, shown, "pass" if same else "mismatch", "as measured" if same else f"measured on {measured.get(key)!r}"
        )


def _refusal(stack: stacks.Stack, source: str, entry: Entry, verdict: Verdict, how: str) -> str:
    return (
        f"{stack.name} refuses release {entry.statement['subject'][0]['name']}: {verdict.outcome}\n"
        f"{table(verdict)}\n"
        f"  evidence {entry.digest[:19]}… of {source}, signed {entry.facts['signed_at']}, "
        f"{verdict.runs} runs, one-sided bounds at {verdict.confidence:.0%}\n  {how}"
    )


def table(verdict: Verdict) -> str:
    """The criteria as aligned text: criterion, needed, measured, bound, outcome, why."""
    rows = [("criterion", "needed", "measured", "bound", "outcome", "why")]
    for line in verdict.criteria:
        measured = "" if line.measured is None else f"{line.measured:.4g}"
        bound = "" if line.bound is None else f"{line.bound:.4g}"
        rows.append((line.metric, line.needed, measured, bound, line.outcome, line.why))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]).rstrip()
        for row in rows
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    folder = path.parents[1] / ".tollgate"
    folder.mkdir(exist_ok=True)
    with (folder / "promotion.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, origin: stacks.Stack, release_digest: str, evidence: str, now: datetime) -> bool:
    """Change only the release and the promotion record; comments, order and fleet settings stay as they are."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    with _locked(path):
        document = yaml.load(path.read_text(encoding="utf-8"))
        config = document["config"]
        present = config.get("tollgate:promotion") or {}
        same = (
            config.get("tollgate:release") == origin.release.name
            and present.get("release") == release_digest
            and present.get("evidence") == evidence
        )
        if same:
            return False
        config["tollgate:release"] = origin.release.name
        config["tollgate:promotion"] = {
            "from": origin.name,
            "release": release_digest,
            "evidence": evidence,
            "at": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        text = io.StringIO()
        yaml.dump(document, text)
        temporary = path.with_name(f".{path.name}.writing")
        temporary.write_text(text.getvalue(), encoding="utf-8")
        temporary.replace(path)
    return True
