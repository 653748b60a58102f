"""Uploads as multipart/form-data, written where they belong as they come: a file of gigabytes needs no memory."""

from __future__ import annotations

import email.message
import email.parser
from collections.abc import Callable
from typing import IO, Protocol

_CHUNK = 1 << 18
_MOST_HEAD_BYTES = 16 << 10


class Readable(Protocol):
    """What is read from."""

    def read(self, size: int, /) -> bytes: ...


class BadUpload(ValueError):
    """The body is no multipart/form-data as its head says."""


def boundary_of(content_type: str) -> bytes:
    """Raises BadUpload for another type of content."""
    message = email.message.Message()
    message["Content-Type"] = content_type
    boundary = message.get_param("boundary")
    if (
        message.get_content_type() != "multipart/form-data"
        or not isinstance(boundary, str)
        or not 0 < len(boundary) <= 70
    ):
        raise BadUpload("expected multipart/form-data with a boundary")
    return boundary.encode("latin-1")


def receive(stream: Readable, length: int, boundary: bytes, sink: Callable[[str, str | None], IO[bytes]]) -> None:
    """Read `length` bytes of parts; each is written to `sink(name, filename)`. Raises BadUpload."""
    mark = b"\r\n--" + boundary
    left = length
    # The first mark has no line break before it.
    held = b"\r\n"
    into: IO[bytes] | None = None

    def more() -> bytes:
        nonlocal left
        data = stream.read(min(_CHUNK, left)) if left else b""
        left -= len(data)
        if not data:
            raise BadUpload("the body ends within a part")
        return data

    while True:
        at = held.find(mark)
        if at < 0:
            # What may be the beginning of a mark stays.
            keep = len(mark) - 1
            if into is not None:
                into.write(held[:-keep])
            elif len(held) > _MOST_HEAD_BYTES:
                raise BadUpload("no part begins")
            held = held[-keep:] + more() if into is not None else held + more()
            continue
        if into is not None:
            into.write(held[:at])
        held = held[at + len(mark) :]
        while len(held) < 2:
            held += more()
        if held.startswith(b"--"):
            while left:
                more()
            return
        while (end := held.find(b"\r\n\r\n")) < 0:
            if len(held) > _MOST_HEAD_BYTES:
                raise BadUpload("the head of a part is too long")
            held += more()
        head = email.parser.BytesParser().parsebytes(held[:end].lstrip(b"\r\n") + b"\r\n\r\n", headersonly=True)
        name = head.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise BadUpload("a part without a name")
        # The body of a part begins with the line break that may belong to the next mark already.
        held = held[end + 2 :]
        into = _Skipping(sink(name, head.get_filename()), 2)  # type: ignore[assignment]


class _Skipping:
    """Without the first bytes: the line break that ends the head."""

    def __init__(self, file: IO[bytes], skip: int) -> None:
        self._file, self._skip = file, skip

    def write(self, data: bytes) -> None:
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._file.write(data[skipped:])
