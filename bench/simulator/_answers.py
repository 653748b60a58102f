"""From a checked request to bytes: what a connection waits for while the engine works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from ._ask import Ask, chain
from ._engine import Scheduler, Sequence, clock
from ._style import DONE, END, FINGERPRINT, Style, event
from ._words import LENGTH, Corpus, Draws, share

if TYPE_CHECKING:
    from ._http import Connection, Head
    from ._options import Faults
    from ._stats import Stats

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"


class Kitchen:
    """What every answer of one model needs: engine, texts, draws, styles, response heads."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        stats: Stats,
        corpus: Corpus,
        draws: Draws,
        head: Head,
        dialect: str,
        model: str,
        faults: Faults,
        json_type: bytes = JSON,
        events_type: bytes = EVENTS,
        caching: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self.stats = stats
        self.corpus = corpus
        self.draws = draws
        self.head = head
        self.faults = faults
        self.faulty = faults.any
        self.json_type = json_type
        self.events_type = events_type
        self.caching = caching
        self.chat = Style(dialect, model, chat=True, corpus=corpus)
        self.text = Style(dialect, model, chat=False, corpus=corpus)
        self.dialect = dialect
        self.model = model


def identity(draw: int, given: bytes) -> bytes:
    """The id of an answer: the client's `X-Request-Id` where it is harmless, else from the draw."""
    if given and len(given) <= 64 and given.replace(b"-", b"").replace(b"_", b"").isalnum():
        return given
    return b"%016x" % draw


def natural(kitchen: Kitchen, ask: Ask, draw: int, room: int) -> tuple[int, str]:
    """(tokens, reason) of an answer that may have at most `room`: forced with ignore_eos, else drawn."""
    if ask.ignore_eos:
        return room, "length"
    drawn = kitchen.draws.length(draw, 1 << 30)
    return (drawn, "stop") if drawn < room else (room, "length")


def answer(
    kitchen: Kitchen, connection: Connection, ask: Ask, draw: int, room: int, given_id: bytes, route: str, received: int
) -> bytes | None:
    """Start answering. Bytes where the whole answer is there at once, else None and the connection is busy."""
    if not ask.plain or kitchen.faulty:
        from ._rich import rich_answer

        return rich_answer(kitchen, connection, ask, draw, room, given_id, route, received)
    tokens, reason = natural(kitchen, ask, draw, room)
    prompt = ask.prompts[0]
    scheduler = kitchen.scheduler
    start = draw % LENGTH
    style = kitchen.chat if ask.chat else kitchen.text
    ident = identity(draw, given_id)
    head = kitchen.head
    if scheduler.instant and scheduler.active < scheduler.max_seqs and not scheduler.queued:
        kitchen.stats.instant(prompt, tokens, room, reason)
        created = head.refresh()
        if not ask.stream:
            body = style.whole(ident, created, kitchen.corpus.text(start, tokens), reason.encode(), prompt, tokens)
            response = b"%b%d\r\n\r\n%b" % (head.ok(kitchen.json_type), len(body), body)
            kitchen.stats.http(route, "POST", 200, received, len(body), 0.0)
            return response
        if tokens <= 4096:
            response = head.stream(kitchen.events_type) + burst(
                style, ident, created, start, tokens, reason, ask.usage, prompt
            )
            kitchen.stats.http(route, "POST", 200, received, 0, 0.0)
            return response
    work: Stream | Whole
    if ask.stream:
        work = Stream(kitchen, connection, style, ident, start, ask.usage, route, received)
    else:
        work = Whole(kitchen, connection, style, ident, start, route, received)
    seq = Sequence(work, prompt, tokens, streams=ask.stream, draw=draw, reason=reason)
    seq.max_tokens = room
    if kitchen.caching:
        seq.chain = chain(ask.text)
    work.seq = seq
    connection.busy = work
    if not scheduler.submit(seq):
        connection.busy = None
        return None
    if ask.stream and kitchen.dialect == "vllm":
        connection.write(head.stream(kitchen.events_type))
        work.opened = True
    return None


