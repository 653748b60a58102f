"""Requests as applications get them, and the heads of what they answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._http import Client

STATUS = {
    100: "Continue",
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Request Entity Too Large",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


class Request:
    """One complete request, with the headers that an application asks for. Valid during `App.handle` only: the next one
    with the same head may use the object again."""

    __slots__ = ("authorization", "body", "content_type", "handler", "keep", "method", "path", "query", "request_id")

    def __init__(self, method: bytes, path: bytes, query: bytes, body: bytes, keep: bool) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.body = body
        self.keep = keep
        self.authorization = b""
        self.content_type = b""
        self.request_id = b""
        # Where an application keeps what it found for this method, path and key.
        self.handler: Callable[[Client, Request], bytes | None] | None = None


class Head:
    """Response heads as one engine's web server writes them, with the date refreshed once a second."""

    def __init__(self, *, dated_first: bytes, names: tuple[bytes, bytes, bytes]) -> None:
        self._server = dated_first
        self.length, self.type, self.transfer = names
        self._second = 0
        self.now = 0
        self.second = b""
        self._date = b""
        self._json: dict[bytes, bytes] = {}
        self._sizes: dict[tuple[bytes, int], bytes] = {}
        self.refresh()

    def refresh(self) -> int:
        """The present second of the epoch; the cached heads carry its date."""
        second = int(time.time())
        if second != self._second:
            self._second = self.now = second
            self.second = b"%d" % second
            self._date = formatdate(second, usegmt=True).encode()
            self._json.clear()
            self._sizes.clear()
        return second

    def _start(self, status: int, content_type: bytes) -> bytes:
        date = b"date" if self._server else b"Date"
        return b"HTTP/1.1 %d %s\r\n%s: %s\r\n%s%s: %s\r\n" % (
            status,
            STATUS.get(status, "Unknown").encode(),
            date,
            self._date,
            self._server,
            self.type,
            content_type,
        )

    def ok(self, content_type: bytes) -> bytes:
        """The head of a 200 up to and with `content-length: `; the caller adds number, blank line and body.

        The date is that of the last `refresh`, which the caller has just asked for the time.
        """
        found = self._json.get(content_type)
        if found is None:
            found = self._json[content_type] = self._start(200, content_type) + self.length + b": "
        return found

    def sized(self, content_type: bytes, size: int) -> bytes:
        """The whole head of a 200 with a body of `size` bytes."""
        second = int(time.time())
        if second != self._second:
            self.refresh()
        found = self._sizes.get((content_type, size))
        if found is None:
            if len(self._sizes) > 1024:
                self._sizes.clear()
            found = self._sizes[content_type, size] = b"%b%d\r\n\r\n" % (self.ok(content_type), size)
        return found

    def reply(self, status: int, content_type: bytes, body: bytes, *, close: bool = False, extra: bytes = b"") -> bytes:
        """A whole response."""
        self.refresh()
        end = b"\r\nConnection: close\r\n\r\n" if close else b"\r\n\r\n"
        return b"%s%s%s: %d%s%s" % (self._start(status, content_type), extra, self.length, len(body), end, body)

    def stream(self, content_type: bytes) -> bytes:
        """The head of a chunked 200."""
        self.refresh()
        key = b"chunked " + content_type
        found = self._json.get(key)
        if found is None:
            found = self._json[key] = self._start(200, content_type) + self.transfer + b": chunked\r\n\r\n"
        return found


UVICORN = Head(dated_first=b"server: uvicorn\r\n", names=(b"content-length", b"content-type", b"transfer-encoding"))
GIN = Head(dated_first=b"", names=(b"Content-Length", b"Content-Type", b"Transfer-Encoding"))


def headed(answer: bytes | None) -> bytes | None:
    """What HEAD gets of an answer; one that comes later is sent whole."""
    return answer if answer is None else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
