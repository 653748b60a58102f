"""Calibration: the model's few free constants fitted to what a benchmark measured, and how well that fits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stacks import InputError, Release, Traffic

from ._check import resolve
from ._queueing import predict
from ._timing import Timing, timing

# Fitted in this order: the first is what few measurements can tell, the second needs two levels of concurrency.
_STEPS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One benchmark as calibration sees it. Means over its valid runs; None where the benchmark did not measure it."""

    traffic: Traffic
    replicas: int
    slots: int | None
    runs: int
    requests_per_second: float | None
    e2e_mean_seconds: float | None
    ttft_mean_seconds: float | None
    simulated: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A fitted latency model. `fits`: (what, measured, predicted before, predicted after) per measured number.

    `simulated`: whether any of it was measured on a simulated engine, which says nothing about a GPU.
    """

    timing: Timing
    overhead_seconds: tuple[float, float]
    sequence_seconds: tuple[float, float]
    fits: tuple[tuple[str, float, float, float], ...]
    simulated: bool = False

    @property
    def error_before(self) -> float:
        """Mean absolute relative error with the catalog's constants."""
        return _mean(abs(before / measured - 1) for _, measured, before, _ in self.fits)

    @property
    def error_after(self) -> float:
        """The same after the fit."""
        return _mean(abs(after / measured - 1) for _, measured, _, after in self.fits)

    def lines(self) -> tuple[str, ...]:
        """The fit in words."""
        caution = ("measured on a simulated engine: the fit says nothing about a GPU",) if self.simulated else ()
        return (
            *caution,
            f"step overhead {self.overhead_seconds[0] * 1e3:.3g} ms became {self.overhead_seconds[1] * 1e3:.3g} ms",
            f"cost per sequence {self.sequence_seconds[0] * 1e3:.3g} ms became {self.sequence_seconds[1] * 1e3:.3g} ms",
            *(
                f"{what}: measured {measured:.4g}, predicted {before:.4g} before and {after:.4g} after"
                for what, measured, before, after in self.fits
            ),
            f"mean error {self.error_before:.1%} before, {self.error_after:.1%} after, {len(self.fits)} numbers",
            "the alternatives keep the catalog's constants",
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "step_overhead_seconds": {"before": self.overhead_seconds[0], "after": self.overhead_seconds[1]},
            "sequence_seconds": {"before": self.sequence_seconds[0], "after": self.sequence_seconds[1]},
            "error_before": self.error_before,
            "error_after": self.error_after,
            "simulated": self.simulated,
            "fits": [
                {"what": what, "measured": measured, "before": before, "after": after}
                for what, measured, before, after in self.fits
            ],
        }


