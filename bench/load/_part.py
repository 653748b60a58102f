"""What one process or one pod saw within a window. Parts add up: the sum of all is what one process would have seen.

Everything in a part is a count, a sum or a histogram, so that merging is exact in any order; only `exact`, the values
themselves, stays on the machine on which they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stacks

from ._histogram import Histogram
from ._recorder import CUT, EMPTY, OK, Records

Floats = NDArray[np.float64]
_STEPS, _EARLY = 120, 20
_COUNTS = (
    "ok", "failed", "cut", "busy_seconds", "tokens_out", "tokens_in", "told_in", "cached", "cached_of", "queued_ns",
    "queued_of", "kept", "empty", "warm_ok", "warm_failed",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Span:
    """`start`, `end`: of the window, in seconds since `began`, the common start of the load; `began` by this machine's
    monotonic clock. The pictures over time begin at 0."""

    began: float
    start: float
    end: float

    @property
    def edges(self) -> Floats:
        """Of the steps over time: at most 120, of at least a second, in seconds since `began`."""
        return np.linspace(0.0, self.end, max(1, min(_STEPS, int(self.end))) + 1)


@dataclass(kw_only=True)
class Part:
    """`counts` by the names of `_COUNTS`; `kinds`: of all errors, `errors`: those within the window.

    `steps`: per step of time, how many ended well and badly, and the seconds that requests spent in flight;
    `step_e2e`, `step_ttft`: their latencies. `early`: when the first twenty good answers came, in seconds since the start.
    """

    counts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0.0))
    errors: dict[str, int] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    families: dict[str, Histogram] = field(default_factory=dict)
    steps: Floats = field(default_factory=lambda: np.zeros((3, 0)))
    step_e2e: list[Histogram] = field(default_factory=list)
    step_ttft: list[Histogram] = field(default_factory=list)
    early: tuple[float, ...] = ()
    exact: dict[str, NDArray[Any]] | None = field(default=None, repr=False)

    def merge(self, other: Part) -> None:
        """Add another process's part of the same window."""
        for name in _COUNTS:
            self.counts[name] += other.counts[name]
        for kind, count in other.errors.items():
            self.errors[kind] = self.errors.get(kind, 0) + count
        self.kinds = tuple(dict.fromkeys((*self.kinds, *other.kinds)))
        for name, histogram in other.families.items():
            self.families.setdefault(name, Histogram()).merge(histogram)
        self.steps = self.steps + other.steps
        for mine, theirs in ((self.step_e2e, other.step_e2e), (self.step_ttft, other.step_ttft)):
            for one, two in zip(mine, theirs, strict=True):
                one.merge(two)
        self.early = tuple(sorted((*self.early, *other.early))[:_EARLY])
        self.exact = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without `exact`."""
        return {
            "counts": self.counts,
            "errors": self.errors,
            "kinds": list(self.kinds),
            "families": {name: histogram.to_dict() for name, histogram in self.families.items()},
            "steps": self.steps.tolist(),
            "step_e2e": [histogram.to_dict() for histogram in self.step_e2e],
            "step_ttft": [histogram.to_dict() for histogram in self.step_ttft],
            "early": list(self.early),
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Part:
        """The inverse of `to_dict`."""
        return cls(
            counts={name: float(given["counts"][name]) for name in _COUNTS},
            errors=dict(given["errors"]),
            kinds=tuple(given["kinds"]),
            families={name: Histogram.from_dict(each) for name, each in given["families"].items()},
            steps=np.array(given["steps"], dtype=np.float64),
            step_e2e=[Histogram.from_dict(each) for each in given["step_e2e"]],
            step_ttft=[Histogram.from_dict(each) for each in given["step_ttft"]],
            early=tuple(given["early"]),
        )


def part_of(records: Records, span: Span, objectives: stacks.Objectives | None) -> Part:
    """One process's part: what ended within [start, end), and what was in flight when it closed.

    In a steady state the requests that end in a window are a fair sample of all, however long each takes; those that
    begin in it would be one only if the load went on until the last of them had its answer.
    """
    table = records.table()
    start, end = span.began + span.start, span.began + span.end
    inside = (table["end"] >= start) & (table["end"] < end) & (table["status"] != CUT)
    ended = table[inside]
    good = ended[ended["status"] == OK]
    before = table[(table["end"] < start) & (table["status"] != CUT)]
    told, cached = good[good["tokens_in"] >= 0], good[good["cached"] >= 0]
    queued = good["queued"][~np.isnan(good["queued"])].astype(np.float64)
    spent = np.minimum(table["end"], end) - np.maximum(table["sent"], start)
    part = Part(kinds=tuple(records.kinds), exact={})
    part.counts = {
        "ok": float(len(good)),
        "failed": float(len(ended) - len(good)),
        "cut": float(((table["sent"] < end) & ((table["status"] == CUT) | (table["end"] >= end))).sum()),
        "busy_seconds": float(np.maximum(spent, 0.0).sum()),
        "tokens_out": float(good["tokens_out"].sum(dtype=np.int64)),
        "tokens_in": float(told["tokens_in"].sum(dtype=np.int64)),
        "told_in": float(len(told)),
        "cached": float(cached["cached"].sum(dtype=np.int64)),
        "cached_of": float(cached["tokens_in"].sum(dtype=np.int64)),
        "queued_ns": float(np.rint(queued * 1e9).sum()),
        "queued_of": float(len(queued)),
        "kept": float(_kept(good, objectives).sum()),
        "empty": float((good["frames"] == EMPTY).sum()),
        "warm_ok": float((before["status"] == OK).sum()),
        "warm_failed": float((before["status"] != OK).sum()),
    }
    numbers, counts = np.unique(ended["status"][ended["status"] > 0], return_counts=True)
    part.errors = {records.kinds[int(n) - 1]: int(c) for n, c in zip(numbers, counts, strict=True)}
    _families(part, records, table, inside, good)
    warm = before[before["status"] == OK]
    part.families["warm_e2e_seconds"] = Histogram.of(warm["end"] - warm["scheduled"])
    _over_time(part, table, span)
    early = np.sort(table["end"][table["status"] == OK])[:_EARLY] - span.began
    part.early = tuple(float(moment) for moment in early)
    return part


def _families(part: Part, records: Records, table: NDArray[Any], inside: NDArray[Any], good: NDArray[Any]) -> None:
    def keep(name: str, values: NDArray[Any], zeros: int = 0) -> None:
        if len(values) + zeros:
            part.families[name] = Histogram.of(values, zeros)
            if part.exact is not None:
                whole = np.concatenate([values.astype(np.float64), np.zeros(zeros)]) if zeros else values
                part.exact[name] = whole

    keep("e2e_seconds", good["end"] - good["scheduled"])
    streamed = good[good["first"] > 0]
    keep("ttft_seconds", streamed["first"] - streamed["scheduled"])
    wanted = inside & (table["status"] == OK)
    owner = np.repeat(wanted, table["gaps"])
    gaps = np.frombuffer(records.gaps, dtype=np.float32)[owner]
    keep("itl_seconds", gaps, int(table["together"][wanted].sum()))
    several = streamed[streamed["frames"] > 1]
    keep("itl_request_seconds", (several["last"] - several["first"]) / (several["frames"] - 1))
    several = streamed[streamed["tokens_out"] > 1]
    keep("tpot_seconds", (several["last"] - several["first"]) / (several["tokens_out"] - 1))
    keep("queue_seconds", good["queued"][~np.isnan(good["queued"])].astype(np.float64))


def _kept(good: NDArray[Any], objectives: stacks.Objectives | None) -> NDArray[np.bool_]:
    """Which of the good requests each kept every latency that is promised.

    The limit promised for a p95 is what a request is held to; for the inter-token latency, its own mean gap is.
    """
    kept = np.ones(len(good), dtype=bool)
    if objectives is None:
        return kept
    if objectives.e2e_p95_seconds is not None:
        kept &= good["end"] - good["scheduled"] <= objectives.e2e_p95_seconds
    if objectives.ttft_p95_seconds is not None:
        kept &= (good["first"] > 0) & (good["first"] - good["scheduled"] <= objectives.ttft_p95_seconds)
    if objectives.itl_p95_seconds is not None:
        gaps = np.maximum(1, good["frames"] - 1)
        kept &= (good["first"] > 0) & ((good["last"] - good["first"]) / gaps <= objectives.itl_p95_seconds)
    return kept


def _over_time(part: Part, table: NDArray[Any], span: Span) -> None:
    edges = span.edges
    count = len(edges) - 1
    ended = table[table["status"] != CUT]
    step = np.searchsorted(edges, ended["end"] - span.began, side="right") - 1
    good = ended["status"] == OK
    part.steps = np.zeros((3, count))
    part.steps[0] = np.bincount(step[good & (step < count)], minlength=count)[:count]
    part.steps[1] = np.bincount(step[~good & (step < count)], minlength=count)[:count]
    for number in range(count):
        low, high = span.began + edges[number], span.began + edges[number + 1]
        spent = np.minimum(table["end"], high) - np.maximum(table["sent"], low)
        part.steps[2, number] = np.maximum(spent, 0.0).sum()
        here = ended[good & (step == number)]
        part.step_e2e.append(Histogram.of(here["end"] - here["scheduled"]))
        part.step_ttft.append(Histogram.of((here["first"] - here["scheduled"])[here["first"] > 0]))
