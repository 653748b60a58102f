"""One thing that was looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["good", "warning", "bad", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`area`: machine, project, cluster or cloud; `about`: what was looked at; `said`: what was found, one line.

    `level`: `bad` stops something that was asked about, `warning` may hurt, `unknown` could not be looked at. `fix`: a command
    or an edit; empty where all is well.
    """

    area: str
    about: str
    level: Level
    said: str
    fix: str = ""


def worst(findings: Iterable[Finding]) -> Level:
    """The gravest level of all: bad, warning, unknown, good."""
    order: tuple[Level, ...] = ("bad", "warning", "unknown", "good")
    levels = {finding.level for finding in findings}
    return next((level for level in order if level in levels), "good")
