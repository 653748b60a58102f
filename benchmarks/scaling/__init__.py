"""A stack's own objects on the embedded cluster, scaled by the real KEDA under real load, and what can be seen of it."""

from ._ground import Ground, Sample, Watcher, scaled
from ._load import Answer, Outcome, ask_at_once, send
from ._report import page, picture, table, write_png
from ._scenarios import EXTRA, POLICIES, SCENARIOS, Report, compare, oracle
from ._small import QUICK, settings_of, stack_of

__all__ = [
    "EXTRA",
    "POLICIES",
    "QUICK",
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
    "settings_of",
    "stack_of",
    "table",
    "write_png",
]
