"""How much the service carries: the highest rate that still keeps the promises, by bisection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import stacks

from ..results import Run


@dataclass(frozen=True, kw_only=True)
class Step:
    """One rate that was tried, in requests/s, and why it does not hold (empty: it holds)."""

    rate: float
    run: Run
    because: str


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """`highest`: the highest rate that held (0: none did); `lowest_refused`: the lowest that did not (inf: all held)."""

    highest: float
    lowest_refused: float
    steps: tuple[Step, ...]


def holds(run: Run, rate: float, objectives: stacks.Objectives | None) -> str:
    """Why this run shows that `rate` is too much, or nothing. Without objectives, only keeping up counts.

    A run in which the latency rises all the time is invalid, and means the same: the service does not keep up. One in
    which the client was the bottleneck means nothing and raises TollgateError.
    """
    if not run.valid:
        if run.invalid_because.startswith(("client-bound", "interrupted")):
            raise stacks.TollgateError(f"at {rate:g} requests/s: {run.invalid_because}")
        return run.invalid_because
    served = run.metrics["requests_per_second"]
    if served < 0.95 * rate:
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

    `measure` takes a rate in requests/s and gives a run at it. At most log2(most/start) + log2(1/precision) + 2 runs.
    """
    low, high, rate = 0.0, float("inf"), start
    steps: list[Step] = []
    while True:
        run = measure(rate)
        step = Step(rate=rate, run=run, because=holds(run, rate, objectives))
        steps.append(step)
        say(step)
        if step.because:
            high = rate
        else:
            low = rate
        if high == float("inf"):
            if rate >= most:
                break
            rate = min(most, rate * 2)
        elif low == 0.0:
            if rate < start / 64:
                break
            rate /= 2
        elif high - low <= precision * low:
            break
        else:
            rate = (low + high) / 2
    return Sweep(highest=low, lowest_refused=high, steps=tuple(steps))
