# ruff: noqa: E501 - inputs are written as they are sent
"""Our own services on this machine, and those that we ask: HTTP without a network."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import batch
from bench.batch import _http, _multipart, _service
from tollgate.ui import _server as ui

from ._files import project
from ._target import Target


def request(path: str, body: Any) -> bytes:
    """A whole POST of JSON."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


class Peer:
    """A socket of http.server's: gives what was sent, keeps what is answered."""

    def __init__(self, data: bytes) -> None:
        self.given, self.answer = io.BytesIO(data), bytearray()

    def makefile(self, mode: str, *_: Any) -> Any:
        return self.given

    def sendall(self, data: Any) -> None:
        self.answer += data

    def settimeout(self, seconds: Any) -> None:
        """Never waits."""

    def setsockopt(self, *_: Any) -> None:
        """As if."""

    def close(self) -> None:
        """Nothing is open."""


def local_services(folder: Path) -> list[Target]:
    """The Batch API and the local page, as a client that is allowed to speak with them."""
    root = project(folder)
    batches = _service.Batches(
        folder / "service", [batch.EndpointSettings(url="http://127.0.0.1:9")], batch.RunSettings(tries=1)
    )

    class Api(_http._Handler):
        pass

    Api.batches, Api.address = batches, "127.0.0.1"

    class Page(ui._Handler):
        pass

    Page.root = root

    def serve(handler: Any) -> Callable[[bytes], None]:
        def run(data: bytes) -> None:
            # Some hundred requests one after the other take longer than one input may, and are no fault of the service.
            peer = Peer(data[:8_192])
            handler(peer, ("127.0.0.1", 1), None)
            assert b"HTTP/1.1 500" not in peer.answer, bytes(peer.answer[-300:])

        return run

    form = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\n\r\n--x--\r\n'
    upload = (
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n"
        % len(form)
    )
    asked = b"GET /v1/files?limit=3&purpose=batch&after=file-1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n\r\n"
    made = request(
        "/v1/batches",
        {
            "input_file_id": "file-1",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"a": "b"},
        },
    )
    paths = (
        "/",
        "/api/pipeline",
        "/api/history?stack=local-dev",
        "/api/plan?stack=local-dev&users=3&prompt_tokens=100&latency=2&budget=5",
        "/api/results",
        "/api/batches",
    )
    pages = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n".encode() for path in paths]

    def multipart(data: bytes) -> None:
        kind, _, body = data.partition(b"\n")
        with contextlib.suppress(_multipart.BadUpload):
            boundary = _multipart.boundary_of(kind.decode("latin-1"))
            _multipart.receive(io.BytesIO(body), len(body), boundary, lambda name, filename: io.BytesIO())

    return [
        Target("batch-api", "http", [upload + form, asked, made], serve(Api)),
        Target("page", "text", pages, serve(Page)),
        Target("multipart", "bytes", [b"multipart/form-data; boundary=x\n" + form], multipart),
    ]
