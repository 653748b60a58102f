"""The server's side of a run: what Prometheus, or the engine's own /metrics, says was running, waiting and in use.

vLLM's names are taken as they are, and the same with the prefix `ollama:` (our exporter's); GPUs by the names of NVIDIA's
DCGM exporter. Nothing here can fail a run: what cannot be had is left out, and why is said once.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

import numpy as np

import stacks

from ..results import Run
from ._probe import get
from ._wire import Target

_RUNNING = r'__name__=~"(vllm|ollama):num_requests_running"'
# One pod may be scraped by several jobs, by itself and behind its Service: it counts once.
_ONCE = "max without (job, service, endpoint, container)"
# series -> PromQL; %s is a selector that begins with a comma, or nothing.
QUERIES: dict[str, str] = {
    "server_running": f"sum({_ONCE} ({{{_RUNNING}%s}}))",
    "server_waiting": f'sum({_ONCE} ({{__name__=~"(vllm|ollama):num_requests_waiting"%s}}))',
    "server_kv_usage": f'avg({_ONCE} ({{__name__=~"(vllm|ollama):(kv|gpu)_cache_usage_perc"%s}}))',
    "gpu_utilization": f'avg({_ONCE} ({{__name__="DCGM_FI_DEV_GPU_UTIL"%s}})) / 100',
    "gpu_memory_bytes": f'sum({_ONCE} ({{__name__="DCGM_FI_DEV_FB_USED"%s}})) * 1048576',
    "replicas": f"count(count by (pod, instance) ({{{_RUNNING}%s}}))",
    "nodes": f'count(count by (node) ({{{_RUNNING},node!=""%s}}))',
}
# metric -> counters whose growth within the window is divided: what a request waited for a place in a batch, and the share of
# prompt tokens that were in the prefix cache.
_QUOTIENTS = {
    "server_queue_mean_seconds": ("request_queue_time_seconds_sum", "request_queue_time_seconds_count"),
    "server_prefix_cache_hit_rate": ("prefix_cache_hits_total", "prefix_cache_queries_total"),
}
_COUNTERS = frozenset(name for pair in _QUOTIENTS.values() for name in pair)
# metric -> (series, how the window is summed up)
_SUMMARIES: dict[str, tuple[str, Callable[[Any], float]]] = {
    "server_running_mean": ("server_running", np.mean),
    "server_waiting_mean": ("server_waiting", np.mean),
    "server_waiting_max": ("server_waiting", np.max),
    "server_kv_usage_max": ("server_kv_usage", np.max),
    "gpu_utilization_mean": ("gpu_utilization", np.mean),
    "gpu_memory_bytes_max": ("gpu_memory_bytes", np.max),
    "replicas_min": ("replicas", np.min),
    "replicas_max": ("replicas", np.max),
    "nodes_max": ("nodes", np.max),
}
_LINE = re.compile(
    r"^(?:vllm|ollama):(\w+)(?:\{[^}]*\})? ([0-9.eE+-]+)$|^(DCGM_\w+)(?:\{[^}]*\})? ([0-9.eE+-]+)$", re.M
)
_SCRAPED = {
    "num_requests_running": "server_running",
    "num_requests_waiting": "server_waiting",
    "kv_cache_usage_perc": "server_kv_usage",
    "gpu_cache_usage_perc": "server_kv_usage",
    "DCGM_FI_DEV_GPU_UTIL": "gpu_utilization",
    "DCGM_FI_DEV_FB_USED": "gpu_memory_bytes",
}
# What reading an answer raises that is not one of Prometheus'.
_NOT_PROMETHEUS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_SCRAPED_SCALE = {"gpu_utilization": 0.01, "gpu_memory_bytes": 1048576.0}


class Observer(Protocol):
    """Watches one run after the other."""

    def begin(self) -> None:
        """A run begins now."""
        ...

    def end(self, run: Run, elapsed: float) -> Run:
        """The run with the server's side added; the load began `elapsed` seconds ago."""
        ...


