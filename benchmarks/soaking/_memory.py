"""Whether a process's memory is flat: its own pages over time, and a test of their trend."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from local import cluster

# A process that has just started still fills its caches; that is no leak.
WARM_SECONDS = 120.0
BLOCKS = 12
_FEWEST_BLOCKS = 5
# Less than that shows how processes begin, not whether they grow.
LEAST_SECONDS = 600.0
# What counts as growth over the whole run: 10 % of where it began, and at least so much.
SHARE, LEAST_MIB = 0.10, 10.0
# MiB/h: what Prometheus may take while it fills the two hours of samples that it keeps in memory before it writes a block.
FILLING = {"prometheus": 200.0}
SIGNIFICANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Of one name's memory. `first`, `last`: medians of the first and the last block, MiB; `slope`: Theil and Sen's, MiB/h;
    `p`: of no upward trend, by Mann and Kendall; `starts`: how many processes had that name; `flat` is None where too little
    was seen for a verdict."""

    name: str
    first: float
    last: float
    slope: float
    p: float
    starts: int
    flat: bool | None


@dataclass
class Memory:
    """`points`: name -> (seconds, MiB) of processes that are past their first two minutes."""

    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    total: list[float] = field(default_factory=list)
    _born: dict[tuple[str, int], float] = field(default_factory=dict)

    def look(self, name: str, now: float) -> None:
        """One sample of every process of the cluster."""
        total = 0.0
        for what, pid in processes(name):
            found = own_mib(pid)
            if found is None:
                continue
            total += found
            born = self._born.setdefault((what, pid), now)
            if now - born >= WARM_SECONDS:
                self.points.setdefault(what, []).append((now, found))
        self.total.append(total)

    def trends(self) -> list[Trend]:
        """Of every name that was seen."""
        starts: dict[str, int] = {}
        for what, _ in self._born:
            starts[what] = starts.get(what, 0) + 1
        return [trend(name, self.points.get(name, []), starts=starts[name]) for name in starts]


def processes(name: str) -> list[tuple[str, int]]:
    """(name, pid) of the supervisor, of everything that it keeps running, and of the engines in the pods."""
    there = cluster.load(name)
    found = [("supervisor", there.supervisor_pid)]
    found += [(one.name, one.pid) for one in cluster.status(name).components if one.pid is not None]
    known = {pid for _, pid in found}
    for child in psutil.Process(there.supervisor_pid).children(recursive=True):
        if child.pid in known:
            continue
        with suppress(psutil.Error):
            words = child.cmdline()
            if "bench.simulator" in words:
                found.append((f"engines ({words[words.index('bench.simulator') + 1]})", child.pid))
    return found


def own_mib(pid: int) -> float | None:
    """Memory that is the process's alone, without files that it has mapped: what a leak would fill."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found: Mapping[str, str] = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(found["RssAnon"].split()[0]) / 1024 if "RssAnon" in found else None


def trend(name: str, points: Sequence[tuple[float, float]], *, starts: int = 1) -> Trend:
    """Judge (seconds, MiB), in order of time. Growth has to be both sure and large to count."""
    blocks = in_blocks(points)
    if len(blocks) < _FEWEST_BLOCKS or points[-1][0] - points[0][0] < LEAST_SECONDS:
        values = [mib for _, mib in points] or [0.0]
        return Trend(name=name, first=values[0], last=values[-1], slope=0.0, p=1.0, starts=starts, flat=None)
    pairs = list(itertools.combinations(blocks, 2))
    slope = statistics.median((b - a) / (t - s) for (s, a), (t, b) in pairs)
    p = rising(blocks)
    first, last = blocks[0][1], blocks[-1][1]
    seconds = blocks[-1][0] - blocks[0][0]
    allowed = max(LEAST_MIB, SHARE * first, FILLING.get(name, 0.0) * seconds / 3600)
    flat = p >= SIGNIFICANCE or slope * seconds <= allowed
    return Trend(name=name, first=first, last=last, slope=slope * 3600, p=p, starts=starts, flat=flat)


def in_blocks(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Medians over equal stretches of time: collections of garbage make single samples depend on those before."""
    if not points:
        return []
    begin, end = points[0][0], points[-1][0]
    width = max(1e-9, (end - begin) / BLOCKS)
    groups: dict[int, list[tuple[float, float]]] = {}
    for at, mib in points:
        groups.setdefault(min(BLOCKS - 1, int((at - begin) / width)), []).append((at, mib))
    return [
        (statistics.median(at for at, _ in group), statistics.median(mib for _, mib in group))
        for _, group in sorted(groups.items())
    ]


def rising(blocks: Sequence[tuple[float, float]]) -> float:
    """Mann and Kendall's test, one-sided, normal approximation with ties: the probability of such a rise by chance."""
    number = len(blocks)
    score = sum((b > a) - (b < a) for (_, a), (_, b) in itertools.combinations(blocks, 2))
    ties = [sum(1 for _ in group) for _, group in itertools.groupby(sorted(mib for _, mib in blocks))]
    variance = (number * (number - 1) * (2 * number + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    if variance <= 0 or score <= 0:
        return 1.0
    return 0.5 * math.erfc((score - 1) / math.sqrt(variance) / math.sqrt(2))
