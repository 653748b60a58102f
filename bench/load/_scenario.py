"""Arrivals and prompts that `stacks.Traffic` has no words for: as data, so that a Job in a cluster can be told them too."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

import stacks

from ._arrivals import Closed, Load, Open, Stage, of_traffic
from ._prompts import Conversation, SharedPrefix, Source, Synthetic, lengths
from ._replay import Conversations, read_dialogues, read_trace

_STAGE = re.compile(r"(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?@(\d+(?:\.\d+)?)s?")
Count = Annotated[int, Field(ge=1)]


class Scenario(BaseModel):
    """What differs from the plain traffic.

    `burstiness`: coefficient of variation of an open loop's gaps. `stages`: (seconds, first rate, last rate) each, instead
    of one rate. `trace`: a file of moments and lengths, replayed `speed` times as fast, at most `trace_seconds` of it.
    `prompts`: a file of prompts or conversations. `prefix_tokens`: that all prompts of one of `prefix_groups` begin with;
    0: as many as the traffic's prefix has.
    `turns`: of each of the traffic's users' conversations, every one with all that was said before. `requests`: a batch
    instead of an endless closed loop.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    burstiness: Annotated[float, Field(ge=0)] | None = None
    stages: tuple[tuple[float, float, float], ...] = ()
    trace: Path | None = None
    speed: Annotated[float, Field(gt=0)] = 1.0
    trace_seconds: float | None = None
    prompts: Path | None = None
    prefix_tokens: Annotated[int, Field(ge=0)] = 0
    prefix_groups: Count = 1
    turns: Count = 1
    requests: Count | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> Scenario:
        arrivals = {"--burstiness": self.burstiness is not None, "--trace": self.trace, "--requests": self.requests}
        asked = [name for name, given in arrivals.items() if given]
        if self.stages:
            asked = [name for name in asked if name != "--burstiness"] + ["--stages"]
        contents = {
            "--trace": self.trace,
            "--prompts": self.prompts,
            "--shared-prefix": self.prefix_tokens,
            "--turns": self.turns > 1,
        }
        for names in (asked, [name for name, given in contents.items() if given]):
            if len(names) > 1:
                raise stacks.InputError(
                    where=" and ".join(names), got="both", allowed="one of them", fix=f"remove {names[-1]}"
                )
        return self

    def loads(self, traffic: stacks.Traffic, seed: int) -> Callable[[int], Load]:
        """The arrivals, by number of the run. Raises InputError for a trace that cannot be read."""
        cv = self.burstiness if self.burstiness is not None else {"constant": 0.0}.get(traffic.arrival, 1.0)
        if self.trace is not None:
            replayed = read_trace(self.trace).load(speed=self.speed, seconds=self.trace_seconds)
            return lambda _: replayed
        if self.stages:
            stages = tuple(Stage(seconds=seconds, start=start, end=end) for seconds, start, end in self.stages)
            whole = sum(stage.seconds for stage in stages)
            return lambda number: Open(stages=stages, cv=cv, seed=seed + number, seconds=whole)
        if self.burstiness is not None:
            mean = traffic.requests_per_second
            if mean is None:
                raise stacks.InputError(where="--burstiness", got="no rate", allowed="an open loop", fix="add --rate")
            return lambda number: Open.steady(mean, cv=cv, seed=seed + number)
        if self.requests is not None:
            if traffic.arrival != "closed":
                raise stacks.InputError(
                    where="--requests", got="a rate", allowed="a closed loop", fix="use --concurrency instead of --rate"
                )
            batch = Closed(users=traffic.users or 1, think_seconds=traffic.think_seconds, requests=self.requests)
            return lambda _: batch
        return lambda number: of_traffic(traffic, seed + number)

    def sources(self, traffic: stacks.Traffic, seed: int, context_tokens: int | None) -> Callable[[int], Source]:
        """The prompts, by number of the run. Raises InputError for a file that cannot be read."""
        if self.trace is not None:
            replayed = read_trace(self.trace)
            return lambda number: replayed.source(seed + number)
        if self.prompts is not None:
            said = read_dialogues(self.prompts)
            return lambda number: Conversations(said, lengths(traffic.output_tokens, seed + number))
        if self.prefix_tokens or (traffic.prefix is not None and self.turns == 1):
            own = traffic.prefix if not self.prefix_tokens else None
            tokens, rate = (round(own.tokens), own.hit_rate) if own is not None else (self.prefix_tokens, 1.0)
            return lambda number: SharedPrefix(
                traffic, seed + number, prefix_tokens=tokens, groups=self.prefix_groups, hit_rate=rate,
                context_tokens=context_tokens,
            )  # fmt: skip
        if self.turns > 1:
            together = traffic.users or max(1, math.ceil(traffic.requests_per_second or 1.0))
            return lambda number: Conversation(
                traffic, seed + number, turns=self.turns, together=together, context_tokens=context_tokens
            )
        return lambda number: Synthetic(traffic, seed + number, context_tokens)

    @property
    def needs_chat(self) -> bool:
        """Whether the prompts are messages, which plain generation cannot take."""
        return self.prompts is not None or self.turns > 1

    @property
    def files(self) -> tuple[Path, ...]:
        """What has to be there to read."""
        return tuple(path for path in (self.trace, self.prompts) if path is not None)


def stages_of(text: str) -> tuple[tuple[float, float, float], ...]:
    """`0-50@60,50@120`: a ramp from 0 to 50 requests/s over 60 s, then 50 requests/s for 120 s. Raises InputError."""
    stages = []
    for part in text.split(","):
        found = _STAGE.fullmatch(part.strip())
        if found is None or float(found[3]) <= 0 or max(float(found[1]), float(found[2] or found[1])) <= 0:
            raise stacks.InputError(
                where="--stages",
                got=part.strip() or text,
                allowed="RATE@SECONDS (a step) or FROM-TO@SECONDS (a ramp), several with commas between",
                fix="write for example 0-50@60,50@120",
            )
        stages.append((float(found[3]), float(found[1]), float(found[2] or found[1])))
    return tuple(stages)
