"""One process that serves: listen, drain on SIGTERM, exit 0."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvloop

from ._http import Server
from ._machine import Machine
from ._options import Engine, OptionError, warn

if TYPE_CHECKING:
    from ._ollama import Ollama
    from ._share import Board
    from ._vllm import Vllm


# Connections that may wait to be accepted. The loop listens anew, and only 100 without a word: what a burst brings above that
# is lost, tried again after a second, and reset in the end.
BACKLOG = 4096


def listener(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; `shared`: several processes listen on the same address, the kernel spreads connections."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise OptionError(f"cannot listen on {host}:{port}: {error.strerror}; choose a free port or address") from None
    made.setblocking(False)
    return made


def application(options: Engine, machine: Machine) -> Ollama | Vllm:
    """The dialect's application."""
    if options.dialect == "ollama":
        from ._ollama import Ollama

        return Ollama(machine, options)
    from ._vllm import Vllm

    return Vllm(machine, options)


def connection_limit(wanted: int) -> int:
    """How many connections to take: what was asked for, within what the file limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    possible = max(16, soft - 64)
    return min(wanted, possible) if wanted else possible


def tls(options: Engine) -> ssl.SSLContext | None:
    """The TLS context where a certificate is given."""
    sim = options.sim
    if not sim.certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(sim.certificate, sim.private_key or None)
    except OSError as error:
        raise OptionError(f"certificate: got {sim.certificate!r} ({error}); allowed: readable PEM files") from None
    if sim.http2:
        context.set_alpn_protocols(["h2", "http/1.1"])
    return context


class Process:
    """The serving process: `run` returns its exit status. `board`, `peers`: what it shares with the other workers, and the
    name under which they reach each other; both only where there are several."""

    def __init__(self, options: Engine, *, worker: int = 0, board: Board | None = None, peers: str = "") -> None:
        self.options = options
        self.peers = peers
        self.board = board
        self.worker = worker
        self.port = 0

    async def serve(self, sock: socket.socket | None, *, stop: asyncio.Event | None = None) -> int:
        """Serve until a signal (or `stop`) and drain."""
        options = self.options
        loop = asyncio.get_running_loop()
        stopping = stop or asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
                loop.add_signal_handler(number, stopping.set)
        if options.sim.cold_start:
            # As a real engine while it loads: nothing listens yet.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), options.sim.cold_start / options.sim.speed)
                return 0
        machine = Machine(options, loop, worker=self.worker, board=self.board)
        app = application(options, machine)
        if self.board is not None:
            from ._workers import Peers

            await Peers(self.peers, self.worker, self.board.workers, machine, app).serve()
        sim = options.sim
        server = Server(
            app,
            loop,
            max_connections=connection_limit(sim.max_connections),
            max_body=sim.max_body,
            head_seconds=sim.head_seconds,
            idle_seconds=sim.idle_seconds,
        )
        sock = sock or listener(options.host, options.port)
        self.port = sock.getsockname()[1]
        listening = await loop.create_server(self._protocol(server), sock=sock, ssl=tls(options), backlog=BACKLOG)
        exporter = None
        if sim.metrics_port and self.worker == 0:
            from ._exporter import Exporter

            pages = Server(
                Exporter(machine, app), loop, max_connections=64, max_body=1 << 10, head_seconds=10.0, idle_seconds=60.0
            )
            exporter = await loop.create_server(pages.protocol, sock=listener(options.host, sim.metrics_port))
        if self.worker == 0:
            names = ", ".join(options.models) or "no model yet"
            warn(
                f"simulator: {options.dialect} on {options.host}:{self.port}, {options.gpu.count} x {options.gpu.name}"
                f"{'/' + options.gpu.mig_profile if options.gpu.mig_profile else ''}, {options.max_seqs} slots, "
                f"{options.context_tokens} tokens of context, {names}"
            )
        gc.collect()
        gc.freeze()
        # A request leaves no cycles behind; looking through a hundred thousand open streams for some would stop all of them.
        gc.set_threshold(100_000, 50, 100)
        await stopping.wait()
        app.draining = True
        grace = options.shutdown_timeout if options.shutdown_timeout is not None else sim.grace
        deadline = loop.time() + grace
        while (app.busy() or server.unsent()) and loop.time() < deadline:
            await asyncio.sleep(0.02)
        listening.close()
        if exporter is not None:
            exporter.close()
            pages.stop()
        server.close_idle()
        await asyncio.sleep(0)
        server.stop()
        await asyncio.sleep(0)
        return 0

    def _protocol(self, server: Server) -> Callable[[], asyncio.Protocol]:
        if not self.options.sim.http2:
            return server.protocol
        try:
            from ._http2 import Either
        except ImportError:
            raise OptionError(
                "http2: got true; allowed: with the h2 library only; install it by `pip install 'tollgate[http2]'`"
            ) from None
        return lambda: Either(server)

    def run(self, sock: socket.socket | None = None) -> int:
        """Serve in this process until it is told to stop; 0 after a drain."""
        return uvloop.run(self.serve(sock))
