"""Cost and node changes: of two commits evaluated offline, or of what Pulumi would do; priced, judged, said in one sentence."""

from ._changes import Change, Evidence, money
from ._comment import Outcome, comment
from ._evaluate import Evaluation, checkout, evaluate, evaluate_both
from ._events import Event, counts, events, stated, stated_counts
from ._html import page
from ._infracost import infracost
from ._limits import Finding, Limits, load_limits
from ._limits import schema as limits_schema
from ._markdown import MARKER, dollars, markdown, prices_words
from ._model import HOURS_PER_MONTH, LEVELS, Item, Quantity, Shape, Unpriced
from ._prices import Prices, prices
from ._read import shape
from ._report import (
    OVER_A_LIMIT,
    Report,
    StackReport,
    alerts,
    as_json,
    failure,
    from_json,
    report,
    report_schema,
    unpriced_words,
)
from ._state import Stated, from_state

__all__ = [
    "HOURS_PER_MONTH",
    "LEVELS",
    "MARKER",
    "OVER_A_LIMIT",
    "Change",
    "Evaluation",
    "Event",
    "Evidence",
    "Finding",
    "Item",
    "Limits",
    "Outcome",
    "Prices",
    "Quantity",
    "Report",
    "Shape",
    "StackReport",
    "Stated",
    "Unpriced",
    "alerts",
    "as_json",
    "checkout",
    "comment",
    "counts",
    "dollars",
    "evaluate",
    "evaluate_both",
    "events",
    "failure",
    "from_json",
    "from_state",
    "infracost",
    "limits_schema",
    "load_limits",
    "markdown",
    "money",
    "page",
    "prices",
    "prices_words",
    "report",
    "report_schema",
    "shape",
    "stated",
    "stated_counts",
    "unpriced_words",
]
