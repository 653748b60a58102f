"""The scenarios as a table in Markdown, and as one page with a picture each."""

from __future__ import annotations

import html
import itertools
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from ._scenarios import PROMISE_SECONDS, Report

# Of a picture, in pixels: the plot's left edge, its width, and one panel's height with the room above it.
_LEFT, _WIDE, _PANEL, _GAP, _BELOW = 52, 700, 96, 34, 26
_TICKS = (1, 2, 5)
_CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
_WANTED, _READY, _ORACLE, _QUEUE, _ASKED, _LOST = "#3b6ea5", "#3a8f5c", "#8a8a8a", "#c0563b", "#6b5b95", "#d00000"
Points = Sequence[tuple[float, float]]


def _seconds(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "–"


def _after(value: float) -> str:
    return "before" if value < 0 and math.isfinite(value) else _seconds(value)


def _whole(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "–"


def table(reports: Sequence[Report], first: str = "scenario") -> str:
    """One row each. `decided`, `all ready`: seconds after the first request waited, "before" where none had."""
    lines = [
        f"| {first} | requests | lost | p95, s | promise kept again after, s | KEDA decided, s | all ready, s | reversals "
        "| replica-s | oracle | what else |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for one in reports:
        facts = "; ".join(f"{key}: {value}" for key, value in one.facts.items())
        lines.append(
            f"| {one.name} | {one.requests} | {one.lost} | {_seconds(one.p95)} | {_seconds(one.recovered)} "
            f"| {_after(one.decided)} | {_after(one.ready)} | {one.reversals} | {one.replica_seconds:.0f} "
            f"| {_whole(one.oracle_seconds)} | {facts} |"
        )
    return "\n".join(lines) + "\n"


def _step(most: float, marks: int) -> float:
    """A round distance between marks, so that there are about so many."""
    rough = max(most, 1e-9) / marks
    power = 10.0 ** math.floor(math.log10(rough))
    return next(one * power for one in (*_TICKS, 10) if one * power >= rough)


def _steps(points: Points) -> Points:
    """A number that holds until it changes, as corners."""
    corners = [points[0]] if points else []
    for (_, before), (at, after) in itertools.pairwise(points):
        corners += [(at, before), (at, after)]
    return corners


class _Panel:
    """One plot over the common time. `top`: its upper edge in pixels."""

    def __init__(self, title: str, top: float, end: float, values: Iterable[float]) -> None:
        self._top, self._end = top, end
        step = _step(max([1.0, *values]), 3)
        self._most = step * max(1, math.ceil(max([1.0, *values]) / step))
        self.parts = [f'<text class="t" x="{_LEFT}" y="{top - 8:.0f}">{html.escape(title)}</text>']
        for number in range(round(self._most / step) + 1):
            y = self.y(number * step)
            self.parts.append(f'<line class="g" x1="{_LEFT}" x2="{_LEFT + _WIDE}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.parts.append(f'<text class="n" x="{_LEFT - 6}" y="{y + 4:.1f}">{number * step:g}</text>')

    def x(self, at: float) -> float:
        return _LEFT + at / self._end * _WIDE

    def y(self, value: float) -> float:
        return self._top + _PANEL * (1 - value / self._most)

    def line(self, points: Points, colour: str, name: str, *, dashed: bool = False) -> None:
        """With its name, which a pointer over it shows."""
        if not points:
            return
        shape = " ".join(f"{self.x(at):.1f},{self.y(value):.1f}" for at, value in points)
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        self.parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2"{dash} points="{shape}"><title>{name}</title></polyline>'
        )

    def dot(self, at: float, value: float, colour: str) -> None:
        self.parts.append(f'<circle cx="{self.x(at):.1f}" cy="{self.y(value):.1f}" r="1.6" fill="{colour}"/>')


def picture(report: Report) -> str:
    """Requests, replicas beside the oracle's, the queue, and each answer by its latency, one below the other over one time."""
    samples, answers = report.samples, report.outcome.answers
    if not samples:
        return ""
    begin = _begin(report)
    end = max([1.0, samples[-1].at, *(one.done + begin for one in answers)])
    arrived = [0.0] * (math.ceil(end) + 1)
    for one in answers:
        arrived[int(one.due + begin)] += 1
    oracle = [(begin + index / 2, float(number)) for index, number in enumerate(report.oracle)]
    top = float(_GAP)
    panels = []
    for title, values in (
        ("requests per second", arrived),
        ("replicas: asked for, Ready, and the oracle's", [*(one.wanted for one in samples), *report.oracle]),
        ("requests that wait", [one.waiting for one in samples]),
        (
            f"seconds to the last token, promised {PROMISE_SECONDS:g}",
            [*(one.latency for one in answers), PROMISE_SECONDS],
        ),
    ):
        panels.append(_Panel(title, top, end, values))
        top += _PANEL + _GAP
    requests, replicas, queue, latency = panels
    requests.line(_steps([(float(at), value) for at, value in enumerate(arrived)][: int(end) + 1]), _ASKED, "requests")
    replicas.line(_steps(oracle), _ORACLE, "oracle", dashed=True)
    replicas.line(_steps([(one.at, float(one.wanted)) for one in samples]), _WANTED, "asked for")
    replicas.line(_steps([(one.at, float(one.ready)) for one in samples]), _READY, "Ready")
    queue.line([(one.at, one.waiting) for one in samples], _QUEUE, "waiting")
    latency.line([(0.0, PROMISE_SECONDS), (end, PROMISE_SECONDS)], _ORACLE, "promised", dashed=True)
    for one in answers:
        latency.dot(one.due + begin, one.latency, _ASKED if one.ok else _LOST)
    high = top - _GAP + _BELOW
    step = _step(end, 8)
    ticks = [
        f'<text class="s" x="{latency.x(number * step):.1f}" y="{high - 8:.0f}">{number * step:g} s</text>'
        for number in range(int(end / step) + 1)
    ]
    size = f'viewBox="0 0 {_LEFT + _WIDE + 8} {high:.0f}" width="{_LEFT + _WIDE + 8}" height="{high:.0f}"'
    drawn = "".join(part for panel in panels for part in panel.parts) + "".join(ticks)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{html.escape(report.name)}">{drawn}</svg>'


def _begin(report: Report) -> float:
    """When the load began, in the watcher's time: the first request is seen by the next scrape and look at the latest."""
    due = min((one.due for one in report.outcome.answers), default=0.0)
    seen = next((one.at for one in report.samples if one.running + one.waiting > 0), due)
    return max(0.0, seen - due - 1.0)


def write_png(text: str, path: Path, pictures: int) -> None:
    """A page as a picture, by the Chromium that is there. Raises RuntimeError without one, or with what it said."""
    program = next((found for name in _CHROMIUMS if (found := shutil.which(name))), None)
    if program is None:
        raise RuntimeError(f"none of {', '.join(_CHROMIUMS)} is installed: the page has the same pictures")
    with tempfile.TemporaryDirectory() as folder:
        page_file = Path(folder) / "page.html"
        page_file.write_text(text)
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size=860,{200 + 700 * pictures}", f"--screenshot={path.absolute()}", page_file.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode or not path.is_file():
        raise RuntimeError(done.stderr.strip()[-500:])


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:800px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h2{margin:2.2em 0 .3em} svg{max-width:100%;height:auto} p,ul{margin:.3em 0}
.t{font:600 12px system-ui,sans-serif;fill:currentColor} .n,.s{font:11px system-ui,sans-serif;fill:#666}
.n{text-anchor:end} .s{text-anchor:middle} .g{stroke:#bbb;stroke-opacity:.45} b{white-space:nowrap}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#16181c} .n,.s{fill:#aaa}}
"""


def page(reports: Sequence[Report]) -> str:
    """All pictures with their numbers, without anything from elsewhere."""
    body = []
    for one in reports:
        rows = "".join(
            f"<li>{html.escape(str(key))}: {html.escape(str(value))}</li>" for key, value in one.facts.items()
        )
        body.append(
            f"<h2>{html.escape(one.name)}</h2><p>{one.requests} requests, {one.lost} lost, p95 {_seconds(one.p95)} s; "
            f"{one.replica_seconds:.0f} replica-seconds, {_whole(one.oracle_seconds)} by the oracle</p>"
            f"{picture(one)}<ul>{rows}</ul>"
        )
    words = ", ".join(
        f'<b style="color:{colour}">{name}</b>'
        for name, colour in (
            ("asked for", _WANTED),
            ("Ready", _READY),
            ("the oracle's", _ORACLE),
            ("waiting", _QUEUE),
            ("requests and answers", _ASKED),
            ("lost", _LOST),
        )
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Autoscaling under load</title><style>{_STYLE}</style>"
        f"<h1>Autoscaling under load</h1><p>{words}. The oracle knows the load and starts replicas 3 s before they are needed</p>"
        + "".join(body)
    )
