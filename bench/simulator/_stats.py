"""Counters and histograms of one engine, cheap to write and summed over workers before they are shown.

All numbers live in one flat list; `_exposition` knows which is which. Requests that took no simulated time are counted
by kind in a dictionary and spread over the histograms when somebody looks.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._scheduler import Sequence

TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    640.0,
    2560.0,
)
ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
LATENCY = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
    960.0,
    1920.0,
    7680.0,
)
ITERATION = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
PREEMPTIONS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)
HTTP_FINE = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    1.5,
    2.0,
    2.5,
    3.0,
    3.5,
    4.0,
    4.5,
    5.0,
    7.5,
    10.0,
    30.0,
    60.0,
)
HTTP_COARSE = (0.1, 0.5, 1.0)


def tokens_buckets(limit: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 … up to `limit`: vLLM's buckets for token counts."""
    out: list[float] = []
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale > limit:
                return tuple(out) or (1.0,)
            out.append(float(step * scale))
        scale *= 10


class Histogram:
    """Bucket counts and sum, in place in the shared list."""

    __slots__ = ("at", "bounds", "sum")

    def __init__(self, bounds: tuple[float, ...], values: list[float]) -> None:
        self.bounds = bounds
        self.at = len(values)
        values.extend([0.0] * (len(bounds) + 2))
        self.sum = self.at + len(bounds) + 1


REASONS = ("stop", "length", "abort", "error", "repetition")


