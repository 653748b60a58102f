"""A small Kubernetes API client: pooled connections, bounded retries, watches that can be stopped."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlencode

from ._errors import ApiError, Cancelled, Unreachable
from ._kubeconfig import Target

APPLY = "application/apply-patch+yaml"
JSON = "application/json"

RETRY_SECONDS = 60.0
"""How long an operation keeps trying a server that does not answer: longer than the restart of an API server."""
PREVIEW_RETRY_SECONDS = 3.0
"""A preview can go on without the server, so it does not wait long for it."""
_READ_TIMEOUT = 35.0  # a validating webhook may take 30 s
_WATCH_SECONDS = 20


class Client:
    """Talks to one API server. Safe to use from many threads."""

    def __init__(self, target: Target, *, cancelled: threading.Event | None = None) -> None:
        self.target = target
        self.cancelled = cancelled or threading.Event()
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        retry_seconds: float = RETRY_SECONDS,
        action: str = "",
        on_wait: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Send one request and return the answer's JSON.

        Every request made here may be repeated (reads, deletes, server-side apply), so a broken connection, 429 and the
        server's own 5xx are tried again with back-off for `retry_seconds`. Raises ApiError, Unreachable, Cancelled.
        """
        url = self.target.prefix + path + ("?" + urlencode(query) if query else "")
        payload = None if body is None else json.dumps(body).encode()
        headers = {"Accept": JSON, **self.target.headers}
        if payload is not None:
            headers["Content-Type"] = content_type
        what = action or f"{method} {path}"
        deadline, pause, said = time.monotonic() + retry_seconds, 0.05, False
        while True:
            try:
                status, data = self._send(method, url, payload, headers)
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() + pause > deadline:
                    raise Unreachable(
                        f"{what}: the API server {self.target.server} does not answer "
                        f"({type(error).__name__}: {error}); tried for {retry_seconds:.0f} s. "
                        "Nothing is lost: run the same command again when it is back."
                    ) from None
                if on_wait and not said and pause > 0.4:
                    said = True
                    on_wait(f"the API server {self.target.server} does not answer; trying for {retry_seconds:.0f} s")
                self._sleep(pause)
                pause = min(pause * 2, 2.0)
                continue
            if status < 300:
                return data
            failure = ApiError(status, data, action=what)
            if not _passing(failure) or time.monotonic() + pause > deadline:
                raise failure
            self._sleep(max(pause, min(failure.retry_after, 5.0)))
            pause = min(pause * 2, 2.0)

    def text(self, path: str, query: dict[str, str]) -> str:
        """A plain-text answer (a container's log); empty where there is none."""
        headers = {"Accept": "*/*", **self.target.headers}
        try:
            status, raw = self._exchange("GET", f"{self.target.prefix}{path}?{urlencode(query)}", None, headers)
        except (OSError, http.client.HTTPException):
            return ""
        return raw.decode("utf-8", "replace") if status < 300 else ""

    def _sleep(self, seconds: float) -> None:
        if self.cancelled.wait(seconds):
            raise Cancelled("stopped on request")

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        target = self.target
        if target.tls is None:
            return http.client.HTTPConnection(target.host, target.port, timeout=timeout)
        return http.client.HTTPSConnection(target.host, target.port, timeout=timeout, context=target.tls)

    def _send(
        self, method: str, url: str, payload: bytes | None, headers: dict[str, str]
    ) -> tuple[int, dict[str, Any]]:
        status, raw = self._exchange(method, url, payload, headers)
        return status, _document(status, raw)

    def _exchange(self, method: str, url: str, payload: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        fresh = connection is None
        while True:
            if connection is None:
                connection = self._connect(5.0)
                connection.connect()
                connection.sock.settimeout(_READ_TIMEOUT)
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                connection.request(method, url, payload, headers)
                response = connection.getresponse()
                raw = response.read()
                break
            except (OSError, http.client.HTTPException):
                connection.close()
                if fresh:
                    raise
                # The server closes connections that were idle; that says nothing about the server.
                connection, fresh = None, True
        if response.will_close:
            connection.close()
        else:
            with self._lock:
                self._idle.append(connection)
        return response.status, raw

    def watch(self, path: str, query: dict[str, str], stop: threading.Event) -> Iterator[dict[str, Any]]:
        """Yield watch events until the server ends the watch or `stop` is set. Raises OSError and the like on a broken one."""
        full = {**query, "watch": "1", "timeoutSeconds": str(_WATCH_SECONDS), "allowWatchBookmarks": "true"}
        connection = self._connect(5.0)
        try:
            connection.connect()
            connection.sock.settimeout(_WATCH_SECONDS + 10)
            headers = {"Accept": JSON, **self.target.headers}
            connection.request("GET", f"{self.target.prefix}{path}?{urlencode(full)}", headers=headers)
            response = connection.getresponse()
            if response.status >= 300:
                raise ApiError(response.status, _document(response.status, response.read()), action=f"watch {path}")
            while not stop.is_set():
                line = response.readline()
                if not line:
                    return
                yield json.loads(line)
        finally:
            connection.close()


def _document(status: int, raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw) if raw else {}
    except ValueError:
        document = {"message": raw[:400].decode("utf-8", "replace").strip() or f"HTTP {status}"}
    return document if isinstance(document, dict) else {"message": str(document)}


def _passing(error: ApiError) -> bool:
    """Whether the same request may well succeed a moment later."""
    if error.status == 409:
        return error.reason == "Conflict" and not error.conflicts() and "UID" not in error.detail
    if error.status == 500:
        return (
            "failed calling webhook" in error.detail and "connection refused" in error.detail
        ) or "etcd" in error.detail
    # A fresh API server answers 403 "RBAC: ... not found" until its bootstrap roles are there.
    if error.status == 403:
        return "RBAC: clusterrole" in error.detail and "not found" in error.detail
    return error.status in (429, 502, 503, 504)


def segment(text: str) -> str:
    """One path segment, quoted."""
    return quote(text, safe="")
