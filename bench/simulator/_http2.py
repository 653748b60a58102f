"""HTTP/2 as an option, by the h2 library: over TLS by ALPN, and in clear with prior knowledge.

The dialects write HTTP/1.1; each stream here reads what they write with a response parser and sends it as frames. That
costs speed on this path only, and there is one set of answers. Bounds as for HTTP/1.1: streams at once, head, bodies of
all streams together, what a client does not read, streams opened only to be reset.
"""

from __future__ import annotations

import asyncio
from typing import cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import httptools

from ._http import MAX_HEAD, MAX_UNREAD, MAX_URL, Connection, Server, Work
from ._message import Request
from ._options import warn

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_STREAMS = 128
MAX_RESETS = 200
MAX_FRAME = 16384  # the protocol's default, which nobody is offered more than
_NOT_SENT = (b"connection", b"transfer-encoding", b"keep-alive")


class Either(Connection):
    """A connection whose first bytes decide: HTTP/2's preface, or HTTP/1.1."""

    __slots__ = ("_first",)

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._first: bytes | None = b""

    def data_received(self, data: bytes) -> None:
        if self._first is None:
            super().data_received(data)
            return
        data = self._first + data
        if data.startswith(PREFACE):
            self.server.connections.discard(self)
            transport, self.transport = self.transport, None
            if transport is not None:
                link = Link(self.server)
                transport.set_protocol(link)
                link.connection_made(transport)
                link.data_received(data)
        elif PREFACE.startswith(data):
            self._first = data
            self.partial = True
        else:
            self._first = None
            self.partial = False
            super().data_received(data)


class Link(asyncio.Protocol):
    """One HTTP/2 connection with its streams; to the server it looks like any other connection."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.epoch = server.epoch
        self.streams: dict[int, Stream] = {}
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.received = 0
        self._left = len(PREFACE)
        self._head = b""
        self._resets = 0
        self.served = 0

    @property
    def busy(self) -> Stream | None:
        """A stream that waits for the engine. One that waits for its client to read is idle, and given up in time."""
        return next((stream for stream in self.streams.values() if stream.busy is not None), None)

    @property
    def pending(self) -> int:
        """Bytes of answers that the client's windows do not take yet."""
        return sum(len(stream.pending) for stream in self.streams.values())

    @property
    def partial(self) -> bool:
        """Whether a request has begun to arrive."""
        return any(not stream.answering for stream in self.streams.values())

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        codes = h2.settings.SettingCodes
        self.h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={codes.MAX_CONCURRENT_STREAMS: MAX_STREAMS, codes.MAX_HEADER_LIST_SIZE: MAX_HEAD},
        )
        self.h2.initiate_connection()
        if not self.server.joined(self):
            self.refuse(503, "too many connections")
            return
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self.transport = None
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.gone()

    def data_received(self, data: bytes) -> None:
        self.epoch = self.server.epoch
        if self._overlong(data):
            self.h2.close_connection(h2.errors.ErrorCodes.FRAME_SIZE_ERROR)
            self._close()
            return
        try:
            for event in self.h2.receive_data(data):
                self._event(event)
        except h2.exceptions.ProtocolError:
            # h2 has put its GOAWAY into what is to be sent.
            self._close()
            return
        self._send()

    def eof_received(self) -> bool:
        return False

    def _overlong(self, data: bytes) -> bool:
        """Whether a frame in `data` is longer than allowed. h2 looks only when all of it has come, 16 MiB at most."""
        at = min(self._left, len(data))
        self._left -= at
        while at < len(data):
            more = 9 - len(self._head)
            self._head += data[at : at + more]
            at += more
            if len(self._head) < 9:
                break
            length = int.from_bytes(self._head[:3], "big")
            self._head = b""
            if length > MAX_FRAME:
                return True
            here = min(length, len(data) - at)
            self._left = length - here
            at += here
        return False

    def _event(self, event: h2.events.Event) -> None:
        number = getattr(event, "stream_id", None)
        stream = self.streams.get(number) if number else None
        if isinstance(event, h2.events.RequestReceived):
            self._opened(event)
        elif isinstance(event, h2.events.DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
            if stream is not None and not stream.answering:
                stream.body += event.data or b""
                self.received += len(event.data or b"")
                if self.received > self.server.max_body:
                    stream.refuse(413, "request body is too large")
        elif isinstance(event, h2.events.StreamEnded):
            if stream is not None and not stream.answering:
                stream.handle()
        elif isinstance(event, h2.events.StreamReset):
            self._resets += 1
            if stream is not None:
                self.forget(stream)
                stream.gone()
            if self._resets > MAX_RESETS + self.served:
                self.refuse(429, "streams are opened only to be reset")
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            for waiting in [stream] if stream is not None else list(self.streams.values()):
                waiting.flush()
        elif isinstance(event, h2.events.ConnectionTerminated):
            self._close()

    def _opened(self, event: h2.events.RequestReceived) -> None:
        stream = self.streams[event.stream_id or 0] = Stream(self, event.stream_id or 0)
        request = stream.request
        for name, value in cast("list[tuple[bytes, bytes]]", event.headers or []):
            if name == b":method":
                request.method = value
            elif name == b":path":
                request.path, _, request.query = value.partition(b"?")
                if len(value) > MAX_URL:
                    stream.refuse(414, "request target is too long")
            elif name == b"content-type":
                request.content_type = value
            elif name == b"authorization":
                request.authorization = value
            elif name == b"x-request-id":
                request.request_id = value

    # What streams use

    def forget(self, stream: Stream) -> None:
        """The stream is over."""
        self.received -= len(stream.body)
        stream.body.clear()
        self.streams.pop(stream.number, None)
        self.epoch = self.server.epoch

    def send(self) -> None:
        """Send the frames that streams have made."""
        self._send()

    def _send(self) -> None:
        data = self.h2.data_to_send()
        if data and self.transport is not None:
            self.transport.write(data)
            if self.transport.get_write_buffer_size() > MAX_UNREAD:
                self.transport.abort()

    def _close(self) -> None:
        self._send()
        if self.transport is not None:
            self.transport.close()
        # Nothing can be sent any more, however long the transport takes to close.
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.gone()

    # What the server uses

    def refuse(self, status: int, message: str) -> None:
        """Hang up; HTTP/2 has no words for it on the whole connection but a code and a text."""
        self.h2.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM, f"{status} {message}".encode())
        self._close()


