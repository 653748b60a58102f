"""One endpoint while a batch runs: its connections, what is in flight there, and whether it can be asked at the moment."""

from __future__ import annotations

import asyncio
import http.client
import math
from collections.abc import Callable
from time import monotonic
from typing import Any

import orjson

from bench.load import get

from ._judge import Finding, Kind, judge
from ._model import Item
from ._pace import Pace
from ._wire import EndpointSettings, Link, Wire

_START = 8
_BACKOFF_FIRST, _BACKOFF_MOST = 0.25, 15.0
# After so many broken connections an input is asked again beside at most so many others; the last: alone.
_CROWDS = (math.inf, math.inf, 8.0, 1.0)


class Work:
    """An input on its way. `crowd`: how many may be in flight with it, itself included."""

    __slots__ = ("block", "crowd", "fresh", "item", "losses", "renewed", "sent", "started", "tries")

    def __init__(self, item: Item, block: int) -> None:
        self.item, self.block = item, block
        self.tries, self.losses = item.tries, item.losses
        self.sent = self.started = 0.0
        self.fresh = self.renewed = False
        self.crowd = _CROWDS[min(self.losses, len(_CROWDS) - 1)]

    def lost(self) -> None:
        """A connection broke with it in flight."""
        self.losses += 1
        self.crowd = _CROWDS[min(self.losses, len(_CROWDS) - 1)]


Ended = Callable[["Endpoint", Work, Finding, bytes, int], None]


class Endpoint:
    """`ended(endpoint, work, finding, body, status)` is called once for each `ask`. `probing`: it did not answer, and is
    asked one thing at a time until it does; `not_before`: monotonic seconds before which it is left in peace."""

    def __init__(self, settings: EndpointSettings, ended: Ended, *, timeout: float) -> None:
        self.settings, self._ended, self._timeout = settings, ended, timeout
        self.wire = Wire(settings)
        start = settings.slots or max(1, round(_START * settings.weight))
        self.pace = Pace(start, high=max(settings.most, start), fixed=settings.fixed)
        self.flying: dict[Link, Work] = {}
        self._idle: list[Link] = []
        self._waiting: set[asyncio.Task[None]] = set()
        self.in_flight = 0
        self.suspects = 0
        self.crowd = math.inf
        self.probing = False
        self.not_before = 0.0
        self.last_ok = -math.inf
        self.ok = self.failed = self.tokens_in = self.tokens_out = 0
        self.words = ""
        self.failed_alone: set[int] = set()
        self._backoff = _BACKOFF_FIRST
        model = settings.model
        self._model = orjson.dumps(model) if model else b""

    @property
    def name(self) -> str:
        return self.settings.url

    def room(self) -> int:
        """How many more may be asked now, by the limit alone."""
        limit = 1 if self.probing else min(self.pace.limit, self.crowd)
        return int(limit) - self.in_flight

    # --- asking

    def ask(self, work: Work) -> None:
        """Send it."""
        self.in_flight += 1
        if work.crowd < math.inf:
            self.suspects += 1
            self.crowd = min(self.crowd, work.crowd)
        work.sent = monotonic()
        while self._idle:
            link = self._idle.pop()
            if not link.dead:
                work.fresh = False
                self._send(link, work)
                return
        self._open(work)

    def _open(self, work: Work) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(work))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _connect(self, work: Work) -> None:
        link = Link(self._replied, self._broke)
        code = await self.wire.connect(link)
        if code:
            self._end(work, Finding(Kind.AWAY, code), b"", 0)
        elif link.dead:
            self._end(work, Finding(Kind.AWAY, "connection_lost"), b"", 0)
        else:
            work.fresh = True
            self._send(link, work)

    def _send(self, link: Link, work: Work) -> None:
        body = work.item.body
        if self._model:
            given: dict[str, Any] = orjson.loads(body)
            body = orjson.dumps({**given, "model": self.settings.model})
        self.flying[link] = work
        work.sent = monotonic()
        link.send(self.wire.payload(work.item.path, body))

    # --- what links report

    def _replied(self, link: Link, status: int, body: bytes, retry_after: bytes) -> None:
        work = self.flying.pop(link)
        if not link.dead:
            self._idle.append(link)
        self._end(work, judge(status, body, retry_after), body, status)

    def _broke(self, link: Link, code: str, stale: bool) -> None:
        work = self.flying.pop(link)
        if stale and not work.fresh and not work.renewed:
            # Most likely never seen by the server: it closed an idle connection as it was used again. An engine that is
            # killed by an input at once looks the same, so that this is believed once.
            work.renewed = True
            self._open(work)
            return
        kind = Kind.LOST if code == "connection_lost" else Kind.FAILED
        self._end(work, Finding(kind, code), b"", 0)

    def _end(self, work: Work, finding: Finding, body: bytes, status: int) -> None:
        self.in_flight -= 1
        if work.crowd < math.inf:
            self.suspects -= 1
            if not self.suspects:
                self.crowd = math.inf
        self._ended(self, work, finding, body, status)

    # --- how it is

    def lives(self, now: float) -> None:
        """It has answered."""
        self.last_ok = now
        if self.probing:
            self.probing = False
            self.pace.restart(now)
        self._backoff, self.words = _BACKOFF_FIRST, ""
        self.failed_alone.clear()

    def is_well(self) -> None:
        """It says so itself: the next may be asked at once, although still alone."""
        self._backoff, self.not_before = _BACKOFF_FIRST, 0.0

    def rest(self, now: float, words: str, *, seconds: float = 0.0, probing: bool = True) -> None:
        """Leave it in peace: for so many seconds as it asked for, else the longer the more often in a row."""
        self.words = words
        self.probing = self.probing or probing
        if seconds <= 0:
            if now < self.not_before:
                # One outage, of which all that was in flight tells.
                return
            seconds = self._backoff
            self._backoff = min(_BACKOFF_MOST, 2 * self._backoff)
        self.not_before = max(self.not_before, now + seconds)

    def healthy(self) -> bool:
        """Ask it for its health, blocking: whether it says that it is well. For a thread of its own."""
        for path in ("/health", "/v1/models", "/api/version"):
            try:
                status, _ = get(self.wire.target, path, 5.0)
            except (OSError, http.client.HTTPException):
                return False
            if status == 200:
                return True
            if status != 404:
                return False
        return False

    def sweep(self, now: float) -> None:
        """Give up on what has taken too long."""
        late = [link for link, work in self.flying.items() if now - work.sent > self._timeout]
        for link in late:
            link.give_up("timeout")

    def close(self) -> list[Work]:
        """Close all connections; what was in flight."""
        left = list(self.flying.values())
        for link in [*self.flying, *self._idle]:
            link.close()
        for task in self._waiting:
            task.cancel()
        self.flying.clear()
        return left
