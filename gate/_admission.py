"""The check inside the program: may this stack deploy this release now?

A verdict in evidence is not believed. The numbers are judged anew, by the promise of the stack that wants to use them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stacks
from bench.results import Result

from ._approvals import approvable, approvals_for, overridden, required
from ._errors import GateRefused
from ._evidence import against_of, result_of, surroundings
from ._judge import Criterion, Verdict, combine, judge
from ._keys import load_keys
from ._lines import (
    Case,
    age,
    engine,
    environment,
    looks,
    planned_runs,
    soak,
    subject,
    traffic,
    unchanged_policy,
)
from ._lines import line as plain_line
from ._regression import Calibration, Noise, check_thresholds, regression
from ._scale import scale
from ._statements import newest
from ._store import Entry, location_of, open_store

if TYPE_CHECKING:
    import planner


@dataclass(frozen=True, kw_only=True)
class Admission:
    """The gate's yes. `gated` is False for a stack that the pipeline lets in without evidence.

    `approvals`: digests of those in force for this release on this stack.
    """

    gated: bool
    evidence: str | None = None
    verdict: Verdict | None = None
    approvals: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stores:
    """All statements of the stage before (`measured`) and of the stack itself (`own`); one list where it is one store."""

    measured: Sequence[Entry]
    own: Sequence[Entry]


def read_stores(stack: stacks.Stack, stage: stacks.Stage, root: Path) -> Stores:
    """Read and verify both stores. Raises EvidenceBroken where one cannot be read: closed, not open."""
    keys = load_keys(root)
    own = open_store(stack.evidence, root, keys).entries()
    source = stacks.load_stack(str(stage.after), root).evidence
    if location_of(source) == location_of(stack.evidence):
        return Stores(measured=own, own=own)
    return Stores(measured=open_store(source, root, keys).entries(), own=own)


def check(stack: stacks.Stack, *, release_digest: str, root: Path, now: datetime, candidate: bool = False) -> Admission:
    """Whether this stack may deploy this release now. Raises GateRefused with the whole reason.

    `candidate`: the release is to run beside the one that was promoted, for a part of the requests. It has no promotion yet,
    so it is judged as a promotion of it would be.
    """
    stage = stacks.load_pipeline(root).stage(stack.name)
    if stage is None or stage.after is None:
        return Admission(gated=False)
    how = f"fix: pulumi up -s {stage.after}, then tollgate promote {stage.after} {stack.name}"
    stores = read_stores(stack, stage, root)
    resolvable(stage, stores, root)
    if candidate:
        found, answer = judged(stack, stage, stores, stack.release.name, release_digest, now)
        given = used(stores, stack, release_digest, now)
        return Admission(gated=True, evidence=found.digest, verdict=answer, approvals=given)
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
    entry = next((entry for entry in stores.measured if entry.digest == stack.promotion.evidence), None)
    if entry is None:
        raise GateRefused(
            f"the evidence of the promotion is not in the store of {stage.after}\n"
            f"  missing: {stack.promotion.evidence}\n  {how}"
        )
    promotion = promotion_of(stores.own, stack)
    last = newest(stores.measured, "measurement", stage.after, release_digest)
    # A later measurement of the same release counts too: a promotion does not outlive a failure.
    later = last if last is not None and last.number > entry.number else None
    verdict = None
    for measured in filter(None, (entry, later)):
        verdict = admit(stack, stage, measured, stores, release_digest, now, promotion=promotion)
        if verdict.outcome != "pass":
            raise GateRefused(
                refusal(stack, stage.after, measured, verdict, f"{how}; or back: tollgate rollback {stack.name}")
            )
    assert verdict is not None
    return Admission(
        gated=True, evidence=entry.digest, verdict=verdict, approvals=used(stores, stack, release_digest, now)
    )


def judged(
    goal: stacks.Stack, stage: stacks.Stage, stores: Stores, name: str, release_digest: str, now: datetime
) -> tuple[Entry, Verdict]:
    """The newest evidence of a release that is to enter `goal` (whose `release` it is already), and that it passes.

    Raises GateRefused with the whole reason.
    """
    entry = newest(stores.measured, "measurement", str(stage.after), release_digest)
    if entry is None:
        raise GateRefused(
            f"no evidence of release {name} ({release_digest[:19]}…) on {stage.after}\n"
            f"  fix: pulumi up -s {stage.after}, which measures it"
        )
    trial = goal.model_copy(update={"promotion": None})
    baseline = baseline_of(goal, stores.own, release_digest)
    verdict = admit(trial, stage, entry, stores, release_digest, now, baseline=baseline)
    if verdict.outcome != "pass":
        raise GateRefused(refusal(goal, str(stage.after), entry, verdict, remedy(goal.name, str(stage.after), verdict)))
    return entry, verdict


def baseline_of(goal: stacks.Stack, own: Sequence[Entry], release_digest: str) -> str | None:
    """Evidence of the release that the target runs now; of the one before, where it runs this one already."""
    last = promotion_of(own, goal) or newest(own, "promotion", goal.name)
    if last is None:
        return None
    found = last.facts["evidence"] if last.release != release_digest else last.facts["baseline"]
    return str(found) if found is not None else None


def resolvable(stage: stacks.Stage, stores: Stores, root: Path) -> None:
    """Refuse limits of the pipeline that the environment of the stage before cannot resolve, before anything is judged.

    Raises InputError naming the limit, the noise floor, and the number of runs that would do.
    """
    if not stage.criteria.max_regression:
        return
    source = stacks.load_stack(str(stage.after), root)
    accelerator = source.release.accelerator
    here = {
        "accelerator": accelerator.gpu,
        "mig_profile": accelerator.mig_profile or "",
        "simulated": source.simulated,
        "machine_type": source.fleet.machine_type,
    }
    planned = source.benchmark.runs if source.benchmark is not None else None
    check_thresholds(stage, calibration_of(stores.measured, source.name, here), planned)


def promotion_of(own: Sequence[Entry], stack: stacks.Stack) -> Entry | None:
    """The signed statement behind the promotion record in the stack's file, or None for a record written by hand."""
    record = stack.promotion
    return next(
        (
            entry
            for entry in reversed(own)
            if record is not None
            and entry.kind == "promotion"
            and entry.stack == stack.name
            and entry.release == record.release
            and entry.facts["evidence"] == record.evidence
        ),
        None,
    )