def burst(
    style: Style, ident: bytes, created: int, start: int, tokens: int, reason: str, usage: bool, prompt: int
) -> bytes:
    """A whole stream at once, event by event as if it had taken its time."""
    head = style.head(ident, created)
    starts, rests = style.tables(len(head))
    parts = [style.opening(ident, created)]
    left = tokens - 1
    at = start
    while left > 0:
        here = min(left, LENGTH)
        stop = at + here
        middle = [a + head + b for a, b in zip(starts[at:stop], rests[at:stop], strict=True)]
        parts.append(b"".join(middle))
        left -= here
        at = stop % LENGTH
    parts.append(style.last(head, style._corpus.piece(start + tokens - 1), reason.encode()))
    if usage:
        parts.append(style.usage(ident, created, prompt, tokens))
    parts.append(DONE)
    parts.append(END)
    return b"".join(parts)


class Whole:
    """An answer that is sent when it is complete."""

    __slots__ = ("connection", "ident", "kitchen", "opened", "received", "route", "seq", "start", "style")

    def __init__(
        self,
        kitchen: Kitchen,
        connection: Connection,
        style: Style,
        ident: bytes,
        start: int,
        route: str,
        received: int,
    ) -> None:
        self.kitchen = kitchen
        self.connection = connection
        self.style = style
        self.ident = ident
        self.start = start
        self.route = route
        self.received = received
        self.opened = False
        self.seq: Sequence

    def on_token(self, seq: Sequence) -> None:
        """Nothing is shown before the end."""

    def on_finish(self, seq: Sequence) -> None:
        kitchen = self.kitchen
        head = kitchen.head
        created = head.refresh()
        text = kitchen.corpus.text(self.start, seq.made)
        body = self.style.whole(self.ident, created, text, seq.reason.encode(), seq.prompt, seq.made)
        self.connection.write(b"%b%d\r\n\r\n%b" % (head.ok(kitchen.json_type), len(body), body))
        kitchen.stats.http(self.route, "POST", 200, self.received, len(body), clock() - seq.arrived)
        self.connection.done()

    def abort(self) -> None:
        self.kitchen.scheduler.cancel(self.seq)


class Stream:
    """An answer that is sent token by token as server-sent events."""

    __slots__ = (
        "connection",
        "created",
        "head",
        "ident",
        "kitchen",
        "opened",
        "received",
        "rests",
        "route",
        "seq",
        "start",
        "starts",
        "style",
        "usage",
    )

    def __init__(
        self,
        kitchen: Kitchen,
        connection: Connection,
        style: Style,
        ident: bytes,
        start: int,
        usage: bool,
        route: str,
        received: int,
    ) -> None:
        self.kitchen = kitchen
        self.connection = connection
        self.style = style
        self.ident = ident
        self.start = start
        self.usage = usage
        self.route = route
        self.received = received
        self.opened = False
        self.created = kitchen.head.refresh()
        self.head = style.head(ident, self.created)
        self.starts, self.rests = style.tables(len(self.head))
        self.seq: Sequence

    def on_token(self, seq: Sequence) -> None:
        at = (self.start + seq.made - 1) % LENGTH
        if seq.made == 1:
            self.connection.write(b"".join((self._begin(), self.starts[at], self.head, self.rests[at])))
        else:
            self.connection.write(b"".join((self.starts[at], self.head, self.rests[at])))

    def _begin(self) -> bytes:
        opening = self.style.opening(self.ident, self.created)
        if self.opened:
            return opening
        self.opened = True
        return self.kitchen.head.stream(self.kitchen.events_type) + opening

    def on_finish(self, seq: Sequence) -> None:
        kitchen = self.kitchen
        piece = kitchen.corpus.piece(self.start + seq.made - 1)
        parts = [self._begin()] if seq.made == 1 else []
        parts.append(self.style.last(self.head, piece, seq.reason.encode()))
        if self.usage:
            parts.append(self.style.usage(self.ident, self.created, seq.prompt, seq.made))
        parts.append(DONE)
        parts.append(END)
        self.connection.write(b"".join(parts))
        kitchen.stats.http(self.route, "POST", 200, self.received, 0, clock() - seq.arrived)
        self.connection.done()

    def abort(self) -> None:
        self.kitchen.scheduler.cancel(self.seq)


def dumps(value: Any) -> bytes:
    """Compact JSON."""
    return orjson.dumps(value)


__all__ = [
    "FINGERPRINT",
    "Kitchen",
    "Stream",
    "Whole",
    "answer",
    "burst",
    "dumps",
    "event",
    "identity",
    "natural",
    "share",
]
