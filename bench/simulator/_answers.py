"""From a checked request to bytes: what a connection waits for while the engine works."""

from __future__ import annotations

from binascii import hexlify
from typing import TYPE_CHECKING

from ._ask import Ask, chain
from ._scheduler import Scheduler, Sequence, clock
from ._style import DONE, END, Style
from ._words import LENGTH, Corpus, Draws

if TYPE_CHECKING:
    from ._http import Client
    from ._message import Head
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
        # By whether it is a chat: the counts of the route's successful answers.
        self.rows = {
            True: stats.row("/v1/chat/completions", "POST", 200),
            False: stats.row("/v1/completions", "POST", 200),
        }


def identity(draw: int, given: bytes) -> bytes:
    """The id of an answer: the client's `X-Request-Id` where it is harmless, else from the draw."""
    if given and len(given) <= 64 and given.replace(b"-", b"").replace(b"_", b"").isalnum():
        return given
    return hexlify(draw.to_bytes(8, "big"))


def natural(kitchen: Kitchen, ask: Ask, draw: int, room: int) -> tuple[int, str]:
    """(tokens, reason) of an answer that may have at most `room`: forced with ignore_eos, else drawn."""
    if ask.ignore_eos:
        return room, "length"
    drawn = kitchen.draws.length(draw, 1 << 30)
    return (drawn, "stop") if drawn < room else (room, "length")


class Prepared:
    """A checked request, ready to be answered any number of times: the same bytes from a client need no second look.

    `room`: the most tokens it may have. `start` is the hot path: where the engine takes no time and a slot is free, the
    answer is put together at once from parts that were made before.
    """

    __slots__ = ("_row", "ask", "fast", "kitchen", "prompt", "room", "route", "style")

    def __init__(self, kitchen: Kitchen, ask: Ask, room: int, route: str) -> None:
        self.kitchen = kitchen
        self.ask = ask
        self.room = room
        self.route = route
        self.style = kitchen.chat if ask.chat else kitchen.text
        self.prompt = ask.prompts[0]
        self.fast = ask.plain and not kitchen.faulty
        self._row = kitchen.rows[ask.chat]

    def start(
        self, connection: Client, draw: int, given_id: bytes, received: int, prompt: int = 0, text: str = ""
    ) -> bytes | None:
        """Bytes where the whole answer is there at once; else None: the connection is busy, or the queue was full.

        `prompt`, `text`: of a request that differs from this one in its text only.
        """
        if not self.fast:
            from ._rich import rich_answer

            return rich_answer(self.kitchen, connection, self.ask, draw, self.room, given_id, self.route, received)
        kitchen = self.kitchen
        ask = self.ask
        if not prompt:
            prompt, text = self.prompt, ask.text
        tokens, reason = self.room, "length"
        if not ask.ignore_eos:
            drawn = kitchen.draws.length(draw, 1 << 30)
            if drawn < tokens:
                tokens, reason = drawn, "stop"
        scheduler = kitchen.scheduler
        if scheduler.instant and scheduler.active < scheduler.max_seqs and not scheduler.queued:
            head, row = kitchen.head, self._row
            ident = identity(draw, given_id) if given_id else hexlify(draw.to_bytes(8, "big"))
            if not ask.stream:
                row[0] += 1
                row[1] += received
                kitchen.stats.instant(prompt, tokens, self.room, reason)
                style = self.style
                said = kitchen.corpus.text(draw % LENGTH, tokens)
                tail = style.tail_of(reason, prompt, tokens)
                size = style.whole_size + len(ident) + len(said) + len(tail)
                row[2] += size
                first = head.sized(kitchen.json_type, size)
                parts = (first, style.opens, ident, style.middle, head.second, style.message, said, tail)
                return b"".join(parts)
            if tokens <= 4096:
                row[0] += 1
                row[1] += received
                kitchen.stats.instant(prompt, tokens, self.room, reason)
                created = head.refresh()
                start = draw % LENGTH
                return head.stream(kitchen.events_type) + burst(
                    self.style, ident, created, start, tokens, reason, ask.usage, prompt
                )
        return self._work(connection, draw, given_id, tokens, reason, received, prompt, text)

    def _work(
        self,
        connection: Client,
        draw: int,
        given_id: bytes,
        tokens: int,
        reason: str,
        received: int,
        prompt: int,
        text: str,
    ) -> bytes | None:
        kitchen = self.kitchen
        ask = self.ask
        ident = identity(draw, given_id)
        start = draw % LENGTH
        work: Stream | Whole
        if ask.stream:
            work = Stream(kitchen, connection, self.style, ident, start, tokens, ask.usage, self.route, received)
        else:
            work = Whole(kitchen, connection, self.style, ident, start, self.route, received)
        seq = Sequence(work, prompt, tokens, streams=ask.stream, draw=draw, reason=reason)
        seq.max_tokens = self.room
        if kitchen.caching:
            seq.chain = chain(text)
        work.seq = seq
        connection.busy = work
        if not kitchen.scheduler.submit(seq):
            connection.busy = None
            return None
        if ask.stream and kitchen.dialect == "vllm":
            connection.write(kitchen.head.stream(kitchen.events_type))
            work.opened = True
        return None


def burst(
    style: Style, ident: bytes, created: int, start: int, tokens: int, reason: str, usage: bool, prompt: int
) -> bytes:
    """A whole stream at once, event by event as if it had taken its time."""
    head = style.head(ident, created)
    starts, rests, middles, _ = style.tables(len(head))
    left = tokens - 1
    parts = [style.opening(ident, created)]
    at = start
    while left > 0:
        here = min(left, LENGTH)
        stop = at + here
        parts += (starts[at], head, head.join(middles[at : stop - 1]) + head if here > 1 else b"", rests[stop - 1])
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
        connection: Client,
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
        "rest",
        "route",
        "seq",
        "start",
        "style",
        "usage",
    )

    def __init__(
        self,
        kitchen: Kitchen,
        connection: Client,
        style: Style,
        ident: bytes,
        start: int,
        tokens: int,
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
        self.rest = style.events(self.head, start, tokens)
        self.seq: Sequence

    def on_token(self, seq: Sequence) -> None:
        if seq.made == 1:
            self.connection.write(self._begin() + next(self.rest))
        else:
            self.connection.write(next(self.rest))

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
