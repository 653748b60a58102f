"""The criteria of an admission that are not statistics: is it this release, this environment, this traffic, in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import stacks
from bench.results import Result

from ._evidence import ALWAYS, surroundings
from ._judge import Criterion, Outcome
from ._store import CLOCK_SKEW, Entry


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is judged: evidence (`entry`, `result`) of `release` that is to let it into `stack`, by `stage`.

    `measured`: all of the source's store; `own`: all of the stack's store; the same list where it is one store.
    """

    stack: stacks.Stack
    stage: stacks.Stage
    release: str
    entry: Entry
    result: Result
    measured: Sequence[Entry]
    own: Sequence[Entry]


def line(metric: str, needed: str, outcome: Outcome, why: str) -> Criterion:
    """One line without numbers."""
    return Criterion(metric=metric, needed=needed, outcome=outcome, why=why)


def subject(case: Case) -> Criterion:
    """The evidence is of this release, measured on the stage before."""
    found, on = case.entry.release, case.entry.stack
    same = found == case.release == case.result.release and on == case.stage.after and case.entry.kind == "measurement"
    why = "this release, measured on the stage before" if same else f"the evidence is of {found[:19]}… on {on}"
    return line("subject", case.release[:19] + "…", "pass" if same else "mismatch", why)


def age(case: Case, now: datetime, *, expires: bool) -> Criterion:
    """Fresh enough, and no clock runs wrong. `expires=False`: a rollback, to what had its day."""
    hours = case.stage.criteria.max_evidence_age_hours
    needed = f"≤ {hours:g} h old"
    latest = max(entry.signed_at for entry in (*case.measured, *case.own))
    if latest > now + CLOCK_SKEW:
        why = (
            f"the store holds what was signed {latest:%Y-%m-%d %H:%M} UTC, later than this clock says: a clock is wrong"
        )
        return line("age", needed, "stale", why)
    old = max(0.0, (now - case.entry.signed_at).total_seconds() / 3600)
    if not expires:
        return line("age", "any: a rollback", "pass", f"{old:.1f} h old")
    return line("age", needed, "pass" if old <= hours else "stale", f"{old:.1f} h old")


def soak(case: Case, now: datetime) -> Iterator[Criterion]:
    """Long enough since the release first passed on the stage before; nothing where no soak time is asked for."""
    hours = case.stage.criteria.soak_hours
    if hours <= 0:
        return
    passed = [
        entry.signed_at for entry in _of(case) if entry.facts["verdict"]["outcome"] == "pass" and entry.signed_at <= now
    ]
    since = (now - min(passed)).total_seconds() / 3600 if passed else 0.0
    why = f"passed first {since:.1f} h ago"
    if since < hours:
        why += f"; may enter from {now + timedelta(hours=hours - since):%Y-%m-%d %H:%M} UTC"
    yield line("soak", f"≥ {hours:g} h", "pass" if since >= hours else "inconclusive", why)


def _of(case: Case) -> list[Entry]:
    """Measurements of this release on the stage before."""
    return [
        entry
        for entry in case.measured
        if entry.kind == "measurement" and entry.stack == case.stage.after and entry.release == case.release
    ]


def looks(case: Case, now: datetime, passed: Callable[[Entry], bool]) -> Iterator[Criterion]:
    """A release that is measured again and again passes some day by luck: only the planned number of looks counts.

    A look is a measurement in the same environment with the same traffic that has not expired. Those before this one that
    have not `passed` (promise and comparison) used up a look each. Every bound is at 1 - α / looks, so that over all looks
    the error is at most α.
    """
    criteria = case.stage.criteria
    since = now - timedelta(hours=criteria.max_evidence_age_hours)
    failed = 0
    for entry in _of(case):
        if entry.number >= case.entry.number or entry.signed_at < since or not _alike(entry, case.entry):
            continue
        failed += not passed(entry)
    if failed == 0 and criteria.looks == 1:
        return
    enough = failed < criteria.looks
    why = "planned for; each bound is the stricter for it" if criteria.looks > 1 else "measured again until it passed"
    if not enough:
        why += "; raise looks in pipeline.yaml (every bound then becomes stricter), or approve it"
    yield Criterion(
        metric="looks",
        needed=f"≤ {criteria.looks}",
        measured=float(failed + 1),
        outcome="pass" if enough else "inconclusive",
        why=why,
    )


def planned_runs(entry: Entry) -> int | None:
    """How many runs the stack's own file asked for when it was measured."""
    planned = entry.facts.get("planned_runs")
    return planned if isinstance(planned, int) else None


