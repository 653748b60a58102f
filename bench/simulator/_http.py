"""HTTP/1.1 on the event loop's own protocol classes: no framework, no task per request.

A connection parses what comes, keeps complete requests in order, hands them one at a time to the application and writes
what it answers. Everything a client can make grow has a bound: the head, the body, the requests in the pipe, the bytes
waiting to be read by it, the time a request may take to arrive, the number of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from ._message import Head, Request
from ._options import warn

if TYPE_CHECKING:
    from ._http2 import Link

MAX_HEAD = 64 << 10
MAX_URL = 16 << 10
MAX_PIPELINE = 64
MAX_UNREAD = 4 << 20
MAX_KNOWN_HEADS, MAX_KNOWN_HEAD = 256, 2048


class Work(Protocol):
    """What a connection is busy with after a handler returned None."""

    def abort(self) -> None:
        """The client has gone."""


class Client(Protocol):
    """Who a dialect answers: an HTTP/1.1 connection, or one stream of HTTP/2. What is written is HTTP/1.1."""

    busy: Work | None
    closing: bool

    def write(self, data: bytes) -> None:
        """Send a part of an answer."""

    def done(self) -> None:
        """The answer is complete."""

    def abort(self) -> None:
        """Break off without a word."""


class App(Protocol):
    """What a server serves: `handle` answers at once with a whole response, or None and `connection.done()` later."""

    head: Head

    def handle(self, connection: Client, request: Request) -> bytes | None: ...

    def refuse(self, status: int, message: str) -> bytes:
        """A whole response, closing, in the words of the dialect."""


def _drop(data: bytes) -> None:
    """Send to nobody."""


class Server:
    """What the connections of one listener share."""

    def __init__(
        self,
        app: App,
        loop: asyncio.AbstractEventLoop,
        *,
        max_connections: int,
        max_body: int,
        head_seconds: float,
        idle_seconds: float,
    ) -> None:
        self.app = app
        self.loop = loop
        self.max_connections = max_connections
        self.max_body = max_body
        self.connections: set[Connection | Link] = set()
        # Heads that came before, byte for byte, and what they say: (request, length of its body).
        self.heads: dict[bytes, tuple[Request, int]] = {}
        self.once: set[int] = set()
        self.epoch = 0
        self.interval = max(0.05, min(5.0, head_seconds / 2, idle_seconds / 2))
        self.head_epochs = max(1, round(head_seconds / self.interval))
        self.idle_epochs = max(1, round(idle_seconds / self.interval))
        self._sweeper: asyncio.TimerHandle | None = None

    def joined(self, connection: Connection | Link) -> bool:
        """Count a new connection; False where there are too many."""
        if len(self.connections) >= self.max_connections:
            return False
        self.connections.add(connection)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(self.interval, self._sweep)
        return True

    def _sweep(self) -> None:
        """Close what has been silent or unfinished for too long; sleeps again once nobody is connected."""
        self.epoch += 1
        idle, late = self.epoch - self.idle_epochs, self.epoch - self.head_epochs
        for connection in [c for c in self.connections if c.epoch <= late and not c.busy]:
            if connection.partial:
                connection.refuse(408, "request took too long to arrive")
            elif connection.epoch <= idle and connection.transport is not None:
                connection.transport.close()
        self._sweeper = self.loop.call_later(self.interval, self._sweep) if self.connections else None

    def protocol(self) -> Connection:
        """One more connection (the protocol factory)."""
        return Connection(self)

    def unsent(self) -> bool:
        """Whether any client has not yet been sent all of its answer."""
        return any(c.transport is not None and c.transport.get_write_buffer_size() > 0 for c in self.connections)

    def close_idle(self) -> None:
        """Close the connections that wait for nothing."""
        for connection in list(self.connections):
            if not connection.busy and connection.transport is not None:
                connection.transport.close()

    def stop(self) -> None:
        """Close all, at once."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            if connection.transport is not None:
                connection.transport.abort()


