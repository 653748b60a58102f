"""Several processes on one address: the kernel spreads the connections, slots, queue and blocks are common (`_share`).

The first process is the supervisor: it serves nothing, passes signals on, and where a worker dies it ends the others, or
starts all anew after `Sim.restart` seconds: they stand for one server, which dies as a whole. Workers reach each other by
Unix sockets in the abstract namespace: a scrape that reaches one asks the others for their numbers, and a model that one
has pulled or loaded is there for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from ._engine import CACHED_BLOCKS
from ._machine import Handlers, Machine
from ._options import Engine, warn
from ._server import Process, listener
from ._share import Board
from ._timing import gpu_blocks

if TYPE_CHECKING:
    from ._ollama import Ollama
    from ._vllm import Vllm

_TIMEOUT = 2.0
_MOST = 1 << 24
_KILLED = -signal.SIGKILL


def run(options: Engine) -> int:
    """Serve with `options.sim.workers` processes until told to stop; 0 after a drain, 137 where one was killed as for
    memory, 1 where one died otherwise."""
    if options.sim.workers == 1 and options.sim.restart is None:
        return Process(options).run()
    return _Supervisor(options).run()


class _Supervisor:
    def __init__(self, options: Engine) -> None:
        self.options = options
        self.children: dict[int, int] = {}
        self.stopping = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        while True:
            self._start()
            status = self._wait()
            pause = self.options.sim.restart
            if self.stopping or status != 137 or pause is None:
                return 0 if self.stopping else status
            warn(f"simulator: killed as for memory; starts again in {pause:g} s")
            end = time.monotonic() + pause
            while not self.stopping and time.monotonic() < end:
                time.sleep(min(0.05, max(0.0, end - time.monotonic())))
            if self.stopping:
                return 0

    def _start(self) -> None:
        options, workers = self.options, self.options.sim.workers
        first = listener(options.host, options.port, shared=True)
        # A port that was chosen here is kept over restarts.
        options = self.options = replace(options, port=first.getsockname()[1])
        sockets = [first] + [listener(options.host, options.port, shared=True) for _ in range(workers - 1)]
        group = f"\0tollgate-simulator-{os.getpid()}-{time.monotonic_ns()}-"
        board = Board(workers, options.max_seqs, _cached(options)) if workers > 1 else None
        # A signal that came between two forks would miss the child that is not yet in the table.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        for worker in range(workers):
            child = os.fork()
            if child == 0:
                status = 1
                with contextlib.suppress(KeyboardInterrupt):
                    for number in (signal.SIGTERM, signal.SIGINT):
                        signal.signal(number, signal.SIG_DFL)
                    for at, sock in enumerate(sockets):
                        if at != worker:
                            sock.close()
                    if board is not None:
                        board.become(worker)
                    process = Process(options, worker=worker, board=board, peers=group)
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
                    status = process.run(sockets[worker])
                os._exit(status)
            self.children[child] = worker
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
        for sock in sockets:
            sock.close()
        if board is not None:
            board.close()

    def _wait(self) -> int:
        """Until all children have ended: 0, or why the first one ended that was not asked to."""
        worst = 0
        while self.children:
            with contextlib.suppress(InterruptedError):
                child, status = os.waitpid(-1, 0)
                worker = self.children.pop(child, -1)
                code = os.waitstatus_to_exitcode(status)
                if code and not self.stopping and not worst:
                    worst = 137 if code == _KILLED else 1
                    if self.children:
                        warn(f"simulator: worker {worker} ended with {code}; ending the others")
                    self._signal(signal.SIGKILL if code == _KILLED else signal.SIGTERM)
        return worst

    def _stop(self, number: int, frame: object) -> None:
        self.stopping = True
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        for child in list(self.children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)


def _cached(options: Engine) -> int:
    """Blocks of the common prefix cache; the keys in it are hashes of a seed that forked processes have in common."""
    if options.sim.fixed or not options.prefix_caching:
        return 0
    return min(1 << 20, gpu_blocks(options)) if options.dialect == "vllm" else CACHED_BLOCKS


class Peers:
    """The other workers: what one asks of them and tells them."""

    def __init__(self, group: str, worker: int, workers: int, machine: Machine, app: Ollama | Vllm) -> None:
        self.group = group
        self.machine = machine
        self.app = app
        self.worker = worker
        self.others = [at for at in range(workers) if at != worker]
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def serve(self) -> None:
        """Begin to answer the others, and let this worker's machine reach them."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.bind(f"{self.group}{self.worker}")
        sock.listen(64)
        self._server = await asyncio.start_unix_server(self._answer, sock=sock, limit=_MOST)
        self.machine.gather = self.gather
        self.machine.tell = self.tell

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_TIMEOUT):
                message = orjson.loads(await reader.readline() or b"null")
            if message == "numbers":
                values, handlers = self.machine.stats.snapshot(*self.app.gauges())
                rows = [[*key, row] for key, row in handlers.items()]
                writer.write(struct.pack(f"<I{len(values)}d", len(values), *values) + orjson.dumps(rows))
                await writer.drain()
            elif message is not None:
                self.app.told(message)
        writer.close()

    def tell(self, message: dict[str, Any]) -> None:
        """Let the others know; they call their application's `told`."""
        line = orjson.dumps(message) + b"\n"
        for other in self.others:
            self._spawn(self._tell(other, line))

    def gather(self, combine: Callable[[list[list[float]], list[Handlers]], None]) -> None:
        """Call `combine` with the numbers of the others, those that answer in time."""
        self._spawn(self._gather(combine))

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, other: int, line: bytes) -> None:
        try:
            await self._exchange(other, line)
        except OSError as error:
            warn(f"simulator: worker {other} could not be told: {error}")

    async def _gather(self, combine: Callable[[list[list[float]], list[Handlers]], None]) -> None:
        found = await asyncio.gather(
            *(self._exchange(at, b'"numbers"\n') for at in self.others), return_exceptions=True
        )
        values: list[list[float]] = []
        handlers: list[Handlers] = []
        for data in found:
            if isinstance(data, BaseException):
                warn(f"simulator: a worker's numbers are missing: {type(data).__name__}: {data}")
                continue
            (count,) = struct.unpack_from("<I", data)
            values.append(list(struct.unpack_from(f"<{count}d", data, 4)))
            handlers.append({(h, m, s): row for h, m, s, row in orjson.loads(data[4 + 8 * count :])})
        combine(values, handlers)

    async def _exchange(self, other: int, line: bytes) -> bytes:
        """What worker `other` answers to `line`."""
        async with asyncio.timeout(_TIMEOUT):
            # libuv's own connect takes no abstract names; the kernel's returns at once for a Unix socket.
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                sock.connect(f"{self.group}{other}")
            except OSError:
                sock.close()
                raise
            reader, writer = await asyncio.open_unix_connection(sock=sock)
            writer.write(line)
            data = await reader.read(-1)
            writer.close()
        return data
