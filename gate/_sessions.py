"""More runs and more sessions: settling an inconclusive verdict, and measuring the noise of an environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import stacks
from bench.results import Result

from ._admission import measured_lines, read_stores
from ._evidence import Measuring, result_of, surroundings, without_histograms, writable
from ._judge import Verdict, judge
from ._keys import load_keys
from ._lines import planned_runs
from ._regression import Calibration, calibrate
from ._statements import Subject, newest, statement
from ._store import Entry, open_store


def to_measure(stack: stacks.Stack, benchmark: str, root: Path, now: datetime) -> Measuring:
    """What a benchmark with that digest has to do now: nothing where valid evidence is there, more where it is inconclusive.

    Evidence is valid for as long as every stage that takes releases from this stack takes it. It gets more runs where its own
    verdict is inconclusive, or where such a stage could not tell yet (above all whether the release is slower than the one
    that it runs), as long as the looks of the pipeline last; each look adds as many runs as the first one had, so that their
    number is known beforehand, as the division of the permitted error among them needs it. Runs that were unusable are not
    added to: they would keep the verdict open for ever; the measurement begins anew, and costs a look all the same.
    """
    pipeline = stacks.load_pipeline(root)
    criteria, consumers = pipeline.home(stack.name), pipeline.consumers(stack.name)
    ages = [stage.criteria.max_evidence_age_hours for stage in consumers]
    since = now - timedelta(hours=min(ages, default=criteria.max_evidence_age_hours))
    entries = [
        entry
        for entry in open_store(stack.evidence, root, load_keys(root)).entries()
        if entry.kind == "measurement" and entry.stack == stack.name and entry.facts.get("benchmark") == benchmark
    ]
    if not entries:
        return Measuring(benchmark=benchmark)
    last = entries[-1]
    again = Measuring(benchmark=benchmark, attempt=int(last.facts["attempt"]) + 1)
    valid = [entry for entry in entries if entry.signed_at > since]
    if not valid:
        return again
    outcomes = [_verdict(stack, criteria, entry) for entry in valid]
    used = sum(outcome.outcome != "pass" for outcome in outcomes)
    wanted = outcomes[-1].outcome == "inconclusive" and used < criteria.looks
    if outcomes[-1].outcome == "pass":
        wanted = any(_cannot_tell(stack, stage, valid, root, now) for stage in consumers)
    if wanted:
        usable = outcomes[-1].criteria[0].measured == len(last.facts["result"]["runs"])
        return replace(again, earlier=(*last.facts["earlier"], last.digest) if usable else ())
    known = replace(again, attempt=again.attempt - 1, earlier=tuple(last.facts["earlier"]))
    return replace(known, known=last.digest, verdict=outcomes[-1].outcome)


def _cannot_tell(stack: stacks.Stack, stage: stacks.Stage, entries: Sequence[Entry], root: Path, now: datetime) -> bool:
    """Whether more runs may settle what these leave open for that stage: nothing fails, something lies within the noise."""
    if stage.criteria.looks == 1:
        return False
    try:
        goal = stacks.load_stack(stage.stack, root).model_copy(update={"release": stack.release})
        stores = read_stores(goal, stage, root)
        judged = [measured_lines(goal, stage, entry, stores, now) for entry in entries]
    except stacks.TollgateError:
        # A stage that cannot be asked now (its store is another's, its file is broken) says so when something is to enter it.
        return False
    used = sum(any(line.outcome not in ("pass", "approved") for line in lines) for lines in judged)
    failed = any(line.outcome == "fail" for line in judged[-1])
    # A line without a bound lacks something that runs do not bring, but for pairs of which the client spoilt too many.
    in_turns = entries[-1].facts.get("against") is not None
    noisy = any(
        line.outcome == "inconclusive"
        and (line.bound is not None or (in_turns and line.metric.startswith("regression:")))
        for line in judged[-1]
    )
    return noisy and not failed and used < stage.criteria.looks


def _verdict(stack: stacks.Stack, criteria: stacks.Criteria, entry: Entry) -> Verdict:
    return judge(stack.objectives, criteria, result_of(entry), planned_runs=planned_runs(entry))


def record_calibration(
    stack: stacks.Stack, sessions: Sequence[Result], *, root: Path, now: datetime
) -> tuple[Calibration, Entry]:
    """Measure the noise of the environment from sessions (default: all of the newest release in the store), and sign it."""
    results = list(sessions) or _stored(stack, root)
    found = calibrate(results)
    environments = [surroundings(result.environment) for result in results]
    if any(one != environments[0] for one in environments):
        raise stacks.InputError(
            where="calibration",
            got=f"sessions in {len({stacks.digest(one) for one in environments})} environments",
            allowed="one environment",
            fix="leave out the sessions of another machine type, GPU or slice",
        )

    def make(previous: str, entries: list[Entry]) -> Mapping[str, Any]:
        return statement(
            "calibration",
            stack=stack.name,
            subject=Subject(name=stack.release.name, digest=results[0].release),
            previous=previous,
            now=now,
            facts={
                "surroundings": environments[0],
                "sessions": len(results),
                "results": [stacks.digest(without_histograms(result)) for result in results],
                "noise": found.plain(),
            },
        )

    return found, writable(stack.evidence, root).append(make, now)


def _stored(stack: stacks.Stack, root: Path) -> list[Result]:
    entries = open_store(stack.evidence, root, load_keys(root)).entries()
    last = newest(entries, "measurement", stack.name)
    if last is None:
        return []
    return [
        result_of(entry)
        for entry in entries
        if entry.kind == "measurement" and entry.stack == stack.name and entry.release == last.release
    ]
