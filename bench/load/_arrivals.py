"""When requests are sent: closed loops, and schedules of arrivals that do not wait for the service."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import stacks


@dataclass(frozen=True, kw_only=True)
class Closed:
    """`users` people, each waiting for the reply and then `think_seconds` before asking again.

    `ramp_seconds`: over which they begin, evenly, so that they do not march in step for ever after. `requests`: a batch of
    so many in all, after which nothing more is sent; None: for ever.
    """

    users: int
    think_seconds: float = 0.0
    ramp_seconds: float = 0.0
    requests: int | None = None

    def part(self, number: int, of: int) -> Closed:
        """The share of one of several workers. Where there are fewer users than workers, some have nothing to do."""
        busy = min(of, self.users)
        if number >= busy:
            return replace(self, users=0, requests=0)
        batch = None if self.requests is None else _share(self.requests, number, busy)
        return replace(self, users=_share(self.users, number, busy), requests=batch)


def _share(whole: int, number: int, of: int) -> int:
    return whole // of + (1 if number < whole % of else 0)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`seconds` long, the rate going from `start` to `end` requests/s in a straight line."""

    seconds: float
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Open:
    """Arrivals that do not wait for replies, at the rate of `stages`, the last of which goes on for `seconds` after all.

    `cv`: coefficient of variation of the gaps: 0 constant, 1 Poisson, above that bursts (gamma-distributed gaps).
    `moments`: seconds at which to send instead (trace replay); rates are then ignored. `seconds`: when it all ends.
    """

    stages: tuple[Stage, ...] = ()
    cv: float = 1.0
    seed: int = 1
    moments: tuple[float, ...] = ()
    seconds: float = math.inf

    @classmethod
    def steady(cls, rate: float, *, cv: float = 1.0, seed: int = 1) -> Open:
        """One rate for ever."""
        return cls(stages=(Stage(seconds=math.inf, start=rate, end=rate),), cv=cv, seed=seed)

    @property
    def rate(self) -> float:
        """The last rate, in requests/s."""
        if self.moments:
            return len(self.moments) / (self.moments[-1] or 1.0)
        return self.stages[-1].end

    def part(self, number: int, of: int) -> Open:
        """The share of one of several workers: an independent stream of 1/of the rate, or each of-th moment."""
        if of == 1:
            return self
        scaled = tuple(Stage(seconds=s.seconds, start=s.start / of, end=s.end / of) for s in self.stages)
        return replace(self, stages=scaled, seed=self.seed * 1009 + number, moments=self.moments[number::of])

    def times(self) -> Iterator[float]:
        """Seconds from the start, rising; endless but for a replay and where `seconds` says when it ends.

        Gaps are drawn for a rate of 1 and mapped through the inverse of the rate's integral (time-rescaling), which
        keeps a Poisson process one while its rate changes.
        """
        if self.moments:
            yield from self.moments
            return
        drawn = random.Random(self.seed)
        shape = 1 / self.cv**2 if self.cv > 0 else 0.0
        total, begun, offset = 0.0, 0.0, 0.0
        stages: Sequence[Stage] = self.stages
        index = 0
        # Constant arrivals of several workers must not coincide either: each begins at its own phase.
        total = drawn.random() if self.cv == 0 else 0.0
        while True:
            if self.cv > 0:
                total += drawn.expovariate(1.0) if self.cv == 1 else drawn.gammavariate(shape, 1 / shape)
            while index < len(stages) - 1 and total - begun > _area(stages[index]):
                begun += _area(stages[index])
                offset += stages[index].seconds
                index += 1
            moment = offset + _inverse(stages[index], total - begun, index == len(stages) - 1)
            if moment > self.seconds:
                return
            yield moment
            if self.cv == 0:
                total += 1.0


def _area(stage: Stage) -> float:
    return (stage.start + stage.end) / 2 * stage.seconds


def _inverse(stage: Stage, area: float, endless: bool) -> float:
    """Seconds into the stage at which `area` arrivals are due."""
    slope = 0.0 if math.isinf(stage.seconds) else (stage.end - stage.start) / stage.seconds
    if endless and area > _area(stage):
        return stage.seconds + (area - _area(stage)) / stage.end
    if abs(slope) < 1e-12:
        return area / stage.start if stage.start > 0 else math.inf
    return (math.sqrt(max(0.0, stage.start**2 + 2 * slope * area)) - stage.start) / slope


Load = Closed | Open


def of_traffic(traffic: stacks.Traffic, seed: int) -> Load:
    """What `stacks.Traffic` says."""
    if traffic.arrival == "closed":
        return Closed(users=traffic.users or 1, think_seconds=traffic.think_seconds)
    return Open.steady(traffic.requests_per_second or 1.0, cv=1.0 if traffic.arrival == "poisson" else 0.0, seed=seed)
