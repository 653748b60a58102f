"""How many replicas run: by what they are counted, and how fast. Never promoted, different per stack.

Deliberately not here: how many nodes there are. That is the fleet's; these are replicas on them.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ._base import Model, Positive

# A policy of these is one ScaledObject; docs/autoscaling.md compares them on one trace.
Policy = Literal["queue-and-slots", "queue", "cpu", "simulator"]


class Query(Model):
    """One more thing to scale on: a PromQL `query` that gives one number, and how much of it one replica carries."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
    query: Annotated[str, Field(min_length=1, max_length=2000)]
    per_replica: Positive


class Autoscaling(Model):
    """Replicas between `fleet.nodes.min` and `fleet.nodes.max`, by KEDA.

    `policy`: `queue-and-slots` counts what waits and what runs against the slots; `queue` only what waits; `cpu` is the
    usual share of the requested CPU; `simulator` is for a fleet of simulators, which CPU and added latency size.
    `waiting_per_replica`: queued requests that justify one more replica. `slots_share`: of its slots that a replica shall
    have in use. `replicas_min`, `replicas_max`: within what the nodes carry; 0 needs a gateway, which holds requests for up
    to `hold_seconds` until somebody serves. `cold_start_seconds`: measured, from a pod's creation to Ready; absent: the
    plan's. `cooldown_seconds`: of quiet before replicas are taken away, at least the cold start; absent: twice that,
    at least 300. `polling_seconds`: between KEDA's questions. `failures`: questions without an answer before the number of
    replicas is held. `queries`: to scale on beside the policy. `prometheus`: where KEDA asks, if not where a stack of ours
    has it.
    """

    policy: Policy = "queue-and-slots"
    waiting_per_replica: Annotated[int, Field(ge=1, le=10_000)] = 5
    slots_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    replicas_min: Annotated[int, Field(ge=0, le=5000)] | None = None
    replicas_max: Annotated[int, Field(ge=1, le=5000)] | None = None
    hold_seconds: Annotated[int, Field(ge=1, le=3600)] = 600
    cold_start_seconds: Positive | None = None
    cooldown_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    polling_seconds: Annotated[int, Field(ge=1, le=300)] = 5
    failures: Annotated[int, Field(ge=1, le=100)] = 3
    queries: tuple[Query, ...] = ()
    prometheus: (
        Annotated[str, Field(pattern=r"^http://[a-z0-9.-]+\.[a-z0-9-]+\.svc(\.[a-z0-9.-]+)?:[0-9]+$")] | None
    ) = None

    @model_validator(mode="after")
    def _holds(self) -> Self:
        if self.replicas_min is not None and self.replicas_max is not None and self.replicas_min > self.replicas_max:
            raise ValueError(f"replicas_min ({self.replicas_min}) must not be above replicas_max ({self.replicas_max})")
        cooldown, cold = self.cooldown_seconds, self.cold_start_seconds
        if cooldown is not None and cold is not None and cooldown < cold:
            raise ValueError(
                f"cooldown_seconds ({cooldown}) is below the cold start of {cold:g} s: "
                "a replica would be taken away while it loads"
            )
        names = [query.name for query in self.queries]
        if len(set(names)) < len(names):
            raise ValueError("two queries have one name")
        return self
