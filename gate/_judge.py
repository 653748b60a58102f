"""From a result to a verdict. Pure: the same numbers give the same answer to whoever recomputes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import stacks
from bench.results import Result, Run

from ._statistics import Bounds, count_bounds, factor_bounds, share_bounds

Outcome = Literal["pass", "fail", "inconclusive", "stale", "mismatch"]
# From worst to best: a verdict is as good as its worst criterion.
_ORDER: tuple[Outcome, ...] = ("mismatch", "stale", "fail", "inconclusive", "pass")
_SHARES = {"goodput"}


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One line of a verdict. `bound`: the one-sided bound that decides, None when there is nothing to bound."""

    metric: str
    needed: str
    measured: float | None
    bound: float | None
    outcome: Outcome
    why: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`outcome` is the worst of the criteria; `confidence` is that of every bound."""

    outcome: Outcome
    confidence: float
    runs: int
    criteria: tuple[Criterion, ...]

    def plain(self) -> dict[str, Any]:
        """What evidence records."""
        return asdict(self)


def judge(
    objectives: stacks.Objectives, criteria: stacks.Criteria, result: Result, *, planned_runs: int | None = None
) -> Verdict:
    """Judge a result against a promise.

    A missing metric, an invalid run, a dropped run (fewer than `planned_runs`) or too few runs never pass.
    """
    lines = [_runs(result, criteria, planned_runs)]
    valid = [run for run in result.runs if run.valid]
    for metric, limit in objectives.items():
        lines.append(_objective(metric, limit, valid, result, criteria.confidence))
    return combine(lines, criteria.confidence, len(valid))


def combine(lines: Sequence[Criterion], confidence: float, runs: int) -> Verdict:
    """The verdict of these criteria."""
    outcome = min((line.outcome for line in lines), key=_ORDER.index)
    return Verdict(outcome=outcome, confidence=confidence, runs=runs, criteria=tuple(lines))


def _runs(result: Result, criteria: stacks.Criteria, planned: int | None) -> Criterion:
    needed = max(criteria.min_runs, planned or 0)
    valid = [run for run in result.runs if run.valid and run.sent > 0]
    invalid = [run.invalid_because or "no request was sent" for run in result.runs if not run.valid or run.sent == 0]
    why = f"{len(invalid)} invalid: {invalid[0]}" if invalid else "all runs are valid"
    if len(result.runs) < needed:
        why = f"{needed - len(result.runs)} run(s) missing" + (f"; {why}" if invalid else "")
    good = len(valid) >= needed and not invalid
    return Criterion(
        metric="runs",
        needed=f"≥ {needed}",
        measured=float(len(valid)),
        bound=None,
        outcome="pass" if good else "inconclusive",
        why=why,
    )


def _objective(metric: str, limit: float, runs: Sequence[Run], result: Result, confidence: float) -> Criterion:
    direction, unit, _ = stacks.OBJECTIVES[metric]
    sign = "≤" if direction == "at most" else "≥"
    needed = f"{sign} {limit:g}{' ' + unit if unit else ''}"
    try:
        bounds = _bounds(metric, runs, result, confidence)
    except ValueError as error:
        return Criterion(
            metric=metric, needed=needed, measured=None, bound=None, outcome="inconclusive", why=str(error)
        )
    holds, breaks, bound = _sides(bounds, limit, direction)
    outcome: Outcome = "pass" if holds else "fail" if breaks else "inconclusive"
    why = {
        "pass": "the whole bound keeps the limit",
        "fail": "the whole bound breaks the limit",
        "inconclusive": "the limit lies within the noise; measure more runs",
    }[outcome]
    return Criterion(metric=metric, needed=needed, measured=bounds.mean, bound=bound, outcome=outcome, why=why)


def _sides(bounds: Bounds, limit: float, direction: str) -> tuple[bool, bool, float]:
    """Whether the limit surely holds, whether it is surely broken, and the bound that says so."""
    if direction == "at most":
        holds, breaks = bounds.upper <= limit, bounds.lower > limit
        return holds, breaks, bounds.lower if breaks else bounds.upper
    holds, breaks = bounds.lower >= limit, bounds.upper < limit
    return holds, breaks, bounds.upper if breaks else bounds.lower


def _bounds(metric: str, runs: Sequence[Run], result: Result, confidence: float) -> Bounds:
    if metric == "error_rate":
        # Requests that were under way when the run ended (`cut`) were neither answered nor refused: they say nothing.
        failed = sum(run.failed for run in runs)
        return count_bounds(failed, failed + sum(run.ok for run in runs), confidence)
    samples = [_sample(metric, run, result) for run in runs]
    missing = sum(sample is None for sample in samples)
    if missing or not samples:
        raise ValueError(f"not measured in {missing or 'any'} run(s)")
    known = [sample for sample in samples if sample is not None]
    return share_bounds(known, confidence) if metric in _SHARES else factor_bounds(known, confidence)


def _sample(metric: str, run: Run, result: Result) -> float | None:
    if metric in run.metrics:
        return run.metrics[metric]
    if metric == "cost_per_million_tokens_usd":
        dollars, tokens = result.environment.get("cost_per_hour_usd"), run.metrics.get("output_tokens_per_second")
        if isinstance(dollars, int | float) and tokens:
            return float(dollars) / (tokens * 3600) * 1e6
    return None
