"""The part of the kubelet's API that `kubectl logs` needs, over TLS, for the API server's certificate only."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from ._settings import KUBELET_PORT, Settings

# (namespace, pod, container) -> the folder of its logs, or None.
Finder = Callable[[str, str, str], Path | None]
_HEAD_LIMIT = 16_384


async def serve(settings: Settings, find: Finder, running: Callable[[str, str, str], bool]) -> asyncio.Server | None:
    """Listen on the node's address; None where no certificate was given."""
    if settings.kubelet_cert is None or settings.kubelet_key is None or settings.client_ca is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(settings.client_ca))
    context.load_cert_chain(settings.kubelet_cert, settings.kubelet_key)
    context.verify_mode = ssl.CERT_REQUIRED

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            async with asyncio.timeout(30):
                head = (await reader.readuntil(b"\r\n\r\n"))[:_HEAD_LIMIT].decode("latin-1")
            await _answer(head.split("\r\n", 1)[0], writer, find, running)
        writer.close()

    return await asyncio.start_server(handle, settings.node_ip, KUBELET_PORT, ssl=context, limit=_HEAD_LIMIT)


async def _answer(
    line: str, writer: asyncio.StreamWriter, find: Finder, running: Callable[[str, str, str], bool]
) -> None:
    method, target, _ = line.split(" ", 2)
    url = urlsplit(target)
    parts = [unquote(part) for part in url.path.split("/")[1:]]
    query = {key: values[-1] for key, values in parse_qs(url.query).items()}
    if method == "GET" and parts == ["healthz"]:
        await _whole(writer, 200, b"ok")
    elif method == "GET" and len(parts) == 4 and parts[0] == "containerLogs":
        _, namespace, pod, container = parts
        folder = find(namespace, pod, container)
        if folder is None:
            await _whole(writer, 404, f"no logs of {container} in {namespace}/{pod} yet".encode())
        else:
            await _logs(writer, folder, query, lambda: running(namespace, pod, container))
    else:
        await _whole(writer, 501, b"the pod runner serves logs only; kubectl exec and attach need a container runtime")


async def _whole(writer: asyncio.StreamWriter, code: int, body: bytes) -> None:
    reason = {200: "OK", 404: "Not Found", 501: "Not Implemented"}[code]
    head = f"HTTP/1.1 {code} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def _logs(writer: asyncio.StreamWriter, folder: Path, query: dict[str, str], running: Callable[[], bool]) -> None:
    path = folder / ("previous.log" if query.get("previous") == "true" else "current.log")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
    follow = query.get("follow") == "true"
    left = int(query["limitBytes"]) if "limitBytes" in query else None
    position = tail_start(path, int(query["tailLines"])) if "tailLines" in query else 0
    while True:
        alive = running()
        data, position = _read(path, position)
        if left is not None:
            data, left = data[:left], left - len(data[:left])
        if data:
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
        elif not follow or not alive or writer.is_closing():
            break
        else:
            await asyncio.sleep(0.2)
        if left == 0:
            break
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def _read(path: Path, position: int) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            # A log that was cut by rotation is followed from its new beginning.
            file.seek(position if file.seek(0, 2) >= position else 0)
            data = file.read(65_536)
            return data, file.tell()
    except FileNotFoundError:
        return b"", 0


def tail_start(path: Path, lines: int) -> int:
    """The offset at which the last `lines` lines begin."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0
    if lines <= 0:
        return len(data)
    position = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        position = data.rfind(b"\n", 0, position)
        if position < 0:
            return 0
    return position + 1
