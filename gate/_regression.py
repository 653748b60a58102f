"""Whether a release is worse than the one before it.

Compared is the ratio of the two means (on the logarithm), or for shares of requests (error rate, goodput) their
difference. Two releases are measured at two times, and between two times the environment itself moves: other neighbours,
another temperature, another node. So the error of the comparison has a part that no number of runs makes smaller, and that
part is measured by an A/A calibration: the same release several times (`calibrate`). How far the means of whole sessions lie
apart then is the very error that a comparison of two sessions has, and Student's t with one degree of freedom less than
there were sessions bounds it exactly. (Splitting it into components first and adding them up again, as Welch and
Satterthwaite would have it, fails equal releases up to 8 times in 100 where 5 are permitted.) Where the runs at hand spread
more widely than that, they decide: the wider of the two bounds counts. `docs/gate/error-rates.md` has the rates.

Where the runs of both releases alternate in time (interleaved A/B), each pair saw the same environment: the pairs are
compared, and neither drift nor the difference between two times enters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from typing import Any

import stacks
from bench.results import Result, Run

from ._judge import SHARES, Criterion, Outcome, bounds_of, failing_confidence, passing_confidence, samples_of
from ._statistics import RESOLUTION, grown, logs, mean_and_spread, mean_error, quantile

FEWEST_SESSIONS = 3
_POWER = 0.8
_MOST_RUNS = 100


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Of one metric in one environment, as standard deviations: of factors on the logarithm, of shares in points.

    `within`: of runs in one session; `apart`: of the means of sessions; `between`: what of that the runs do not explain; all
    from `sessions` sessions of about `runs` runs. `naive_alarms`: how often two sessions of the same release differ
    "significantly" when only runs are looked at.
    """

    within: float
    apart: float
    between: float
    sessions: int
    runs: int
    naive_alarms: float

    def variance(self, runs: int) -> float:
        """Of the mean of a session with that many runs: as measured, and more where it has fewer runs than those had."""
        return self.apart**2 + self.within**2 * max(0.0, 1 / runs - 1 / self.runs)

    def floor(self, runs: int, confidence: float) -> float:
        """The smallest worsening, as a share, by which an equal release passes in four of five cases with that many runs.

        Infinite for fewer than two runs.
        """
        if runs < 2:
            return math.inf
        measured = self._reach(2 * self.variance(runs), self.sessions - 1, confidence)
        spread = self._reach(2 * self.within**2 / runs, 2 * (runs - 1), confidence)
        return grown(max(measured, spread))

    def runs_for(self, threshold: float, confidence: float) -> int | None:
        """The fewest runs that resolve that worsening once the calibration has as many; None where no number does."""
        for runs in range(2, _MOST_RUNS + 1):
            apart = self._reach(2 * (self.between**2 + self.within**2 / runs), self.sessions - 1, confidence)
            if grown(apart) <= threshold:
                return runs
        return None

    @staticmethod
    def _reach(square: float, freedom: float, confidence: float) -> float:
        return (quantile(freedom, confidence) + quantile(freedom, _POWER)) * math.sqrt(square)


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
    alarms = 0
    for one, two in permutations(sessions, 2):
        difference, square, freedom = _welch(one, two)
        alarms += difference > quantile(freedom, 0.95) * math.sqrt(square)
    return variance(sessions, floor, alarms / (len(sessions) * (len(sessions) - 1)))


def variance(sessions: Sequence[Sequence[float]], floor: float, naive_alarms: float = 0.0) -> Noise:
    """Variance components of a one-way layout (analysis of variance, unequal numbers of runs allowed)."""
    total = sum(len(runs) for runs in sessions)
    spreads = [mean_and_spread(runs, 0.0) for runs in sessions]
    within = sum((len(runs) - 1) * spread**2 for runs, (_, spread) in zip(sessions, spreads, strict=True))
    within /= total - len(sessions)
    runs_each = total / len(sessions)
    _, apart = mean_and_spread([centre for centre, _ in spreads], 0.0)
    return Noise(
        within=max(math.sqrt(within), floor),
        apart=max(apart, floor / math.sqrt(runs_each)),
        between=math.sqrt(max(0.0, apart**2 - within / runs_each)),
        sessions=len(sessions),
        runs=round(runs_each),
        naive_alarms=naive_alarms,
    )


