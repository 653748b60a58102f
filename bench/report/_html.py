"""The page: summary first, then how it went over time, how latencies are distributed, and what differs."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from html import escape

from ..load._histogram import Histogram
from ..results import Limit, Matrix, Result, Run
from ._matrix import page_of_limit, page_of_matrix
from ._svg import Line, chart
from ._text import ROWS, axis_seconds, comparison, median, name_of, names_of, shown, valid_runs

_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#5b6570;--rule:#d9dee3;--card:#f6f8fa;--good:#116b3a;
--bad:#b3261e;--c1:#2563c9;--c2:#c2570c;--c3:#0f7a6c;--c4:#8a3ab9;--c5:#9a7500;--c6:#b0285f;--shade:#2563c914}
@media(prefers-color-scheme:dark){:root{--bg:#12161b;--fg:#e6eaee;--dim:#97a3af;--rule:#2b333c;--card:#1a2027;
--good:#5fd08f;--bad:#ff8a80;--c1:#7ab0ff;--c2:#ffab70;--c3:#5ad1c0;--c4:#d19bf5;--c5:#e3c34f;--c6:#ff94bd;
--shade:#7ab0ff1c}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1100px;padding:1.2rem;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,sans-serif}h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1.1rem;margin:2rem 0 .6rem}
p{margin:.3rem 0}.dim{color:var(--dim)}.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));
gap:.7rem;margin:1rem 0}.tile{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:.7rem}
.tile b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}.charts{display:grid;gap:1rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}figure{margin:0;background:var(--card);
border:1px solid var(--rule);border-radius:8px;padding:.7rem;min-width:0}figcaption{font-weight:600;margin-bottom:.3rem}
svg{width:100%;height:auto;display:block}svg text{fill:var(--dim);font-size:13px}.grid{stroke:var(--rule)}
.shade{fill:var(--shade)}.line{fill:none;stroke-width:2;stroke-linejoin:round}.dashed{stroke-dasharray:5 4}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1rem;color:var(--dim);font-size:.85rem}.key i{display:inline-block;
width:18px;border-top:3px solid;margin-right:.35rem;vertical-align:middle}.key i.dashed{border-top-style:dashed}
.scroll{overflow-x:auto;margin:.8rem 0}td.why{white-space:normal;min-width:12rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th:first-child,td:first-child{text-align:left;white-space:normal}.good{color:var(--good)}.bad{color:var(--bad)}
.heatmap td,.heatmap th{text-align:center;border:2px solid var(--bg)}.heatmap b,.heatmap small{display:block}
.heatmap small{color:var(--dim);font-size:.8em}
.heat{background:color-mix(in srgb,var(--c1) calc(var(--heat)*42%),var(--card))}.heat small{color:var(--fg);opacity:.85}
.best{outline:2px solid var(--good);outline-offset:-3px;border-radius:6px}
.note{border-left:4px solid var(--bad);padding:.4rem .8rem;margin:.6rem 0;background:var(--card)}
details{margin:.8rem 0}summary{cursor:pointer;color:var(--dim)}
@media(max-width:600px){body{padding:.8rem}svg text{font-size:16px}th,td{padding:.3rem .35rem}td.why{min-width:7rem}
.heatmap td,.heatmap th{font-size:.8rem;padding:.25rem .1rem}}
.note.mild{border-left-color:var(--c5)}
""" + "".join(
    f".c{n}{{stroke:var(--c{n})}}.key i.c{n}{{border-top-color:var(--c{n})}}.dot.c{n}{{fill:var(--c{n})}}"
    for n in range(1, 7)
)

_TILES = ("requests_per_second", "output_tokens_per_second", "ttft_p95_seconds", "itl_p95_seconds", "e2e_p95_seconds",
          "error_rate")  # fmt: skip
_BARS = 40
_SHARES = [number / 200 for number in range(1, 200)] + [0.999]


