"""Whether a release is worse than the one before it.

Compared is the ratio of the two means (on the logarithm), or for shares of requests (error rate, goodput) their
difference. Two releases are measured at two times, and between two times the environment itself moves: other neighbours,
another temperature, another node. So the error of the comparison has a part that no number of runs makes smaller, and that
part is measured by an A/A calibration: the same release several times (`calibrate`). The sum of the three variances is
bounded by Student's t with the degrees of freedom of Welch and Satterthwaite.

Where the runs of both releases alternate in time (interleaved A/B), each pair saw the same environment: the pairs are
compared, and neither drift nor the difference between two times enters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from typing import Any, Literal

import stacks
from bench.results import Result, Run

from ._judge import SHARES, Criterion, bounds_of, failing_confidence, passing_confidence, samples_of
from ._statistics import RESOLUTION, interval, logs, mean_and_spread, mean_error, quantile

FEWEST_SESSIONS = 3
_POWER = 0.8
_MOST_RUNS = 100
Side = Literal["lower", "upper"]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Of one metric in one environment, as standard deviations: of factors on the logarithm, of shares in points.

    `within`: of runs in one session; `between`: of sessions beyond that; from `sessions` sessions of about `runs` runs.
    `naive_alarms`: how often two sessions of the same release differ "significantly" when only runs are looked at.
    """

    within: float
    between: float
    sessions: int
    runs: int
    naive_alarms: float

    def floor(self, runs: int, confidence: float) -> float:
        """The smallest worsening, as a share, by which an equal release passes in four of five cases with that many runs.

        Raises nothing; infinite for fewer than two runs.
        """
        if runs < 2:
            return math.inf
        pieces = [(self.within**2 / runs, runs - 1), (self.within**2 / runs, runs - 1)]
        pieces.append((2 * self.between**2, self.sessions - 1))
        square, freedom = _sum(pieces)
        return math.expm1((quantile(freedom, confidence) + quantile(freedom, _POWER)) * math.sqrt(square))

    def runs_for(self, threshold: float, confidence: float) -> int | None:
        """The fewest runs that resolve that worsening; None where the sessions alone differ too much."""
        return next((runs for runs in range(2, _MOST_RUNS + 1) if self.floor(runs, confidence) <= threshold), None)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What an A/A calibration found, by metric."""

    noise: Mapping[str, Noise]

    def plain(self) -> dict[str, Any]:
        """What is signed."""
        return {metric: asdict(noise) for metric, noise in self.noise.items()}


def calibrate(sessions: Sequence[Result]) -> Calibration:
    """The noise of an environment from several measurements of one release in it.

    Raises InputError for fewer than three sessions, fewer than two runs in one, or sessions that are not of the same.
    """
    usable = [[run for run in session.runs if run.valid] for session in sessions]
    kinds = {(session.release, stacks.digest(session.traffic.model_dump(mode="json"))) for session in sessions}
    if len(sessions) < FEWEST_SESSIONS or len(kinds) > 1 or min(len(runs) for runs in usable) < 2:
        raise stacks.InputError(
            where="calibration",
            got=f"{len(sessions)} session(s) of {len(kinds)} kind(s), with {[len(runs) for runs in usable]} valid runs",
            allowed=f"{FEWEST_SESSIONS} or more sessions of the same release and traffic, two valid runs each or more",
            fix="measure the same release several times, best hours apart",
        )
    noise = {}
    for metric in stacks.OBJECTIVES:
        if all(metric in run.metrics for runs in usable for run in runs) and (
            metric in SHARES or all(run.metrics[metric] > 0 for runs in usable for run in runs)
        ):
            floor = 0.0 if metric in SHARES else RESOLUTION
            noise[metric] = _noise([_values(metric, runs) for runs in usable], floor)
    return Calibration(noise=noise)


def _values(metric: str, runs: Sequence[Run]) -> list[float]:
    samples = samples_of(metric, runs)
    return samples if metric in SHARES else logs(samples)


def _noise(sessions: Sequence[Sequence[float]], floor: float) -> Noise:
    """Variance components of a one-way layout (analysis of variance, unequal numbers of runs allowed)."""
    total = sum(len(runs) for runs in sessions)
    spreads = [mean_and_spread(runs, 0.0) for runs in sessions]
    within = sum((len(runs) - 1) * spread**2 for runs, (_, spread) in zip(sessions, spreads, strict=True))
    within /= total - len(sessions)
    runs_each = total / len(sessions)
    _, apart = mean_and_spread([centre for centre, _ in spreads], 0.0)
    between = max(0.0, apart**2 - within / runs_each)
    alarms = 0
    for one, two in permutations(sessions, 2):
        difference, square, freedom = _difference(one, two, 0.0, 0)
        alarms += difference > quantile(freedom, 0.95) * math.sqrt(square)
    return Noise(
        within=max(math.sqrt(within), floor),
        between=math.sqrt(between),
        sessions=len(sessions),
        runs=round(runs_each),
        naive_alarms=alarms / (len(sessions) * (len(sessions) - 1)),
    )


def _sum(pieces: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Sum of variances and its degrees of freedom (Welch and Satterthwaite); pieces: (variance, degrees of freedom)."""
    square = math.fsum(variance for variance, _ in pieces)
    if square <= 0:
        return 0.0, min(freedom for _, freedom in pieces)
    return square, square**2 / math.fsum(variance**2 / freedom for variance, freedom in pieces if variance > 0)


def _difference(
    ours: Sequence[float], theirs: Sequence[float], between: float, sessions: int
) -> tuple[float, float, float]:
    """ours - theirs, its squared standard error and degrees of freedom, with the variance between sessions."""
    centre, square, freedom = mean_error(ours, RESOLUTION)
    other, other_square, other_freedom = mean_error(theirs, RESOLUTION)
    pieces: list[tuple[float, float]] = [(square, freedom), (other_square, other_freedom)]
    if between > 0:
        pieces.append((2 * between**2, sessions - 1))
    total, degrees = _sum(pieces)
    return centre - other, total, degrees


