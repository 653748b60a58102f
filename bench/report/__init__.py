"""The report that people read: one HTML page without a network, Markdown, CSV, and what a terminal shows."""

from ._html import html
from ._matrix import matrix_markdown, show_analysis, show_matrix
from ._terminal import differences, line, live, milliseconds, panel, summarize
from ._text import comparison, csv, markdown

__all__ = [
    "comparison",
    "csv",
    "differences",
    "html",
    "line",
    "live",
    "markdown",
    "matrix_markdown",
    "milliseconds",
    "panel",
    "show_analysis",
    "show_matrix",
    "summarize",
]
