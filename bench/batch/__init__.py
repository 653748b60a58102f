"""Batches: many prompts that finish whatever happens on the way, each answered once, with an honest estimate of when.

queue = batch.create(store, batch.read("in.jsonl", batch.Recipe()))
batch.run(queue, [batch.EndpointSettings(url="http://127.0.0.1:8000")])
batch.write(queue, "out.jsonl", "errors.jsonl")
"""

from ._database import DatabaseTrouble
from ._files import reading, writing
from ._forecast import Eta, Forecast, Prices, span, warnings
from ._formats import BadRow, Format, Recipe, read
from ._http import Service
from ._main import arguments as runner_arguments
from ._main import main as runner_main
from ._metrics import BACKLOG_METRIC, Metrics
from ._model import PATHS, Counts, Info, Input, Item, Outcome, RunnerReport, State
from ._owners import is_alive
from ._pace import Pace
from ._progress import Ending, Progress, RunSettings
from ._queue import Queue
from ._results import lines, write
from ._runner import run
from ._status import Status, of_progress, status
from ._status import text as status_text
from ._stores import create, ids, is_bucket, is_postgres, open_queue, remove
from ._wire import EndpointSettings, endpoint_words

__all__ = [
    "BACKLOG_METRIC",
    "PATHS",
    "BadRow",
    "Counts",
    "DatabaseTrouble",
    "Ending",
    "EndpointSettings",
    "Eta",
    "Forecast",
    "Format",
    "Info",
    "Input",
    "Item",
    "Metrics",
    "Outcome",
    "Pace",
    "Prices",
    "Progress",
    "Queue",
    "Recipe",
    "RunSettings",
    "RunnerReport",
    "Service",
    "State",
    "Status",
    "create",
    "endpoint_words",
    "ids",
    "is_alive",
    "is_bucket",
    "is_postgres",
    "lines",
    "of_progress",
    "open_queue",
    "read",
    "reading",
    "remove",
    "run",
    "runner_arguments",
    "runner_main",
    "span",
    "status",
    "status_text",
    "warnings",
    "write",
    "writing",
]
