"""Small charts as inline SVG. Colours are CSS variables, so that one picture serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 12, 12, 42


@dataclass(frozen=True, kw_only=True)
class Line:
    """`points`: (x, y); a y of None breaks the line. `colour`: 1..6. `dashed`: for what is of the second rank."""

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int
    dashed: bool = False
    dots: bool = False


def chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_form: Callable[[float], str],
    x_form: Callable[[float], str] | None = None,
    log_x: bool = False,
    shade: tuple[float, float] | None = None,
) -> str:
    """A line chart with a legend; `shade`: a stretch of x to set apart. Empty where there is nothing to draw."""
    xs = [x for line in lines for x, y in line.points if y is not None and (x > 0 or not log_x)]
    ys = [y for line in lines for _, y in line.points if y is not None]
    if not xs:
        return ""
    forward: Callable[[float], float] = math.log10 if log_x else float
    low, high = forward(min(xs)), forward(max(xs))
    if high - low < 1e-9 * max(1.0, abs(high)):
        # Half of something of 19 digits is lost in it.
        low, high = low - max(0.5, abs(low) * 1e-6), high + max(0.5, abs(high) * 1e-6)
    if any(line.dots for line in lines):
        # A dot on the border is half a dot.
        low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    top = _nice(max([*ys, 1e-12]))

    def px(x: float) -> float:
        return _LEFT + (forward(x) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def py(y: float) -> float:
        return _HEIGHT - _BOTTOM - y / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    if shade is not None:
        a, b = max(min(xs), shade[0]), min(max(xs), shade[1])
        if b > a:
            parts.append(
                f'<rect class="shade" x="{px(a):.1f}" y="{_TOP}" width="{px(b) - px(a):.1f}" '
                f'height="{_HEIGHT - _TOP - _BOTTOM}"/>'
            )
    for step in range(5):
        value = top * step / 4
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py(value):.1f}" y2="{py(value):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{py(value) + 4:.1f}" text-anchor="end">{escape(y_form(value))}</text>')
    for x in _ticks(min(xs), max(xs), log_x):
        text = (x_form or _plain)(x)
        parts.append(f'<text x="{px(x):.1f}" y="{_HEIGHT - 23}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
    for line in lines:
        style = f'class="line c{line.colour}{" dashed" if line.dashed else ""}"'
        for stretch in _stretches(line.points, log_x):
            if len(stretch) > 1 and not line.dots:
                points = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in stretch)
                parts.append(f'<polyline {style} points="{points}"/>')
            elif line.dots or len(stretch) == 1:
                parts += [
                    f'<circle class="dot c{line.colour}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3.5"/>'
                    for x, y in stretch
                ]
    parts.append("</svg>")
    key = "".join(
        f'<span><i class="c{line.colour}{" dashed" if line.dashed else ""}"></i>{escape(line.name)}</span>'
        for line in lines
    )
    return f'<figure><figcaption>{escape(title)}</figcaption>{"".join(parts)}<div class="key">{key}</div></figure>'


def _stretches(points: Sequence[tuple[float, float | None]], log_x: bool) -> list[list[tuple[float, float]]]:
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None or (log_x and x <= 0):
            found.append([])
        else:
            found[-1].append((x, y))
    return [stretch for stretch in found if stretch]


def _nice(value: float) -> float:
    """The next of 1, 2, 4, 5, 8 times a power of ten: quarters of it are short numbers."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if value <= step * power * (1 + 1e-9))


def _ticks(low: float, high: float, log_x: bool) -> list[float]:
    if log_x:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        steps = (1, 2, 5) if last - first <= 2 else (1,)
        ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001] or [low, high]
    # Steps that are nothing beside the numbers themselves would never come to an end.
    step = _nice(max((high - low) / 6, 1e-9, abs(high) * 1e-9))
    count = int((high - math.ceil(low / step) * step) / step) + 1
    return [(math.ceil(low / step) + number) * step for number in range(max(1, count))]


def _plain(value: float) -> str:
    return f"{value:g}"