class Connection(asyncio.Protocol):
    """One client. `busy`: what it waits for; `partial`: a request has begun to arrive; `epoch`: of the last event."""

    __slots__ = (
        "_authorization",
        "_body",
        "_content_type",
        "_expect",
        "_inbox",
        "_method",
        "_parser",
        "_raw",
        "_refusal",
        "_request_id",
        "_size",
        "_url",
        "busy",
        "closing",
        "epoch",
        "keep",
        "partial",
        "server",
        "transport",
        "write",
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.busy: Work | None = None
        self.partial = False
        self.closing = False
        self.keep = True
        self.epoch = server.epoch
        self._parser: httptools.HttpRequestParser | None = None
        self._inbox: list[Request] = []
        self._refusal = b""
        # Send; what can no longer be sent is dropped. Straight to the transport while the client reads what it gets.
        self.write: Callable[[bytes], None] = _drop
        self._reset()

    def _reset(self) -> None:
        self._url = b""
        self._body: bytes | bytearray = b""
        self._size = 0
        self._raw = 0
        self._authorization = b""
        self._content_type = b""
        self._request_id = b""
        self._expect = False
        self._method = b""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.write = self.transport.write
        if not self.server.joined(self):
            self.refuse(503, "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self.closing = True
        self.transport = None
        self.write = _drop
        self._parser = None
        self._inbox.clear()
        work, self.busy = self.busy, None
        if work is not None:
            work.abort()

    def data_received(self, data: bytes) -> None:
        if self.closing or self._refusal:
            return
        fresh = not (self.partial or self._inbox)
        if fresh and self.busy is None:
            # The usual case: one whole request, with a head as before.
            at = data.find(b"\r\n\r\n") + 4
            known = self.server.heads.get(data[:at])
            if known is not None and len(data) - at == known[1]:
                request = known[0]
                request.body = data[at:]
                self.keep = True
                answer = self._handle(request)
                if answer is not None and self.transport is not None:
                    self.transport.write(answer)
                    self._answered()
                return
        if not self.partial:
            self.partial = True
            self.epoch = self.server.epoch
        if not self._method:
            self._raw += len(data)
        parser = self._parser
        if parser is None:
            # Not before it is needed: it is a third of what a connection takes.
            parser = self._parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # An offer to speak something else (h2c, websocket) is declined by answering in HTTP/1.1.
            self._parser = httptools.HttpRequestParser(self)
            self._process()
            rest = data[upgrade.args[0] :]
            if rest:
                self.data_received(rest)
            return
        except httptools.HttpParserError as error:
            if self.closing or self._refusal:
                self._process()
                return
            context = error.__context__
            if isinstance(context, Exception) and not isinstance(context, httptools.HttpParserError):
                warn(f"simulator: {type(context).__name__} while parsing: {context}")
            self.refuse(400, "Invalid HTTP request received.")
            self._process()
            return
        if self._raw > MAX_HEAD and not self._method:
            self.refuse(431, "request head is too large")
            return
        if self._inbox:
            if fresh and len(self._inbox) == 1 and not self.partial:
                self._remember(data, self._inbox[0])
            self._process()
        elif self._expect and self.transport is not None and self.busy is None and not self.closing:
            self._expect = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def eof_received(self) -> bool:
        # As uvicorn and Go do: a client that has closed its side gets no answer any more.
        return False

    def pause_writing(self) -> None:
        self.write = self._write_slowly
        self._bound()

    def resume_writing(self) -> None:
        if self.transport is not None:
            self.write = self.transport.write

    def _write_slowly(self, data: bytes) -> None:
        """Send to a client that reads more slowly than it gets."""
        if self.transport is not None:
            self.transport.write(data)
            self._bound()

    def _bound(self) -> None:
        if self.transport is not None and self.transport.get_write_buffer_size() > MAX_UNREAD:
            self.abort()

    # httptools

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url
        if len(self._url) > MAX_URL:
            self.refuse(414, "request target is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value) + 4
        if self._size > MAX_HEAD:
            self.refuse(431, "request head is too large")
            return
        size = len(name)
        # Only names of these lengths matter; the rest is not even lower-cased.
        if size == 12:
            if name.lower() == b"content-type":
                self._content_type = value
            elif name.lower() == b"x-request-id":
                self._request_id = value
        elif size == 13:
            if name.lower() == b"authorization":
                self._authorization = value
        elif size == 14:
            if name.lower() == b"content-length" and value.isdigit() and int(value) > self.server.max_body:
                self.refuse(413, "request body is too large")
        elif size == 6 and name.lower() == b"expect" and value.lower() == b"100-continue":
            self._expect = True

    def on_headers_complete(self) -> None:
        if self._parser is not None:
            self._method = self._parser.get_method()
            self._size = 0

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self.server.max_body:
            self.refuse(413, "request body is too large")
        elif not self._body:
            self._body = body
        else:
            if not isinstance(self._body, bytearray):
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        parser = self._parser
        if self.closing or self._refusal or parser is None:
            return
        path, _, query = self._url.partition(b"?")
        request = Request(self._method, path, query, bytes(self._body), parser.should_keep_alive())
        request.authorization = self._authorization
        request.content_type = self._content_type
        request.request_id = self._request_id
        self._inbox.append(request)
        self.partial = False
        self._reset()

    # The application

    def _remember(self, data: bytes, request: Request) -> None:
        """`data` is exactly `request`: the same head will mean the same again."""
        at = data.find(b"\r\n\r\n") + 4
        heads = self.server.heads
        if at > MAX_KNOWN_HEAD or not request.keep or request.request_id or len(data) - at != len(request.body):
            return
        once, key = self.server.once, hash(data[:at])
        if key not in once:
            # Worth it when it comes again.
            if len(once) >= 4 * MAX_KNOWN_HEADS:
                once.clear()
            once.add(key)
            return
        if len(heads) >= MAX_KNOWN_HEADS:
            heads.clear()
        copy = Request(request.method, request.path, request.query, b"", True)
        copy.authorization, copy.content_type = request.authorization, request.content_type
        heads[data[:at]] = (copy, len(request.body))

    def _handle(self, request: Request) -> bytes | None:
        app = self.server.app
        try:
            return app.handle(self, request)
        except Exception as error:  # noqa: BLE001 - one request must not take the server down
            warn(f"simulator: {type(error).__name__} in {request.path!r}: {error}")
            self.keep = False
            return app.refuse(500, "Internal Server Error")

    def _process(self) -> None:
        """Hand over requests in order until one has to wait."""
        inbox = self._inbox
        server = self.server
        served = 0
        while inbox and self.busy is None and not self.closing:
            if served == MAX_PIPELINE:
                server.loop.call_soon(self._process)
                return
            served += 1
            request = inbox.pop(0)
            self.keep = request.keep
            answer = self._handle(request)
            if answer is not None:
                self.write(answer)
                self._answered()
        transport = self.transport
        if transport is None:
            return
        if self._refusal and not inbox and self.busy is None and not self.closing:
            self.closing = True
            transport.write(self._refusal)
            transport.close()
            return
        if len(inbox) > MAX_PIPELINE:
            transport.pause_reading()
        elif not inbox and not transport.is_reading() and not self.closing:
            with contextlib.suppress(RuntimeError):
                transport.resume_reading()

    def _answered(self) -> None:
        self.epoch = self.server.epoch
        if not self.keep and self.transport is not None:
            self.closing = True
            self.transport.close()

    def done(self) -> None:
        """The work of the present request is over; go on with the next in the pipe."""
        self.busy = None
        self._answered()
        if (self._inbox or self._refusal) and not self.closing:
            self.server.loop.call_soon(self._process)

    def refuse(self, status: int, message: str) -> None:
        """Answer an unusable request and hang up, after what came before it in the pipe has been answered."""
        if self.closing or self._refusal or self.transport is None:
            return
        self._refusal = self.server.app.refuse(status, message)
        if not self._inbox and self.busy is None:
            self.closing = True
            self.transport.write(self._refusal)
            self.transport.close()

    def abort(self) -> None:
        """Hang up without a word."""
        self.closing = True
        if self.transport is not None:
            self.transport.abort()