class Stats:
    """What the engine counts. Only `values` (and `handlers`) travel between workers."""

    def __init__(self, max_model_len: int) -> None:
        self.values: list[float] = []
        values = self.values

        def counter(size: int = 1) -> int:
            at = len(values)
            values.extend([0.0] * size)
            return at

        self.running = counter()
        self.waiting = counter()
        self.kv_usage = counter()
        self.prefix_queries = counter()
        self.prefix_hits = counter()
        self.preemptions = counter()
        self.prompt_tokens = counter()
        self.generation_tokens = counter()
        self.success = counter(len(REASONS))
        self.rejected = counter()
        self.rejected_tokens = counter()
        counts = tokens_buckets(max_model_len)
        self.request_prompt = Histogram(counts, values)
        self.request_generation = Histogram(counts, values)
        self.iteration_tokens = Histogram(ITERATION, values)
        self.request_max_generation = Histogram(counts, values)
        self.params_n = Histogram(CHOICES, values)
        self.params_max_tokens = Histogram(counts, values)
        self.ttft = Histogram(TTFT, values)
        self.itl = Histogram(ITL, values)
        self.tpot = Histogram(ITL, values)
        self.e2e = Histogram(LATENCY, values)
        self.queue = Histogram(LATENCY, values)
        self.inference = Histogram(LATENCY, values)
        self.prefill = Histogram(LATENCY, values)
        self.decode = Histogram(LATENCY, values)
        self.request_preemptions = Histogram(PREEMPTIONS, values)
        self.prefill_computed = Histogram(counts, values)
        self.http_fine = Histogram(HTTP_FINE, values)
        self.handlers: dict[tuple[str, str, str], list[float]] = {}
        self._instant: dict[tuple[int, int, int, str], int] = {}

    def observe(self, histogram: Histogram, value: float, times: float = 1.0) -> None:
        """Count `value` into the histogram."""
        values = self.values
        values[histogram.at + bisect_left(histogram.bounds, value)] += times
        values[histogram.sum] += value * times

    def instant(self, prompt: int, output: int, max_tokens: int, reason: str) -> None:
        """A request that came and was answered in no simulated time."""
        key = (prompt, output, max_tokens, reason)
        table = self._instant
        if key in table:
            table[key] += 1
        else:
            if len(table) >= 4096:
                self.settle()
            table[key] = 1

    def settle(self) -> None:
        """Spread what `instant` collected over the counters."""
        table, self._instant = self._instant, {}
        values = self.values
        for row in self.handlers.values():
            missing = row[0] - sum(row[3:-1])
            row[3] += missing
            values[self.http_fine.at] += missing
        for (prompt, output, max_tokens, reason), n in table.items():
            values[self.prompt_tokens] += prompt * n
            values[self.prefix_queries] += prompt * n
            values[self.generation_tokens] += output * n
            values[self.success + REASONS.index(reason)] += n
            self.observe(self.request_prompt, prompt, n)
            self.observe(self.request_generation, output, n)
            self.observe(self.request_max_generation, output, n)
            self.observe(self.params_max_tokens, max_tokens, n)
            self.observe(self.params_n, 1, n)
            self.observe(self.prefill_computed, prompt, n)
            self.observe(self.request_preemptions, 0, n)
            self.observe(self.iteration_tokens, prompt, n)
            if output > 1:
                self.observe(self.iteration_tokens, 1, n * (output - 1))
                self.observe(self.itl, 0.0, n * (output - 1))
            for histogram in (self.ttft, self.tpot, self.e2e, self.queue, self.inference, self.prefill, self.decode):
                self.observe(histogram, 0.0, n)

    # What the scheduler calls.

    def iteration(self, tokens: int) -> None:
        """One engine step over that many tokens."""
        self.observe(self.iteration_tokens, tokens)

    def prefix(self, queried: int, hit: int) -> None:
        """A prompt was looked up in the prefix cache."""
        self.values[self.prefix_queries] += queried
        self.values[self.prefix_hits] += hit

    def preempted(self) -> None:
        """A request lost its KV blocks."""
        self.values[self.preemptions] += 1

    def first_token(self, seq: Sequence) -> None:
        """The prompt of `seq` is done."""
        self.values[self.prompt_tokens] += seq.prompt
        self.values[self.generation_tokens] += 1
        self.observe(self.ttft, seq.first - seq.arrived)

    def gaps(self, seconds: float, times: int) -> None:
        """`times` further tokens came, each `seconds` after the one before it."""
        self.values[self.generation_tokens] += times
        self.observe(self.itl, seconds, times)

    def finished(self, seq: Sequence) -> None:
        """The last token of `seq` is out."""
        self.values[self.success + (0 if seq.reason == "stop" else 1)] += 1
        self._requested(seq)
        decode = seq.last - seq.first
        self.observe(self.e2e, seq.last - seq.arrived)
        self.observe(self.queue, max(0.0, seq.admitted - seq.arrived))
        self.observe(self.inference, seq.last - seq.admitted)
        self.observe(self.prefill, seq.first - seq.admitted)
        self.observe(self.decode, decode)
        self.observe(self.tpot, decode / (seq.made - 1) if seq.made > 1 else 0.0)
        self.observe(self.request_preemptions, seq.preemptions)
        self.observe(self.prefill_computed, seq.prompt - seq.cached)

    def aborted(self, seq: Sequence) -> None:
        """The client of `seq` went away."""
        self.values[self.success + 2] += 1
        self._requested(seq)

    def _requested(self, seq: Sequence) -> None:
        self.observe(self.request_prompt, seq.prompt)
        self.observe(self.request_generation, seq.made)
        self.observe(self.params_max_tokens, seq.max_tokens)
        if seq.alone:
            self.choices(1, seq.made)

    def choices(self, n: int, most: int) -> None:
        """A request is over that asked for `n` answers, the longest of `most` tokens."""
        self.observe(self.request_max_generation, most)
        self.observe(self.params_n, n)

    def row(self, handler: str, method: str, status: int) -> list[float]:
        """The counts of one handler, method and class of status, to write to directly: exchanges, bytes received, bytes
        sent. An exchange that is in no bucket of the durations yet took no time (see `settle`)."""
        key = (handler, method, f"{status // 100}xx")
        row = self.handlers.get(key)
        if row is None:
            row = self.handlers[key] = [0.0] * (3 + len(HTTP_COARSE) + 2)
        return row

    def http(self, handler: str, method: str, status: int, received: int, sent: int, seconds: float) -> None:
        """One HTTP exchange, as the instrumentation of vLLM's web framework counts it."""
        row = self.row(handler, method, status)
        row[0] += 1
        row[1] += received
        row[2] += sent
        row[3 + bisect_left(HTTP_COARSE, seconds)] += 1
        row[-1] += seconds
        self.observe(self.http_fine, seconds)

    def snapshot(
        self, running: int, waiting: int, kv_usage: float
    ) -> tuple[list[float], dict[tuple[str, str, str], list[float]]]:
        """All numbers now, with the gauges filled in."""
        self.settle()
        values = self.values
        values[self.running] = running
        values[self.waiting] = waiting
        values[self.kv_usage] = kv_usage
        return list(values), {key: list(row) for key, row in self.handlers.items() if row[0]}
