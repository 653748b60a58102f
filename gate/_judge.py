"""From a result to a verdict. Pure: the same numbers give the same answer to whoever recomputes it.

A release passes when every promise is kept at the configured confidence. No correction for their number is due there: the
chance that a broken promise passes is that of the one that is broken (intersection-union). It fails when any one of them
is surely broken; there the error is divided among all that can fail, so that a release that keeps everything just so is
called failed no more often than the configuration says. In between it is inconclusive, and more runs settle it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import stacks
from bench.results import Result, Run

from ._statistics import Bounds, factor_bounds, share_bounds

Outcome = Literal["pass", "approved", "fail", "inconclusive", "stale", "mismatch"]
# From worst to best: a verdict is as good as its worst criterion.
_ORDER: tuple[Outcome, ...] = ("mismatch", "stale", "fail", "inconclusive", "approved", "pass")
SHARES = frozenset({"error_rate", "goodput"})


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One line of a verdict.

    `bound`: the one-sided bound that decides, at `confidence`; both None when there is nothing to bound. The outcome
    `approved` marks a line that would refuse, were it not for a signed override.
    """

    metric: str
    needed: str
    measured: float | None = None
    bound: float | None = None
    confidence: float | None = None
    outcome: Outcome
    why: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`outcome`: pass, or the worst of the criteria. `confidence` is the configured one, of the verdict as a whole."""

    outcome: Outcome
    confidence: float
    runs: int
    criteria: tuple[Criterion, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not a plain pass, one sentence for each line that is to blame or was approved."""
        return tuple(f"{line.metric}: {line.why}" for line in self.criteria if line.outcome != "pass")

    @property
    def approved(self) -> list[str]:
        """What only a signed override lets through, one sentence each."""
        return [f"{line.metric}: {line.why}" for line in self.criteria if line.outcome == "approved"]

    def plain(self) -> dict[str, Any]:
        """What evidence records."""
        return asdict(self)


def judge(
    objectives: stacks.Objectives, criteria: stacks.Criteria, result: Result, *, planned_runs: int | None = None
) -> Verdict:
    """Judge a result against a promise.

    A missing metric, an invalid run, a dropped run (fewer than `planned_runs`), too few runs or too few requests in a run
    never pass.
    """
    lines = [runs_line(result, criteria, planned_runs)]
    valid = [run for run in result.runs if run.valid]
    passing, failing = passing_confidence(criteria), failing_confidence(criteria, objectives)
    for metric, limit in objectives.items():
        lines.append(_objective(metric, limit, valid, passing, failing))
    return combine(lines, criteria.confidence, len(valid))


def combine(lines: Sequence[Criterion], confidence: float, runs: int) -> Verdict:
    """The verdict of these criteria."""
    outcome = min((line.outcome for line in lines), key=_ORDER.index)
    outcome = "pass" if outcome == "approved" else outcome
    return Verdict(outcome=outcome, confidence=confidence, runs=runs, criteria=tuple(lines))


def passing_confidence(criteria: stacks.Criteria) -> float:
    """Of the bound that has to keep a limit: the permitted error is divided among the looks."""
    return 1 - (1 - criteria.confidence) / criteria.looks


def failing_confidence(criteria: stacks.Criteria, objectives: stacks.Objectives) -> float:
    """Of the bound that has to break a limit: the permitted error is divided among the looks, and among all that can fail.

    That is every promise, every comparison with the release before, and the scale check.
    """
    questions = len(objectives.items()) + len(criteria.max_regression) + 1
    return 1 - (1 - criteria.confidence) / (criteria.looks * questions)


def runs_line(result: Result, criteria: stacks.Criteria, planned: int | None) -> Criterion:
    """Whether there are enough runs, all of them usable."""
    needed = max(criteria.min_runs, planned or 0)
    unfit = [found for number, run in enumerate(result.runs, 1) if (found := _unfit(run, number, criteria))]
    why = f"{len(unfit)} unusable: {unfit[0]}" if unfit else "all runs are usable"
    if len(result.runs) < needed:
        why = f"{needed - len(result.runs)} run(s) missing" + (f"; {why}" if unfit else "")
    good = len(result.runs) >= needed and not unfit
    return Criterion(
        metric="runs",
        needed=f"≥ {needed}",
        measured=float(len(result.runs) - len(unfit)),
        outcome="pass" if good else "inconclusive",
        why=why,
    )


def _unfit(run: Run, number: int, criteria: stacks.Criteria) -> str:
    answered = run.ok + run.failed
    if not run.valid:
        return run.invalid_because or f"run {number} is marked invalid"
    if answered == 0:
        return f"run {number} answered no request"
    if answered < criteria.min_requests:
        return f"run {number} answered {answered} requests, {criteria.min_requests} are needed; measure for longer"
    return ""


def _objective(metric: str, limit: float, runs: Sequence[Run], passing: float, failing: float) -> Criterion:
    direction, unit, _ = stacks.OBJECTIVES[metric]
    sign = "≤" if direction == "at most" else "≥"
    line = Criterion(
        metric=metric,
        needed=f"{sign} {limit:g}{' ' + unit if unit else ''}",
        outcome="inconclusive",
        why="the limit lies within the noise; measure more runs",
    )
    try:
        if direction == "at least" and runs and all(run.metrics.get(metric) == 0 for run in runs):
            return replace(line, measured=0.0, outcome="fail", why="0 in every run")
        strict, loose = bounds_of(metric, runs, passing), bounds_of(metric, runs, failing)
    except ValueError as error:
        return replace(line, why=str(error))
    keeps, breaks = (strict.upper, loose.lower) if direction == "at most" else (strict.lower, loose.upper)
    line = replace(line, measured=strict.mean, bound=keeps, confidence=passing)
    if keeps <= limit if direction == "at most" else keeps >= limit:
        return replace(line, outcome="pass", why="the whole bound keeps the limit")
    if breaks > limit if direction == "at most" else breaks < limit:
        why = "the whole bound breaks the limit"
        return replace(line, bound=breaks, confidence=failing, outcome="fail", why=why)
    return line


def bounds_of(metric: str, runs: Sequence[Run], confidence: float) -> Bounds:
    """Bounds of one metric over runs. Raises ValueError saying what keeps it from being bounded."""
    if metric in SHARES:
        return share_bounds(counts_of(metric, runs), confidence)
    return factor_bounds(samples_of(metric, runs), confidence)


def samples_of(metric: str, runs: Sequence[Run]) -> list[float]:
    """One value per run. Raises ValueError when any run lacks it: a metric that is missing once is missing."""
    known = [run.metrics[metric] for run in runs if metric in run.metrics]
    if len(known) < len(runs) or not known:
        raise ValueError(f"not measured in {len(runs) - len(known) or 'any'} run(s)")
    return known


def counts_of(metric: str, runs: Sequence[Run]) -> list[tuple[int, int]]:
    """(hits, requests) per run. Requests cut off by the end of the run were neither answered nor refused: they say nothing."""
    if metric == "error_rate":
        return [(run.failed, run.ok + run.failed) for run in runs]
    shares = samples_of(metric, runs)
    return [
        (round(share * (run.ok + run.failed)), run.ok + run.failed) for share, run in zip(shares, runs, strict=True)
    ]
