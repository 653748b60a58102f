"""The report that people read: one HTML page without a network, and Markdown."""

from ._html import html
from ._text import comparison, markdown

__all__ = ["comparison", "html", "markdown"]