def admit(
    stack: stacks.Stack,
    stage: stacks.Stage,
    entry: Entry,
    stores: Stores,
    release_digest: str,
    now: datetime,
    *,
    promotion: Entry | None = None,
    baseline: str | None = None,
    rollback: bool = False,
) -> Verdict:
    """Judge evidence for a stack.

    A stack with a promotion record is judged for what was promoted, by the signed `promotion` behind that record; one
    without for a promotion, against `baseline` (digest of the evidence of what it ran before), or for a `rollback`, which
    is not asked whether its evidence has expired or how it compares with what it replaces.
    """
    import planner

    plan = planner.plan(stack)
    result = priced(result_of(entry), plan)
    criteria, planned = stage.criteria, planned_runs(entry)
    case = Case(
        stack=stack,
        stage=stage,
        release=release_digest,
        entry=entry,
        result=result,
        measured=stores.measured,
        own=stores.own,
    )
    # What no approval can override stands first.
    fixed = [subject(case)]
    rollback = rollback or (promotion is not None and promotion.facts.get("rollback") is not None)
    if stack.promotion is not None:
        fixed += _promoted(stack, promotion, criteria)
        baseline = promotion.facts.get("baseline") if promotion is not None else None
    objective = judge(stack.objectives, criteria, result, planned_runs=planned)

    def passed(other: Entry) -> bool:
        seen = priced(result_of(other), plan)
        kept = judge(stack.objectives, criteria, seen, planned_runs=planned_runs(other)).outcome == "pass"
        return kept and all(
            line.outcome == "pass" for line in _regressions(replace(case, entry=other, result=seen), baseline)
        )

    lines = [
        age(case, now, expires=not rollback),
        *soak(case, now),
        *([] if rollback else looks(case, now, passed)),
        environment(case),
        engine(case),
        *traffic(case),
        *objective.criteria,
        scale(stack, criteria, result, plan),
        *([] if rollback else _regressions(case, baseline)),
    ]
    given = approvals_for(stores.own, stack.name, release_digest)
    lines = overridden(lines, given, now)
    if criteria.approvals:
        lines.append(required(given, criteria.approvals, now))
    return combine([*fixed, *lines], criteria.confidence, objective.runs)


