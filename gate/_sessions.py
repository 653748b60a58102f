"""More runs and more sessions: settling an inconclusive verdict, and measuring the noise of an environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import stacks
from bench.results import Result

from ._evidence import result_of, writable
from ._judge import Verdict
from ._keys import load_keys
from ._lines import surroundings
from ._regression import Calibration, calibrate
from ._statements import Subject, newest, statement
from ._store import Entry, open_store


def more_runs(verdict: Verdict, criteria: stacks.Criteria, *, planned_runs: int, looks_used: int) -> int:
    """How many runs to add to an inconclusive result before it is judged again; 0: it is settled, or no look is left.

    Each look adds as many runs as the first one had, so that the number of looks is known beforehand, as the division of
    the permitted error among them needs it.
    """
    if verdict.outcome != "inconclusive" or looks_used >= criteria.looks:
        return 0
    return max(planned_runs, criteria.min_runs)


def pool(results: Sequence[Result]) -> Result:
    """All runs of several results of the same as one. Raises TollgateError where they are not of the same.

    No run can be left out on the way: those that were invalid come along.
    """
    first, *others = results
    for other in others:
        for field in ("release", "stack", "traffic", "replicas", "environment"):
            if getattr(other, field) != getattr(first, field):
                raise stacks.TollgateError(f"results of different {field} cannot be judged as one")
    runs = sorted((run for result in results for run in result.runs), key=lambda run: run.started)
    return first.model_copy(update={"runs": tuple(runs)})


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
            facts={"surroundings": environments[0], "sessions": len(results), "noise": found.plain()},
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
