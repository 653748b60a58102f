"""Cost and node changes between two commits: evaluated offline, priced from the book, said in one sentence each."""

from ._changes import Change, as_json, money
from ._evaluate import Evaluation, checkout, evaluate
from ._markdown import MARKER, markdown
from ._shape import HOURS_PER_MONTH, Pool, Price, Shape, shape

__all__ = [
    "HOURS_PER_MONTH",
    "MARKER",
    "Change",
    "Evaluation",
    "Pool",
    "Price",
    "Shape",
    "as_json",
    "checkout",
    "evaluate",
    "markdown",
    "money",
    "shape",
]