class Stream:
    """One exchange: to a dialect, a client like any other."""

    __slots__ = (
        "_ended",
        "_headers",
        "_parser",
        "_sent",
        "answering",
        "body",
        "busy",
        "closing",
        "link",
        "number",
        "pending",
        "request",
    )  # fmt: skip

    def __init__(self, link: Link, number: int) -> None:
        self.link = link
        self.number = number
        self.request = Request(b"", b"", b"", b"", True)
        self.body = bytearray()
        self.busy: Work | None = None
        self.closing = False
        self.answering = False
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self.pending = bytearray()
        self._sent = False
        self._ended = False

    def handle(self) -> None:
        """The request is complete: let the dialect answer."""
        self.answering = True
        request = self.request
        request.body = bytes(self.body)
        app = self.link.server.app
        try:
            answer = app.handle(self, request)
        except Exception as error:  # noqa: BLE001 - one request must not take the server down
            warn(f"simulator: {type(error).__name__} in {request.path!r}: {error}")
            answer = app.refuse(500, "Internal Server Error")
        if answer is not None:
            self.write(answer)

    def refuse(self, status: int, message: str) -> None:
        """Answer an unusable request."""
        if not self.answering:
            self.answering = True
            self.write(self.link.server.app.refuse(status, message))

    def write(self, data: bytes) -> None:
        """Send a part of an answer, given as HTTP/1.1."""
        if self.closing:
            return
        self._parser.feed_data(data)
        self.flush()
        if self.pending and self.link.pending > MAX_UNREAD:
            self.abort()
        self.link.send()

    def done(self) -> None:
        """The answer is complete."""
        self.busy = None

    def abort(self) -> None:
        """Break off without a word."""
        if not self.closing:
            self.link.h2.reset_stream(self.number, h2.errors.ErrorCodes.INTERNAL_ERROR)
            self.link.forget(self)
            self.link.send()
            self.gone()

    def gone(self) -> None:
        """Nobody reads this any more."""
        self.closing = True
        work, self.busy = self.busy, None
        if work is not None:
            work.abort()

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() not in _NOT_SENT:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = (b":status", b"%d" % self._parser.get_status_code())
        self._ended = self.request.method == b"HEAD"
        self.link.h2.send_headers(self.number, [status, *self._headers], end_stream=self._ended)
        self._sent = True
        if self._ended:
            self._over()

    def on_body(self, body: bytes) -> None:
        self.pending += body

    def on_message_complete(self) -> None:
        self._ended = True

    def flush(self) -> None:
        """Send as much as the client's windows take."""
        if not self._sent or self.closing:
            return
        connection = self.link.h2
        pending = self.pending
        while pending:
            size = min(
                connection.local_flow_control_window(self.number), connection.max_outbound_frame_size, len(pending)
            )
            if size <= 0:
                return
            connection.send_data(self.number, bytes(pending[:size]))
            del pending[:size]
        if self._ended:
            connection.end_stream(self.number)
            self._over()

    def _over(self) -> None:
        self.closing = True
        self.link.served += 1
        self.link.forget(self)
