"""Matrices and limits: as parts of the page, as Markdown, and on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..results import Analysis, Cell, Limit, Matrix
from ._svg import Line, chart
from ._text import axis_seconds, name_of, shown

_RATE = "sustained_requests_per_second"


def rate_of(cell: Cell) -> float:
    """Its sustained rate, or the plain one of a batch too short to have one."""
    return cell.run.metrics.get(_RATE, cell.run.metrics["requests_per_second"])


def conclusion(analysis: Analysis, what: str = "workers") -> str:
    """The decision in one sentence."""
    if analysis.scenario == "unknown":
        return f"{analysis.because}; nothing to compare it with."
    scenario = analysis.scenario.replace("workers", what)
    # What is more likely wrong than right is no finding.
    found = scenario.capitalize() if analysis.confidence >= 0.5 else f"Cannot tell, but it seems that {scenario}"
    return (
        f"{found} ({analysis.confidence:.0%} sure): {analysis.because}. Best: "
        f"{analysis.optimal_workers} ({analysis.optimal_confidence:.0%} sure that it is within 10 % of the best)."
    )


def lasting(seconds: float) -> str:
    """A duration as people plan with it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def page_of_matrix(matrix: Matrix) -> str:
    """A section of the page: the decision, the heat map, rates by worker count, forecasts."""
    parts = [f"<h2>Batches × workers: {escape(name_of(matrix))}</h2>"]
    found = matrix.analysis
    if found is not None:
        parts.append(f"<p>{escape(conclusion(found))}</p>")
        parts += [f'<div class="note">{escape(text[:1].upper() + text[1:])}.</div>' for text in found.warnings]
    parts.append(_heat(matrix))
    if found is not None:
        xs = [float(level.workers) for level in found.levels]
        lines = [
            Line(
                name="sustained",
                points=[(x, level.requests_per_second) for x, level in zip(xs, found.levels, strict=True)],
                colour=1,
            ),
            Line(
                name="95 % from", points=[(x, level.low) for x, level in zip(xs, found.levels, strict=True)], colour=1,
                dashed=True,
            ),
            Line(
                name="to", points=[(x, level.high) for x, level in zip(xs, found.levels, strict=True)], colour=1, dashed=True
            ),
        ]  # fmt: skip
        tails = [(x, level.e2e_p95_seconds) for x, level in zip(xs, found.levels, strict=True)]
        late = chart(
            [Line(name="end to end, p95", points=tails, colour=2)], title="Latency by workers", x_label="workers",
            y_form=axis_seconds, log_x=True,
        )  # fmt: skip
        drawn = chart(lines, title="Rate by workers", x_label="workers", y_form=lambda y: f"{y:g}/s", log_x=True)
        parts.append(f'<div class="charts">{drawn}{late}</div>')
        if found.forecasts:
            rows = "".join(
                f"<tr><td>{one.requests:,} requests</td><td>{lasting(one.seconds)}</td>"
                f"<td>{lasting(one.low)} … {lasting(one.high)}</td></tr>"
                for one in found.forecasts
            ).replace(",", "\u202f")
            parts.append(
                f'<div class="scroll"><table><thead><tr><th>With {found.optimal_workers} workers</th><th>takes</th>'
                f"<th>90 % interval</th></tr></thead><tbody>{rows}</tbody></table></div>"
            )
    return "".join(parts)