def _welch(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """ours - theirs, its squared standard error and degrees of freedom (Welch and Satterthwaite)."""
    centre, square, freedom = mean_error(ours, RESOLUTION)
    other, other_square, other_freedom = mean_error(theirs, RESOLUTION)
    total = square + other_square
    return centre - other, total, total**2 / (square**2 / freedom + other_square**2 / other_freedom)


def interleaved(ours: Result, theirs: Result) -> bool:
    """Whether the runs of both alternate in time: of each pair of runs, in order of their start, one is of each."""
    order = sorted([(run.started, 0) for run in ours.runs] + [(run.started, 1) for run in theirs.runs])
    pairs = zip(order[::2], order[1::2], strict=False)
    return len(ours.runs) == len(theirs.runs) > 1 and all(one[1] != two[1] for one, two in pairs)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The worsening against a baseline, as a share of it (shares of requests: in points).

    `keeps`: the bound that has to stay within a limit to pass; `breaks`: the one that has to be beyond it to fail.
    """

    estimate: float
    keeps: float
    breaks: float

    def outcome(self, limit: float) -> Outcome:
        """Whether the worsening is surely within the limit, surely beyond it, or neither."""
        if self.keeps <= limit:
            return "pass"
        return "fail" if self.breaks > limit else "inconclusive"


def regression(
    metric: str,
    limit: float,
    criteria: stacks.Criteria,
    objectives: stacks.Objectives,
    candidate: Result,
    baseline: Result | None,
    calibration: Calibration | None,
) -> Criterion:
    """One line: the worsening of a metric against the baseline (None: nothing was promoted before) within `limit`.

    `objectives`: what else is judged; the error permitted to a failure is divided among all of it.
    """
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
    passing, failing = passing_confidence(criteria), failing_confidence(criteria, objectives)
    try:
        found = _compared(metric, candidate, baseline, None if together else noise, together, passing, failing)
    except ValueError as error:
        return replace(line, why=str(error))
    outcome, how = found.outcome(limit), "pairs of interleaved runs" if together else "against the baseline"
    bound, confidence = (found.breaks, failing) if outcome == "fail" else (found.keeps, passing)
    why = f"{found.estimate:+.1%} {how}"
    return replace(
        line,
        measured=found.estimate,
        bound=bound,
        confidence=confidence,
        outcome=outcome,
        why=f"{why}, {line.why}" if outcome == "inconclusive" else why,
    )


def _compared(
    metric: str, ours: Result, theirs: Result, noise: Noise | None, together: bool, passing: float, failing: float
) -> Comparison:
    sign = 1.0 if stacks.OBJECTIVES[metric][0] == "at most" else -1.0
    mine, yours = ([run for run in result.runs if run.valid] for result in (ours, theirs))
    if together:
        # A pair of which the client spoilt one run says nothing; which runs those are does not depend on what they measured.
        order = [sorted(result.runs, key=lambda run: run.started) for result in (ours, theirs)]
        pairs = [(one, two) for one, two in zip(*order, strict=True) if one.valid and two.valid]
        mine, yours = [one for one, _ in pairs], [two for _, two in pairs]
    if metric in SHARES:
        return _compared_shares(metric, mine, yours, noise, passing, failing, sign)
    values, others = logs(samples_of(metric, mine)), logs(samples_of(metric, yours))
    return compared_factors(values, others, noise, passing, failing, sign=sign, pairs=together)


def compared_factors(
    ours: Sequence[float],
    theirs: Sequence[float],
    noise: Noise | None,
    passing: float,
    failing: float,
    *,
    sign: float = 1.0,
    pairs: bool = False,
) -> Comparison:
    """Of logarithms, one per run; `pairs`: the runs were interleaved. `sign` -1: of what is at least promised."""
    freedom: float
    if pairs:
        apart = [one - two for one, two in zip(ours, theirs, strict=True)]
        centre, square, freedom = mean_error(apart, RESOLUTION)
    else:
        centre, square, freedom = _welch(ours, theirs)
    known = None if noise is None or pairs else noise.variance(len(ours)) + noise.variance(len(theirs))

    def reach(confidence: float) -> float:
        half = quantile(freedom, confidence) * math.sqrt(square)
        if noise is None or known is None:
            return half
        return max(half, quantile(noise.sessions - 1, confidence) * math.sqrt(known))

    # Of what is at least promised, less is worse: a loss of 10 % is a ratio of 0.9.
    return Comparison(
        estimate=sign * grown(centre),
        keeps=sign * grown(centre + sign * reach(passing)),
        breaks=sign * grown(centre - sign * reach(failing)),
    )


def _compared_shares(
    metric: str,
    mine: Sequence[Run],
    yours: Sequence[Run],
    noise: Noise | None,
    passing: float,
    failing: float,
    sign: float,
) -> Comparison:
    """By the bounds of both shares (Newcombe's hybrid, 1998, method 10, with our wider bounds in place of Wilson's)."""

    def reach(confidence: float, upper: bool) -> tuple[float, float]:
        one, two = bounds_of(metric, mine, confidence), bounds_of(metric, yours, confidence)
        if upper:
            found = math.hypot(one.upper - one.mean, two.mean - two.lower)
        else:
            found = math.hypot(one.mean - one.lower, two.upper - two.mean)
        if noise is not None:
            found = max(found, quantile(noise.sessions - 1, confidence) * math.sqrt(2) * noise.apart)
        return sign * (one.mean - two.mean), found

    worse, above = reach(passing, sign > 0)
    _, below = reach(failing, sign < 0)
    return Comparison(estimate=worse, keeps=worse + above, breaks=worse - below)


def check_thresholds(stage: stacks.Stage, calibration: Calibration | None, planned: int | None) -> None:
    """Raises InputError for a regression limit that the environment cannot resolve, with the runs that would resolve it.

    `planned`: runs of one benchmark of the stage before; all looks together count.
    """
    if calibration is None or planned is None:
        return
    criteria, confidence = stage.criteria, passing_confidence(stage.criteria)
    for metric, limit in criteria.max_regression.items():
        noise = calibration.noise.get(metric)
        if noise is None or (floor := noise.floor(planned * criteria.looks, confidence)) <= limit:
            continue
        enough = noise.runs_for(limit, confidence)
        unit = "points" if metric in SHARES else "%"
        raise stacks.InputError(
            where=f"stacks/pipeline.yaml, stage {stage.stack}, max_regression.{metric}",
            got=f"{limit * 100:g} {unit}",
            allowed=f"≥ {floor * 100:.2g} {unit}, the A/A noise floor of {stage.after} with {planned} runs"
            + (f" at each of {criteria.looks} looks" if criteria.looks > 1 else ""),
            fix=f"set benchmark.runs of {stage.after} to {math.ceil(enough / criteria.looks)} and calibrate anew, "
            "or raise the limit"
            if enough
            else f"raise the limit: sessions differ by {noise.between * 100:.2g} {unit} whatever the number of runs",
        )
