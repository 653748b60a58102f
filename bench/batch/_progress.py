"""What a run is told, what it says once a second, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._forecast import Eta, Prices
from ._model import Counts, State

STOPPED = "stopped by a signal"


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """`tries`: answered failures after which an input is listed as failed. `timeout`: seconds for one answer. `patience`:
    seconds without any answer from anywhere after which the run ends (the batch stays as it is). `stop_after`: so many inputs
    failed in a row pause the batch, 0: never. `grace`: seconds for what is in flight when the run is told to stop.
    `deadline`: epoch seconds; `budget`: dollars."""

    tries: int = 5
    timeout: float = 600.0
    patience: float = 3600.0
    stop_after: int = 100
    grace: float = 20.0
    prices: Prices = field(default_factory=Prices)
    deadline: float | None = None
    budget: float | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Once a second. `spent`, `cost`: dollars so far and projected, nan where unknown. `endpoints`: by URL, what each does.
    `trouble`: what keeps the run from going on, in words. `warnings`: promises that cannot be kept, and what would. `part`: the
    shard that all this is about, where there are several."""

    counts: Counts
    eta: Eta
    busy: float
    spent: float
    cost: float
    endpoints: Mapping[str, Mapping[str, Any]]
    errors: Mapping[str, int]
    trouble: str = ""
    warnings: Sequence[str] = ()
    state: State = "running"
    part: str = ""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a run ended. `state`: of the batch; `reason`: why not all is done; `asked`: requests sent in this run."""

    state: State
    counts: Counts
    reason: str
    asked: int

    @property
    def stopped(self) -> bool:
        """Whether it was told to, and the batch would go on."""
        return self.reason == STOPPED and self.state in ("running", "paused")


def report_of(found: Progress) -> Mapping[str, Any]:
    """For others to read in the database."""
    eta = found.eta
    return {
        "eta": {name: finite(getattr(eta, name)) for name in eta.__dataclass_fields__},
        "spent": finite(found.spent), "cost": finite(found.cost), "endpoints": found.endpoints,
        "errors": found.errors, "trouble": found.trouble, "warnings": list(found.warnings),
    }  # fmt: skip


def finite(value: Any) -> Any:
    """JSON knows no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
