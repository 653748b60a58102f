"""From the rows of a window to a `Run`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stacks

from ..results import Run
from ._histogram import Histogram
from ._recorder import CUT, OK, Records
from ._steady import Series
from ._workers import Outcome

_SHARES = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99))
_FEWEST = 20
# Beyond these the client, not the service, made the latency: of one processor core, and of the shortest p95 that is judged.
_CPU_SHARE, _DELAY_SHARE, _DELAY_SECONDS = 0.95, 0.05, 0.02
_RISE = 0.15
_STEPS = 120
_SERIES = (
    "seconds",
    "requests_per_second",
    "errors_per_second",
    "concurrency",
    "ttft_p50_seconds",
    "ttft_p95_seconds",
    "e2e_p50_seconds",
    "e2e_p95_seconds",
)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What the client saw of itself within the window; all in seconds but `cpu_share` (1: one core busy)."""

    cpu_share: float
    loop_delay_p99: float
    schedule_lag_p99: float
    retries: int
    connections: int


@dataclass(frozen=True, kw_only=True)
class Window:
    """`start`, `end`: monotonic seconds; `began`: when the load began; `started`: the same moment for people.

    `settled`: whether the end of warm-up was found; `interrupted`: whether someone stopped the run.
    """

    began: float
    start: float
    end: float
    started: datetime
    settled: bool = True
    interrupted: bool = False


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What is promised per request (for goodput), and what an hour of the whole service costs in US$."""

    objectives: stacks.Objectives | None = None
    per_hour_usd: float | None = None


def percentile(values: NDArray[Any], share: float) -> float:
    """The value of rank ceil(share × n) (nearest rank); nan when there is none."""
    if not len(values):
        return math.nan
    rank = max(0, math.ceil(share * len(values) - 1e-9) - 1)
    return float(np.partition(values, rank)[rank])


def measure(records: Records, window: Window, watch: Watch, costs: Costs, series: Series | None) -> Run:
    """One sample from all that ended within [start, end) and what was in flight when it closed.

    In a steady state the requests that end in a window are a fair sample of all, however long each takes; those that
    begin in it would be one only if the load went on until the last of them had its answer.
    """
    table = records.table()
    seconds = window.end - window.start
    inside = (table["end"] >= window.start) & (table["end"] < window.end) & (table["status"] != CUT)
    ended = table[inside]
    good = ended[ended["status"] == OK]
    cut = int(((table["sent"] < window.end) & ((table["status"] == CUT) | (table["end"] >= window.end))).sum())
    ok, failed = len(good), len(ended) - len(good)
    families = {"e2e_seconds": Histogram.of(good["end"] - good["scheduled"])}
    metrics: dict[str, float] = {
        "requests_per_second": ok / seconds,
        "error_rate": failed / len(ended) if len(ended) else 0.0,
        "concurrency_mean": _concurrency(table, window),
    }
    _latency(metrics, "e2e", good["end"] - good["scheduled"])
    if ok:
        metrics["output_tokens_per_second"] = float(good["tokens_out"].sum()) / seconds
        metrics["output_tokens_mean"] = float(good["tokens_out"].mean())
        told = good["tokens_in"][good["tokens_in"] >= 0]
        if len(told):
            metrics["input_tokens_mean"] = float(told.mean())
            metrics["input_tokens_per_second"] = metrics["input_tokens_mean"] * ok / seconds
        if costs.per_hour_usd is not None and metrics["output_tokens_per_second"] > 0:
            per_second = metrics["output_tokens_per_second"]
            metrics["cost_per_million_tokens_usd"] = costs.per_hour_usd / (per_second * 3600) * 1e6
    streamed = good[good["first"] > 0]
    if len(streamed):
        first = streamed["first"] - streamed["scheduled"]
        families["ttft_seconds"] = Histogram.of(first)
        _latency(metrics, "ttft", first)
        gaps, together = _gaps(records, table, inside)
        if len(gaps) + together:
            families["itl_seconds"] = Histogram.of(gaps, together)
            _latency(metrics, "itl", np.concatenate([gaps.astype(np.float64), np.zeros(together)]))
        several = streamed[streamed["tokens_out"] > 1]
        if len(several):
            per_token = (several["last"] - several["first"]) / (several["tokens_out"] - 1)
            families["tpot_seconds"] = Histogram.of(per_token)
            _latency(metrics, "tpot", per_token)
    queued = np.array(records.queued)
    if len(queued):
        metrics["queue_mean_seconds"] = float(queued.mean())
    if costs.objectives is not None:
        share = _goodput(good, costs.objectives)
        if share is not None and len(ended):
            metrics["goodput"] = share * ok / len(ended)
            metrics["goodput_requests_per_second"] = share * ok / seconds
    because = _invalid(window, watch, costs, metrics, ok, failed, records, series)
    return Run(
        started=window.started,
        seconds=seconds,
        warmup_seconds=max(0.0, window.start - window.began),
        sent=ok + failed + cut,
        ok=ok,
        failed=failed,
        cut=cut,
        errors=_errors(records, ended),
        metrics={name: float(value) for name, value in metrics.items() if math.isfinite(value)},
        valid=not because,
        invalid_because=because,
        client={
            "cpu_share": watch.cpu_share,
            "loop_delay_p99_seconds": watch.loop_delay_p99,
            "schedule_lag_p99_seconds": watch.schedule_lag_p99,
            "retries": float(watch.retries),
            "connections": float(watch.connections),
        },
        histograms={name: histogram.to_dict() for name, histogram in families.items()},
        series=_over_time(table, window),
    )


def _over_time(table: NDArray[Any], window: Window) -> dict[str, tuple[float | None, ...]]:
    """Rate, errors, requests in flight and percentiles per step, in at most 120 steps of at least a second."""
    span = window.end - window.began
    steps = max(1, min(_STEPS, int(span)))
    edges = window.began + np.linspace(0.0, span, steps + 1)
    ended = table[table["status"] != CUT]
    step = np.searchsorted(edges, ended["end"], side="right") - 1
    columns: dict[str, list[float | None]] = {name: [] for name in _SERIES}
    for number in range(steps):
        here = ended[step == number]
        good = here[here["status"] == OK]
        latency = good["end"] - good["scheduled"]
        first = (good["first"] - good["scheduled"])[good["first"] > 0]
        low, high = edges[number], edges[number + 1]
        spent = np.minimum(table["end"], high) - np.maximum(table["sent"], low)
        columns["seconds"].append(float(high - window.began))
        columns["requests_per_second"].append(len(good) / float(high - low))
        columns["errors_per_second"].append((len(here) - len(good)) / float(high - low))
        columns["concurrency"].append(float(np.maximum(spent, 0.0).sum()) / float(high - low))
        for family, values in (("ttft", first), ("e2e", latency)):
            for name, share in (("p50", 0.5), ("p95", 0.95)):
                columns[f"{family}_{name}_seconds"].append(percentile(values, share) if len(values) else None)
    return {name: tuple(values) for name, values in columns.items()}


def _latency(metrics: dict[str, float], family: str, values: NDArray[Any]) -> None:
    if not len(values):
        return
    metrics[f"{family}_mean_seconds"] = float(values.mean())
    for name, share in _SHARES:
        metrics[f"{family}_{name}_seconds"] = percentile(values, share)
    metrics[f"{family}_max_seconds"] = float(values.max())


def _gaps(records: Records, table: NDArray[Any], inside: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """The gaps between reads of the good requests within the window, and how many tokens came with the one before."""
    wanted = inside & (table["status"] == OK)
    owner = np.repeat(wanted, table["gaps"])
    return np.frombuffer(records.gaps, dtype=np.float32)[owner], int(table["together"][wanted].sum())


def _concurrency(table: NDArray[Any], window: Window) -> float:
    """Requests in flight, averaged over the window: the time that requests spent in it over its length."""
    spent = np.minimum(table["end"], window.end) - np.maximum(table["sent"], window.start)
    return float(np.maximum(spent, 0.0).sum()) / (window.end - window.start)


def _goodput(good: NDArray[Any], objectives: stacks.Objectives) -> float | None:
    """The share of the good requests that each kept every latency that is promised; None when none is promised.

    The limit promised for a p95 is what a request is held to; for the inter-token latency, its own mean gap is.
    """
    kept = np.ones(len(good), dtype=bool)
    if objectives.e2e_p95_seconds is not None:
        kept &= good["end"] - good["scheduled"] <= objectives.e2e_p95_seconds
    if objectives.ttft_p95_seconds is not None:
        kept &= (good["first"] > 0) & (good["first"] - good["scheduled"] <= objectives.ttft_p95_seconds)
    if objectives.itl_p95_seconds is not None:
        gaps = np.maximum(1, good["frames"] - 1)
        kept &= (good["first"] > 0) & ((good["last"] - good["first"]) / gaps <= objectives.itl_p95_seconds)
    promised = (objectives.e2e_p95_seconds, objectives.ttft_p95_seconds, objectives.itl_p95_seconds)
    if all(limit is None for limit in promised):
        return None
    return float(kept.mean()) if len(good) else 0.0


def _errors(records: Records, ended: NDArray[Any]) -> dict[str, int]:
    numbers, counts = np.unique(ended["status"][ended["status"] > 0], return_counts=True)
    return {records.kinds[int(n) - 1]: int(c) for n, c in zip(numbers, counts, strict=True)}


def _shortest(metrics: dict[str, float], objectives: stacks.Objectives | None) -> float:
    """The shortest of the p95 latencies that someone will judge: the promised ones, or all where nothing is promised."""
    judged = {
        "ttft_p95_seconds": objectives is None or objectives.ttft_p95_seconds is not None,
        "itl_p95_seconds": objectives is not None and objectives.itl_p95_seconds is not None,
        "e2e_p95_seconds": True,
    }
    return min(metrics[name] for name, matters in judged.items() if matters and name in metrics)


def _invalid(
    window: Window,
    watch: Watch,
    costs: Costs,
    metrics: dict[str, float],
    ok: int,
    failed: int,
    records: Records,
    series: Series | None,
) -> str:
    """Why the window is no sample of the service, or nothing."""
    if window.interrupted:
        return "interrupted: what was measured until then is reported"
    if not ok:
        kinds = ", ".join(sorted(records.kinds)) or "nothing was answered"
        return f"no request succeeded ({kinds})"
    if "client_limit" in records.kinds:
        return "client-bound: the client could open no more connections"
    limit = max(_DELAY_SECONDS, _DELAY_SHARE * _shortest(metrics, costs.objectives))
    if watch.cpu_share > _CPU_SHARE:
        return f"client-bound: the client used {watch.cpu_share:.0%} of a processor core (limit {_CPU_SHARE:.0%})"
    for name, delay in (("event loop", watch.loop_delay_p99), ("schedule", watch.schedule_lag_p99)):
        if delay > limit:
            return f"client-bound: its {name} was late by {delay * 1e3:.1f} ms at p99 (limit {limit * 1e3:.1f} ms)"
    seconds = window.end - window.start
    if ok + failed < _FEWEST:
        return f"not representative: {ok + failed} requests ended within {seconds:.1f} s (at least {_FEWEST} needed)"
    if metrics["e2e_p50_seconds"] > seconds:
        return (
            f"not representative: a request takes {metrics['e2e_p50_seconds']:.1f} s, longer than "
            f"the {seconds:.1f} s that were measured"
        )
    if not window.settled:
        return "not representative: the service had not settled before the time for it was over"
    if series is not None:
        rise = series.trend(window.start - window.began, window.end - window.began)
        if rise.significant and abs(rise.change) > _RISE:
            return f"not representative: latency changed by {rise.change:+.0%} while it was measured"
    return ""


def watch_of(outcomes: Sequence[Outcome], window: Window) -> Watch:
    """The clients' own numbers for the window; of several processes, the worst of each."""
    shares, delays, lags = [0.0], [0.0], [0.0]
    for outcome in outcomes:
        if len(outcome.cpu) > 1:
            # Processor time is sampled every quarter of a second: between samples it is a straight line.
            moments, used = np.array(outcome.cpu).T
            start, end = np.interp([window.start, window.end], moments, used)
            shares.append(float(end - start) / (window.end - window.start))
        if len(outcome.delays):
            delays.append(percentile(np.asarray(outcome.delays), 0.99))
        table = outcome.records.table()
        inside = table[(table["sent"] >= window.start) & (table["sent"] < window.end)]
        if len(inside):
            lags.append(percentile(inside["sent"] - inside["scheduled"], 0.99))
    return Watch(
        cpu_share=max(shares),
        loop_delay_p99=max(delays),
        schedule_lag_p99=max(lags),
        retries=sum(outcome.retried for outcome in outcomes),
        connections=sum(outcome.opened for outcome in outcomes),
    )
