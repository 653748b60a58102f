"""One run by one process, or by several: what they say while they work, and what they hand over at the end."""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.connection
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

import numpy as np
import uvloop
from numpy.typing import NDArray

import stacks

from ._arrivals import Load
from ._prompts import Source
from ._recorder import ROW, Records
from ._session import Session, quiet_gc
from ._wire import Target, Wire

LOOK_SECONDS = 0.25
_RECENT = 512
# Processes take a moment to start Python; none may begin before all are there.
_HEAD_START, _READY_SECONDS = 0.05, 60.0


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What one process does. `number` of `workers`: its share of the serial numbers."""

    target: Target
    load: Load
    source: Source
    timeout: float
    reconnect: bool
    max_open: int
    number: int = 0
    workers: int = 1


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """How far one process, or all of them, are. The bins are those of `Session`, counted from the common start; `recent`
    and `gaps`: the last few hundred requests, and gaps between their tokens."""

    bin_ok: NDArray[np.float64]
    bin_latency: NDArray[np.float64]
    bin_failed: NDArray[np.float64]
    ok: int
    failed: int
    in_flight: int
    served: bool
    all_sent: bool
    done: bool
    recent: NDArray[Any]
    gaps: NDArray[np.float32]
    kinds: tuple[str, ...]


@dataclass(kw_only=True)
class Outcome:
    """What one process hands over."""

    records: Records
    delays: Sequence[float]
    cpu: Sequence[tuple[float, float, float]]
    retried: int
    opened: int


def snapshot(session: Session) -> Snapshot:
    """Of one session, now."""
    bins = session.count_bins()
    return Snapshot(
        bin_ok=bins[0].copy(),
        bin_latency=bins[1].copy(),
        bin_failed=bins[2].copy(),
        ok=session.ok,
        failed=session.failed,
        in_flight=session.in_flight,
        served=session.everyone_served,
        all_sent=session.all_sent,
        done=session.done,
        recent=session.records.table(_RECENT),
        gaps=np.array(session.records.gaps[-_RECENT:], dtype=np.float32),
        kinds=tuple(session.records.kinds),
    )


def together(parts: Sequence[Snapshot]) -> Snapshot:
    """Of several processes."""
    if len(parts) == 1:
        return parts[0]
    kinds = tuple(dict.fromkeys(kind for part in parts for kind in part.kinds))
    recent = []
    for part in parts:
        rows = part.recent.copy()
        for number, kind in enumerate(part.kinds, 1):
            rows["status"][part.recent["status"] == number] = kinds.index(kind) + 1
        recent.append(rows)
    return Snapshot(
        bin_ok=_sum([part.bin_ok for part in parts]),
        bin_latency=_sum([part.bin_latency for part in parts]),
        bin_failed=_sum([part.bin_failed for part in parts]),
        ok=sum(part.ok for part in parts),
        failed=sum(part.failed for part in parts),
        in_flight=sum(part.in_flight for part in parts),
        served=all(part.served for part in parts),
        all_sent=all(part.all_sent for part in parts),
        done=all(part.done for part in parts),
        recent=np.concatenate(recent) if recent else np.zeros(0, dtype=ROW),
        gaps=np.concatenate([part.gaps for part in parts]),
        kinds=kinds,
    )


def _sum(series: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    total = np.zeros(max(len(one) for one in series))
    for one in series:
        total[: len(one)] += one
    return total


def _session(orders: Orders) -> Session:
    return Session(
        Wire(orders.target),
        orders.load,
        orders.source,
        timeout=orders.timeout,
        reconnect=orders.reconnect,
        max_open=orders.max_open,
        serial_offset=orders.number,
        serial_step=orders.workers,
    )


# Called when everything is ready; gives the monotonic moment at which to begin.
Agreed = Callable[[], float]


async def _resolved(orders: Orders) -> Session:
    session = _session(orders)
    try:
        await session.resolve()
    except OSError as error:
        raise stacks.TollgateError(f"{orders.target.host} cannot be looked up: {error}") from error
    return session


class Alone:
    """The load from within this process; a context manager. `began` is set by `start`."""

    def __init__(self, orders: Orders, agreed: Agreed | None = None) -> None:
        self._orders, self._agreed = orders, agreed
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._quiet = quiet_gc()
        self.began = 0.0

    def __enter__(self) -> Alone:
        self._quiet.__enter__()
        self._runner.__enter__()
        self._runner.run(self._start())
        return self

    def __exit__(self, *exception: object) -> None:
        self._runner.close()
        self._quiet.__exit__()

    async def _start(self) -> None:
        self._session = await _resolved(self._orders)
        began = self._agreed() if self._agreed is not None else None
        if began is not None:
            await asyncio.sleep(max(0.0, began - monotonic()))
        self._session.start(began)
        self.began = self._session.began

    def look(self) -> Snapshot:
        """Let the load run for a quarter of a second and say how far it is."""
        self._runner.run(asyncio.sleep(LOOK_SECONDS))
        return snapshot(self._session)

    def stop(self) -> list[Outcome]:
        """End the load."""
        self._runner.run(self._stop())
        return [_outcome(self._session)]

    async def _stop(self) -> None:
        self._session.stop()


class Several:
    """The load from several processes that begin at the same moment; a context manager."""

    def __init__(self, orders: Sequence[Orders], agreed: Agreed | None = None) -> None:
        self._orders, self._agreed = orders, agreed
        self._pipes: list[multiprocessing.connection.Connection[Any, Any]] = []
        self._processes: list[Any] = []
        self.began = 0.0

    def __enter__(self) -> Several:
        context = multiprocessing.get_context("spawn")
        for orders in self._orders:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, orders), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            self._receive(pipe, _READY_SECONDS)
        self.began = self._agreed() if self._agreed is not None else monotonic() + _HEAD_START
        for pipe in self._pipes:
            pipe.send(self.began)
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def look(self) -> Snapshot:
        """Wait a quarter of a second and ask all of them how far they are."""
        sleep(LOOK_SECONDS)
        for pipe in self._pipes:
            pipe.send("look")
        return together([self._receive(pipe, 30.0) for pipe in self._pipes])

    def stop(self) -> list[Outcome]:
        """End the load."""
        for pipe in self._pipes:
            pipe.send("stop")
        return [self._receive(pipe, 120.0) for pipe in self._pipes]

    def _receive(self, pipe: multiprocessing.connection.Connection[Any, Any], seconds: float) -> Any:
        try:
            if pipe.poll(seconds):
                return pipe.recv()
        except (EOFError, ConnectionError):
            pass
        raise stacks.TollgateError("a worker process of the load generator died or hangs; its log says why")


def _outcome(session: Session) -> Outcome:
    return Outcome(
        records=session.records,
        delays=session.delays,
        cpu=session.cpu,
        retried=session.retried,
        opened=session.opened,
    )


def _work(pipe: multiprocessing.connection.Connection[Any, Any], orders: Orders) -> None:
    """One worker process. The parent alone decides what Ctrl-C means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_working(pipe, orders))


async def _working(pipe: multiprocessing.connection.Connection[Any, Any], orders: Orders) -> None:
    session = await _resolved(orders)
    stopped = asyncio.Event()
    with quiet_gc():
        pipe.send("ready")
        began = pipe.recv()
        await asyncio.sleep(max(0.0, began - monotonic()))
        session.start(began)

        def heard() -> None:
            try:
                if pipe.recv() == "look":
                    pipe.send(snapshot(session))
                    return
            except (EOFError, ConnectionError):
                pass
            stopped.set()

        asyncio.get_running_loop().add_reader(pipe.fileno(), heard)
        await stopped.wait()
        asyncio.get_running_loop().remove_reader(pipe.fileno())
        session.stop()
    pipe.send(_outcome(session))
