"""The load generator: sends like users do, times every token, and says when the client was too slow to know."""

from ._arrivals import Closed, Load, Open, Stage, of_traffic
from ._histogram import Histogram
from ._measure import Costs
from ._probe import Facts, facts, wait
from ._prompts import Ask, Source, Synthetic
from ._run import Progress, Settings, Stopper, run, tool_version
from ._wire import Target

__all__ = [
    "Ask",
    "Closed",
    "Costs",
    "Facts",
    "Histogram",
    "Load",
    "Open",
    "Progress",
    "Settings",
    "Source",
    "Stage",
    "Stopper",
    "Synthetic",
    "Target",
    "facts",
    "of_traffic",
    "run",
    "tool_version",
    "wait",
]
