"""The scenarios as a table in Markdown, and as one page with a picture each."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from ._scenarios import PROMISE_SECONDS, Report

_WIDE, _HIGH = 720, 160
_COLOURS = {"wanted": "#3b6ea5", "ready": "#3a8f5c", "waiting": "#c0563b"}


def _seconds(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "–"


def table(reports: Sequence[Report], first: str = "scenario") -> str:
    """One row each. `decided`, `all ready`: seconds after the first request waited."""
    lines = [
        f"| {first} | requests | lost | p95, s | promise kept again after, s | KEDA decided, s | all ready, s | reversals "
        "| replica-s | oracle | what else |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for one in reports:
        facts = "; ".join(f"{key}: {value}" for key, value in one.facts.items())
        lines.append(
            f"| {one.name} | {one.requests} | {one.lost} | {_seconds(one.p95)} | {_seconds(one.recovered)} "
            f"| {_seconds(one.decided)} | {_seconds(one.ready)} | {one.reversals} | {one.replica_seconds:.0f} "
            f"| {one.oracle_seconds:.0f} | {facts} |"
        )
    return "\n".join(lines) + "\n"


def picture(report: Report) -> str:
    """Replicas asked for and Ready, and the queue, over time; below them each answer by its latency, lost ones in red."""
    samples = report.samples
    if not samples:
        return ""
    end = max(1.0, samples[-1].at, max((one.done for one in report.outcome.answers), default=0.0))
    most = max(1, *(one.wanted for one in samples))
    queue = max(1.0, *(one.waiting for one in samples))
    parts = []
    for name, top in (("wanted", float(most)), ("ready", float(most)), ("waiting", queue)):
        points = " ".join(
            f"{one.at / end * _WIDE:.1f},{_HIGH - getattr(one, name) / top * (_HIGH - 10):.1f}" for one in samples
        )
        parts.append(f'<polyline fill="none" stroke="{_COLOURS[name]}" stroke-width="2" points="{points}"/>')
    slow = max(PROMISE_SECONDS, *(one.latency for one in report.outcome.answers), 0.1)
    limit = 2 * _HIGH - PROMISE_SECONDS / slow * (_HIGH - 20)
    parts.append(f'<line x1="0" x2="{_WIDE}" y1="{limit:.1f}" y2="{limit:.1f}" stroke="#999" stroke-dasharray="4"/>')
    for one in report.outcome.answers:
        x, y = one.due / end * _WIDE, 2 * _HIGH - one.latency / slow * (_HIGH - 20)
        colour = "#555" if one.ok else "#d00"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.5" fill="{colour}"/>')
    size = f'viewBox="0 0 {_WIDE} {2 * _HIGH}" width="{_WIDE}" height="{2 * _HIGH}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{"".join(parts)}</svg>'


def page(reports: Sequence[Report]) -> str:
    """All pictures with their numbers, without anything from elsewhere."""
    body = []
    for one in reports:
        rows = "".join(
            f"<li>{html.escape(str(key))}: {html.escape(str(value))}</li>" for key, value in one.facts.items()
        )
        body.append(
            f"<h2>{html.escape(one.name)}</h2><p>{one.requests} requests, {one.lost} lost, p95 {_seconds(one.p95)} s; "
            f"{one.replica_seconds:.0f} replica-seconds, {one.oracle_seconds:.0f} by the oracle</p>{picture(one)}<ul>{rows}</ul>"
        )
    words = " ".join(f'<b style="color:{colour}">{name}</b>' for name, colour in _COLOURS.items())
    return (
        '<!doctype html><meta charset="utf-8"><title>Autoscaling</title>'
        "<style>body{font:15px/1.5 system-ui;max-width:760px;margin:2em auto;padding:0 1em}"
        "svg{max-width:100%;height:auto}</style>"
        f"<h1>Autoscaling under load</h1><p>{words}; below: answers by latency, the dashed line is the promise.</p>"
        + "".join(body)
    )
