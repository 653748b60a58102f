"""Several processes on one address: the kernel spreads the connections, each worker has its part of the slots.

The first process is the supervisor: it serves nothing, passes signals on and ends when a worker has died. A scrape that
reaches one worker asks the others over Unix sockets in the abstract namespace, so numbers are of all workers, now.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import replace

import orjson

from ._machine import Handlers, Machine
from ._options import Engine, warn
from ._server import Process, listener

_TIMEOUT = 2.0


def run(options: Engine) -> int:
    """Serve with `options.sim.workers` processes until told to stop; 0 after a drain, 1 when a worker died."""
    workers = options.sim.workers
    if workers == 1:
        return Process(options).run()
    first = listener(options.host, options.port, shared=True)
    port = first.getsockname()[1]
    options = replace(options, port=port)
    sockets = [first] + [listener(options.host, port, shared=True) for _ in range(workers - 1)]
    group = f"\0tollgate-simulator-{os.getpid()}-"
    children: dict[int, int] = {}
    for worker in range(workers):
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(KeyboardInterrupt):
                for at, sock in enumerate(sockets):
                    if at != worker:
                        sock.close()
                status = Process(options, workers=workers, worker=worker, peers=group).run(sockets[worker])
            os._exit(status)
        children[child] = worker
    for sock in sockets:
        sock.close()
    return _supervise(children)


def _supervise(children: dict[int, int]) -> int:
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        for child in list(children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    worst = 0
    while children:
        with contextlib.suppress(InterruptedError):
            child, status = os.waitpid(-1, 0)
            worker = children.pop(child, -1)
            code = os.waitstatus_to_exitcode(status)
            if code and not stopping:
                warn(f"simulator: worker {worker} ended with {code}; stopping the others")
                worst = 137 if code == -signal.SIGKILL else 1
                stop(0, None)
    return worst


class Peers:
    """The other workers' numbers: `serve` gives ours to who asks, `gather` asks all others."""

    def __init__(self, group: str, worker: int, workers: int, machine: Machine) -> None:
        self.group = group
        self.worker = worker
        self.workers = workers
        self.machine = machine
        self.gauges: Callable[[], tuple[int, int, float]] = lambda: (0, 0, 0.0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def serve(self) -> None:
        """Begin to answer the others."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.bind(f"{self.group}{self.worker}")
        sock.listen(64)
        self._server = await asyncio.start_unix_server(self._answer, sock=sock)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        values, handlers = self.machine.stats.snapshot(*self.gauges())
        rows = [[*key, row] for key, row in handlers.items()]
        writer.write(struct.pack(f"<I{len(values)}d", len(values), *values) + orjson.dumps(rows))
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    def gather(self, combine: Callable[[list[list[float]], list[Handlers]], None]) -> None:
        """Call `combine` with the numbers of the others, those that answer in time."""
        task = asyncio.ensure_future(self._gather(combine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _gather(self, combine: Callable[[list[list[float]], list[Handlers]], None]) -> None:
        others = [at for at in range(self.workers) if at != self.worker]
        found = await asyncio.gather(*(self._ask(at) for at in others), return_exceptions=True)
        answers = [one for one in found if not isinstance(one, BaseException)]
        for one in found:
            if isinstance(one, BaseException):
                warn(f"simulator: a worker's numbers are missing: {type(one).__name__}: {one}")
        combine([values for values, _ in answers], [handlers for _, handlers in answers])

    async def _ask(self, worker: int) -> tuple[list[float], Handlers]:
        async with asyncio.timeout(_TIMEOUT):
            # libuv's own connect takes no abstract names; the kernel's returns at once for a Unix socket.
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.connect(f"{self.group}{worker}")
            reader, writer = await asyncio.open_unix_connection(sock=sock)
            data = await reader.read(-1)
            writer.close()
        (count,) = struct.unpack_from("<I", data)
        values = list(struct.unpack_from(f"<{count}d", data, 4))
        rows = orjson.loads(data[4 + 8 * count :])
        return values, {(h, m, s): row for h, m, s, row in rows}
