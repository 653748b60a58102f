"""Numbers as people read them, and results side by side."""

from __future__ import annotations

import csv as _csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..results import Limit, Matrix, Result, Run

# What is shown, in this order: metric, words, unit, whether more is better (None: neither).
ROWS: tuple[tuple[str, str, str, bool | None], ...] = (
    ("requests_per_second", "Requests", "/s", True),
    ("output_tokens_per_second", "Tokens out", "/s", True),
    ("input_tokens_per_second", "Tokens in", "/s", None),
    ("error_rate", "Errors", "%", False),
    ("empty_answer_rate", "Empty answers", "%", False),
    ("goodput", "Goodput", "%", True),
    ("goodput_requests_per_second", "Goodput, requests", "/s", True),
    ("sustained_requests_per_second", "Sustained", "/s", True),
    ("concurrency_mean", "In flight, mean", "", None),
    ("concurrency_max", "In flight, most", "", None),
    ("ttft_mean_seconds", "First token, mean", "s", False),
    ("ttft_p50_seconds", "First token, p50", "s", False),
    ("ttft_p95_seconds", "First token, p95", "s", False),
    ("ttft_p99_seconds", "First token, p99", "s", False),
    ("itl_mean_seconds", "Between tokens, mean", "s", False),
    ("itl_p95_seconds", "Between tokens, p95", "s", False),
    ("itl_p99_seconds", "Between tokens, p99", "s", False),
    ("itl_request_p95_seconds", "Between tokens, mean of a request, p95", "s", False),
    ("tpot_mean_seconds", "Per output token, mean", "s", False),
    ("e2e_mean_seconds", "End to end, mean", "s", False),
    ("e2e_p50_seconds", "End to end, p50", "s", False),
    ("e2e_p95_seconds", "End to end, p95", "s", False),
    ("e2e_p99_seconds", "End to end, p99", "s", False),
    ("queue_mean_seconds", "Waiting in the engine, mean", "s", False),
    ("prefix_cache_hit_rate", "Prefix cache hits", "%", True),
    ("server_running_mean", "Running in the engines, mean", "", None),
    ("server_waiting_mean", "Waiting in the engines, mean", "", None),
    ("server_kv_usage_max", "KV cache used, most", "%", None),
    ("gpu_utilization_mean", "GPU utilization, mean", "%", None),
    ("gpu_memory_bytes_max", "GPU memory, most", "B", None),
    ("replicas_max", "Replicas, most", "", None),
    ("nodes_max", "Nodes, most", "", None),
    ("server_queue_mean_seconds", "Waiting in the engines, per request", "s", False),
    ("server_prefix_cache_hit_rate", "Prefix cache hits of the engines", "%", True),
    ("cost_per_million_tokens_usd", "Cost per million tokens", "$", False),
)


def shown(value: float | None, unit: str) -> str:
    """A value with its unit; a dash for what was not measured."""
    if value is None or not math.isfinite(value):
        return "–"
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
    if unit == "%":
        return f"{value * 100:.2f} %"
    if unit == "$":
        return f"$ {value:.2f}"
    if unit == "B":
        return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
    digits = 0 if value >= 1000 else 1 if value >= 100 else 2
    return f"{value:,.{digits}f}{' ' + unit if unit else ''}".replace(",", "\u202f")


def axis_seconds(value: float) -> str:
    """A duration at the edge of a chart: as short as can be."""
    return "0" if value == 0 else f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms"


def name_of(result: Result | Limit | Matrix) -> str:
    """What a result is called in a table: its stack, or the address."""
    return result.stack if result.stack != "none" else result.url


def names_of(results: Sequence[Result]) -> list[str]:
    """Names that tell the results apart: by number where two are called the same."""
    names = [name_of(result) for result in results]
    return [f"{name} #{i}" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


def valid_runs(result: Result) -> list[Run]:
    """The runs that count."""
    return [run for run in result.runs if run.valid]


def median(result: Result, metric: str) -> float | None:
    """The median over valid runs; None where there is none or nothing was measured."""
    values = [run.metrics[metric] for run in valid_runs(result) if metric in run.metrics]
    return statistics.median(values) if values else None


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric of two results. `ratio`: after over before; `better`: None where neither direction is, or no change."""

    metric: str
    words: str
    before: str
    after: str
    ratio: float | None
    better: bool | None


def comparison(before: Result, after: Result) -> list[Change]:
    """The medians over valid runs, side by side. It judges nothing: whether a change is more than noise is the gate's."""
    changes = []
    for metric, words, unit, more in ROWS:
        a, b = median(before, metric), median(after, metric)
        if a is None and b is None:
            continue
        ratio = b / a if a and b is not None else None
        better = None if more is None or ratio is None or ratio == 1 else (ratio > 1) == more
        changes.append(
            Change(metric=metric, words=words, before=shown(a, unit), after=shown(b, unit), ratio=ratio, better=better)
        )
    return changes


def markdown(results: Sequence[Result]) -> str:
    """A table of medians, one column for each result, and why runs are invalid."""
    lines = ["| | " + " | ".join(_cell(name) for name in names_of(results)) + " |"]
    lines.append("|---" * (len(results) + 1) + "|")
    lines.append("| Valid runs | " + " | ".join(f"{len(valid_runs(r))} of {len(r.runs)}" for r in results) + " |")
    for metric, words, unit, _ in ROWS:
        values = [median(result, metric) for result in results]
        if any(value is not None for value in values):
            lines.append(f"| {words} | " + " | ".join(shown(value, unit) for value in values) + " |")
    for result, name in zip(results, names_of(results), strict=True):
        for number, run in enumerate(result.runs, 1):
            if not run.valid:
                lines += ["", f"{_cell(name)}, run {number} is invalid: {_cell(run.invalid_because)}."]
            lines += [line for text in run.warnings for line in ("", f"{_cell(name)}, run {number}: {_cell(text)}.")]
    return "\n".join(lines) + "\n"


def csv(results: Sequence[Result]) -> str:
    """One line for every run; the metrics by their own names, in base units (seconds, bytes, shares), empty where unknown."""
    metrics = sorted({name for result in results for run in result.runs for name in run.metrics})
    plain = ("seconds", "warmup_seconds", "sent", "ok", "failed", "cut", "valid", "invalid_because")
    text = io.StringIO()
    sheet = _csv.writer(text, lineterminator="\n")
    sheet.writerow(["stack", "url", "release", "run", "started", *plain, *map(_inert, metrics)])
    for result in results:
        for number, run in enumerate(result.runs, 1):
            known = [str(getattr(run, name)) for name in plain]
            values = [repr(run.metrics[name]) if name in run.metrics else "" for name in metrics]
            where = [result.stack, result.url, result.release, str(number), run.started.isoformat()]
            sheet.writerow([*map(_inert, (*where, *known)), *values])
    return text.getvalue()


def _inert(cell: str) -> str:
    """A spreadsheet takes a cell that begins like this for a formula, and what is in it comes from outside."""
    quote = "'" if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else ""
    # A bare carriage return is not quoted by the writer and begins a row for some readers.
    return quote + cell.replace("\r", " ")


def _cell(text: str) -> str:
    """Text inside a table of a Markdown document, where HTML would be taken for what it says."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
