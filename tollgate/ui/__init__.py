"""One local page over what is there anyway: pipeline, history, plan, results, batches."""

from ._server import Page

__all__ = ["Page"]
