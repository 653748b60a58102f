"""How often the gate is wrong: whole gates simulated with the gate's own code, looks included.

`python benchmarks/gate_error_rates.py` prints the table of `docs/gate/error-rates.md` (about two minutes; `--gates 500` for a
glance). Every simulated gate measures its own A/A calibration first, because what that gets wrong is part of the error.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import stacks
from bench.results import Result, Run
from gate._judge import combine, judge
from gate._regression import Calibration, Noise, regression, variance
from gate._statistics import RESOLUTION

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REQUESTS = 400
_TRAFFIC = stacks.Traffic(users=50, prompt_tokens=stacks.Tokens(mean=128), output_tokens=stacks.Tokens(mean=128))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """`within`, `between`: standard deviation of runs and of sessions, as shares. `alike`: correlation of neighbouring runs.
    `turns`: baseline and candidate are measured in turns, in one session. `slower`: the candidate's true latency against the
    baseline's, as a share; its rate is the same, so that one question alone decides. `room`: how far the baseline is from
    its promise, as a share. `error_rate`: true.
    """

    runs: int = 5
    looks: int = 1
    sessions: int = 8
    limit: float = 0.05
    within: float = 0.01
    between: float = 0.005
    alike: float = 0.0
    turns: bool = False
    slower: float = 0.0
    room: float = 0.3
    error_rate: float = 0.001
    confidence: float = 0.95

    @property
    def criteria(self) -> stacks.Criteria:
        """What the simulated edge of the pipeline asks."""
        return stacks.Criteria(
            min_runs=self.runs,
            looks=self.looks,
            confidence=self.confidence,
            max_regression={"e2e_p95_seconds": self.limit, "requests_per_second": self.limit},
        )

    @property
    def objectives(self) -> stacks.Objectives:
        """Of a service with a latency of 1 s and 10 requests per second."""
        return stacks.Objectives(
            e2e_p95_seconds=1 + self.room, requests_per_second=10 / (1 + self.room), error_rate=0.02
        )


def rates(scene: Scene, gates: int, seed: int) -> dict[str, float]:
    """The shares of pass, fail and inconclusive among that many gates."""
    draw = np.random.default_rng(seed)
    counts = Counter(_gate(scene, draw) for _ in range(gates))
    return {outcome: counts[outcome] / gates for outcome in ("pass", "fail", "inconclusive")}


def _gate(scene: Scene, draw: np.random.Generator) -> str:
    criteria, objectives = scene.criteria, scene.objectives
    if scene.turns:
        calibration = None
        both = _session(scene, 2 * scene.runs * scene.looks, draw)
        theirs, ours = both[:, 0::2], both[:, 1::2]
    else:
        calibration = Calibration(noise={metric: _noise(scene, draw) for metric in criteria.max_regression})
        theirs, ours = (_session(scene, runs, draw) for runs in (scene.runs, scene.runs * scene.looks))
    ours = ours + np.array([[math.log1p(scene.slower)], [0.0]])
    ago = timedelta(seconds=30) if scene.turns else timedelta(days=1)
    before = _result(theirs, NOW - ago, scene, draw)
    everything = _result(ours, NOW, scene, draw)
    outcome = "inconclusive"
    for look in range(1, scene.looks + 1):
        candidate = everything.model_copy(update={"runs": everything.runs[: scene.runs * look]})
        baseline = before
        if scene.turns:
            baseline = before.model_copy(update={"runs": before.runs[: scene.runs * look]})
        promise = judge(objectives, criteria, candidate, planned_runs=scene.runs * look)
        lines = [
            regression(metric, limit, criteria, objectives, candidate, baseline, calibration)
            for metric, limit in criteria.max_regression.items()
        ]
        outcome = combine([*promise.criteria, *lines], criteria.confidence, look).outcome
        if outcome != "inconclusive":
            break
    return outcome


def _session(scene: Scene, runs: int, draw: np.random.Generator) -> np.ndarray:
    """Logarithms of latency and rate, one row each; the session's own shift is common to its runs."""
    return _runs(scene, 2, runs, draw) + draw.normal(0, scene.between, (2, 1))


def _runs(scene: Scene, rows: int, runs: int, draw: np.random.Generator) -> np.ndarray:
    found = draw.normal(0, scene.within, (rows, runs))
    fresh = math.sqrt(1 - scene.alike**2)
    for number in range(1, runs if scene.alike else 0):
        found[:, number] = scene.alike * found[:, number - 1] + fresh * found[:, number]
    return found


def _noise(scene: Scene, draw: np.random.Generator) -> Noise:
    found = _runs(scene, scene.sessions, scene.runs, draw) + draw.normal(0, scene.between, (scene.sessions, 1))
    return variance(found.tolist(), RESOLUTION)


def _result(logs: np.ndarray, started: datetime, scene: Scene, draw: np.random.Generator) -> Result:
    failed = draw.binomial(REQUESTS, scene.error_rate, logs.shape[1])
    runs = tuple(
        Run.model_construct(
            started=started + timedelta(minutes=number),
            seconds=60.0,
            sent=REQUESTS,
            ok=REQUESTS - int(bad),
            failed=int(bad),
            cut=0,
            metrics={"e2e_p95_seconds": math.exp(latency), "requests_per_second": 10 * math.exp(rate)},
            valid=True,
            invalid_because="",
        )
        for number, (latency, rate, bad) in enumerate(zip(logs[0], logs[1], failed, strict=True))
    )
    return Result.model_construct(release="", stack="", traffic=_TRAFFIC, replicas=1, runs=runs)


def table(gates: int, seed: int, scenes: Sequence[Scene] = ()) -> str:
    """Markdown: one row per pipeline and environment."""
    head = (
        "| runs | looks | within | between | calibration | equal: failed | equal: passed | at the limit: passed "
        "| at the limit: failed | 10 % slower: passed | 10 % slower: failed |"
    )
    rows = [head, "|" + "---|" * 11]
    for scene in scenes or SCENES:
        equal, edge, slow = (
            rates(replace(scene, slower=slower), gates, seed) for slower in (0.0, scene.limit, 2 * scene.limit)
        )
        shown = [equal["fail"], equal["pass"], edge["pass"], edge["fail"], slow["pass"], slow["fail"]]
        rows.append(
            f"| {scene.runs} | {scene.looks} | {scene.within:.1%}{', alike' if scene.alike else ''} | {scene.between:.1%} | "
            f"{'in turns' if scene.turns else f'{scene.sessions} sessions'} | "
            + " | ".join(f"{share:.2%}" for share in shown)
            + " |"
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return "\n".join(rows)


SCENES = (
    Scene(runs=3),
    Scene(),
    Scene(looks=3),
    Scene(sessions=4),
    Scene(within=0.02),
    Scene(within=0.02, runs=10),
    Scene(within=0.02, runs=10, alike=0.7),
    Scene(between=0.01),
    Scene(between=0.01, sessions=20),
    Scene(between=0.01, sessions=20, looks=3),
    Scene(between=0.03),
    Scene(between=0.03, turns=True),
    Scene(between=0.03, turns=True, looks=3),
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    print(table(given.gates, given.seed))
