"""The load generator: sends like users do, times every token, and says when the client was too slow to know."""

from ._arrivals import Closed, Load, Open, Stage, of_traffic
from ._crew import Crew, Crews, Local
from ._histogram import Histogram
from ._machine import cores_in_use
from ._measure import Costs, Watch
from ._observe import Observer, Prometheus, Scrape, scraped
from ._part import Part, Span
from ._probe import Facts, facts, get, wait
from ._prompts import Ask, Conversation, SharedPrefix, Source, Synthetic
from ._raw import RawFile
from ._remote import Gathering, Share, work
from ._replay import Conversations, Trace, read_dialogues, read_trace
from ._run import Progress, Settings, orders, run, tool_version
from ._scenario import Scenario, stages_of
from ._stop import Stopper, stopped_by_signals
from ._sweep import Step, Sweep, sweep
from ._wire import Target
from ._workers import Snapshot

__all__ = [
    "Ask",
    "Closed",
    "Conversation",
    "Conversations",
    "Costs",
    "Crew",
    "Crews",
    "Facts",
    "Gathering",
    "Histogram",
    "Load",
    "Local",
    "Observer",
    "Open",
    "Part",
    "Progress",
    "Prometheus",
    "RawFile",
    "Scenario",
    "Scrape",
    "Settings",
    "Share",
    "SharedPrefix",
    "Snapshot",
    "Source",
    "Span",
    "Stage",
    "Step",
    "Stopper",
    "Sweep",
    "Synthetic",
    "Target",
    "Trace",
    "Watch",
    "cores_in_use",
    "facts",
    "get",
    "of_traffic",
    "orders",
    "read_dialogues",
    "read_trace",
    "run",
    "scraped",
    "stages_of",
    "stopped_by_signals",
    "sweep",
    "tool_version",
    "wait",
    "work",
]