def _heat(matrix: Matrix) -> str:
    cells = {(cell.batch, cell.workers): cell for cell in matrix.cells}
    top = max((rate_of(cell) for cell in matrix.cells), default=1.0) or 1.0
    best = matrix.analysis.optimal_workers if matrix.analysis is not None else None
    heads = "".join(f'<th class="{"best" if one == best else ""}">{one}</th>' for one in matrix.workers)
    rows = []
    for batch in matrix.batches:
        row = [f"<td>{batch:,}</td>".replace(",", "\u202f")]
        for workers in matrix.workers:
            cell = cells.get((batch, workers))
            if cell is None:
                row.append('<td class="dim">–</td>')
                continue
            rate, errors = rate_of(cell), cell.run.metrics["error_rate"]
            below = shown(errors, "%") + " errors" if errors else shown(cell.run.metrics.get("e2e_p95_seconds"), "s")
            memory = f"<small>{shown(cell.vram_bytes, 'B')}</small>" if cell.vram_bytes else ""
            row.append(
                f'<td class="heat{" bad" if errors else ""}" style="--heat:{rate / top:.3f}"><b>{rate:.3g}/s</b>'
                f"<small>{below}</small>{memory}</td>"
            )
        rows.append(f"<tr>{''.join(row)}</tr>")
    return (
        '<p class="dim">Sustained requests/s; below it the 95th percentile end to end, or the errors, and the GPU memory where '
        'it is known</p><div class="scroll"><table class="heatmap">'
        f"<thead><tr><th>Batch \\ workers</th>{heads}"
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def page_of_limit(limit: Limit) -> str:
    """A section of the page: latency against throughput, with the knee and the limit."""
    held = sorted((s for s in limit.steps if not s.because), key=lambda s: s.requests_per_second)
    over = sorted((s for s in limit.steps if s.because), key=lambda s: s.requests_per_second)
    parts = [
        f"<h2>Latency against rate: {escape(name_of(limit))}</h2>",
        f'<div class="tiles">{_tile("Highest rate that holds", limit.highest_requests_per_second)}'
        f"{_tile('Knee', limit.knee_requests_per_second)}</div>",
    ]
    charts = []
    for metric, words in (("e2e_p95_seconds", "End to end p95"), ("ttft_p95_seconds", "First token p95")):
        lines = [
            Line(
                name=name,
                points=[(s.requests_per_second, s.run.metrics[metric]) for s in steps if metric in s.run.metrics],
                colour=colour, dots=dots,
            )
            for name, steps, colour, dots in (("holds", held, 3, False), ("does not hold", over, 6, True))
        ]  # fmt: skip
        charts.append(
            chart(
                [line for line in lines if line.points], title=words, x_label="requests/s offered",
                y_form=axis_seconds, log_x=True,
            )
        )  # fmt: skip
    parts.append(f'<div class="charts">{"".join(charts)}</div>')
    rows = "".join(
        f"<tr><td>{step.requests_per_second:.2f}/s</td><td>{shown(step.run.metrics.get('e2e_p95_seconds'), 's')}</td>"
        f'<td class="why {"bad" if step.because else "good"}">{escape(step.because or "holds")}</td></tr>'
        for step in sorted(limit.steps, key=lambda s: s.requests_per_second)
    )
    heads = "<th>Rate</th><th>End to end p95</th><th></th>"
    parts.append(f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>')
    return "".join(parts)


def _tile(words: str, rate: float) -> str:
    return f'<div class="tile"><span class="dim">{words}</span><b>{shown(rate, "/s") if rate else "none"}</b></div>'


def matrix_markdown(matrix: Matrix) -> str:
    """The grid of sustained rates, the decision, the forecasts and the warnings."""
    cells = {(cell.batch, cell.workers): cell for cell in matrix.cells}
    lines = [
        "| Batch \\ workers | " + " | ".join(map(str, matrix.workers)) + " |",
        "|---" * (len(matrix.workers) + 1) + "|",
    ]
    for batch in matrix.batches:
        row = [cells.get((batch, workers)) for workers in matrix.workers]
        shown_ = [f"{rate_of(cell):.3g}/s" + _errors(cell) if cell else "–" for cell in row]
        lines.append(f"| {batch} | " + " | ".join(shown_) + " |")
    found = matrix.analysis
    if found is not None:
        lines += ["", conclusion(found)]
        lines += [
            f"- {one.requests} requests would take {lasting(one.seconds)} ({lasting(one.low)} to {lasting(one.high)}, 90 %)."
            for one in found.forecasts
        ]
        lines += [f"- Warning: {text}." for text in found.warnings]
    return "\n".join(lines) + "\n"


def _errors(cell: Cell) -> str:
    errors = cell.run.metrics["error_rate"]
    return f" ({errors:.1%} errors)" if errors else ""


def show_matrix(matrix: Matrix, console: Console) -> None:
    """The same on a terminal."""
    cells = {(cell.batch, cell.workers): cell for cell in matrix.cells}
    table = Table(box=None, header_style="bold")
    table.add_column("batch \\ workers")
    for workers in matrix.workers:
        table.add_column(str(workers), justify="right")
    for batch in matrix.batches:
        row = [cells.get((batch, workers)) for workers in matrix.workers]
        table.add_row(str(batch), *(f"{rate_of(cell):.3g}/s{_errors(cell)}" if cell else "-" for cell in row))
    console.print(table)
    show_analysis(matrix.analysis, console)


def show_analysis(found: Analysis | None, console: Console, what: str = "workers") -> None:
    """The decision, forecasts and warnings."""
    if found is None:
        console.print(Text("too few cells for a conclusion", style="yellow"))
        return
    console.print(Text(conclusion(found, what), style="bold"), soft_wrap=True)
    for one in found.forecasts:
        text = f"{one.requests} requests would take {lasting(one.seconds)} ({lasting(one.low)} to {lasting(one.high)}, 90 %)"
        console.print(text, soft_wrap=True)
    _warned(found.warnings, console)


def _warned(warnings: Sequence[str], console: Console) -> None:
    for text in warnings:
        console.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)
