"""`kubectl exec` over a WebSocket: subprotocol v5.channel.k8s.io (v4 too), each message one stream's number and its bytes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import hashlib
import json
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Mapping

from ._process import Shim, StartError, inside

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
_TEXT, _BINARY, _END, _PING, _PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_FRAME_LIMIT = 2**20
_BLOCK = 32_768
# How long to wait for a command that is slow to read what is typed.
_FULL_SECONDS = 0.02


class _Socket:
    """A server's half of a WebSocket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, opcode: int, data: bytes) -> None:
        size = len(data)
        head = bytes([0x80 | opcode]) + (
            bytes([size])
            if size < 126
            else struct.pack(">BH", 126, size)
            if size < 65_536
            else struct.pack(">BQ", 127, size)
        )
        self._writer.write(head + data)
        await self._writer.drain()

    async def message(self) -> bytes | None:
        """The next message; None when the client has gone. Raises ValueError for one that is too long."""
        whole = b""
        while True:
            try:
                first, second = await self._reader.readexactly(2)
                size = second & 0x7F
                if size > 125:
                    size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8), "big")
                if size > _FRAME_LIMIT or len(whole) > _FRAME_LIMIT:
                    raise ValueError("message too long")
                mask = await self._reader.readexactly(4) if second & 0x80 else b""
                data = await self._reader.readexactly(size)
            except (asyncio.IncompleteReadError, OSError):
                return None
            if mask and data:
                repeated = (mask * (size // 4 + 1))[:size]
                data = (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
            opcode = first & 0x0F
            if opcode == _END:
                return None
            if opcode == _PING:
                await self.send(_PONG, data)
            elif opcode != _PONG:
                whole += data
                if first & 0x80:
                    return whole


async def serve(
    shim: Shim,
    env: Mapping[str, str],
    query: Mapping[str, list[str]],
    headers: Mapping[str, str],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Run the command of the query in the container until it or the client ends."""
    offered = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
    protocol = next((name for name in _PROTOCOLS if name in offered), "")
    key = base64.b64encode(hashlib.sha1(headers.get("sec-websocket-key", "").encode() + _MAGIC).digest()).decode()
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {key}",
    ]
    if protocol:
        lines.append(f"Sec-WebSocket-Protocol: {protocol}")
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    socket = _Socket(reader, writer)
    session = _Session(socket, terminal=_asked(query, "tty"), wants_input=_asked(query, "input", "stdin"))
    try:
        status = await session.run(shim, query.get("command", []), env)
    except StartError as error:
        status = _status(126, str(error))
    with contextlib.suppress(OSError):
        await socket.send(_BINARY, bytes([_ERROR]) + json.dumps(status).encode())
        await socket.send(_END, struct.pack(">H", 1000))


class _Session:
    def __init__(self, socket: _Socket, *, terminal: bool, wants_input: bool) -> None:
        self._socket, self._terminal, self._wants_input = socket, terminal, wants_input
        self._input: int | None = None

    async def run(self, shim: Shim, command: list[str], env: Mapping[str, str]) -> dict[str, object]:
        if not command:
            raise StartError("no command was given")
        if self._terminal:
            outer, inner = pty.openpty()
            error_outer, error_inner, feed, given = outer, inner, outer, inner
            env = {"TERM": "xterm", **env}
        else:
            (outer, inner), (error_outer, error_inner), (given, feed) = os.pipe(), os.pipe(), os.pipe()
        ours, theirs = {outer, error_outer, feed}, {inner, error_inner, given}
        try:
            child = inside(
                shim,
                command,
                env,
                output=inner,
                errors=error_inner,
                given=given if self._wants_input else subprocess.DEVNULL,
            )
        except StartError:
            for handle in ours:
                os.close(handle)
            raise
        finally:
            for handle in theirs:
                os.close(handle)
        for handle in ours:
            os.set_blocking(handle, False)
        self._input = feed
        incoming = asyncio.create_task(self._incoming(child))
        ended = asyncio.create_task(_ended(child.pid))
        streams = [(outer, _STDOUT)] if self._terminal else [(outer, _STDOUT), (error_outer, _STDERR)]
        try:
            await asyncio.gather(*(self._outgoing(handle, number, ended) for handle, number in streams))
            await ended
        finally:
            incoming.cancel()
            ended.cancel()
            if child.poll() is None:
                # Killed, it ends within the blink that `wait` takes.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            self._close_input(keep=outer)
            for handle, _ in streams:
                os.close(handle)
            code = child.wait()
        return _status(code if code >= 0 else 128 - code, "")

    async def _outgoing(self, handle: int, stream: int, ended: asyncio.Task[None]) -> None:
        """Copy what the command writes, until it has ended and everything is read."""
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(handle, readable.set)
        try:
            while True:
                waiting = asyncio.create_task(readable.wait())
                await asyncio.wait([waiting, ended], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                readable.clear()
                try:
                    data = os.read(handle, _BLOCK)
                except BlockingIOError:
                    if ended.done():
                        return
                    continue
                except OSError:
                    # A terminal whose other side is closed.
                    return
                if not data:
                    return
                await self._socket.send(_BINARY, bytes([stream]) + data)
        finally:
            loop.remove_reader(handle)

    async def _incoming(self, child: subprocess.Popen[bytes]) -> None:
        """Hand on what the client types; a client that goes away ends the command."""
        while True:
            message = await self._socket.message()
            if message is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                return
            if not message:
                continue
            stream, data = message[0], message[1:]
            if stream == _STDIN and data and self._input is not None:
                with contextlib.suppress(OSError):
                    await _write_all(self._input, data)
            elif stream == _CLOSE and data[:1] == bytes([_STDIN]) and not self._terminal:
                self._close_input(keep=None)
            elif stream == _RESIZE and self._terminal and self._input is not None:
                with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
                    size = json.loads(data)
                    window = struct.pack("HHHH", int(size["Height"]), int(size["Width"]), 0, 0)
                    fcntl.ioctl(self._input, termios.TIOCSWINSZ, window)

    def _close_input(self, *, keep: int | None) -> None:
        if self._input is not None and self._input != keep:
            os.close(self._input)
        self._input = None


async def _ended(pid: int) -> None:
    handle, done = os.pidfd_open(pid), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(handle, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


async def _write_all(handle: int, data: bytes) -> None:
    """Without a thread: this process forks, and threads and forks do not go together."""
    while data:
        try:
            data = data[os.write(handle, data) :]
        except BlockingIOError:
            await asyncio.sleep(_FULL_SECONDS)


def _asked(query: Mapping[str, list[str]], *names: str) -> bool:
    return any(query.get(name, ["0"])[-1] in ("1", "true") for name in names)


def _status(code: int, message: str) -> dict[str, object]:
    """How the command ended, as kubectl reads it."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    text = message or f"command terminated with non-zero exit code: exit status {code}"
    causes = [{"reason": "ExitCode", "message": str(code)}]
    if message:
        return {"metadata": {}, "status": "Failure", "reason": "InternalError", "message": text}
    return {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": text,
        "details": {"causes": causes},
    }