def html(results: Sequence[Result], *, limits: Sequence[Limit] = (), matrices: Sequence[Matrix] = ()) -> str:
    """One self-contained page of one or several results; the first is what the others are compared with."""
    names = [*map(name_of, results), *map(name_of, limits), *map(name_of, matrices)]
    title = "Benchmark of " + ", ".join(dict.fromkeys(names))
    body = [f"<h1>{escape(title)}</h1>"]
    names = names_of(results)
    for number, result in enumerate(results):
        body.append(_one(result, names[number] if len(results) > 1 else ""))
        if number:
            body.append(_compared(results[0], result, names[0], names[number]))
    body += [page_of_limit(limit) for limit in limits]
    body += [page_of_matrix(matrix) for matrix in matrices]
    body.append(_together(results))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _one(result: Result, heading: str) -> str:
    traffic = result.traffic
    who = (
        f"{traffic.users} users"
        if traffic.arrival == "closed"
        else f"{traffic.requests_per_second:g} requests/s ({traffic.arrival})"
    )
    lengths = f"{traffic.prompt_tokens.mean:g} tokens in, {traffic.output_tokens.mean:g} out"
    parts = [f"<h2>{escape(heading)}</h2>" if heading else ""]
    parts.append(f"<p>{escape(who)}, {lengths}; {result.replicas} replica{'s' if result.replicas > 1 else ''}</p>")
    said = {**result.server, **result.environment}
    parts.append(f'<p class="dim">{escape(", ".join(f"{key} {value}" for key, value in said.items()))}</p>')
    parts.append(f'<p class="dim">{escape(result.url)} · release {escape(result.release[:19])}…</p>')
    for number, run in enumerate(result.runs, 1):
        if not run.valid:
            parts.append(f'<div class="note">Run {number} does not count: {escape(run.invalid_because)}</div>')
        parts += [f'<div class="note mild">Run {number}: {escape(text)}</div>' for text in run.warnings]
    tiles = [(words, shown(median(result, metric), unit)) for metric, words, unit, _ in ROWS if metric in _TILES]
    if valid_runs(result):
        parts.append('<div class="tiles">')
        parts += [f'<div class="tile"><span class="dim">{escape(w)}</span><b>{escape(v)}</b></div>' for w, v in tiles]
        parts.append("</div>")
    table = _table(result)
    # Beside others the figures stand in the comparison.
    parts.append(f"<details><summary>All figures</summary>{table}</details>" if heading else table)
    drawn = [run for run in (*valid_runs(result), *result.runs) if run.series][:1]
    for run in drawn:
        parts.append(f'<h2>Run {result.runs.index(run) + 1} over time</h2><div class="charts">{_over_time(run)}</div>')
    return "".join(parts)


def _table(result: Result) -> str:
    heads = "".join(f"<th>Run {n}{'' if run.valid else ' !'}</th>" for n, run in enumerate(result.runs, 1))
    rows = [
        ("Warm-up", [shown(run.warmup_seconds, "s") for run in result.runs]),
        ("Measured", [shown(run.seconds, "s") for run in result.runs]),
        ("Succeeded / failed / cut", [f"{run.ok} / {run.failed} / {run.cut}" for run in result.runs]),
    ]
    kinds = sorted({kind for run in result.runs for kind in run.errors})
    rows += [(f"… {kind}", [str(run.errors.get(kind, 0)) for run in result.runs]) for kind in kinds]
    for metric, words, unit, _ in ROWS:
        if any(metric in run.metrics for run in result.runs):
            rows.append((words, [shown(run.metrics.get(metric), unit) for run in result.runs]))
    lines = "".join(
        f"<tr><td>{escape(words)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for words, cells in rows
    )
    return f'<div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'


def _over_time(run: Run) -> str:
    times = [moment or 0.0 for moment in run.series.get("seconds", ())]
    steady = (run.warmup_seconds, run.warmup_seconds + run.seconds)

    def line(name: str, key: str, colour: int, dashed: bool = False) -> Line:
        return Line(
            name=name, points=list(zip(times, run.series.get(key, ()), strict=False)), colour=colour, dashed=dashed
        )

    rate = [line("requests/s", "requests_per_second", 1), line("errors/s", "errors_per_second", 6, dashed=True)]
    end = [line("p95", "e2e_p95_seconds", 2), line("p50", "e2e_p50_seconds", 1)]
    first = [line("p95", "ttft_p95_seconds", 2), line("p50", "ttft_p50_seconds", 1)]
    label = "seconds since the first request; what counts is shaded"
    pictures = [
        ("Rate", rate, _number),
        ("In flight", [line("requests", "concurrency", 3)], _number),
        ("Time to first token", first, axis_seconds),
        ("End to end", end, axis_seconds),
    ]
    # The server's side, where somebody could be asked.
    for title, keys, form in (
        ("Queue of the engines", (("waiting", "server_waiting", 2), ("running", "server_running", 1)), _number),
        ("Replicas and nodes", (("replicas", "replicas", 3), ("nodes", "nodes", 4)), _number),
        ("KV cache and GPU", (("KV cache", "server_kv_usage", 5), ("GPU busy", "gpu_utilization", 4)), _percent),
        ("GPU memory", (("in use", "gpu_memory_bytes", 1),), _bytes),
    ):
        lines = [line(name, key, colour) for name, key, colour in keys if key in run.series]
        if lines:
            pictures.append((title, lines, form))
    return "".join(
        chart(lines, title=title, x_label=label, y_form=form, shade=steady) for title, lines, form in pictures
    )


