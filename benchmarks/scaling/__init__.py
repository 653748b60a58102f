"""A stack's own objects on the embedded cluster, scaled by the real KEDA under real load, and what can be seen of it."""

from ._ground import Ground, Sample, Watcher, scaled
from ._load import Answer, Outcome, ask_at_once, send
from ._report import page, picture, table, write_png
from ._scenarios import EXTRA, POLICIES, SCENARIOS, Report, compare, oracle

__all__ = [
    "EXTRA",
    "POLICIES",
    "SCENARIOS",
    "Answer",
    "Ground",
    "Outcome",
    "Report",
    "Sample",
    "Watcher",
    "ask_at_once",
    "compare",
    "oracle",
    "page",
    "picture",
    "scaled",
    "send",
    "table",
    "write_png",
]
