"""Letting a release into the next stack, and back out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import stacks

from ._admission import Admission, Stores, admit, baseline_of, judged, read_stores, resolvable, used
from ._errors import GateRefused
from ._evidence import writable
from ._judge import Verdict
from ._lines import policy
from ._stackfile import Record, locked, write
from ._statements import Subject, newest, statement
from ._store import Entry


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A promotion that the gate would allow. `baseline`: digest of the evidence of what the target ran before."""

    source: str
    target: stacks.Stack
    criteria: stacks.Criteria
    release_name: str
    release: str
    entry: Entry
    verdict: Verdict
    baseline: str | None
    approvals: tuple[str, ...]
    rollback: Mapping[str, Any] | None = None

    def record(self, now: datetime) -> Record:
        """What the target's file will say."""
        return Record(
            release_name=self.release_name,
            release=self.release,
            source=self.source,
            evidence=self.entry.digest,
            at=now,
        )

    @property
    def admission(self) -> Admission:
        """The gate's yes, as `check` gives it."""
        return Admission(gated=True, evidence=self.entry.digest, verdict=self.verdict, approvals=self.approvals)


def promote(source: str, target: str, root: Path, *, release_digest: str, now: datetime) -> tuple[Admission, bool]:
    """Write the source's release and the promotion record into the target's stack file, if the evidence admits it.

    `release_digest` is that of the source's release. Nothing else of the file changes. The promotion is signed into the
    target's store first, so a record without a statement behind it was written by hand. Gives the admission, and whether
    the file changed (False when it said so already). Raises GateRefused or InputError; the file is then untouched.
    """
    with locked(root):
        decision = decide(source, target, root, release_digest=release_digest, now=now)
        enter(decision, root, now)
        changed = write(stacks.stack_path(target, root), decision.record(now))
    return decision.admission, changed


def decide(source: str, target: str, root: Path, *, release_digest: str, now: datetime) -> Decision:
    """Judge whether the source's release may enter the target. Raises GateRefused or InputError."""
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
    stores = read_stores(goal, stage, root)
    resolvable(stage, stores, root)
    candidate = goal.model_copy(update={"release": origin.release})
    entry, verdict = judged(candidate, stage, stores, origin.release.name, release_digest, now)
    return Decision(
        source=source,
        target=goal,
        criteria=stage.criteria,
        release_name=origin.release.name,
        release=release_digest,
        entry=entry,
        verdict=verdict,
        baseline=baseline_of(goal, stores.own, release_digest),
        approvals=used(stores, goal, release_digest, now),
    )


def enter(decision: Decision, root: Path, now: datetime) -> Entry:
    """Sign the promotion into the target's store; once for the same decision."""
    facts: dict[str, Any] = {
        "from": decision.source,
        "evidence": decision.entry.digest,
        "baseline": decision.baseline,
        "policy": policy(decision.target, decision.criteria),
        "approvals": list(decision.approvals),
        "rollback": dict(decision.rollback) if decision.rollback is not None else None,
    }

    def make(previous: str, entries: list[Entry]) -> Mapping[str, Any] | Entry:
        last = newest(entries, "promotion", decision.target.name)
        same = last is not None and last.release == decision.release
        if last is not None and same and {key: last.facts.get(key) for key in facts} == facts:
            return last
        return statement(
            "promotion",
            stack=decision.target.name,
            subject=Subject(name=decision.release_name, digest=decision.release),
            previous=previous,
            now=now,
            facts=facts,
        )

    return writable(decision.target.evidence, root).append(make, now)


def rollback(
    target: str, root: Path, *, digest_of: Callable[[stacks.Release], str], why: str, now: datetime
) -> tuple[Admission, Decision]:
    """Return the target to the release that it ran before, on the evidence that let it in.

    That evidence may have expired, because a rollback must be possible at any hour; it must still pass by today's promise.
    `digest_of`: of a release, as `values.release_digest`. Raises GateRefused when there is nothing to return to.
    """
    with locked(root):
        goal = stacks.load_stack(target, root)
        stage = stacks.load_pipeline(root).stage(target)
        if stage is None or stage.after is None:
            raise stacks.InputError(
                where="stacks/pipeline.yaml",
                got=f"rollback of {target}",
                allowed="a stack that takes releases from another",
                fix=f"set tollgate:release in its file and run pulumi up -s {target}",
            )
        stores = read_stores(goal, stage, root)
        decision = _earlier(goal, stage, stores, root, digest_of, why, now)
        enter(decision, root, now)
        write(stacks.stack_path(target, root), decision.record(now))
    return decision.admission, decision


def _earlier(
    goal: stacks.Stack,
    stage: stacks.Stage,
    stores: Stores,
    root: Path,
    digest_of: Callable[[stacks.Release], str],
    why: str,
    now: datetime,
) -> Decision:
    current = goal.promotion.release if goal.promotion is not None else None
    reasons = []
    for promotion in reversed(before(stores.own, goal.name, current)):
        name = promotion.release_name
        entry = newest(stores.measured, "measurement", str(stage.after), promotion.release)
        if entry is None:
            reasons.append(f"{name}: its evidence is not in the store")
            continue
        release = _release(name, root)
        if release is None or digest_of(release) != promotion.release:
            measured = next((one for one in stores.measured if one.digest == promotion.facts["evidence"]), entry)
            commit = measured.facts["source"].get("commit")
            hint = f"; restore it: git checkout {commit[:12]} -- stacks/releases/{name}.yaml" if commit else ""
            reasons.append(f"{name}: stacks/releases/{name}.yaml is another release now{hint}")
            continue
        trial = goal.model_copy(update={"release": release, "promotion": None})
        verdict = admit(trial, stage, entry, stores, promotion.release, now, rollback=True)
        if verdict.outcome != "pass":
            reasons.append(f"{name}: {verdict.outcome}, {verdict.reasons[0]}")
            continue
        return Decision(
            source=str(stage.after),
            target=goal,
            criteria=stage.criteria,
            release_name=name,
            release=promotion.release,
            entry=entry,
            verdict=verdict,
            baseline=None,
            approvals=used(stores, goal, promotion.release, now),
            rollback={"why": why, "left": current, "promoted": promotion.digest},
        )
    tried = "".join(f"\n  {reason}" for reason in reasons) or "\n  nothing else was ever promoted into it"
    raise GateRefused(f"{goal.name} has no passing release to return to{tried}")


def before(own: Sequence[Entry], stack: str, current: str | None) -> list[Entry]:
    """The promotions below the one in force, oldest first. A promotion goes on top; a rollback takes off what it left."""
    pile: list[Entry] = []
    for entry in own:
        if entry.kind != "promotion" or entry.stack != stack:
            continue
        if entry.facts.get("rollback") is not None:
            while pile and pile[-1].release != entry.release:
                pile.pop()
        pile = [one for one in pile if one.release != entry.release]
        pile.append(entry)
    return [entry for entry in pile if entry.release != current]


def _release(name: str, root: Path) -> stacks.Release | None:
    try:
        return stacks.load_release(name, root)
    except stacks.InputError:
        return None
