"""The simulated machine behind a dialect: GPU, engines, texts, metrics, and the other workers of the same server."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._answers import EVENTS, JSON, Kitchen
from ._engine import BatchEngine
from ._faults import slow_replica
from ._options import Engine
from ._paced import PacedEngine
from ._scheduler import Scheduler
from ._stats import Stats
from ._throttle import Throttle
from ._timing import Timing, gpu_blocks, timing_of
from ._words import Corpus, Draws, content_tokens

if TYPE_CHECKING:
    from ._http import Client
    from ._message import Head
    from ._share import Board

Handlers = dict[tuple[str, str, str], list[float]]
Show = Callable[[list[float], Handlers], bytes]


class Machine:
    """`worker`: which of the processes that serve this address this is; `board`: what they share, where there are several."""

    def __init__(
        self, options: Engine, loop: asyncio.AbstractEventLoop, *, worker: int = 0, board: Board | None = None
    ) -> None:
        self.options = options
        self.loop = loop
        self.worker = worker
        sim = options.sim
        self.stats = Stats(options.context_tokens)
        self.corpus = Corpus(sim.seed)
        self.draws = Draws(sim.seed + worker * 0x10001, sim.output_tokens, sim.output_cv)
        self.started = time.time()
        self.blocks = gpu_blocks(options) if options.dialect == "vllm" else 0
        self.slowdown = _slowdown(options, board)
        self.gather: Callable[[Callable[[list[list[float]], list[Handlers]], None]], None] | None = None
        self.tell: Callable[[dict[str, Any]], None] = lambda message: None
        self._engine: Scheduler | None = None
        self.board = board

    def timing(self, model: str) -> Timing:
        """The latency model of `model` here."""
        return timing_of(self.options, model)

    def new_scheduler(self, model: str) -> Scheduler:
        """A fresh engine for `model`; its slots and blocks are those of all workers."""
        options = self.options
        made: Scheduler
        if options.sim.fixed:
            made = PacedEngine(options, self.stats, self.loop, slowdown=self.slowdown)
        else:
            made = BatchEngine(
                options, self.timing(model), self.stats, self.loop, blocks=self.blocks, slowdown=self.slowdown
            )
        if self.board is not None:
            made.share(self.board, model)
        return made

    def scheduler(self, model: str) -> Scheduler:
        """The one engine of a server that has one (vLLM)."""
        if self._engine is None:
            self._engine = self.new_scheduler(model)
        return self._engine

    def kitchen(self, model: str, head: Head, scheduler: Scheduler | None = None) -> Kitchen:
        """What answers of `model` are made of."""
        ollama = self.options.dialect == "ollama"
        return Kitchen(
            scheduler=scheduler or self.scheduler(self.options.source),
            stats=self.stats,
            corpus=self.corpus,
            draws=self.draws,
            head=head,
            dialect=self.options.dialect,
            model=model,
            faults=self.options.sim.faults,
            json_type=JSON,
            events_type=b"text/event-stream" if ollama else EVENTS,
            caching=self.options.prefix_caching and not self.options.sim.fixed,
        )

    def collect(self, connection: Client, gauges: tuple[int, int, float], show: Show) -> bytes | None:
        """Answer `connection` with `show` of this worker's numbers, or of all workers' where there are several."""
        mine, handlers = self.stats.snapshot(*gauges)
        if self.gather is None:
            return show(mine, handlers)
        waiting = _Scrape()
        connection.busy = waiting

        def combine(values: list[list[float]], tables: list[Handlers]) -> None:
            if waiting.gone:
                return
            total = [sum(column) for column in zip(mine, *values, strict=True)]
            if self.board is not None:
                total[self.stats.running] = self.board.running()
            merged: Handlers = {key: list(row) for key, row in handlers.items()}
            for table in tables:
                for key, row in table.items():
                    into = merged.setdefault(key, [0.0] * len(row))
                    for at, value in enumerate(row):
                        into[at] += value
            connection.write(show(total, merged))
            connection.done()

        self.gather(combine)
        return None

    def embeddings(self, inputs: list[Any], data: dict[str, Any], model: str) -> dict[str, Any]:
        """An OpenAI embeddings answer: unit vectors made from a hash of the text, the same for the same text."""
        size = data.get("dimensions")
        dimensions = size if type(size) is int and 1 <= size <= 8192 else 768
        total = 0
        rows = []
        for at, item in enumerate(inputs):
            tokens = len(item) if isinstance(item, list) else content_tokens(item)
            total += max(1, tokens)
            vector: Any = vector_of(repr(item), dimensions)
            if data.get("encoding_format") == "base64":
                import base64
                import struct

                vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
            rows.append({"object": "embedding", "index": at, "embedding": vector})
        usage = {"prompt_tokens": total, "total_tokens": total}
        return {"object": "list", "data": rows, "model": model, "usage": usage}


def _slowdown(options: Engine, board: Board | None) -> Callable[[float], float] | None:
    """What a duration becomes on this GPU and this replica; None where nothing slows it."""
    sim = options.sim
    factor = slow_replica(sim.faults, options.name, sim.seed) if sim.faults.slow_replica else 1.0
    if sim.throttle_after is not None:
        throttle = Throttle(sim.throttle_after, sim.throttle_factor, board.heat if board is not None else None)
        return lambda duration: throttle.slow(duration * factor)
    return (lambda duration: duration * factor) if factor != 1.0 else None


class _Scrape:
    """A connection that waits for the other workers' numbers."""

    gone = False

    def abort(self) -> None:
        self.gone = True


def vector_of(text: str, dimensions: int) -> list[float]:
    """A unit vector that depends on nothing but `text`."""
    rng = random.Random(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())
    raw = [rng.gauss(0, 1) for _ in range(dimensions)]
    length = sum(x * x for x in raw) ** 0.5 or 1.0
    return [x / length for x in raw]
