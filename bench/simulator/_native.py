"""Ollama's own answers: newline-delimited JSON with the engine's durations in nanoseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from ._ask import chain
from ._choice import Choice
from ._faults import Fate
from ._library import STAMP, Model, stamp
from ._scheduler import Sequence, clock

if TYPE_CHECKING:
    from ._http import Client

JSON = b"application/json; charset=utf-8"
NDJSON = b"application/x-ndjson"
# What stands before and after a token in its line; the line ends, and so does its chunk.
_CHAT = (b'","message":{"role":"assistant","content":"', b'"},"done":false}\n\r\n')
_GENERATE = (b'","response":"', b'","done":false}\n\r\n')
_LENGTHS = [b"%x\r\n" % size for size in range(512)]
# A tool call's tokens are not shown one by one; it takes as long as so much text.
_CALL_CHARACTERS = 64


class Native:
    """One `/api/generate` or `/api/chat`. `said`: a text to answer with; `call`: a tool call to answer with."""

    __slots__ = (
        "arrived",
        "call",
        "chat",
        "choice",
        "connection",
        "fate",
        "loaded",
        "model",
        "opened",
        "said",
        "seq",
        "stops",
        "text",
    )
    streams = False

    def __init__(
        self,
        model: Model,
        connection: Client,
        *,
        chat: bool,
        arrived: float,
        text: str,
        stops: tuple[str, ...],
        said: str | None,
        call: tuple[str, Any] | None,
    ) -> None:
        self.model = model
        self.connection = connection
        self.chat = chat
        self.arrived = arrived
        self.loaded = clock()
        self.text = text
        self.stops = stops
        self.call = call
        self.said = said
        self.opened = False
        self.fate: Fate | None = None
        self.choice: Choice
        self.seq: Sequence

    def begin(self, prompt: int, room: int, *, forced: bool, busy: Callable[[], bytes]) -> bytes | None:
        """Hand the request to the model's engine; bytes where it is answered at once (an error)."""
        kitchen = self.model.kitchen
        draw = kitchen.draws.next()
        fate = self.fate = Fate(kitchen.faults, draw) if kitchen.faulty else None
        if fate is not None and fate.error:
            body = b'{"error":"llama runner process has terminated: signal: killed"}'
            return kitchen.head.reply(500, JSON, body)
        tokens, reason = room, "length"
        if not forced:
            drawn = kitchen.draws.length(draw, 1 << 30)
            tokens, reason = (drawn, "stop") if drawn < room else (room, "length")
        choice = self.choice = Choice(kitchen.corpus, 0, prompt, draw, tokens, reason)
        if self.call is not None:
            choice.say(" " * _CALL_CHARACTERS, "stop", room)
        elif self.said is not None:
            choice.say(self.said, "stop", room)
        elif self.stops:
            choice.until(self.stops)
        tokens, reason = choice.tokens, choice.reason
        seq = self.seq = Sequence(self, prompt, tokens, streams=self.streams, draw=draw, reason=reason)
        seq.max_tokens = room
        if kitchen.caching:
            seq.chain = chain(self.text)
        if fate is not None:
            seq.slow = fate.slow
            fate.within(tokens)
        self.connection.busy = self
        if not kitchen.scheduler.submit(seq):
            self.connection.busy = None
            return busy()
        return None

    def abort(self) -> None:
        self.model.scheduler.cancel(self.seq)

    def piece(self, index: int) -> bytes:
        """Token `index` of the answer, safe inside a JSON string."""
        return self.choice.safe(index) or orjson.dumps(self.choice.piece(index))[1:-1]

    def on_token(self, seq: Sequence) -> None:
        """One more token."""

    def on_finish(self, seq: Sequence) -> None:
        """The last token."""
        raise NotImplementedError

    def final(self, seq: Sequence, content: str) -> bytes:
        """The last object: `done`, with counts and durations."""
        body: dict[str, Any] = {"model": self.model.asked, "created_at": stamp()}
        if self.chat:
            message: dict[str, Any] = {"role": "assistant", "content": content}
            if self.call is not None and not self.streams:
                message["tool_calls"] = self._calls()
            body["message"] = message
        else:
            body["response"] = content
        body |= {
            "done": True,
            "done_reason": seq.reason,
        }
        if not self.chat:
            body["context"] = [1, 2, 3]
        body |= {
            "total_duration": int((max(seq.last, clock()) - self.arrived) * 1e9),
            "load_duration": int((self.loaded - self.arrived) * 1e9) + 1,
            "prompt_eval_count": seq.prompt,
            "prompt_eval_duration": int((seq.first - seq.admitted) * 1e9),
            "eval_count": seq.made,
            "eval_duration": int((seq.last - seq.first) * 1e9),
        }
        return orjson.dumps(body)

    def _text(self, seq: Sequence) -> str:
        return "" if self.call is not None else self.choice.text(seq.made)

    def _calls(self) -> list[dict[str, Any]]:
        name, arguments = self.call or ("", {})
        return [{"function": {"name": name, "arguments": arguments}}]


class NativeWhole(Native):
    """`"stream": false`: one object."""

    __slots__ = ()

    def on_finish(self, seq: Sequence) -> None:
        """Everything is there: send it."""
        if self.fate is not None and self.fate.meet(self.connection, seq.made, last=True):
            return
        text = self._text(seq)
        body = self.final(seq, text)
        kitchen = self.model.kitchen
        self.connection.write(b"%b%d\r\n\r\n%b" % (kitchen.head.ok(JSON), len(body), body))
        self.connection.done()


class NativeStream(Native):
    """One line per token, and one with the numbers."""

    __slots__ = ()
    streams = True

    def on_token(self, seq: Sequence) -> None:
        if self.call is None:
            line = self._line(self.piece(seq.made - 1))
            if not self.opened:
                self.opened = True
                line = self.model.kitchen.head.stream(NDJSON) + line
            self.connection.write(line)
        if self.fate is not None:
            self.fate.meet(self.connection, seq.made)

    def _line(self, piece: bytes) -> bytes:
        """One token as one line in one chunk."""
        start = self.model.line
        middle, end = _CHAT if self.chat else _GENERATE
        size = len(start) + STAMP + len(middle) + len(piece) + len(end) - 2
        length = _LENGTHS[size] if size < len(_LENGTHS) else b"%x\r\n" % size
        return b"".join((length, start, stamp().encode(), middle, piece, end))

    def on_finish(self, seq: Sequence) -> None:
        """The last token in its own line, then the numbers."""
        if self.fate is not None and self.fate.meet(self.connection, seq.made, last=True):
            return
        parts = []
        if not self.opened:
            parts.append(self.model.kitchen.head.stream(NDJSON))
        if self.call is not None:
            body: dict[str, Any] = {"model": self.model.asked, "created_at": stamp()}
            line = (
                orjson.dumps(
                    body | {"message": {"role": "assistant", "content": "", "tool_calls": self._calls()}, "done": False}
                )
                + b"\n"
            )
            parts.append(b"%x\r\n%b\r\n" % (len(line), line))
        else:
            parts.append(self._line(self.piece(seq.made - 1)))
        line = self.final(seq, "") + b"\n"
        parts.append(b"%x\r\n%b\r\n0\r\n\r\n" % (len(line), line))
        self.connection.write(b"".join(parts))
        self.connection.done()