def _alike(one: Entry, two: Entry) -> bool:
    first, second = one.facts["result"], two.facts["result"]
    return bool(
        first["traffic"] == second["traffic"]
        and first["replicas"] == second["replicas"]
        and surroundings(first["environment"]) == surroundings(second["environment"])
    )


def environment(case: Case) -> Criterion:
    """Measured on what it will run on."""
    stack, found = case.stack, case.result.environment
    wanted: dict[str, str | bool] = {
        "accelerator": stack.release.accelerator.gpu,
        "mig_profile": stack.release.accelerator.mig_profile or "",
        "simulated": stack.simulated,
        "machine_type": stack.fleet.machine_type,
        "region": stack.fleet.regions[0],
        "target": stack.target,
    }
    keys = [*ALWAYS, *case.stage.criteria.match]
    wrong = [f"{key} was {found.get(key)!r}, here {wanted[key]!r}" for key in keys if found.get(key) != wanted[key]]
    shown = ", ".join(str(wanted[key]) for key in keys if isinstance(wanted[key], str) and wanted[key])
    return line("environment", shown, "mismatch" if wrong else "pass", "; ".join(wrong) or "as measured")


def engine(case: Case) -> Criterion:
    """What answered the benchmark says of itself that it is what the release says."""
    release = case.stack.release
    wanted: dict[str, str | int] = {"engine": release.engine}
    if not case.result.environment.get("simulated"):
        wanted["version"] = release.version
    if release.parallelism.slots != "auto":
        wanted["slots"] = release.parallelism.slots
    found = case.result.server
    wrong = [
        f"{key} was {found[key]!r}, the release says {value!r}"
        for key, value in wanted.items()
        if key in found and str(found[key]).lstrip("v") != str(value)
    ]
    why = "as the server said" if "engine" in found else "the server said nothing of itself"
    shown = f"{release.engine} {release.version}"
    return line("engine", shown, "mismatch" if wrong else "pass", "; ".join(wrong) or why)


def traffic(case: Case) -> Iterator[Criterion]:
    """Measured with requests like those to come. How many there are is the scale check's question."""
    ours, theirs = case.stack.traffic, case.result.traffic
    shown = f"{ours.arrival}, {ours.prompt_tokens.mean:g} + {ours.output_tokens.mean:g} tokens"
    wrong = [
        f"{key} was {_plain(getattr(theirs, key))}, here {_plain(getattr(ours, key))}"
        for key in ("arrival", "prompt_tokens", "output_tokens", "prefix")
        if getattr(theirs, key) != getattr(ours, key)
    ]
    yield line("traffic", shown, "mismatch" if wrong else "pass", "; ".join(wrong) or "as measured")
    if case.stack.objectives.goodput is not None:
        # Goodput was counted against the limits of the stack that measured.
        limits = ("ttft_p95_seconds", "itl_p95_seconds", "e2e_p95_seconds")
        here = {key: getattr(case.stack.objectives, key) for key in limits}
        there = {key: case.entry.facts["objectives"].get(key) for key in limits}
        same = here == there
        why = "as measured" if same else f"goodput was counted against {there}"
        yield line("goodput limits", "the same", "pass" if same else "mismatch", why)


def _plain(value: object) -> str:
    return f"{value.mean:g} (cv {value.cv:g})" if isinstance(value, stacks.Tokens) else str(value)


def policy(stack: stacks.Stack, criteria: stacks.Criteria) -> dict[str, Any]:
    """What a promotion was judged by: promises and criteria."""
    return {
        "objectives": stack.objectives.model_dump(mode="json", exclude_none=True),
        "criteria": criteria.model_dump(mode="json"),
    }


def unchanged_policy(promotion: Entry, stack: stacks.Stack, criteria: stacks.Criteria) -> Criterion:
    """Promise and criteria are still those of the promotion: one that was deleted or changed since calls for a new one."""
    then, now = promotion.facts["policy"], policy(stack, criteria)
    wrong = []
    for part in ("objectives", "criteria"):
        for key in sorted({*then[part], *now[part]}):
            if then[part].get(key) != now[part].get(key):
                gone = "deleted" if key not in now[part] else f"{then[part].get(key)} then, {now[part].get(key)} now"
                wrong.append(f"{key}: {gone}")
    why = f"changed since the promotion ({'; '.join(wrong)}); promote again"
    return line("policy", "as promoted", "mismatch" if wrong else "pass", why if wrong else "unchanged")
