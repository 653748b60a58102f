"""The load generator: sends like users do, times every token, and says when the client was too slow to know."""

from ._arrivals import Closed, Load, Open, Stage, of_traffic
from ._histogram import Histogram
from ._measure import Costs
from ._probe import Facts, facts, wait
from ._prompts import Ask, SharedPrefix, Source, Synthetic
from ._replay import Conversations, Trace, read_dialogues, read_trace
from ._run import Progress, Settings, Stopper, run, tool_version
from ._sweep import Step, Sweep, sweep
from ._wire import Target

__all__ = [
    "Ask",
    "Closed",
    "Conversations",
    "Costs",
    "Facts",
    "Histogram",
    "Load",
    "Open",
    "Progress",
    "Settings",
    "SharedPrefix",
    "Source",
    "Stage",
    "Step",
    "Stopper",
    "Sweep",
    "Synthetic",
    "Target",
    "Trace",
    "facts",
    "of_traffic",
    "read_dialogues",
    "read_trace",
    "run",
    "sweep",
    "tool_version",
    "wait",
]
