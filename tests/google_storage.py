"""As much of Google Cloud Storage as a store uses, by its XML API: conditional writes, ranges, parts, listings by page."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

_DATE = "Sat, 21 Nov 2026 12:00:00 GMT"
_PAGE = 1000


class GoogleStorage(ThreadingHTTPServer):
    """All buckets there are. `objects`: of `bucket/name`, the generation and the bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.lock = threading.Lock()
        self.written = 0

    def write(self, path: str, data: bytes, condition: str | None) -> int | None:
        """The new generation; None where the condition does not hold."""
        with self.lock:
            if condition is not None and int(condition) != self.objects.get(path, (0, b""))[0]:
                return None
            self.written += 1
            self.objects[path] = (self.written, data)
            return self.written


class _Handler(BaseHTTPRequestHandler):
    server: GoogleStorage
    protocol_version = "HTTP/1.1"

    def _asked(self) -> tuple[str, dict[str, str], bytes]:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return unquote(parts.path).lstrip("/"), dict(parse_qsl(parts.query, keep_blank_values=True)), body

    def do_PUT(self) -> None:
        path, query, body = self._asked()
        if "uploadId" in query:
            self.server.parts[query["uploadId"]][int(query["partNumber"])] = body
            self._answer(200, headers={"ETag": f'"{query["partNumber"]}"'})
            return
        made = self.server.write(path, body, self.headers.get("x-goog-if-generation-match"))
        self._answer(412) if made is None else self._answer(200, headers=_facts(made))

    def do_POST(self) -> None:
        path, query, _ = self._asked()
        if "uploads" in query:
            upload = f"upload-{len(self.server.parts)}"
            self.server.parts[upload] = {}
            names = f"<Bucket>x</Bucket><Key>{escape(path)}</Key><UploadId>{upload}</UploadId>"
            self._answer(200, f"<InitiateMultipartUploadResult>{names}</InitiateMultipartUploadResult>".encode())
            return
        parts = self.server.parts.pop(query["uploadId"])
        made = self.server.write(path, b"".join(parts[number] for number in sorted(parts)), None)
        body = f'<CompleteMultipartUploadResult><ETag>"{made}"</ETag></CompleteMultipartUploadResult>'.encode()
        self._answer(200, body, _facts(made or 0))

    def do_DELETE(self) -> None:
        path, _, _ = self._asked()
        with self.server.lock:
            self._answer(204 if self.server.objects.pop(path, None) else 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, query, _ = self._asked()
        if "/" not in path.rstrip("/"):
            self._answer(200, self._listing(path.rstrip("/"), query))
            return
        found = self.server.objects.get(path)
        if found is None:
            self._answer(404)
            return
        generation, data = found
        facts = _facts(generation)
        wanted = self.headers.get("Range")
        if wanted is None:
            self._answer(200, data, facts)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(data) - int(last))
        end = min(int(last) if first and last else len(data) - 1, len(data) - 1)
        self._answer(206, data[start : end + 1], {**facts, "Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def _listing(self, bucket: str, query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        with self.server.lock:
            own = {path.removeprefix(f"{bucket}/"): one for path, one in self.server.objects.items()}
        names = sorted(name for name in own if name.startswith(prefix) and name > after)
        page, folders, items = names[:_PAGE], [], []
        for name in page:
            folder, found, _ = name.removeprefix(prefix).partition(delimiter) if delimiter else (name, "", "")
            if found:
                folders.append(prefix + folder + found)
                continue
            generation, data = own[name]
            items.append(
                f"<Contents><Key>{escape(name)}</Key><LastModified>2026-11-21T12:00:00.000Z</LastModified>"
                f'<ETag>"{generation}"</ETag><Size>{len(data)}</Size></Contents>'
            )
        more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if len(names) > _PAGE else ""
        shared = "".join(
            f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in dict.fromkeys(folders)
        )
        return f"<ListBucketResult>{''.join(items)}{shared}{more}</ListBucketResult>".encode()

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def _facts(generation: int) -> dict[str, str]:
    return {"ETag": f'"{generation}"', "Last-Modified": _DATE, "x-goog-generation": str(generation)}


@contextmanager
def google_storage() -> Iterator[GoogleStorage]:
    """A server of nobody else's."""
    server = GoogleStorage()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def use_account(folder: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """The environment of a service account whose file sends everything to this port of this machine."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "client_email": "x@example.com",
        "private_key_id": "1",
        "private_key": private.decode(),
        "gcs_base_url": f"http://127.0.0.1:{port}",
        "disable_oauth": True,
    }
    path = folder / "account.json"
    path.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(path))
