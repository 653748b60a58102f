"""What a terminal shows: the live view while it goes on, and the summary afterwards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..results import Result
from ._text import ROWS, comparison, name_of, shown

if TYPE_CHECKING:
    from ..load import Progress

_LOG_SECONDS = 5.0
_SPARK = " ▁▂▃▄▅▆▇█"
_TRACE = 48
_SHOWN_RUNS = 6


def milliseconds(seconds: float) -> str:
    """`seconds` for people: ms below one second; `-` for nan."""
    if seconds != seconds:
        return "-"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"


def line(now: Progress) -> str:
    """Progress as one line of a log."""
    if now.phase == "probe":
        return f"probe | eta {now.eta:.0f} s"
    parts = [
        f"run {now.run}/{now.runs} {now.phase}",
        f"{now.rate:.1f} req/s",
        f"{now.concurrency} in flight",
        f"ttft p50 {milliseconds(now.ttft_p50)} p95 {milliseconds(now.ttft_p95)}",
        f"e2e p50 {milliseconds(now.e2e_p50)} p95 {milliseconds(now.e2e_p95)}",
        f"ok {now.ok} failed {now.failed}",
        f"eta {now.eta:.0f} s",
    ]
    if now.errors:
        parts.insert(-1, " ".join(f"{kind}={count}" for kind, count in now.errors.items()))
    return " | ".join(parts)


def spark(values: Sequence[float]) -> str:
    """The values as a row of blocks, the highest full; as wide as there are values."""
    known = [value for value in values if math.isfinite(value)]
    top = max(known, default=0.0)
    if top <= 0:
        return _SPARK[1] * len(values)
    last = len(_SPARK) - 1
    return "".join(_SPARK[max(1, round(value / top * last))] if math.isfinite(value) else " " for value in values)


def panel(now: Progress, rates: Sequence[float] = ()) -> Group:
    """Where the benchmark is, the rate so far, and the last few hundred answers."""
    table = Table.grid(padding=(0, 2))
    for _ in range(6):
        table.add_column(justify="right")
    table.add_row("rate", f"{now.rate:.1f} req/s", "in flight", str(now.concurrency), "tokens", _tokens(now))
    table.add_row(
        "ok", str(now.ok), "failed", Text(str(now.failed), style="red" if now.failed else ""), "phase", now.phase
    )
    times = Table.grid(padding=(0, 2))
    for _ in range(3):
        times.add_column(justify="right")
    times.add_row("", Text("p50", style="dim"), Text("p95", style="dim"))
    times.add_row("first token", milliseconds(now.ttft_p50), milliseconds(now.ttft_p95))
    times.add_row("between tokens", milliseconds(now.itl_p50), milliseconds(now.itl_p95))
    times.add_row("end to end", milliseconds(now.e2e_p50), milliseconds(now.e2e_p95))
    errors = [Text(f"{kind}: {count} of the last answers", style="red") for kind, count in (now.errors or {}).items()]
    head = Text.assemble((f"run {now.run} of {now.runs}: {now.phase}  ", "bold"), (spark(rates), "cyan"))
    left = "" if math.isnan(now.eta) else f"{now.eta:.0f} s left"
    eta = 0.0 if math.isnan(now.eta) else now.eta
    bar = ProgressBar(total=max(1e-9, now.elapsed + eta), completed=now.elapsed, width=_TRACE)
    return Group(head, bar, Text(left, style="dim"), table, times, *errors)


def _tokens(now: Progress) -> str:
    return "-" if math.isnan(now.tokens_per_second) else f"{now.tokens_per_second:.0f}/s"


@contextmanager
def live(console: Console) -> Iterator[tuple[Callable[[Progress], None], Callable[[str], None]]]:
    """Gives what takes progress and what says a line: a live view on a terminal, a line every five seconds elsewhere."""
    if console.is_terminal:
        rates: list[float] = []
        with Live(Text("connecting…"), console=console, refresh_per_second=4, transient=True) as view:

            def show(now: Progress) -> None:
                rates.append(now.rate)
                view.update(panel(now, rates[-_TRACE:]))

            yield show, view.console.print
        return
    last = -math.inf

    def progress(now: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _LOG_SECONDS:
            last = time.monotonic()
            print(line(now), file=console.file, flush=True)

    yield progress, lambda text: print(text, file=console.file, flush=True)


def summarize(result: Result, console: Console) -> None:
    """Every run as a column, and why a run does not count."""
    said = ", ".join(f"{key} {value}" for key, value in result.server.items())
    console.print(Text(f"{result.url} ({said})"), soft_wrap=True)
    table = Table(box=None, header_style="bold")
    table.add_column("")
    # A terminal has room for a few runs; the last ones stand for the rest, which the file has.
    kept = list(enumerate(result.runs, 1))[-_SHOWN_RUNS:]
    for number, run in kept:
        table.add_column(f"run {number}" if run.valid else f"run {number} !", justify="right")
    runs = [run for _, run in kept]
    table.add_row("Warm-up / measured", *(f"{run.warmup_seconds:.1f} / {run.seconds:.1f} s" for run in runs))
    table.add_row("Succeeded / failed / cut", *(f"{run.ok} / {run.failed} / {run.cut}" for run in runs))
    for metric, words, unit, _ in ROWS:
        if any(metric in run.metrics for run in runs):
            table.add_row(words, *(shown(run.metrics.get(metric), unit) for run in runs))
    console.print(table)
    for number, run in enumerate(result.runs, 1):
        if not run.valid:
            console.print(Text(f"run {number} does not count: {run.invalid_because}", style="yellow"), soft_wrap=True)
        for text in run.warnings:
            console.print(Text(f"run {number}: {text}", style="yellow"), soft_wrap=True)
        for kind, count in run.errors.items():
            console.print(Text(f"run {number}: {count} × {kind}", style="red"), soft_wrap=True)


def differences(before: Result, after: Result, console: Console) -> None:
    """Medians of two results side by side."""
    since = f", measured {before.runs[0].started:%F %T}" if before.runs else ""
    table = Table(box=None, header_style="bold", title=f"against {name_of(before)}{since}")
    for column in ("", "before", "now", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for change in comparison(before, after):
        style = {True: "green", False: "red", None: ""}[change.better]
        ratio = Text("-" if change.ratio is None else f"× {change.ratio:.3f}", style=style)
        table.add_row(change.words, change.before, change.after, ratio)
    console.print(table)