def _percent(value: float) -> str:
    return f"{value * 100:.3g} %"


def _bytes(value: float) -> str:
    return shown(value, "B") if value else "0"


def _number(value: float) -> str:
    return f"{value:g}"


def merged(result: Result, family: str) -> Histogram | None:
    """All valid runs' histogram of that family, or None."""
    whole = Histogram()
    for run in valid_runs(result):
        if family in run.histograms:
            whole.merge(Histogram.from_dict(run.histograms[family]))
    return whole if whole.count else None


def _edges(wholes: Sequence[Histogram]) -> list[float]:
    """Borders of at most forty equal steps of the logarithm that hold all that is above zero."""
    rows = [row for whole in wholes for row in whole.rows() if row[1] > 0]
    if not rows:
        return []
    low, high = math.log(min(row[0] for row in rows)), math.log(max(row[1] for row in rows))
    # No finer than the buckets are, four at least, or their borders would show as teeth.
    count = max(1, min(_BARS, int((high - low) / 0.04)))
    return [math.exp(low + (high - low) * i / count) for i in range(count + 1)]


def _steps(whole: Histogram, edges: Sequence[float]) -> list[tuple[float, float]]:
    """The outline of a histogram's bars, in percent of all."""
    heights = [0.0] * max(1, len(edges) - 1)
    for above, to, count in whole.rows():
        if to > 0 and len(edges) > 1:
            heights[min(len(heights) - 1, max(0, bisect.bisect(edges, math.sqrt(above * to)) - 1))] += count
    points = [(edges[0], 0.0)] if edges else []
    for left, right, height in zip(edges, edges[1:], heights, strict=False):
        share = height / whole.count * 100
        points += [(left, share), (right, share)]
    return [*points, (edges[-1], 0.0)] if edges else []


def _together(results: Sequence[Result]) -> str:
    """Distributions, and latency against throughput, of all results in the same pictures."""
    parts, names = [], names_of(results)
    for family, words in (
        ("ttft_seconds", "Time to first token"),
        ("itl_seconds", "Between tokens"),
        ("e2e_seconds", "End to end"),
    ):
        known = [
            (number, whole) for number, result in enumerate(results) if (whole := merged(result, family)) is not None
        ]
        below = [
            Line(
                name=names[number],
                points=[p for p in ((whole.quantile(share), share * 100) for share in _SHARES) if p[0] > 0],
                colour=number % 6 + 1,
            )
            for number, whole in known
        ]
        edges = _edges([whole for _, whole in known])
        bars = [Line(name=names[n], points=_steps(whole, edges), colour=n % 6 + 1) for n, whole in known]
        for title, lines in ((f"{words}: how many took so long", bars), (f"{words}: share of all below", below)):
            parts.append(
                chart(lines, title=title, x_label="", y_form=lambda y: f"{y:g} %", x_form=axis_seconds, log_x=True)
            )
    dots = []
    for number, result in enumerate(results):
        points = [
            (run.metrics["requests_per_second"], run.metrics["e2e_p95_seconds"])
            for run in valid_runs(result)
            if run.metrics.keys() >= {"requests_per_second", "e2e_p95_seconds"}
        ]
        dots.append(Line(name=names[number], points=points, colour=number % 6 + 1, dots=True))
    parts.append(chart(dots, title="End to end p95 against rate", x_label="requests/s", y_form=axis_seconds))
    drawn = "".join(part for part in parts if part)
    return f'<h2>Distributions</h2><div class="charts">{drawn}</div>' if drawn else ""


def _compared(before: Result, after: Result, old: str, new: str) -> str:
    rows = "".join(
        f"<tr><td>{escape(change.words)}</td><td>{escape(change.before)}</td><td>{escape(change.after)}</td>"
        f'<td class="{ {True: "good", False: "bad", None: ""}[change.better] }">'
        f"{'–' if change.ratio is None else f'× {change.ratio:.3f}'}</td></tr>"
        for change in comparison(before, after)
    )
    names = f"<th>{escape(old)}</th><th>{escape(new)}</th>"
    return (
        f"<h2>{escape(new)} against {escape(old)}</h2>"
        '<p class="dim">Medians over valid runs. Whether a difference is more than noise is for the gate to say.</p>'
        f'<div class="scroll"><table><thead><tr><th></th>{names}<th>ratio</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
