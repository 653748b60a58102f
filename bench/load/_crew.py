"""Who sends the load: this process, several of this machine, or pods of a cluster, all driven in the same way."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import stacks

from ._arrivals import Load
from ._measure import Watch, watch_of
from ._part import Part, Span, part_of
from ._prompts import Source
from ._raw import RawFile
from ._workers import Agreed, Alone, Orders, Several, Snapshot


class Crew(Protocol):
    """A context manager: entering begins the load, leaving ends it whatever happened. `began`: monotonic seconds of this
    machine at which it began."""

    began: float

    def __enter__(self) -> Crew: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def look(self) -> Snapshot:
        """Let the load run for a quarter of a second and say how far it is."""
        ...

    def stop(self) -> None:
        """End the load."""
        ...

    def measure(self, span: Span, objectives: stacks.Objectives | None) -> tuple[Part, Watch]:
        """What all saw within the window, after `stop`."""
        ...

    def keep(self, raw: RawFile, run: int) -> None:
        """Write the records of all requests, after `stop`."""
        ...


# By number of the run: its load and its prompts, to who sends them.
Crews = Callable[[int, Load, Source], Crew]


class Local:
    """Processes of this machine: this one, or as many as there are orders.

    `agreed`: called when all are ready, gives the monotonic moment at which they begin; None: at once.
    """

    def __init__(self, orders: list[Orders], agreed: Agreed | None = None) -> None:
        self._inner = Alone(orders[0], agreed) if len(orders) == 1 else Several(orders, agreed)
        self.began = 0.0

    def __enter__(self) -> Local:
        self._inner.__enter__()
        self.began = self._inner.began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, trace)

    def look(self) -> Snapshot:
        return self._inner.look()

    def stop(self) -> None:
        self._outcomes = self._inner.stop()
        self._records = self._outcomes[0].records

    def measure(self, span: Span, objectives: stacks.Objectives | None) -> tuple[Part, Watch]:
        watch = watch_of(self._outcomes, span)
        for outcome in self._outcomes[1:]:
            # One table instead of many parts: percentiles are then those of the values themselves.
            self._records.merge(outcome.records)
        self._outcomes = self._outcomes[:1]
        return part_of(self._records, span, objectives), watch

    def keep(self, raw: RawFile, run: int) -> None:
        raw.write(self._records, run, self.began)
