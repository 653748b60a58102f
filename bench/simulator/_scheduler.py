"""A request on its way through an engine, and what all engines share: queue, slots, numbers."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ._options import Engine as EngineOptions
from ._options import warn
from ._share import BACKLOG, QUEUED
from ._stats import Stats

if TYPE_CHECKING:
    from ._share import Board, Pool

clock = time.monotonic


class Sink(Protocol):
    """Who receives what a sequence generates."""

    def on_token(self, seq: Sequence) -> None:
        """One more token is ready (`seq.made` counts it); not called for the last, nor where `seq.streams` is false."""

    def on_finish(self, seq: Sequence) -> None:
        """The last token is ready."""


class _Nobody:
    def on_token(self, seq: Sequence) -> None: ...

    def on_finish(self, seq: Sequence) -> None: ...


# The sink of a sequence that is over: sink and sequence know each other, and would else wait for the garbage collector.
NOBODY: Sink = _Nobody()


class Sequence:
    """One answer being generated; `alone`: the only one of its request. Times are seconds of `time.monotonic()`."""

    __slots__ = (
        "admitted",
        "alone",
        "arrived",
        "blocks",
        "cached",
        "chain",
        "computed",
        "debt",
        "draw",
        "first",
        "index",
        "last",
        "made",
        "max_tokens",
        "output",
        "preemptions",
        "prompt",
        "reason",
        "sink",
        "slow",
        "state",
        "streams",
        "until",
    )

    def __init__(
        self,
        sink: Sink,
        prompt: int,
        output: int,
        *,
        streams: bool,
        draw: int = 0,
        reason: str = "length",
        index: int = 0,
    ) -> None:
        self.sink = sink
        self.prompt = prompt
        self.output = output
        self.streams = streams
        self.draw = draw
        self.reason = reason
        self.index = index
        self.max_tokens = output
        self.alone = True
        self.chain: tuple[int, ...] = ()
        self.made = 0
        self.computed = 0
        self.cached = 0
        self.blocks = 0
        self.preemptions = 0
        self.slow = 1.0
        self.debt = 0.0
        self.arrived = self.admitted = self.first = self.last = 0.0
        self.until = 0  # see `PacedEngine`
        self.state = 0  # 0 waiting, 1 running, 2 finished, 3 cancelled


class Scheduler:
    """What both engines share: the queue, the slots, and what the metrics see.

    `active`, `queued`, `backlog`: requests that run and wait here, prompt tokens of those without a first token.
    """

    def __init__(self, options: EngineOptions, stats: Stats, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.stats = stats
        self.loop = loop
        self.max_seqs = options.max_seqs
        self.max_queue = options.max_queue
        # A request that is cancelled stays in the deque until its turn; `queued` counts the live ones.
        self.waiting: deque[Sequence] = deque()
        self.queued = 0
        self.active = 0
        self.backlog = 0
        self.instant = False
        self.on_idle: Callable[[], None] | None = None
        self.board: Board | None = None
        self.pool: Pool | None = None
        self._watching = False

    def share(self, board: Board, model: str) -> None:
        """Serve together with the other workers from now on."""
        self.board = board
        self.pool = board.pool(model)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits here."""
        return self.active > 0 or self.queued > 0

    @property
    def everywhere(self) -> bool:
        """Whether anything runs or waits in any worker."""
        if self.busy or self.pool is None or self.board is None:
            return self.busy
        return self.pool.free() < self.max_seqs or self.board.others(QUEUED) > 0

    @property
    def full(self) -> bool:
        """Whether the queue takes no more."""
        if self.pool is None or self.board is None:
            return 0 < self.max_queue <= self.queued and self.active >= self.max_seqs
        return 0 < self.max_queue <= self.queued + self.board.others(QUEUED) and self.pool.free() == 0

    def over(self, requests: int) -> str:
        """Which of vLLM's limits `requests` more would break, by the name of its option; "" for none.

        As in vLLM, the first counts what waits and runs, the second the whole prompts of what has no first token yet.
        """
        options = self.options
        if options.max_queued_reqs:
            there = self.queued + self.active
            if self.pool is not None and self.board is not None:
                there = self.queued + int(self.board.others(QUEUED)) + self.max_seqs - self.pool.free()
            if there + requests > options.max_queued_reqs:
                return "max_num_queued_reqs"
        if options.max_queued_tokens:
            tokens = self.backlog + (self.board.others(BACKLOG) if self.board is not None else 0.0)
            if tokens >= options.max_queued_tokens:
                return "max_num_queued_tokens"
        return ""

    def kv_usage(self) -> float:
        """Share of the KV cache that requests of this worker use, 0..1."""
        return 0.0

    def submit(self, seq: Sequence) -> bool:
        """Take a request in; False where the queue is full (the caller answers as its engine would)."""
        if self.full:
            return False
        seq.arrived = clock()
        self.waiting.append(seq)
        self._backlog(seq.prompt)
        self._queue(1)
        self._wake()
        return True

    def _over(self, seq: Sequence) -> None:
        """The last token of `seq` is there."""
        try:
            seq.sink.on_finish(seq)
        except Exception as error:  # noqa: BLE001 - see `broken`
            self.broken(seq, error)
        seq.sink = NOBODY

    def broken(self, seq: Sequence, error: Exception) -> None:
        """What receives the tokens of `seq` has failed: that is the end of this one, and of no other."""
        warn(f"simulator: {type(error).__name__} while answering: {error}")
        client = getattr(seq.sink, "connection", None)
        self.cancel(seq)
        if client is not None:
            client.abort()

    def cancel(self, seq: Sequence) -> None:
        """The client has gone: free what the request held."""
        if seq.state >= 2:
            return
        if seq.made == 0:
            self._backlog(-seq.prompt)
        if seq.state == 1:
            self._leave(seq)
        else:
            self._queue(-1)
        seq.state = 3
        seq.until = 0
        seq.sink = NOBODY
        self.stats.aborted(seq)
        self._after()

    def _queue(self, more: int) -> None:
        self.queued += more
        if self.board is not None:
            self.board.put(QUEUED, self.queued)

    def _backlog(self, more: int) -> None:
        self.backlog += more
        if self.board is not None:
            self.board.put(BACKLOG, self.backlog)

    def _take(self) -> bool:
        """Take a slot. Where another worker has the last one, this one is woken when it is free."""
        if self.pool is None:
            return self.active < self.max_seqs
        if self.pool.take():
            return True
        if not self._watching:
            self._watching = True
            self.loop.add_reader(self.pool.fd, self._freed)
        return False

    def _give(self) -> None:
        if self.pool is not None:
            self.pool.give()

    def _freed(self) -> None:
        self._unwatch()
        if self.queued:
            self._wake()

    def _unwatch(self) -> None:
        if self._watching and self.pool is not None:
            self._watching = False
            self.loop.remove_reader(self.pool.fd)

    def _wake(self) -> None:
        raise NotImplementedError

    def _leave(self, seq: Sequence) -> None:
        """Take a running request off its slot."""
        raise NotImplementedError

    def _next(self) -> Sequence | None:
        """The first request in the queue that still has a client."""
        waiting = self.waiting
        while waiting:
            if waiting[0].state == 0:
                return waiting[0]
            waiting.popleft()
        return None

    def _after(self) -> None:
        if self.on_idle is not None and not self.busy:
            self.on_idle()

    def stop(self) -> None:
        """Set no further timer."""
        self._unwatch()
