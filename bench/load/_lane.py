"""One connection to the service, and at most one request on it at a time.

The hot path is `data_received`: take the time, let the HTTP parser (C) find the end of the message, count the frames.
Nothing else is looked at before the first token or after it until the reply is complete. A reply that is not streamed and
came whole in one read, as nearly all do, needs no parser: its head says how long it is, and heads repeat.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from array import array
from itertools import pairwise
from time import monotonic
from typing import TYPE_CHECKING, cast

import httptools

from ._recorder import CUT, EMPTY, OK, pack_rest, pack_row, pack_times
from ._wire import REMEMBERED, TAIL_BYTES, UNKNOWN, Reply, retry_after

if TYPE_CHECKING:
    from ._session import Session

_MAX_REPLY_TAIL_READ = TAIL_BYTES // 2
_NAN = float("nan")
# What a request begins with; never written to, so that an idle connection has none of its own.
_NO_TIMES: array[float] = array("d")
_NO_COUNTS: array[int] = array("I")


class Lane(asyncio.Protocol):
    """A connection, opened when first needed and kept alive; once `dead`, another takes its place."""

    __slots__ = (
        "_carry", "_counts", "_edge", "_heads", "_keep", "_known", "_marker", "_parser", "_plain", "_requests", "_rows",
        "_session", "_status", "_stream", "_tail", "_times", "busy", "complete", "dead", "fresh", "payload", "repeats",
        "retries", "scheduled", "sent", "transport", "user",
    )  # fmt: skip

    def __init__(self, session: Session, user: int) -> None:
        self._session = session
        self._marker, self._stream = session.wire.marker, session.wire.stream
        # So many bytes of a marker can stand at the end of one read without its being whole.
        self._edge = len(self._marker) - 1
        self._keep = False
        # Kept at hand: one attribute instead of three, for every request.
        self._rows = session.records.rows
        self._plain = not session.wire.stream and not session.reconnect
        self._heads, self._known, self._requests = session.wire.heads, session.known, session.requests
        self._parser: httptools.HttpResponseParser | None = None
        self.transport: asyncio.Transport | None = None
        self.user = user
        self.busy = self.dead = False
        # Whether an answer is followed by the next request at once: a user who does not think, and whose last answer was good.
        self.repeats = False
        self.fresh = True
        self.payload = b""
        self.scheduled = self.sent = 0.0
        # Also a lane that is never started has a record: see `Session._send_open`.
        self.retries = 0
        self._reset()

    def _reset(self) -> None:
        self.complete = False
        self._status = 0
        self._tail = b""
        self._carry = b""
        self._times = _NO_TIMES
        self._counts = _NO_COUNTS

    def start(self, payload: bytes, scheduled: float) -> None:
        """Send a request that was due at `scheduled`; its outcome goes to `Session.finished`, once."""
        self.payload, self.scheduled = payload, scheduled
        self.retries = 0
        self.busy = True
        self._reset()
        self.sent = monotonic()
        if self.transport is None:
            self._session.connect(self)
        else:
            self.fresh = False
            self.transport.write(payload)

    def take_over(self, lane: Lane) -> None:
        """Send once more what was in flight on another connection; its clock keeps running."""
        self.payload, self.scheduled, self.sent = lane.payload, lane.scheduled, lane.sent
        self.retries = lane.retries + 1
        self.busy, lane.busy = True, False
        self._session.connect(self)

    def connected(self) -> None:
        """The connection is up: send what waits for it."""
        if self.busy and self.transport is not None:
            self.transport.write(self.payload)

    def cut(self) -> None:
        """Give up on what is in flight and close."""
        if self.busy:
            self._finish(monotonic(), "", cut=True)
        self.close()

    def close(self) -> None:
        """Close the connection; not an error of any request."""
        self.dead = True
        if self.transport is not None:
            self.transport.abort()
            self.transport = None

    def fail(self, kind: str, retry_after: float = 0.0) -> None:
        """The request in flight failed."""
        if self.busy:
            self._finish(monotonic(), kind, retry_after=retry_after)

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        now = monotonic()
        if not self.busy or self._parser is None:
            # Bytes that nobody asked for: the connection cannot be trusted to be in step any more.
            self.close()
            return
        if self._plain and not self._tail and not self.retries:
            head, _, body = data.partition(b"\r\n\r\n")
            length = self._heads.get(head)
            if length is None:
                length = self._session.wire.body_bytes(head)
            if len(body) == length and self._whole(body, now):
                return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()
            self.fail("malformed_http")
            return
        if self._stream:
            if self._times:
                edge = self._edge
                count = data.count(self._marker) + (self._carry[-edge:] + data[:edge]).count(self._marker)
                self._carry = data[-edge:] if len(data) >= edge else (self._carry + data)[-edge:]
            else:
                count = self._first_tokens(self._carry + data)
            if count:
                if not self._times:
                    self._times, self._counts = array("d"), array("I")
                self._times.append(now)
                self._counts.append(count)
        if not self._tail or len(data) >= _MAX_REPLY_TAIL_READ:
            self._tail = data[-TAIL_BYTES:]
        elif len(self._tail) < _MAX_REPLY_TAIL_READ:
            self._tail += data
        else:
            # Cut only now and then: every read would copy all of it.
            self._tail = self._tail[-TAIL_BYTES // 4 :] + data
        if self.complete:
            self._completed(now)

    def _whole(self, body: bytes, now: float) -> bool:
        """Keep a reply that came in one read; False where it is none and has to be looked at with care."""
        session = self._session
        at = body.rfind(b'"usage"')
        usage = body[at:]
        rest = self._known.get(usage)
        if rest is None:
            reply = session.wire.reply(body[-TAIL_BYTES:])
            if reply.problem:
                return False
            rest = pack_rest(reply.tokens_in, max(0, reply.tokens_out), 0, 0, 0, OK, 0, reply.queued, reply.cached)
            if at >= 0 and len(self._known) < REMEMBERED:
                self._known[usage] = rest
        rows = self._rows
        rows += pack_times(self.scheduled, self.sent, 0.0, 0.0, now) + rest
        if not self.repeats or session.started >= session.limit:
            self.busy = False
            session.finished(self, now, OK)
            return True
        # What `Session.finished` and `start` would do, at a third of the cost: nothing is left of the request before.
        session.ok += 1
        session.started += 1
        self.payload = payload = next(self._requests)
        self.scheduled = self.sent = monotonic()
        self.transport.write(payload)  # type: ignore[union-attr]
        return True

    def eof_received(self) -> None:
        return None

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.dead = True
        self._session.lost(self)
        if not self.busy:
            return
        if not self.fresh and not self._tail and not self.retries:
            # The server closed a connection that had been idle, just as it was used again: nothing was processed, and
            # any HTTP client sends once more.
            self._session.again(self)
        elif self._until_close() and not self._session.wire.reply(self._tail).problem:
            self._completed(monotonic())
        else:
            self.fail("truncated" if self._tail else ("tls" if isinstance(error, ssl.SSLError) else "connection_lost"))

    # --- httptools

    def on_message_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        self._status = parser.get_status_code()
        # Replies of 1xx announce the real one.
        if self._status >= 200:
            self.complete = True
            self._keep = parser.should_keep_alive()

    # --- the end of a request

    def _first_tokens(self, data: bytes) -> int:
        """Of what has come before any token: how many frames there are from the first one on that carries a token."""
        marker = self._marker
        at = data.find(marker)
        while at >= 0:
            next_ = data.find(marker, at + len(marker))
            frame = data[at + len(marker) : next_ if next_ >= 0 else None]
            if next_ < 0 and b"\n" not in frame:
                # Half a frame: what it carries is seen when the rest has come.
                self._carry = data[at:]
                return 0
            if self._session.wire.is_token(frame):
                self._carry = data[-self._edge :]
                return 1 if next_ < 0 else data.count(marker, at)
            at = next_
        self._carry = data[-self._edge :]
        return 0

    def _until_close(self) -> bool:
        """Whether the reply's length was given by nothing but the end of the connection (HTTP/1.0)."""
        head = self._tail.lower()
        return b"\r\n\r\n" in head and b"\r\ncontent-length:" not in head and b"\r\ntransfer-encoding:" not in head

    def _completed(self, now: float) -> None:
        if self._session.reconnect or not self._keep:
            self.close()
        if self._status != 200:
            self._finish(now, f"http_{self._status}", retry_after=retry_after(self._tail))
            return
        reply = self._session.wire.reply(self._tail)
        if reply.problem:
            self._finish(now, reply.problem)
            return
        if self._stream:
            self._record_stream(now, reply)
            return
        self.busy = False
        rows = self._rows
        rows += pack_row(
            self.scheduled, self.sent, 0.0, 0.0, now, reply.tokens_in, max(0, reply.tokens_out), 0, 0, 0, OK,
            self.retries, reply.queued, reply.cached,
        )  # fmt: skip
        self._session.finished(self, now, OK)

    def _record_stream(self, now: float, reply: Reply) -> None:
        """Keep a streamed request: its reads without the frames at the end that carry no token."""
        times, counts, silent = self._times, self._counts, reply.silent
        while silent and counts:
            taken = min(silent, counts[-1])
            counts[-1] -= taken
            silent -= taken
            if not counts[-1]:
                counts.pop()
                times.pop()
        frames, gaps = sum(counts), len(times) - 1
        tokens_out = reply.tokens_out if reply.tokens_out != UNKNOWN else frames
        records = self._session.records
        if gaps > 0:
            records.gaps.extend([b - a for a, b in pairwise(times)])
        self.busy = False
        first, last = (times[0], times[-1]) if times else (0.0, 0.0)
        rows = self._rows
        rows += pack_row(
            self.scheduled, self.sent, first, last, now, reply.tokens_in, tokens_out, frames or EMPTY, max(0, gaps),
            frames - gaps - 1 if frames else 0, OK, self.retries, reply.queued, reply.cached,
        )  # fmt: skip
        self._session.finished(self, now, OK)

    def _finish(self, now: float, kind: str, *, cut: bool = False, retry_after: float = 0.0) -> None:
        """A request that did not end well."""
        self.busy = False
        status = CUT if cut else self._session.records.status_of(kind)
        first, last = (self._times[0], self._times[-1]) if self._times else (0.0, 0.0)
        rows = self._rows
        rows += pack_row(
            self.scheduled, self.sent, first, last, now, UNKNOWN, UNKNOWN, sum(self._counts), 0, 0, status, self.retries,
            _NAN, UNKNOWN,
        )  # fmt: skip
        self._session.finished(self, now, status, retry_after)


def error_kind(error: BaseException) -> str:
    """What a failed attempt to connect is counted as."""
    if isinstance(error, ssl.SSLError):
        return "tls"
    if isinstance(error, socket.gaierror):
        return "dns"
    if isinstance(error, ConnectionRefusedError):
        return "connection_refused"
    if isinstance(error, TimeoutError):
        return "connect_timeout"
    if isinstance(error, ConnectionError):
        return "connection_lost"
    return "unreachable" if isinstance(error, OSError) else "connect_failed"