def measured_lines(
    goal: stacks.Stack, stage: stacks.Stage, entry: Entry, stores: Stores, now: datetime
) -> list[Criterion]:
    """What the numbers alone say of a release that is to enter `goal` (whose `release` it is already).

    Promise, scale and comparison; approved ones as such.
    """
    import planner

    plan = planner.plan(goal)
    result, planned = priced(result_of(entry), plan), planned_runs(entry)
    case = Case(
        stack=goal,
        stage=stage,
        release=entry.release,
        entry=entry,
        result=result,
        measured=stores.measured,
        own=stores.own,
    )
    lines = [
        *judge(goal.objectives, stage.criteria, result, planned_runs=planned).criteria,
        scale(goal, stage.criteria, result, plan),
        *_regressions(case, baseline_of(goal, stores.own, entry.release)),
    ]
    return overridden(lines, approvals_for(stores.own, goal.name, entry.release), now)


def _promoted(stack: stacks.Stack, promotion: Entry | None, criteria: stacks.Criteria) -> list[Criterion]:
    if promotion is None:
        why = "the record in the stack's file has no signed statement behind it: it was written or edited by hand"
        return [plain_line("promotion", "signed", "mismatch", why)]
    return [
        plain_line("promotion", "signed", "pass", f"statement {promotion.digest[7:19]}"),
        unchanged_policy(promotion, stack, criteria),
    ]


def priced(result: Result, plan: planner.Plan) -> Result:
    """The result with the cost of tokens at the price of the fleet that will make them: per replica and hour."""
    hourly = plan.cost_per_hour_max_usd / max(1, plan.replicas_max) * result.replicas
    runs = []
    for run in result.runs:
        metrics = {name: value for name, value in run.metrics.items() if name != "cost_per_million_tokens_usd"}
        if tokens := metrics.get("output_tokens_per_second"):
            metrics["cost_per_million_tokens_usd"] = hourly / (tokens * 3600) * 1e6
        runs.append(run.model_copy(update={"metrics": metrics}))
    return result.model_copy(update={"runs": tuple(runs)})


def _regressions(case: Case, baseline: str | None) -> list[Criterion]:
    criteria = case.stage.criteria
    if not criteria.max_regression:
        return []
    calibration = calibration_of(case.measured, str(case.stage.after), surroundings(case.result.environment))
    before = next((entry for entry in case.measured if entry.digest == baseline), None)
    if baseline is not None and before is None:
        raise GateRefused(f"the baseline of the promotion is not in the store of {case.stage.after}: {baseline}")
    result = result_of(before) if before is not None else None
    # The same release, measured in turns with this one, is the better baseline: both saw the same hour.
    beside = against_of(case.entry)
    if before is not None and beside is not None and beside.release == before.release:
        result = beside
    found = []
    for metric, limit in criteria.max_regression.items():
        other = _incomparable(case.result, result)
        line = regression(
            metric, limit, criteria, case.stack.objectives, case.result, None if other else result, calibration
        )
        found.append(replace(line, outcome="inconclusive", why=other) if other else line)
    return found


