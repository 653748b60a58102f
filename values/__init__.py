"""From a plan to Helm: one template per chart, and the digest that names a release."""

from ._render import chart_path, release_digest, release_values, render

__all__ = ["chart_path", "release_digest", "release_values", "render"]
