"""A connection to an endpoint: one request at a time, its answer read whole."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, cast

import httptools

import stacks
from bench.load import Target

_MOST_REPLY_BYTES = 64 << 20
_CONNECT_SECONDS = 10.0
# A server that closes an idle connection just as it is used again does so at once.
_STALE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """One service that answers inputs. `url`: http(s)://host[:port][/prefix]. `slots`: requests at once to begin with, as the
    plan says; `weight` scales the default where no slots are known. `fixed`: keep to `slots`. `model`: replaces every input's.
    `per_hour`: US dollars, where they are known.
    `api_key` is never stored with the batch."""

    url: str
    slots: int | None = None
    weight: float = 1.0
    most: int = 1024
    fixed: bool = False
    model: str | None = None
    per_hour: float | None = None
    api_key: str = field(default="", repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    ca_file: str = ""
    insecure: bool = False

    def __post_init__(self) -> None:
        if (self.slots is not None and self.slots < 1) or not 0 < self.weight < 1e6 or self.most < 1:
            raise stacks.InputError(
                where=f"endpoint {self.url}", got=f"slots={self.slots}, weight={self.weight}, most={self.most}",
                allowed="numbers above 0", fix="correct them",
            )  # fmt: skip

    def target(self) -> Target:
        """The same in the words of the load generator. Raises InputError for a URL that is none."""
        return Target(
            url=self.url, engine="openai", model=self.model or "", stream=False, api_key=self.api_key,
            headers=self.headers, ca_file=self.ca_file, insecure=self.insecure,
        )  # fmt: skip


def endpoint_words(text: str) -> dict[str, Any]:
    """`WHERE[,slots=N][,weight=W][,most=N][,model=NAME][,per_hour=USD]` as a mapping. Raises InputError."""
    where, *options = text.split(",")
    found: dict[str, Any] = {"where": where}
    for option in options:
        key, _, value = option.partition("=")
        try:
            if key == "model" and value:
                found[key] = value
            elif key in ("slots", "most") and int(value) > 0:
                found[key] = int(value)
            elif key in ("weight", "per_hour") and 0 < float(value) < 1e6:
                found[key] = float(value)
            else:
                raise ValueError
        except ValueError:
            raise stacks.InputError(
                where=f"--endpoint {where}", got=option or "nothing after a comma",
                allowed="URL or stack, then ,slots=N ,weight=W ,most=N ,model=NAME ,per_hour=USD", fix="correct it",
            ) from None  # fmt: skip
    return found


Replied = Callable[["Link", int, bytes, bytes], None]
Broke = Callable[["Link", str, bool], None]


class Link(asyncio.Protocol):
    """`replied(link, status, body, retry_after)` and `broke(link, code, stale)` are called once for each `send`, one of
    them. After `broke` the link is dead. `stale`: the request may not have been seen at all, as the connection was old."""

    __slots__ = ("_body", "_broke", "_parser", "_replied", "_retry_after", "_size", "_status", "_used", "busy", "dead", "sent",
                 "transport")  # fmt: skip

    def __init__(self, replied: Replied, broke: Broke) -> None:
        self._replied, self._broke = replied, broke
        self.transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self.busy = self.dead = self._used = False
        self.sent = 0.0
        self._reset()

    def _reset(self) -> None:
        self._body: bytes | bytearray = b""
        self._size = self._status = 0
        self._retry_after = b""

    def send(self, payload: bytes) -> None:
        """Ask."""
        assert self.transport is not None
        self.busy = True
        self.sent = monotonic()
        self.transport.write(payload)

    def give_up(self, code: str) -> None:
        """Do not wait any longer."""
        self._fail(code)

    def close(self) -> None:
        """Close without a word to anyone."""
        self.dead, self.busy = True, False
        if self.transport is not None:
            self.transport.abort()
            self.transport = None

    def _fail(self, code: str, *, stale: bool = False) -> None:
        busy = self.busy
        self.close()
        if busy:
            self._broke(self, code, stale)

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        if not self.busy or self._parser is None:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("not_http")

    def eof_received(self) -> None:
        return None

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        silent = not self._size and not self._status
        self._fail("connection_lost", stale=self._used and silent and monotonic() - self.sent < _STALE_SECONDS)

    # --- httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 11 and name.lower() == b"retry-after":
            self._retry_after = value

    def on_headers_complete(self) -> None:
        if self._parser is not None:
            self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > _MOST_REPLY_BYTES:
            self._fail("too_large")
        elif not self._body:
            self._body = data
        else:
            if not isinstance(self._body, bytearray):
                self._body = bytearray(self._body)
            self._body += data

    def on_message_complete(self) -> None:
        parser, status = self._parser, self._status
        # Replies of 1xx announce the real one.
        if parser is None or not self.busy or status < 200:
            return
        body, retry_after = bytes(self._body), self._retry_after
        self._reset()
        self.busy, self._used = False, True
        if not parser.should_keep_alive():
            self.close()
        self._replied(self, status, body, retry_after)


class Wire:
    """Where an endpoint is and how it is asked: addresses, TLS, and the heads of requests."""

    def __init__(self, settings: EndpointSettings) -> None:
        self.target = settings.target()
        self._tls = self.target.tls()
        self._addresses: list[tuple[int, str, int]] = []
        self._next = 0
        self._heads: dict[str, bytes] = {}
        self._gate = asyncio.Semaphore(64)

    def payload(self, path: str, body: bytes) -> bytes:
        """The whole request."""
        head = self._heads.get(path)
        if head is None:
            lines = [f"POST {self.target.path}{path} HTTP/1.1", *(f"{k}: {v}" for k, v in self.target.base_headers())]
            lines += ["Content-Type: application/json", "Content-Length: "]
            head = self._heads[path] = "\r\n".join(lines).encode()
        return b"%b%d\r\n\r\n%b" % (head, len(body), body)

    async def connect(self, link: Link) -> str:
        """Open it; empty, or a code for why that cannot be."""
        loop = asyncio.get_running_loop()
        try:
            async with self._gate:
                if not self._addresses:
                    found = await loop.getaddrinfo(self.target.host, self.target.port, type=socket.SOCK_STREAM)
                    self._addresses = list(dict.fromkeys((i[0], str(i[4][0]), int(i[4][1])) for i in found))
                    # IPv4 first: a name that also has an IPv6 address is often served on the other only.
                    self._addresses.sort(key=lambda address: address[0] != socket.AF_INET)
                family, host, port = self._addresses[self._next % len(self._addresses)]
                name = self.target.host if self._tls is not None else None
                opening = loop.create_connection(
                    lambda: link, host, port, family=family, ssl=self._tls, server_hostname=name
                )
                await asyncio.wait_for(opening, _CONNECT_SECONDS)
        except OSError as error:
            # The next try asks another address, and after all of them the name again: services move.
            self._next += 1
            if self._next >= len(self._addresses):
                self._addresses, self._next = [], 0
            return _code(error)
        return ""


def _code(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "tls"
    if isinstance(error, socket.gaierror):
        return "dns"
    if isinstance(error, ConnectionRefusedError):
        return "connection_refused"
    if isinstance(error, TimeoutError):
        return "connect_timeout"
    return "unreachable"