def read_results(path: Path) -> tuple[Measured, ...]:
    """The benchmark results at a file or in a folder (`*.json`, as `bench.results.Result` writes them).

    Runs that are marked invalid are left out. Raises InputError for files that are not results, or with nothing valid.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            loaded = json.loads(file.read_text(encoding="utf-8"))
            measured = from_result(loaded)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(
                where=str(file),
                got=f"{type(error).__name__}: {error}",
                allowed="a benchmark result with `traffic`, `replicas` and `runs`",
                fix="give the result.json of a benchmark",
            ) from error
        if measured is not None:
            found.append(measured)
    if not found:
        raise InputError(
            where=str(path), got="no valid run", allowed="at least one valid run", fix="run the benchmark again"
        )
    return tuple(found)


# What makes the steps of two releases take the same time; slots, context and names do not.
_SAME = ("engine", "version", "model", "quantization", "kv_cache", "accelerator")


def comparable(measured: Mapping[str, Any], release: Release) -> bool:
    """Whether a measurement of that release (as JSON) tells the constants of this one: only slots and names may differ."""
    ours = release.model_dump(mode="json")
    theirs, split = measured.get("parallelism", {}), ours["parallelism"]
    return all(measured.get(name) == ours[name] for name in _SAME) and all(
        theirs.get(name) == split[name] for name in ("tensor", "pipeline")
    )


def from_result(result: Mapping[str, Any]) -> Measured | None:
    """What a result says; None where no run is valid."""
    runs = [run for run in result["runs"] if run["valid"]]
    if not runs:
        return None

    def mean(name: str) -> float | None:
        # What is no rate and no time tells nothing, and has no logarithm.
        values = [value for run in runs if 0 < (value := float(run["metrics"].get(name, 0))) < math.inf]
        return sum(values) / len(values) if values else None

    slots = result.get("server", {}).get("slots")
    return Measured(
        traffic=Traffic.model_validate(result["traffic"]),
        replicas=max(1, int(result["replicas"])),
        slots=int(slots) if slots else None,
        runs=len(runs),
        requests_per_second=mean("requests_per_second"),
        e2e_mean_seconds=mean("e2e_mean_seconds"),
        ttft_mean_seconds=mean("ttft_mean_seconds"),
        simulated=bool(result.get("environment", {}).get("simulated", False)),
    )


def calibrate(measured: Sequence[Measured], *, release: Release) -> Calibration:
    """Fit step overhead and cost per sequence of a release's latency model to measurements, in least squares of logs.

    With one level of concurrency only their sum shows, and the overhead alone is fitted. Bandwidth and arithmetic stay
    as the hardware has them. Raises InputError without measurements.
    """
    if not measured:
        raise InputError(where="calibration", got="no measurement", allowed="at least one", fix="run a benchmark")
    release = resolve(release)
    base = timing(release)
    slots = int(release.parallelism.slots)
    rows = [row for item in measured for row in _rows(item)]
    levels = {_concurrency(item, slots) for item in measured}

    def error(overhead: float, sequence: float) -> float:
        times = replace(base, overhead=overhead, sequence=sequence)
        return sum(math.log(_predicted(times, item, slots, name) / value) ** 2 for item, name, value in rows)

    overhead, sequence = base.overhead, base.sequence
    both = len(levels) > 1
    step = 0.5
    best = error(overhead, sequence)
    floor = 1e-6
    for _ in range(_STEPS):
        moved = False
        for d_overhead, d_sequence in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, -1), (-1, 1)):
            if d_sequence and not both:
                continue
            candidate = (
                max(floor, overhead * math.exp(step * d_overhead)),
                max(floor, max(sequence, floor) * math.exp(step * d_sequence)) if d_sequence else sequence,
            )
            value = error(*candidate)
            if value < best - 1e-15:
                (overhead, sequence), best, moved = candidate, value, True
        if not moved:
            step /= 2
            if step < 1e-6:
                break
    fitted = replace(base, overhead=overhead, sequence=sequence)
    fits = tuple(
        (
            f"{name} with {_concurrency(item, slots):g} requests per replica",
            value,
            _predicted(base, item, slots, name),
            _predicted(fitted, item, slots, name),
        )
        for item, name, value in rows
    )
    return Calibration(
        timing=fitted,
        overhead_seconds=(base.overhead, overhead),
        sequence_seconds=(base.sequence, sequence),
        fits=fits,
        simulated=any(item.simulated for item in measured),
    )


def _rows(item: Measured) -> Iterable[tuple[Measured, str, float]]:
    """The numbers worth fitting: latency always; the rate only of closed loops, where it is not given by the load."""
    if item.e2e_mean_seconds:
        yield item, "e2e_mean_seconds", item.e2e_mean_seconds
    if item.requests_per_second and item.traffic.arrival == "closed":
        yield item, "requests_per_second", item.requests_per_second


def _predicted(times: Timing, item: Measured, slots: int, name: str) -> float:
    try:
        prediction = predict(times, slots=item.slots or slots, replicas=item.replicas, traffic=item.traffic)
        value = float(getattr(prediction, name))
    except ArithmeticError:
        # Requests so long that none is ever answered.
        value = math.inf
    # Arrivals beyond capacity have no steady latency; any large number tells the fit to turn back.
    return value if math.isfinite(value) else 1e6


def _concurrency(item: Measured, slots: int) -> float:
    if item.traffic.arrival == "closed":
        return min((item.traffic.users or 1) / item.replicas, item.slots or slots)
    return round((item.requests_per_second or 0.0) * (item.e2e_mean_seconds or 0.0) / item.replicas, 1)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0
