"""From a plan to Helm: one template per engine, and the digest that names a release. And a batch's Job."""

from ._batch import BACKLOG_METRIC, backlog_query, batch_job
from ._render import (
    UpstreamChart,
    artifacts,
    chart_of,
    chart_path,
    load_seconds,
    nodes_per_replica,
    release_digest,
    release_values,
)
from ._serving import ACCOUNT, COMPUTE_CLASS, POOL_LABEL, SECRET, render

__all__ = [
    "ACCOUNT",
    "BACKLOG_METRIC",
    "COMPUTE_CLASS",
    "POOL_LABEL",
    "SECRET",
    "UpstreamChart",
    "artifacts",
    "backlog_query",
    "batch_job",
    "chart_of",
    "chart_path",
    "load_seconds",
    "nodes_per_replica",
    "release_digest",
    "release_values",
    "render",
]
