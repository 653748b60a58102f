"""The part of the kubelet's API that `kubectl logs` and `kubectl exec` need, over TLS, for the API server's certificate only."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import ssl
import time
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs, unquote, urlsplit

from . import _exec
from ._api import Object
from ._container import Run
from ._logs import CURRENT, PREVIOUS, Reader, Selection
from ._pod import Pod
from ._settings import KUBELET_PORT, Settings

_HEAD_LIMIT = 16_384
_HEAD_SECONDS = 30
_FOLLOW_SECONDS = 0.1
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 501: "Not Implemented"}


class _Refusal(Exception):
    """An answer other than 200; its text is what kubectl shows."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Kubelet:
    """Serves the pods that `find` finds by namespace and name; `everything` gives all of them as objects."""

    def __init__(
        self, settings: Settings, find: Callable[[str, str], Pod | None], everything: Callable[[], list[Object]]
    ) -> None:
        self._settings, self._find, self._everything = settings, find, everything
        self._server: asyncio.Server | None = None

    async def serve(self) -> None:
        """Listen on the node's address; nothing where no certificate was given."""
        settings = self._settings
        if settings.kubelet_cert is None or settings.kubelet_key is None or settings.client_ca is None:
            return
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(settings.client_ca))
        context.load_cert_chain(settings.kubelet_cert, settings.kubelet_key)
        context.verify_mode = ssl.CERT_REQUIRED
        self._server = await asyncio.start_server(
            self._handle, settings.node_ip, KUBELET_PORT, ssl=context, limit=_HEAD_LIMIT
        )

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            if not may_read_logs(writer.get_extra_info("peercert")):
                # Every component of the cluster has a certificate of this authority; only the API server's may do this.
                raise _Refusal(403, "this certificate may not use the kubelet API")
            await self._answer(head, reader, writer)
        except _Refusal as refusal:
            await _whole(writer, refusal.code, str(refusal).encode())
        except (OSError, EOFError, asyncio.LimitOverrunError, TimeoutError, ValueError):
            # A client that went away or does not speak HTTP.
            pass
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *rest = head.split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        url = urlsplit(target)
        parts = [unquote(part) for part in url.path.split("/")[1:]]
        query = parse_qs(url.query, keep_blank_values=True)
        if method == "GET" and parts == ["healthz"]:
            await _whole(writer, 200, b"ok")
        elif method == "GET" and parts in (["pods"], ["pods", ""]):
            document = {"kind": "PodList", "apiVersion": "v1", "items": self._everything()}
            await _whole(writer, 200, json.dumps(document).encode(), kind="application/json")
        elif method == "GET" and len(parts) == 4 and parts[0] == "containerLogs":
            await self._logs(self._container(*parts[1:]), query, writer)
        elif method in ("GET", "POST") and len(parts) in (4, 5) and parts[0] == "exec":
            # With five parts the fourth is the pod's uid.
            run = self._container(parts[1], parts[2], parts[-1])
            if headers.get("upgrade", "").lower() != "websocket":
                raise _Refusal(501, "the pod runner speaks exec over WebSockets only")
            if run.shim is None or not run.shim.alive:
                raise _Refusal(400, f"container {run.facts.name} is not running")
            await _exec.serve(run.shim, run.exec_environment(), query, headers, reader, writer)
        else:
            raise _Refusal(501, "the pod runner serves logs and exec; attach and port-forward need a container runtime")

    def _container(self, namespace: str, pod: str, container: str) -> Run:
        found = self._find(namespace, pod)
        run = found.find(container) if found is not None else None
        if run is None:
            raise _Refusal(404, f"container {container} of pod {namespace}/{pod} is not on this node")
        return run

    async def _logs(self, run: Run, query: Mapping[str, list[str]], writer: asyncio.StreamWriter) -> None:
        previous = query.get("previous") == ["true"]
        path = run.log.path.with_name(PREVIOUS if previous else CURRENT)
        try:
            reader = Reader(path, selection(query, time.time()))
        except FileNotFoundError:
            if previous:
                raise _Refusal(400, f"previous terminated container {run.facts.name} not found") from None
            waiting = run.facts.state.get("waiting") or {}
            text = f"container {run.facts.name} is waiting to start: {waiting.get('reason', 'ContainerCreating')}"
            raise _Refusal(400, text) from None
        try:
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            )
            await self._copy(run, reader, writer, follow=query.get("follow") == ["true"] and not previous)
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            reader.close()

    async def _copy(self, run: Run, reader: Reader, writer: asyncio.StreamWriter, *, follow: bool) -> None:
        while True:
            # Asked before reading: what was written before the end is then still read.
            goes_on = follow and run.facts.running and _inode(run) == reader.inode
            run.log.look(time.time())
            data = reader.more()
            if data:
                writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                await writer.drain()
            elif goes_on and not writer.is_closing():
                await asyncio.sleep(_FOLLOW_SECONDS)
            else:
                return
            if reader.full:
                return


def selection(query: Mapping[str, list[str]], now: float) -> Selection:
    """What the query of `/containerLogs` asks for. Raises ValueError for numbers and times that are none."""

    def number(name: str) -> int | None:
        return int(query[name][-1]) if query.get(name, [""])[-1] else None

    since = None
    if (seconds := number("sinceSeconds")) is not None:
        since = now - seconds
    elif query.get("sinceTime", [""])[-1]:
        since = datetime.datetime.fromisoformat(query["sinceTime"][-1]).timestamp()
    return Selection(
        tail=number("tailLines"),
        since=since,
        limit=number("limitBytes"),
        timestamps=query.get("timestamps") == ["true"],
    )


def may_read_logs(certificate: Mapping[str, object] | None) -> bool:
    """Whether a client's certificate is in the group of administrators, as the API server's own for kubelets is."""
    subject = (certificate or {}).get("subject") or ()
    assert isinstance(subject, tuple)
    return ("organizationName", "system:masters") in {pair for part in subject for pair in part}


def _inode(run: Run) -> int:
    try:
        return run.log.path.stat().st_ino
    except OSError:
        return 0


async def _whole(writer: asyncio.StreamWriter, code: int, body: bytes, *, kind: str = "text/plain") -> None:
    head = f"HTTP/1.1 {code} {_REASONS[code]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    with contextlib.suppress(OSError):
        await writer.drain()
