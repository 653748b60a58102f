"""The HTTP side of the Batch API: few requests, large files, so threads and blocking reads serve best."""

from __future__ import annotations

import hmac
import io
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

import orjson

import stacks

from ._multipart import BadUpload, boundary_of, receive
from ._progress import RunSettings
from ._service import Batches, Wrong, copied
from ._wire import EndpointSettings

_MOST_JSON_BYTES = 1 << 20
_MOST_FILE_BYTES = 8 << 30
_MOST_LISTED = 100


class Service:
    """A context manager: serves and works on batches until it is left. `folder`: of batches and files. `key`: asked of clients;
    empty: of none. Raises InputError where the address is taken."""

    def __init__(
        self, folder: Path, endpoints: Sequence[EndpointSettings], settings: RunSettings | None = None, *,
        host: str = "127.0.0.1", port: int = 0, key: str = "",
    ) -> None:  # fmt: skip
        if not endpoints:
            raise stacks.InputError(where="--endpoint", got="none", allowed="at least one", fix="name one")
        self.batches = Batches(folder, endpoints, settings or RunSettings())
        batches = self.batches

        class Bound(_Handler):
            pass

        Bound.batches, Bound.key, Bound.address = batches, key, host
        try:
            self._server = ThreadingHTTPServer((host, port), Bound)
        except OSError as error:
            raise stacks.InputError(
                where="--host and --port", got=f"{host}:{port}: {error.strerror}", allowed="an address that is free",
                fix="name another port",
            ) from None  # fmt: skip
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._over = threading.Event()

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def __enter__(self) -> Service:
        self.batches.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.batches.stop()

    def wait(self) -> None:
        """Until SIGINT or SIGTERM."""
        signal.signal(signal.SIGTERM, lambda *_: self._over.set())
        self._over.wait()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "tollgate"
    timeout = 60
    batches: Batches
    key = ""
    address = ""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what matters of a batch is in its status."""

    def _serve(self, method: str) -> None:
        self._read = 0
        try:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            headers = self.headers
            if why := stacks.foreign(
                bound=self.address, host=headers.get("Host", ""), origin=headers.get("Origin", "")
            ):
                raise Wrong(403, why)
            if self.key and not hmac.compare_digest(given.encode(), self.key.encode()):
                raise Wrong(401, "Incorrect API key provided")
            path = urlsplit(self.path)
            for known, pattern, call in _ROUTES:
                found = re.fullmatch(pattern, path.path.rstrip("/"))
                if found and known == method:
                    call(self, *found.groups(), **({"query": parse_qs(path.query)} if call in _LISTS else {}))
                    return
            raise Wrong(404, f"Invalid URL ({method} {path.path})")
        except Wrong as wrong:
            kind = "authentication_error" if wrong.status == 401 else "invalid_request_error"
            self._refuse(wrong.status, wrong.message, kind, wrong.param)
        except BadUpload as bad:
            self._refuse(400, f"The upload cannot be read: {bad}", "invalid_request_error", "file")
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except (stacks.TollgateError, OSError) as error:
            self._refuse(500, str(error), "server_error", None)

    def _refuse(self, status: int, message: str, kind: str, param: str | None) -> None:
        # What was not read of the body would be taken for the next request.
        self.close_connection = True
        self._reply({"error": {"message": message, "type": kind, "param": param, "code": None}}, status)

    def _reply(self, value: dict[str, Any], status: int = 200) -> None:
        body = orjson.dumps(value)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _length(self, most: int) -> int:
        text = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise Wrong(411, "A Content-Length is needed")
        if int(text) > most:
            raise Wrong(413, f"The body is larger than {most} bytes")
        return int(text)

    # --- files

    def upload(self) -> None:
        length = self._length(_MOST_FILE_BYTES)
        boundary = boundary_of(self.headers.get("Content-Type", ""))
        fields: dict[str, io.BytesIO] = {}
        named = ""
        files = self.batches.files
        with tempfile.NamedTemporaryFile(dir=files.folder, prefix=".upload-", delete=False, buffering=1 << 18) as file:
            aside = Path(file.name)

            def sink(name: str, filename: str | None) -> IO[bytes]:
                nonlocal named
                if name == "file":
                    named = filename or "file"
                    return file
                return fields.setdefault(name, io.BytesIO())

            try:
                receive(self.rfile, length, boundary, sink)
                file.flush()
                purpose = fields["purpose"].getvalue().decode(errors="replace") if "purpose" in fields else ""
                if not named:
                    raise Wrong(400, "A file is needed", "file")
                if purpose != "batch":
                    raise Wrong(400, f"purpose must be batch, got {purpose or 'nothing'}", "purpose")
                self._reply(files.add(aside, named, purpose))
            finally:
                aside.unlink(missing_ok=True)

    def list_files(self, query: dict[str, list[str]]) -> None:
        purpose = query.get("purpose")
        self._list([one for one in self.batches.files.all() if not purpose or one["purpose"] == purpose[0]], query)

    def get_file(self, id: str) -> None:
        self._reply(self.batches.files.get(id))

    def content(self, id: str) -> None:
        path = self.batches.files.path(id)
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        copied(path, self.wfile)

    def delete_file(self, id: str) -> None:
        self.batches.files.delete(id)
        self._reply({"id": id, "object": "file", "deleted": True})

    # --- batches

    def create(self) -> None:
        body = self.rfile.read(self._length(_MOST_JSON_BYTES))
        try:
            given = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise Wrong(400, "The body is no JSON") from None
        self._reply(self.batches.create(given))

    def list_batches(self, query: dict[str, list[str]]) -> None:
        self._list(self.batches.all(), query, self.batches.show)

    def get_batch(self, id: str) -> None:
        self._reply(self.batches.show(self.batches.record(id)))

    def cancel(self, id: str) -> None:
        # A body is allowed and says nothing.
        self.rfile.read(self._length(_MOST_JSON_BYTES) if self.headers.get("Content-Length") else 0)
        self._reply(self.batches.cancel(id))

    def _list(
        self, found: list[dict[str, Any]], query: dict[str, list[str]],
        show: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> None:  # fmt: skip
        text = query.get("limit", ["20"])[0]
        limit = min(_MOST_LISTED, max(1, int(text))) if re.fullmatch(r"[0-9]{1,9}", text) else 20
        after = query.get("after", [""])[0]
        names = [one["id"] for one in found]
        begin = names.index(after) + 1 if after in names else 0
        page = [show(one) for one in found[begin : begin + limit]]
        self._reply({
            "object": "list", "data": page, "has_more": begin + limit < len(found),
            "first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None,
        })  # fmt: skip


_LISTS = (_Handler.list_files, _Handler.list_batches)
_ROUTES: tuple[tuple[str, str, Callable[..., None]], ...] = (
    ("POST", "/v1/files", _Handler.upload),
    ("GET", "/v1/files", _Handler.list_files),
    ("GET", "/v1/files/([^/]+)", _Handler.get_file),
    ("GET", "/v1/files/([^/]+)/content", _Handler.content),
    ("DELETE", "/v1/files/([^/]+)", _Handler.delete_file),
    ("POST", "/v1/batches", _Handler.create),
    ("GET", "/v1/batches", _Handler.list_batches),
    ("GET", "/v1/batches/([^/]+)", _Handler.get_batch),
    ("POST", "/v1/batches/([^/]+)/cancel", _Handler.cancel),
)
