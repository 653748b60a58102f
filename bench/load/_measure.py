"""From what all processes saw of a window to a `Run`."""

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
from ._part import Part, Span
from ._steady import Series
from ._workers import Outcome

_SHARES = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99))
_FEWEST = 20
# Beyond these the client, not the service, made the latency: of one processor core, and of the shortest p95 that is judged.
_CPU_SHARE, _DELAY_SHARE, _DELAY_SECONDS = 0.95, 0.05, 0.02
_RISE = 0.15
# A model may end an answer at once, now and then; a service that sends nothing is fast for no merit of its own.
_EMPTY = 0.10
_LATENCIES = ("e2e", "ttft", "itl", "itl_request", "tpot", "queue")


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What the client saw of itself within the window; all in seconds but `cpu_share` (1: one core busy) and
    `core_waited_share` (of the time, ready to run and without a core)."""

    cpu_share: float
    loop_delay_p99: float
    schedule_lag_p99: float
    retries: int
    connections: int
    core_waited_share: float = 0.0

    def worst(self, other: Watch) -> Watch:
        """Of two processes: the worse of each, and the sum of what is counted."""
        return Watch(
            cpu_share=max(self.cpu_share, other.cpu_share),
            loop_delay_p99=max(self.loop_delay_p99, other.loop_delay_p99),
            schedule_lag_p99=max(self.schedule_lag_p99, other.schedule_lag_p99),
            retries=self.retries + other.retries,
            connections=self.connections + other.connections,
            core_waited_share=max(self.core_waited_share, other.core_waited_share),
        )


@dataclass(frozen=True, kw_only=True)
class Window:
    """`span`: what is measured; `started`: when the load began, for people.

    `settled`: whether the end of warm-up was found; `interrupted`: whether someone stopped the run; `whole`: whether all
    of a batch or a replay was measured, slow beginning included.
    """

    span: Span
    started: datetime
    settled: bool = True
    interrupted: bool = False
    whole: bool = False


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


def measure(
    part: Part,
    window: Window,
    watch: Watch,
    costs: Costs,
    series: Series | None,
    more: dict[str, float] | None = None,
) -> Run:
    """One sample. `more`: metrics of the caller's own.

    Percentiles are those of the values themselves where the part still has them, else of its histograms (within 0.5 %).
    """
    seconds = window.span.end - window.span.start
    counts = part.counts
    ok, failed, cut = (int(counts[name]) for name in ("ok", "failed", "cut"))
    metrics: dict[str, float] = {
        "requests_per_second": ok / seconds,
        "error_rate": failed / (ok + failed) if ok + failed else 0.0,
        "concurrency_mean": counts["busy_seconds"] / seconds,
    }
    for family in _LATENCIES:
        _latency(metrics, part, family)
    if ok:
        metrics["output_tokens_per_second"] = counts["tokens_out"] / seconds
        metrics["output_tokens_mean"] = counts["tokens_out"] / ok
        if counts["told_in"]:
            metrics["input_tokens_mean"] = counts["tokens_in"] / counts["told_in"]
            metrics["input_tokens_per_second"] = metrics["input_tokens_mean"] * ok / seconds
        if counts["empty"]:
            metrics["empty_answer_rate"] = counts["empty"] / ok
        if counts["cached_of"]:
            metrics["prefix_cache_hit_rate"] = counts["cached"] / counts["cached_of"]
        if costs.per_hour_usd is not None and metrics["output_tokens_per_second"] > 0:
            metrics["cost_per_million_tokens_usd"] = (
                costs.per_hour_usd / (metrics["output_tokens_per_second"] * 3600) * 1e6
            )
    if _promised(costs.objectives) and ok + failed:
        metrics["goodput"] = counts["kept"] / (ok + failed)
        metrics["goodput_requests_per_second"] = counts["kept"] / seconds
    over_time = _series(part, window.span)
    inside = [
        value
        for value, end in zip(over_time["concurrency"], over_time["seconds"], strict=True)
        if value is not None and end is not None and end > window.span.start
    ]
    metrics["concurrency_max"] = max([*inside, metrics["concurrency_mean"]])
    metrics |= more or {}
    because = _invalid(window, watch, costs, metrics, part, series)
    return Run(
        started=window.started,
        seconds=seconds,
        warmup_seconds=max(0.0, window.span.start),
        warmup=_warmup(part, window.span),
        sent=ok + failed + cut,
        ok=ok,
        failed=failed,
        cut=cut,
        errors=part.errors,
        metrics={name: float(value) for name, value in metrics.items() if math.isfinite(value)},
        valid=not because,
        invalid_because=because,
        client={
            "cpu_share": watch.cpu_share,
            "loop_delay_p99_seconds": watch.loop_delay_p99,
            "schedule_lag_p99_seconds": watch.schedule_lag_p99,
            "retries": float(watch.retries),
            "connections": float(watch.connections),
            "core_waited_share": watch.core_waited_share,
        },
        histograms={
            name: part.families[name].to_dict()
            for name in (f"{family}_seconds" for family in _LATENCIES)
            if name in part.families
        },
        series=over_time,
    )


def _latency(metrics: dict[str, float], part: Part, family: str) -> None:
    name = f"{family}_seconds"
    histogram = part.families.get(name)
    if histogram is None or not histogram.count:
        return
    values = part.exact.get(name) if part.exact is not None else None
    metrics[f"{family}_mean_seconds"] = histogram.mean
    for label, share in _SHARES:
        exact = percentile(values, share) if values is not None else histogram.quantile(share)
        metrics[f"{family}_{label}_seconds"] = exact
    metrics[f"{family}_max_seconds"] = histogram.quantile(1.0)


def _warmup(part: Part, span: Span) -> dict[str, float]:
    """What came before the window, apart from what counts."""
    if span.start <= 0:
        return {}
    known = {"ok": part.counts["warm_ok"], "failed": part.counts["warm_failed"]}
    known["requests_per_second"] = known["ok"] / span.start
    latency = part.families["warm_e2e_seconds"]
    if latency.count:
        known |= {"e2e_mean_seconds": latency.mean, "e2e_p95_seconds": latency.quantile(0.95)}
    return known


def _series(part: Part, span: Span) -> dict[str, tuple[float | None, ...]]:
    """Rate, errors, requests in flight and percentiles per step."""
    edges = span.edges
    length = float(edges[1] - edges[0])

    def shares(histograms: Sequence[Any], share: float) -> tuple[float | None, ...]:
        return tuple(each.quantile(share) if each.count else None for each in histograms)

    return {
        "seconds": tuple(float(edge) for edge in edges[1:]),
        "requests_per_second": tuple(part.steps[0] / length),
        "errors_per_second": tuple(part.steps[1] / length),
        "concurrency": tuple(part.steps[2] / length),
        "ttft_p50_seconds": shares(part.step_ttft, 0.5),
        "ttft_p95_seconds": shares(part.step_ttft, 0.95),
        "e2e_p50_seconds": shares(part.step_e2e, 0.5),
        "e2e_p95_seconds": shares(part.step_e2e, 0.95),
    }


def _promised(objectives: stacks.Objectives | None) -> bool:
    limits = ("e2e_p95_seconds", "ttft_p95_seconds", "itl_p95_seconds")
    return objectives is not None and any(getattr(objectives, name) is not None for name in limits)


def _shortest(metrics: dict[str, float], objectives: stacks.Objectives | None) -> float:
    """The shortest of the p95 latencies that someone will judge: the promised ones, or all where nothing is promised."""
    judged = {
        "ttft_p95_seconds": objectives is None or objectives.ttft_p95_seconds is not None,
        "itl_p95_seconds": objectives is not None and objectives.itl_p95_seconds is not None,
        "e2e_p95_seconds": True,
    }
    return min(metrics[name] for name, matters in judged.items() if matters and name in metrics)


def _invalid(
    window: Window, watch: Watch, costs: Costs, metrics: dict[str, float], part: Part, series: Series | None
) -> str:
    """Why the window is no sample of the service, or nothing."""
    if window.interrupted:
        return "interrupted: what was measured until then is reported"
    ok, failed = int(part.counts["ok"]), int(part.counts["failed"])
    if not ok:
        kinds = ", ".join(sorted(part.kinds)) or "nothing was answered"
        return f"no request succeeded ({kinds})"
    if metrics.get("empty_answer_rate", 0.0) > _EMPTY:
        return f"not representative: {metrics['empty_answer_rate']:.0%} of the answers had no word in them"
    if "client_limit" in part.kinds:
        return "client-bound: the client could open no more connections"
    limit = max(_DELAY_SECONDS, _DELAY_SHARE * _shortest(metrics, costs.objectives))
    if watch.cpu_share > _CPU_SHARE:
        return f"client-bound: the client used {watch.cpu_share:.0%} of a processor core (limit {_CPU_SHARE:.0%})"
    for name, delay in (("event loop", watch.loop_delay_p99), ("schedule", watch.schedule_lag_p99)):
        if delay > limit:
            return f"client-bound: its {name} was late by {delay * 1e3:.1f} ms at p99 (limit {limit * 1e3:.1f} ms)"
    seconds = window.span.end - window.span.start
    if ok + failed < _FEWEST:
        return f"not representative: {ok + failed} requests ended within {seconds:.1f} s (at least {_FEWEST} needed)"
    if metrics["e2e_p50_seconds"] > seconds:
        return (
            f"not representative: a request takes {metrics['e2e_p50_seconds']:.1f} s, longer than "
            f"the {seconds:.1f} s that were measured"
        )
    if not window.settled:
        return "not representative: the service had not settled before the time for it was over"
    if series is not None and not window.whole:
        rise = series.trend(window.span.start, window.span.end)
        if rise.significant and abs(rise.change) > _RISE:
            return f"not representative: latency changed by {rise.change:+.0%} while it was measured"
    return ""


def watch_of(outcomes: Sequence[Outcome], span: Span) -> Watch:
    """The clients' own numbers for the window; of several processes, the worst of each."""
    start, end = span.began + span.start, span.began + span.end
    watch = Watch(cpu_share=0.0, loop_delay_p99=0.0, schedule_lag_p99=0.0, retries=0, connections=0)
    for outcome in outcomes:
        share = waited = 0.0
        if len(outcome.cpu) > 1:
            # Processor time is sampled every quarter of a second: between samples it is a straight line.
            moments, *sums = np.array(outcome.cpu).T
            share, waited = (float(np.diff(np.interp([start, end], moments, one))[0]) / (end - start) for one in sums)
        table = outcome.records.table()
        inside = table[(table["sent"] >= start) & (table["sent"] < end)]
        watch = watch.worst(
            Watch(
                cpu_share=share,
                loop_delay_p99=percentile(np.asarray(outcome.delays), 0.99) if len(outcome.delays) else 0.0,
                schedule_lag_p99=percentile(inside["sent"] - inside["scheduled"], 0.99) if len(inside) else 0.0,
                retries=outcome.retried,
                connections=outcome.opened,
                core_waited_share=waited,
            )
        )
    return watch
