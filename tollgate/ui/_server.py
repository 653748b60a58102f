"""The page's server: on a loopback address, read only, asked by the page alone."""

from __future__ import annotations

import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import stacks

from ._data import answer

_PAGE = Path(__file__).with_name("page.html")
_NONCE = "{{nonce}}"
ADDRESS = "127.0.0.1"


class Page:
    """A context manager: the page of the project at `root` is served until it is left. `port` 0: any that is free.

    Raises InputError where the port is taken.
    """

    def __init__(self, root: Path, port: int = 0) -> None:
        class Bound(_Handler):
            pass

        Bound.root = root
        try:
            self._server = ThreadingHTTPServer((ADDRESS, port), Bound)
        except OSError as error:
            raise stacks.InputError(
                where="--port", got=f"{port}: {error.strerror}", allowed="a port that is free", fix="name another, or 0"
            ) from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    @property
    def url(self) -> str:
        """To be opened in a browser."""
        return f"http://{ADDRESS}:{self._server.server_address[1]}/"

    def __enter__(self) -> Page:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self) -> None:
        """For as long as it is served."""
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "tollgate"
    sys_version = ""
    timeout = 30
    root: Path

    def do_GET(self) -> None:
        headers = self.headers
        why = stacks.foreign(bound=ADDRESS, host=headers.get("Host", ""), origin=headers.get("Origin", ""))
        if why:
            self._say(403, {"error": why})
            return
        parts = urlsplit(self.path)
        if parts.path == "/":
            self._page()
            return
        if not parts.path.startswith("/api/"):
            self._say(404, {"error": "nothing is there"})
            return
        try:
            self._say(200, answer(self.root, parts.path.removeprefix("/api/"), dict(parse_qsl(parts.query))))
        except stacks.InputError as error:
            self._say(400, {"error": str(error)})
        except stacks.TollgateError as error:
            self._say(500, {"error": str(error)})

    def _page(self) -> None:
        # Only this script runs, and only from here is anything loaded: also where a name in the data were markup.
        nonce = secrets.token_urlsafe(16)
        text = _PAGE.read_text(encoding="utf-8").replace(_NONCE, nonce)
        policy = f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
        self._send(
            200,
            text.encode(),
            "text/html; charset=utf-8",
            policy + "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )

    def _say(self, status: int, value: Any) -> None:
        body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        self._send(status, body, "application/json", "default-src 'none'")

    def _send(self, status: int, body: bytes, kind: str, policy: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who looks at it knows."""