def _incomparable(ours: Result, theirs: Result | None) -> str:
    """Why two results cannot be compared; empty where they can."""
    if theirs is None:
        return ""
    wrong = [name for name in ("traffic", "replicas") if getattr(ours, name) != getattr(theirs, name)]
    if surroundings(ours.environment) != surroundings(theirs.environment):
        wrong.append("environment")
    return f"the baseline was measured with other {' and '.join(wrong)}: measure it again" if wrong else ""


def calibration_of(measured: Sequence[Entry], source: str, where: Mapping[str, Any]) -> Calibration | None:
    """The newest calibration of that stage and environment, or None."""
    for entry in reversed(measured):
        if entry.kind == "calibration" and entry.stack == source and entry.facts["surroundings"] == where:
            return Calibration(noise={name: Noise(**noise) for name, noise in entry.facts["noise"].items()})
    return None


def used(stores: Stores, stack: stacks.Stack, release_digest: str, now: datetime) -> tuple[str, ...]:
    """The approvals in force for that release on that stack."""
    given = approvals_for(stores.own, stack.name, release_digest)
    return tuple(approval.digest for approval in given if now < approval.expires)


def assess(stack: stacks.Stack, *, release_digest: str, root: Path, now: datetime) -> tuple[Entry, Verdict]:
    """The newest evidence of this release on this stack, judged by the stack's own promise and criteria.

    Raises GateRefused when there is none.
    """
    entry = newest_evidence(stack, root, release_digest)
    if entry is None:
        raise GateRefused(
            f"no evidence of release {stack.release.name} ({release_digest[:19]}…) on {stack.name}\n"
            f"  fix: pulumi up -s {stack.name}, which measures it"
        )
    criteria = stacks.load_pipeline(root).home(stack.name)
    verdict = judge(stack.objectives, criteria, result_of(entry), planned_runs=planned_runs(entry))
    return entry, verdict


def newest_evidence(stack: stacks.Stack, root: Path, release_digest: str) -> Entry | None:
    """The newest measurement of this release on this stack, verified, or None."""
    entries = open_store(stack.evidence, root, load_keys(root)).entries()
    return newest(entries, "measurement", stack.name, release_digest)


def refusal(stack: stacks.Stack, source: str, entry: Entry, verdict: Verdict, how: str) -> str:
    """The whole answer: what, the table, on which evidence, and what to do."""
    return (
        f"{stack.name} refuses release {entry.release_name}: {verdict.outcome}\n"
        f"{table(verdict)}\n"
        f"  evidence {entry.digest[:19]}… of {source}, signed {entry.facts['signed_at']}, "
        f"{verdict.runs} runs, one-sided bounds over runs\n  {how}"
    )


def remedy(goal: str, source: str, verdict: Verdict) -> str:
    """What to do about a release that may not enter `goal`, in commands."""
    measure = f"pulumi up -s {source}"
    steps: dict[str, str] = {
        "stale": f"{measure}, which measures again",
        "inconclusive": f"{measure}, which adds runs as long as there are looks",
        "mismatch": f"measure it on what it is to run on, then {measure}",
    }
    blamed = [line.metric for line in verdict.criteria if line.outcome not in ("pass", "approved")]
    found = f"fix: {steps.get(verdict.outcome, f'improve the release, then {measure}')}"
    # What ties evidence to the release is never let through.
    if all(name in approvable() for name in blamed):
        found += f"; or tollgate approve {goal} {' '.join(f'--criterion {name}' for name in blamed)} --why …"
    return found


def table(verdict: Verdict) -> str:
    """The criteria as aligned text: criterion, needed, measured, bound, confidence, outcome, why."""
    rows = [("criterion", "needed", "measured", "bound", "at", "outcome", "why")]
    for line in verdict.criteria:
        measured = "" if line.measured is None else f"{line.measured:.4g}"
        bound = "" if line.bound is None else f"{line.bound:.4g}"
        at = "" if line.confidence is None else f"{line.confidence * 100:.4g} %"
        rows.append((line.metric, line.needed, measured, bound, at, line.outcome, line.why))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return "\n".join(
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[6]]).rstrip()
        for row in rows
    )
