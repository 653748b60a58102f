"""One process's part of one run: sends by the load, until it is told to stop, and remembers everything."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import sys
import time
from array import array
from collections.abc import Iterator
from itertools import count
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from ._arrivals import Closed, Load
from ._lane import Lane, error_kind
from ._machine import waited
from ._prompts import Source
from ._recorder import CUT, OK, Records
from ._timer import Timer
from ._wire import Wire

BIN_SECONDS = 0.1
_TICK_SECONDS = 0.01
_CONNECTING = 256
_PAUSE_FIRST, _PAUSE_MOST = 0.1, 5.0


class Session:
    """Drives one load over one wire within the running event loop.

    `timeout`: seconds after which a request is given up. `max_open`: connections at once; an open loop that needs more
    counts the request as failed by `client_limit`, which makes the run invalid. Invariant at the end of `stop`:
    `started == ok + failed + cut`, each counted on its own.
    """

    def __init__(
        self,
        wire: Wire,
        load: Load,
        source: Source,
        *,
        timeout: float = 600.0,
        reconnect: bool = False,
        max_open: int = 10_000,
        serial_offset: int = 0,
        serial_step: int = 1,
    ) -> None:
        self.wire, self.load = wire, load
        self.timeout, self.reconnect, self.max_open = timeout, reconnect, max_open
        self.records = Records()
        self.started = self.ok = self.failed = self.cut = 0
        self.retried = self.opened = 0
        self.in_flight = 0
        self.began = 0.0
        self.users_served = 0
        # Per BIN_SECONDS since `began`: finished with success, their latencies' sum, finished with failure. Brought up to
        # date by `count_bins`, for all new rows at once.
        self._bins: NDArray[np.float64] = np.zeros((3, 64))
        self._binned = 0
        self.delays: array[float] = array("d")
        # Moment, processor time so far, and how long this thread was ready and had no core.
        self.cpu: list[tuple[float, float, float]] = []
        # A usage that was read once, as the rest of a row: counts repeat from reply to reply far more often than not.
        self.known: dict[bytes, bytes] = {}
        self.requests = wire.requests(source, count(serial_offset, serial_step))
        self._loop = asyncio.get_running_loop()
        self._tls: ssl.SSLContext | None = None
        self._addresses: list[tuple[int, str, int]] = []
        self._next_address = 0
        self._lanes: set[Lane] = set()
        self._idle: list[Lane] = []
        users = load.users if isinstance(load, Closed) else 0
        self._closed = isinstance(load, Closed)
        self._think = load.think_seconds if isinstance(load, Closed) else 0.0
        batch = load.requests if isinstance(load, Closed) else None
        self.limit = sys.maxsize if batch is None else batch
        self._served = bytearray(users)
        self._failures = [0] * users
        self._next_user = 0
        self._running = False
        self._gate = asyncio.Semaphore(_CONNECTING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: Timer | None = None
        self._times: Iterator[float] = iter(())
        self._due: float | None = None

    async def resolve(self) -> None:
        """Look up the service's addresses. Raises OSError (socket.gaierror) when there are none."""
        target = self.wire.target
        self._tls = target.tls()
        found = await self._loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        self._addresses = list(dict.fromkeys((info[0], str(info[4][0]), int(info[4][1])) for info in found))
        if any(family == socket.AF_INET for family, _, _ in self._addresses) and target.host == "localhost":
            self._addresses = [a for a in self._addresses if a[0] == socket.AF_INET]

    @property
    def done(self) -> bool:
        """Whether nothing will be sent any more and nothing is in flight."""
        return self.all_sent and self.in_flight == 0

    @property
    def all_sent(self) -> bool:
        """Whether nothing will be sent any more: a batch or a replay is at its end."""
        if self._closed:
            return self.started >= self.limit
        return self._due is None

    @property
    def everyone_served(self) -> bool:
        """Closed loop: whether every user has had an answer. Open loop: whether anything was answered."""
        if isinstance(self.load, Closed):
            return self.users_served >= min(self.load.users, self.limit)
        return self.ok + self.failed > 0

    def start(self, began: float | None = None) -> None:
        """Begin now, or where several processes begin together, at the moment that they agreed on (monotonic seconds).

        `resolve` must have been awaited.
        """
        self.began = monotonic() if began is None else began
        self._running = True
        self._timer = Timer(self._loop, self._on_timer)
        if isinstance(self.load, Closed):
            users, ramp = self.load.users, self.load.ramp_seconds
            self._times = (ramp * user / users for user in range(users))
        else:
            self._times = self.load.times()
        self._due = next(self._times, None)
        self._tick(self.began, self.began)
        self._on_timer()

    def stop(self) -> None:
        """Send nothing more and give up what is in flight: those are the requests that were `cut`."""
        self._running = False
        if self._timer is not None:
            self._timer.close()
        for lane in list(self._lanes):
            lane.cut()
        for task in self._tasks:
            task.cancel()
        self.cpu.append((monotonic(), time.process_time(), waited()))
        if self.started != self.ok + self.failed + self.cut:
            raise AssertionError(f"{self.started} sent, {self.ok} ok, {self.failed} failed, {self.cut} cut")

    # --- sending

    def _on_timer(self) -> None:
        now = monotonic()
        while self._running and self._due is not None and self.began + self._due <= now:
            due = self.began + self._due
            if self.started >= self.limit:
                self._due = None
                return
            if self._closed:
                self._send(Lane(self, self._next_user), monotonic())
                self._next_user += 1
            else:
                self._send_open(due)
            self._due = next(self._times, None)
        if self._running and self._due is not None and self._timer is not None:
            self._timer.arm(self.began + self._due)

    def _send(self, lane: Lane, scheduled: float) -> None:
        self._lanes.add(lane)
        self.started += 1
        self.in_flight += 1
        lane.start(next(self.requests), scheduled)

    def _send_open(self, due: float) -> None:
        while self._idle:
            lane = self._idle.pop()
            if not lane.dead:
                self._send(lane, due)
                return
        lane = Lane(self, 0)
        if len(self._lanes) < self.max_open:
            self._send(lane, due)
            return
        self.started += 1
        self.in_flight += 1
        lane.busy, lane.scheduled, lane.sent = True, due, monotonic()
        lane.dead = True
        lane.fail("client_limit")

    def _user_again(self, lane: Lane) -> None:
        if self._running and self.started < self.limit:
            self._send(Lane(self, lane.user) if lane.dead else lane, monotonic())

    # --- what lanes report

    def finished(self, lane: Lane, now: float, status: int, retry_after: float = 0.0) -> None:
        """A request has ended, in whichever way; called exactly once for each that was started."""
        self.in_flight -= 1
        if status == CUT:
            self.cut += 1
            return
        if status == OK:
            self.ok += 1
        else:
            self.failed += 1
        if not self._closed:
            if not lane.dead:
                self._idle.append(lane)
            return
        user = lane.user
        if not self._served[user]:
            self._served[user] = 1
            self.users_served += 1
        pause = self._think
        if status == OK:
            self._failures[user] = 0
            lane.repeats = not pause and self._running
        else:
            # A person who gets an error does not ask again within the millisecond; nor may a broken service turn the
            # closed loop into a flood.
            self._failures[user] += 1
            lane.repeats = False
            pause += max(
                min(retry_after, 30.0), min(_PAUSE_MOST, _PAUSE_FIRST * 2 ** min(10, self._failures[user] - 1))
            )
        if not self._running:
            return
        if pause > 0:
            self._loop.call_later(pause, self._user_again, lane)
        else:
            self._user_again(lane)

    def count_bins(self) -> NDArray[np.float64]:
        """Ok, latency and failed per bin, up to now; a view."""
        new = self.records.since(self._binned)
        self._binned += len(new)
        new = new[new["status"] != CUT]
        if len(new):
            index = ((new["end"] - self.began) / BIN_SECONDS).astype(np.int64)
            size = int(index.max()) + 1
            if size > self._bins.shape[1]:
                grown = np.zeros((3, 2 * size))
                grown[:, : self._bins.shape[1]] = self._bins
                self._bins = grown
            good = new["status"] == OK
            latency = (new["end"] - new["scheduled"])[good]
            self._bins[0, :size] += np.bincount(index[good], minlength=size)
            self._bins[1, :size] += np.bincount(index[good], weights=latency, minlength=size)
            self._bins[2, :size] += np.bincount(index[~good], minlength=size)
        return self._bins[:, : max(0, int((monotonic() - self.began) / BIN_SECONDS)) + 1]

    def lost(self, lane: Lane) -> None:
        """The lane's connection is gone."""
        self._lanes.discard(lane)

    def again(self, lane: Lane) -> None:
        """Move what is in flight on a stale connection to a new one."""
        self.retried += 1
        fresh = Lane(self, lane.user)
        self._lanes.add(fresh)
        fresh.take_over(lane)

    def connect(self, lane: Lane) -> None:
        """Open the lane's connection; a failure is the failure of its request."""
        task = self._loop.create_task(self._connect(lane))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, lane: Lane) -> None:
        try:
            async with self._gate:
                family, host, port = self._addresses[self._next_address % len(self._addresses)]
                self._next_address += 1
                self.opened += 1
                name = self.wire.target.host if self._tls is not None else None
                opening = self._loop.create_connection(
                    lambda: lane, host, port, family=family, ssl=self._tls, server_hostname=name
                )
                await asyncio.wait_for(opening, min(self.timeout, 30.0))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a connect raises is counted by its kind, never lost
            lane.dead = True
            self._lanes.discard(lane)
            lane.fail(error_kind(error))
            return
        if self._running:
            lane.connected()
        else:
            lane.close()

    # --- watching itself

    def _tick(self, now: float, expected: float) -> None:
        """Every 10 ms: how late was the loop? Every 0.25 s: processor time and requests past their time-out."""
        self.delays.append(max(0.0, now - expected))
        if not self.cpu or now - self.cpu[-1][0] >= 0.25:
            self.cpu.append((now, time.process_time(), waited()))
            for lane in list(self._lanes):
                if lane.busy and now - lane.sent > self.timeout:
                    lane.close()
                    lane.fail("timeout")
        if self._running:
            due = monotonic() + _TICK_SECONDS
            self._loop.call_later(_TICK_SECONDS, lambda: self._tick(monotonic(), due))


class quiet_gc:
    """No garbage collection while measuring: everything alive is frozen, and the collector runs again afterwards."""

    def __enter__(self) -> None:
        self._was = gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()

    def __exit__(self, *exception: object) -> None:
        gc.unfreeze()
        if self._was:
            gc.enable()
