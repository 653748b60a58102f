"""How much the service carries: the highest rate that still keeps the promises, by bisection, and the knee before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import stacks

from ..results import Run

# The knee is looked for until its neighbours are within this factor of it.
_KNEE_RATIO = 1.25
_KNEE_RUNS = 6
_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Step:
    """One rate that was tried, in requests/s, and why it does not hold (empty: it holds)."""

    rate: float
    run: Run
    because: str


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """`highest`: the highest rate that held (0: none did); `lowest_refused`: the lowest that did not (inf: all held).

    `knee`: of the rates that held, the one of the greatest power, which is rate over mean latency (Kleinrock, Power and
    deterministic rules of thumb for probabilistic problems in computer communications, ICC 1979): beyond it the wait
    grows faster than the rate. 0 where none held. `interrupted`: someone stopped it; what was found until then is given.
    """

    highest: float
    lowest_refused: float
    knee: float
    steps: tuple[Step, ...]
    interrupted: bool = False


def holds(run: Run, rate: float, objectives: stacks.Objectives | None) -> str:
    """Why this run shows that `rate` is too much, or nothing. Without objectives, only keeping up counts.

    A run in which the latency rises all the time is invalid, and means the same: the service does not keep up. One in
    which the client was the bottleneck means nothing and raises TollgateError (`sweep` has then tried three times).
    """
    if not run.valid:
        if run.invalid_because.startswith("client-bound"):
            raise stacks.TollgateError(f"at {rate:g} requests/s: {run.invalid_because}")
        return run.invalid_because
    served = run.metrics["requests_per_second"]
    # Arrivals at random are never even: what came is known only within three standard errors of a Poisson count.
    chance = 3 / math.sqrt(max(1.0, rate * run.seconds))
    if served < (0.95 - min(0.3, chance)) * rate:
        return f"served {served:.2f} of {rate:.2f} requests/s"
    for name, limit in objectives.items() if objectives is not None else ():
        value = run.metrics.get(name)
        if name == "requests_per_second" or value is None:
            continue
        upper = stacks.OBJECTIVES[name][0] == "at most"
        if (value > limit) if upper else (value < limit):
            return f"{name} {value:.4g}, promised {stacks.OBJECTIVES[name][0]} {limit:g}"
    return ""


def sweep(
    measure: Callable[[float], Run],
    *,
    start: float,
    most: float = 1e6,
    precision: float = 0.05,
    objectives: stacks.Objectives | None = None,
    say: Callable[[Step], None] = lambda _: None,
) -> Sweep:
    """Double the rate from `start` until it does not hold, then halve the gap until it is within `precision`.

    `measure` takes a rate in requests/s and gives a run at it. At most log2(most/start) + log2(1/precision) + 2 runs, and
    six more around the knee.
    """
    low, high = 0.0, float("inf")
    steps: list[Step] = []

    def attempt(tried: float) -> bool:
        nonlocal low, high
        for _ in range(_ATTEMPTS):
            run = measure(tried)
            # Of a machine that was busy with something else for a moment another try may be good.
            if not run.invalid_because.startswith("client-bound"):
                break
        if run.invalid_because.startswith("interrupted"):
            return False
        step = Step(rate=tried, run=run, because=holds(run, tried, objectives))
        steps.append(step)
        say(step)
        if step.because:
            high = min(high, tried)
        else:
            low = max(low, tried)
        return True

    interrupted = False
    rate: float | None = start
    while rate is not None and not interrupted:
        interrupted = not attempt(rate)
        rate = _next(rate, low, high, start, most, precision)
    for _ in range(_KNEE_RUNS):
        between = None if interrupted else _beside_knee(steps)
        if between is None:
            break
        interrupted = not attempt(between)
    return Sweep(highest=low, lowest_refused=high, knee=knee(steps), steps=tuple(steps), interrupted=interrupted)


def _next(rate: float, low: float, high: float, start: float, most: float, precision: float) -> float | None:
    """The rate to try next, or None when the limit is known well enough."""
    if high == float("inf"):
        return None if rate >= most else min(most, rate * 2)
    if low == 0.0:
        return None if rate < start / 64 else rate / 2
    # Bursts may let a higher rate hold where a lower one did not; then the two say the same.
    return None if high - low <= precision * low else (low + high) / 2


def power(run: Run) -> float:
    """Rate over mean latency, per second squared."""
    return run.metrics["requests_per_second"] / max(1e-9, run.metrics["e2e_mean_seconds"])


def knee(steps: Iterable[Step]) -> float:
    """The rate of the greatest power among those that held; 0 where none did."""
    held = [step for step in steps if not step.because]
    return max(held, key=lambda step: power(step.run)).rate if held else 0.0


def _beside_knee(steps: Iterable[Step]) -> float | None:
    """A rate halfway to the farther neighbour of the knee, or None where both are near."""
    held = sorted((step for step in steps if not step.because), key=lambda step: step.rate)
    if len(held) < 2:
        return None
    at = max(range(len(held)), key=lambda index: power(held[index].run))
    gaps = [(held[i + 1].rate / held[i].rate, i) for i in (at - 1, at) if 0 <= i < len(held) - 1]
    ratio, index = max(gaps)
    return math.sqrt(held[index].rate * held[index + 1].rate) if ratio > _KNEE_RATIO else None
