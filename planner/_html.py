"""A report as one self-contained page: no network, light and dark, the curves as inline SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ._render import rendered
from ._report import Report, money, seconds

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --dim: #60646c; --line: #d9d9e0; --soft: #f4f4f7;
  --a: #0b68cb; --b: #c2410c; --good: #18794e; --bad: #c62a2f; }
@media (prefers-color-scheme: dark) { :root { --paper: #111214; --ink: #edeef0; --dim: #a0a4ab; --line: #363a3f;
  --soft: #1a1b1e; --a: #70b8ff; --b: #ffa057; --good: #3dd68c; --bad: #ff9592; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.verdict { font-weight: 600; margin: 0 0 1.2rem; } .kept { color: var(--good); } .broken { color: var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 500; white-space: nowrap; } td:first-child { min-width: 9rem; }
table:not(.facts) td:not(:first-child) { white-space: nowrap; }
.facts td:first-child { color: var(--dim); white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .8rem; background: var(--soft); border-radius: 8px; }
figcaption { font-weight: 600; font-size: .9rem; } figure p { margin: 0; color: var(--dim); font-size: .8rem; }
svg { width: 100%; height: auto; display: block; margin-top: .4rem; } svg text { fill: var(--dim); font-size: 11px; }
.grid { stroke: var(--line); stroke-width: 1; } .a { stroke: var(--a); } .b { stroke: var(--b); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .dot { stroke: var(--soft); stroke-width: 1.5; }
.dot.a, .key.a { fill: var(--a); } .dot.b, .key.b { fill: var(--b); }
.limit { stroke: var(--bad); stroke-dasharray: 4 3; } .here { stroke: var(--dim); stroke-dasharray: 2 3; }
li { margin: .15rem 0; } footer { margin-top: 3rem; color: var(--dim); font-size: .85rem; }
"""
_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 22, 34


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a chart: its name, its class (`a` or `b`) and (x, y, words for the tooltip) points."""

    name: str
    kind: str
    points: tuple[tuple[float, float, str], ...]


def page(report: Report) -> str:
    """The whole page. Everything that came from a file or an option is escaped."""
    words = rendered(report)
    state = "kept" if report.plan.feasible else "broken"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(report.title)}: plan</title><style>{_STYLE}</style></head><body>",
        f'<h1>{escape(report.title)}</h1><p class="verdict {state}">{escape(words.verdict)}</p>',
        _table((), words.facts, "facts"),
        f'<h2>Curves</h2><div class="charts">{"".join(_charts(report))}</div>',
    ]
    for title, columns, rows in words.tables:
        parts.append(f"<h2>{escape(title)}</h2>{_table(columns, rows, '')}")
    for title, lines in words.lists:
        if lines:
            items = "".join(f"<li>{_prose(line)}</li>" for line in lines)
            parts.append(f"<h2>{escape(title)}</h2><ul>{items}</ul>")
    plan = report.plan
    parts.append(f"<footer>Prices: {escape(plan.price_source)}, {escape(plan.price_as_of)}. Predictions, not")
    parts.append("measurements: let the benchmark decide.</footer></body></html>\n")
    return "\n".join(parts)


def _charts(report: Report) -> list[str]:
    limit = report.objectives.e2e_p95_seconds if report.objectives else None
    slots = [p for p in report.slots_curve if math.isfinite(p.e2e_p95_seconds)]
    users = report.users_curve
    closed = report.traffic.arrival == "closed"
    unit = "users" if closed else "req/s"
    now = float(report.traffic.users or 0) if closed else float(report.traffic.requests_per_second or 0)
    charts = [
        chart(
            "Latency over slots per replica",
            f"{report.plan.nodes_expected} nodes, this traffic; 95th percentile, logarithmic",
            [
                Line(
                    name="end to end",
                    kind="a",
                    points=tuple(
                        (p.x, p.e2e_p95_seconds, f"{p.x:g} slots: {seconds(p.e2e_p95_seconds)}") for p in slots
                    ),
                ),
                Line(
                    name="first token",
                    kind="b",
                    points=tuple(
                        (p.x, p.ttft_p95_seconds, f"{p.x:g} slots: {seconds(p.ttft_p95_seconds)}") for p in slots
                    ),
                ),
            ],
            unit="s",
            limit=limit,
            here=float(report.plan.slots),
            log_y=True,
        ),
        chart(
            "Throughput over slots per replica",
            f"{report.plan.nodes_expected} nodes, this traffic",
            [
                Line(
                    name="requests per second",
                    kind="a",
                    points=tuple(
                        (p.x, p.requests_per_second, f"{p.x:g} slots: {p.requests_per_second:.1f}/s") for p in slots
                    ),
                )
            ],
            unit="req/s",
            here=float(report.plan.slots),
        ),
        chart(
            f"Cost over {unit}",
            "the fewest nodes that keep the promise",
            [
                Line(
                    name="USD per hour",
                    kind="a",
                    points=tuple(
                        (p.x, p.cost_per_hour, f"{p.x:,.0f} {unit}: {p.nodes} nodes, {money(p.cost_per_hour)}/h")
                        for p in users
                        if p.kept
                    ),
                )
            ],
            unit="$/h",
            here=now,
        ),
        chart(
            "Cost against latency",
            "Pareto front over every choice: nobody on it is beaten on both; logarithmic",
            [
                Line(
                    name="end to end, p95",
                    kind="a",
                    points=tuple(
                        (
                            c.cost_per_hour,
                            c.predicted["e2e_p95_seconds"],
                            f"{c.summary}: {money(c.cost_per_hour)}/h, {seconds(c.predicted['e2e_p95_seconds'])}",
                        )
                        for c in report.front
                    ),
                )
            ],
            unit="s",
            limit=limit,
            here=report.on_demand_per_hour,
            log_y=True,
            prefix="$",
        ),
    ]
    return [figure for figure in charts if figure]


def chart(
    title: str,
    about: str,
    lines: Sequence[Line],
    *,
    unit: str,
    limit: float | None = None,
    here: float | None = None,
    log_y: bool = False,
    prefix: str = "",
) -> str:
    """One figure with a logarithmic x axis; `limit` is a dashed line across, `here` one upright. Empty without points."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _, _ in line.points]
    ys = [y for line in lines for _, y, _ in line.points] + ([limit] if limit else [])
    low_x, high_x = min(xs), max(xs)
    low_y = min(ys) if log_y else 0.0
    # Room above a rising line for the words at its end.
    high_y = max(ys) * (1.0 if log_y else 1.15) or 1.0

    def across(x: float) -> float:
        share = 0.5 if high_x == low_x else math.log(x / low_x) / math.log(high_x / low_x)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        if log_y:
            share = 0.5 if high_y == low_y else math.log(y / low_y) / math.log(high_y / low_y)
        else:
            share = (y - low_y) / (high_y - low_y)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    body = []
    for y in _ticks(low_y, high_y, log_y):
        body.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>')
        body.append(f'<text x="{_LEFT - 6}" y="{up(y) + 4:.1f}" text-anchor="end">{_number(y)}</text>')
    for x in _ticks(low_x, high_x, True):
        body.append(f'<text x="{across(x):.1f}" y="{_HEIGHT - 14}" text-anchor="middle">{prefix}{_number(x)}</text>')
    body.append(f'<text x="{_LEFT - 6}" y="12" text-anchor="end">{escape(unit)}</text>')
    if limit:
        body.append(
            f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up(limit):.1f}" y2="{up(limit):.1f}"/>'
        )
        body.append(f'<text x="{_LEFT + 4}" y="{up(limit) - 4:.1f}">promised</text>')
    if here and low_x <= here <= high_x:
        body.append(
            f'<line class="here" x1="{across(here):.1f}" x2="{across(here):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        )
        anchor = "end" if across(here) > _WIDTH - 70 else "start"
        shift = -4 if anchor == "end" else 4
        body.append(f'<text x="{across(here) + shift:.1f}" y="{_TOP + 8}" text-anchor="{anchor}">this plan</text>')
    place = _LEFT + 4
    for line in lines:
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y, _ in line.points)
        body.append(f'<polyline class="line {line.kind}" points="{path}"/>')
        body += [
            f'<circle class="dot {line.kind}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="4"><title>{escape(words)}</title></circle>'
            for x, y, words in line.points
        ]
        if len(lines) > 1:
            body.append(f'<rect class="key {line.kind}" x="{place}" y="4" width="9" height="9" rx="2"/>')
            body.append(f'<text x="{place + 13}" y="12">{escape(line.name)}</text>')
            place += 30 + 6 * len(line.name)
    label = escape(f"{title}. {about}")
    return (
        f"<figure><figcaption>{escape(title)}</figcaption><p>{escape(about)}</p>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(body)}</svg></figure>'
    )


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """A handful of round numbers between low and high."""
    if logarithmic:
        found = [
            digit * 10.0**power
            for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for digit in (1, 2, 5)
        ]
        inside = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(inside) < 3:
            inside = [
                value
                for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
                for digit in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
                if low * 0.999 <= (value := digit * 10.0**power) <= high * 1.001
            ]
        if len(inside) > 7:
            inside = [value for value in inside if f"{value:e}".startswith("1")]
        return inside or [low]
    step = 10.0 ** math.floor(math.log10((high - low) / 2)) if high > low else 1.0
    while (high - low) / step > 5:
        step *= 2 if (high - low) / step <= 10 else 2.5
    return [low + index * step for index in range(int((high - low) / step) + 1)]


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}"


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], kind: str) -> str:
    head = f"<thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in columns)}</tr></thead>" if columns else ""
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'


def _prose(line: str) -> str:
    """A line with its commands in backquotes set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(line))


def _cell(text: str) -> str:
    state = f' class="{text}"' if text in ("kept", "broken") else ""
    return f"<td{state}>{escape(text)}</td>"
