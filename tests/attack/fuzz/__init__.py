"""What is fuzzed: `GROUPS` of targets, by the names that `make fuzz` takes. See docs/security.md."""

from __future__ import annotations

from . import _cluster, _files, _network, _previews, _services, _signed
from ._target import MOST_BYTES, MOST_SECONDS, Make, Target

GROUPS: dict[str, Make] = {
    "stacks": _files.stack_files,
    "releases": _files.release_files,
    "pipeline": _files.pipeline_files,
    "evidence": _signed.evidence,
    "streams": _network.streams,
    "simulator": _network.simulator,
    "services": _services.local_services,
    "batches": _files.batch_files,
    "traces": _files.trace_files,
    "prices": _files.price_files,
    "metrics": _network.metrics,
    "previews": _previews.previews,
    "results": _files.result_files,
    "cluster": _cluster.cluster,
}

__all__ = ["GROUPS", "MOST_BYTES", "MOST_SECONDS", "Make", "Target"]
