"""Sphinx: `make docs` builds these pages, with the reference of the rooms from their docstrings."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

project = "Tollgate"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "components/example"]
html_theme = "alabaster"
html_theme_options = {"description": "every step pays its toll", "page_width": "1100px", "fixed_sidebar": True}
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_typehints = "description"
autodoc_member_order = "groupwise"
# Docstrings here are prose with code in backquotes, not reStructuredText: a backquote is code, and nothing else is markup.
default_role = "code"
# Links to scripts, pictures and data of the repository; pages that stand alone.
suppress_warnings = ["myst.xref_missing", "toc.not_included", "ref.python", "docutils", "myst.header"]