@dataclass
class Prometheus:
    """Asks a Prometheus after each run, so that nothing is done while the load goes on.

    `url`: http(s)://host:port[/prefix]; `namespace`: whose pods count ("": all that are scraped).
    """

    url: str
    namespace: str = ""
    say: Callable[[str], None] = field(default=lambda _: None, repr=False)
    _said: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise stacks.InputError(
                where="--prometheus", got=self.url, allowed="http(s)://host[:port][/prefix]",
                fix="give Prometheus' address",
            )  # fmt: skip

    def begin(self) -> None:
        """Nothing: Prometheus remembers."""

    def end(self, run: Run, elapsed: float) -> Run:
        """Add what Prometheus saw at each step of the run's series."""
        ends = [moment for moment in run.series.get("seconds", ()) if moment is not None]
        if not ends:
            return run
        began, found = time.time() - elapsed, {}
        try:
            for name, query in QUERIES.items():
                values = self._range(query, began + ends[0], ends[0], len(ends))
                if any(value is not None for value in values):
                    found[name] = values
            quotients = self._quotients(run, began)
        except (OSError, http.client.HTTPException, RecursionError, *_NOT_PROMETHEUS) as error:
            self._once(f"no server metrics: {self.url}: {error}")
            return run
        if not found:
            where = f" in namespace {self.namespace}" if self.namespace else ""
            self._once(f"no server metrics: {self.url} scrapes no engine{where}")
        return added(run, found, quotients)

    def _quotients(self, run: Run, began: float) -> dict[str, float]:
        """Of the counters' growth within the window; left out where there was none."""
        found, end = {}, began + run.warmup_seconds + run.seconds
        for metric, pair in _QUOTIENTS.items():
            above, below = (
                f'sum({_ONCE} (increase({{__name__=~"(vllm|ollama):{name}"%s}}[{max(1, round(run.seconds))}s])))'
                for name in pair
            )
            (value,) = self._range(f"{above} / {below}", end, 1.0, 1)
            if value is not None:
                found[metric] = value
        return found

    def _once(self, text: str) -> None:
        """Not after every run."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def _range(self, query: str, start: float, step: float, count: int) -> tuple[float | None, ...]:
        selector = f',namespace="{self.namespace}"' if self.namespace else ""
        asked = {
            "query": query.replace("%s", selector),
            "start": f"{start:.3f}",
            "end": f"{start + step * (count - 0.5):.3f}",
            "step": f"{step:.3f}",
        }
        reply = self._get(f"/api/v1/query_range?{urlencode(asked)}")
        values: list[float | None] = [None] * count
        for moment, value in reply["data"]["result"][0]["values"] if reply["data"]["result"] else ():
            at = round((float(moment) - start) / step)
            if 0 <= at < count and math.isfinite(float(value)):
                values[at] = float(value)
        return tuple(values)

    def _get(self, path: str) -> dict[str, Any]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=10)
        try:
            connection.request("GET", parts.path.rstrip("/") + path)
            answer = connection.getresponse()
            body = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"{answer.status} {body.get('error', '')}")
        return dict(body)


class Scrape:
    """Reads the engine's own /metrics every second: where there is no Prometheus and only one replica."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._seen: list[tuple[float, dict[str, float]]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start looking."""
        self._seen, self._stop = [], threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(1.0):
            try:
                status, body = get(self._target, "/metrics", timeout=2.0)
            except (OSError, http.client.HTTPException):
                continue
            if status == 200:
                self._seen.append((time.monotonic(), scraped(body.decode(errors="replace"))))

    def end(self, run: Run, elapsed: float) -> Run:
        """Stop looking and add what was seen."""
        began = time.monotonic() - elapsed
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)
        ends = [moment or 0.0 for moment in run.series.get("seconds", ())]
        found: dict[str, tuple[float | None, ...]] = {}
        for name in dict.fromkeys(_SCRAPED.values()):
            values: list[float | None] = [None] * len(ends)
            for moment, seen in self._seen:
                step = int(np.searchsorted(ends, moment - began))
                if name in seen and step < len(ends):
                    values[step] = seen[name]
            if any(value is not None for value in values):
                found[name] = tuple(values)
        start, end = began + run.warmup_seconds, began + run.warmup_seconds + run.seconds
        return added(run, found, _grown([seen for moment, seen in self._seen if start <= moment <= end]))


def _grown(pages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the counters' growth from the first page to the last; left out where there was none, or an engine began anew."""
    if len(pages) < 2:
        return {}
    found = {}
    for metric, pair in _QUOTIENTS.items():
        above, below = (pages[-1].get(name, 0.0) - pages[0].get(name, 0.0) for name in pair)
        if below > 0 and above >= 0:
            found[metric] = above / below
    return found


def scraped(text: str) -> dict[str, float]:
    """The series of one page of metrics; several engines or GPUs on it are added up, shares are averaged."""
    sums: dict[str, list[float]] = {}
    for engine, value, gpu, level in _LINE.findall(text):
        name = engine if engine in _COUNTERS else _SCRAPED.get(engine or gpu)
        if name is None:
            continue
        # Signs, points and exponents make a number only in some orders.
        with contextlib.suppress(ValueError):
            number = float(value or level) * _SCRAPED_SCALE.get(name, 1.0)
            sums.setdefault(name, []).append(number)
    shares = ("server_kv_usage", "gpu_utilization")
    return {name: sum(values) / (len(values) if name in shares else 1) for name, values in sums.items()}


def added(run: Run, found: Mapping[str, tuple[float | None, ...]], quotients: Mapping[str, float] | None = None) -> Run:
    """The run with these series, with their summary over its window, and with `quotients`, which are of the window already."""
    if not found and not quotients:
        return run
    ends = run.series["seconds"]
    metrics = {**run.metrics, **(quotients or {})}
    for metric, (name, summary) in _SUMMARIES.items():
        inside = [
            value
            for value, end in zip(found.get(name, ()), ends, strict=False)
            if value is not None and end is not None and end > run.warmup_seconds
        ]
        if inside:
            metrics[metric] = float(summary(inside))
    return run.model_copy(update={"metrics": metrics, "series": {**run.series, **found}})