def interleaved(ours: Result, theirs: Result) -> bool:
    """Whether the runs of both alternate in time: of each pair of runs, in order of their start, one is of each."""
    order = sorted([(run.started, 0) for run in ours.runs] + [(run.started, 1) for run in theirs.runs])
    pairs = zip(order[::2], order[1::2], strict=False)
    return len(ours.runs) == len(theirs.runs) > 1 and all(one[1] != two[1] for one, two in pairs)


def regression(
    metric: str,
    limit: float,
    criteria: stacks.Criteria,
    candidate: Result,
    baseline: Result | None,
    calibration: Calibration | None,
) -> Criterion:
    """One line: the worsening of a metric against the baseline (None: nothing was promoted before) within `limit`."""
    line = Criterion(
        metric=f"regression:{metric}",
        needed=f"≤ {limit * 100:g} {'points' if metric in SHARES else '%'} worse",
        outcome="inconclusive",
        why="the limit lies within the noise; measure more runs",
    )
    if baseline is None:
        return replace(line, outcome="pass", why="no baseline: nothing was promoted into this stack before")
    together = interleaved(candidate, baseline)
    noise = calibration.noise.get(metric) if calibration is not None else None
    if noise is None and not together:
        return replace(line, why="the noise between two times is unknown; run tollgate evidence calibrate")
    passing, failing = (
        passing_confidence(criteria),
        failing_confidence(criteria, len(criteria.max_regression)),
    )
    try:
        estimate, keeps = _worse(metric, candidate, baseline, noise, together, passing, "upper")
        _, breaks = _worse(metric, candidate, baseline, noise, together, failing, "lower")
    except ValueError as error:
        return replace(line, why=str(error))
    line = replace(line, measured=estimate, bound=keeps, confidence=passing)
    how = "pairs of interleaved runs" if together else "against the baseline"
    if keeps <= limit:
        return replace(line, outcome="pass", why=f"{estimate:+.1%} {how}")
    if breaks > limit:
        return replace(line, bound=breaks, confidence=failing, outcome="fail", why=f"{estimate:+.1%} {how}")
    return replace(line, why=f"{estimate:+.1%} {how}, {line.why}")


def _worse(
    metric: str, ours: Result, theirs: Result, noise: Noise | None, together: bool, confidence: float, side: Side
) -> tuple[float, float]:
    """The worsening and its bound on that side, as a share of the baseline (shares of requests: in points)."""
    sign = 1.0 if stacks.OBJECTIVES[metric][0] == "at most" else -1.0
    turn = 1.0 if side == "upper" else -1.0
    mine, yours = ([run for run in result.runs if run.valid] for result in (ours, theirs))
    between, sessions = (0.0, 0) if together or noise is None else (noise.between, noise.sessions)
    if metric in SHARES:
        return _worse_share(metric, mine, yours, between, sessions, confidence, sign, turn)
    values, others = logs(samples_of(metric, mine)), logs(samples_of(metric, yours))
    if together:
        if len(values) != len(others):
            raise ValueError("an interleaved run is unusable, so its pair is too")
        pairs = [one - two for one, two in zip(values, others, strict=True)]
        centre, half = interval(pairs, confidence, RESOLUTION)
    else:
        centre, square, freedom = _difference(values, others, between, sessions)
        half = quantile(freedom, confidence) * math.sqrt(square)
    # Of what is at least promised, less is worse: a loss of 10 % is a ratio of 0.9.
    return sign * math.expm1(centre), sign * math.expm1(centre + sign * turn * half)


def _worse_share(
    metric: str,
    mine: Sequence[Run],
    yours: Sequence[Run],
    between: float,
    sessions: int,
    confidence: float,
    sign: float,
    turn: float,
) -> tuple[float, float]:
    """By the bounds of both shares (Newcombe's hybrid, 1998, method 10, with our wider bounds in place of Wilson's)."""
    one, two = bounds_of(metric, mine, confidence), bounds_of(metric, yours, confidence)
    worse = sign * (one.mean - two.mean)
    if sign * turn > 0:
        reach = math.hypot(one.upper - one.mean, two.mean - two.lower)
    else:
        reach = math.hypot(one.mean - one.lower, two.upper - two.mean)
    if between > 0:
        reach = math.hypot(reach, quantile(sessions - 1, confidence) * math.sqrt(2) * between)
    return worse, worse + turn * reach


def check_thresholds(stage: stacks.Stage, calibration: Calibration | None, runs: int) -> None:
    """Raises InputError for a regression limit that the environment cannot resolve, with the runs that would resolve it."""
    if calibration is None:
        return
    confidence = passing_confidence(stage.criteria)
    for metric, limit in stage.criteria.max_regression.items():
        noise = calibration.noise.get(metric)
        if noise is None or (floor := noise.floor(runs, confidence)) <= limit:
            continue
        enough = noise.runs_for(limit, confidence)
        unit = "points" if metric in SHARES else "%"
        raise stacks.InputError(
            where=f"stacks/pipeline.yaml, stage {stage.stack}, max_regression.{metric}",
            got=f"{limit * 100:g} {unit}",
            allowed=f"≥ {floor * 100:.2g} {unit}, the A/A noise floor of {stage.after} with {runs} runs",
            fix=f"set benchmark.runs of {stage.after} to {enough}, or raise the limit"
            if enough
            else f"raise the limit: sessions differ by {noise.between * 100:.2g} {unit} whatever the number of runs",
        )
