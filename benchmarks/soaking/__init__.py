"""What `benchmarks/soak.py` is made of: a place that ends with it, load, faults, memory, the gate, and the judgement."""

from ._checks import Checks, Gate
from ._faults import HEAL_SECONDS, KINDS, Breaker
from ._judge import Fault, classify, wrongs
from ._load import Load, Lost, Target, whole
from ._memory import Memory, Trend, trend
from ._place import INSIDE, Disk, run_isolated
from ._report import markdown

__all__ = [
    "HEAL_SECONDS",
    "INSIDE",
    "KINDS",
    "Breaker",
    "Checks",
    "Disk",
    "Fault",
    "Gate",
    "Load",
    "Lost",
    "Memory",
    "Target",
    "Trend",
    "classify",
    "markdown",
    "run_isolated",
    "trend",
    "whole",
    "wrongs",
]
