"""One load by processes of several machines: they begin at the same moment and their parts are added up exactly.

One process coordinates, the others connect to it and do as it says, in lines of JSON. Clocks of different machines have
nothing in common but their speed, so the coordinator measures what each is ahead by (Cristian, Probabilistic clock
synchronization, Distributed Computing 3, 1989: the shortest of several round trips bounds the error by half of it) and tells
everyone the common beginning in its own time. Nothing but counts, sums and histograms crosses the network at the end.
"""

from __future__ import annotations

import base64
import hmac
import math
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from time import monotonic, sleep
from types import TracebackType
from typing import Any

import numpy as np
import orjson

import stacks

from ._arrivals import Closed, Load
from ._crew import Crew, Local
from ._measure import Watch
from ._part import Part, Span
from ._prompts import Source
from ._raw import RawFile
from ._recorder import ROW
from ._run import Settings, orders
from ._scenario import Scenario
from ._wire import Target
from ._workers import Snapshot, together

_HEAD_START = 0.5
_PINGS = 9
_LINE_BYTES = 256 << 20
_ANSWER_SECONDS = 60.0
_RECENT = 128
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a worker must know to do its part: everything, and that it is number `index` of `of`."""

    target: Target
    traffic: stacks.Traffic
    scenario: Scenario
    settings: Settings
    objectives: stacks.Objectives | None
    index: int
    of: int

    def crew(self, number: int, ramp: float, agreed: Callable[[], float]) -> Crew:
        """This worker's processes for that run."""
        settings = self.settings
        load = self.scenario.loads(self.traffic, settings.seed)(number)
        source = self.scenario.sources(self.traffic, settings.seed, settings.context_tokens)(number)
        if isinstance(load, Closed):
            load = replace(load, ramp_seconds=ramp)
        first, of = self.index * settings.workers, self.of * settings.workers
        return Local(orders(self.target, load, source, settings, first=first, of=of), agreed)


class Line:
    """Messages over a connection, one line of JSON each. Raises ConnectionError when the other side is gone or silent."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._buffer = connection, b""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: dict[str, Any]) -> None:
        self._connection.settimeout(_ANSWER_SECONDS)
        self._connection.sendall(orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")

    def receive(self, seconds: float | None = _ANSWER_SECONDS) -> dict[str, Any]:
        """The next message; `seconds`: at most so long for each piece of it, None: however long it takes."""
        while b"\n" not in self._buffer:
            self._connection.settimeout(seconds)
            try:
                data = self._connection.recv(1 << 20)
            except TimeoutError as error:
                raise ConnectionError(f"silent for {seconds:.0f} s") from error
            if not data or len(self._buffer) > _LINE_BYTES:
                raise ConnectionError("it closed the connection")
            self._buffer += data
        first, _, self._buffer = self._buffer.partition(b"\n")
        message = orjson.loads(first)
        if not isinstance(message, dict):
            raise ConnectionError("it sent no message")
        return message

    def waiting(self) -> bool:
        """Whether something has come; never waits."""
        if b"\n" in self._buffer:
            return True
        self._connection.settimeout(0)
        try:
            data = self._connection.recv(1 << 20)
        except (BlockingIOError, InterruptedError):
            return False
        if not data:
            raise ConnectionError("it closed the connection")
        self._buffer += data
        return b"\n" in self._buffer

    def close(self) -> None:
        self._connection.close()


# --- the worker's side


def work(address: tuple[str, int], token: str, share: Share, *, patience: float = 300.0) -> None:
    """Connect to the coordinator, within `patience` seconds, and do as it says until it closes the connection.

    Raises TollgateError when the coordinator cannot be reached.
    """
    line = _connected(address, patience)
    line.send({"token": token, "index": share.index})
    try:
        while True:
            order = line.receive(None)
            if "ping" in order:
                line.send({"now": monotonic()})
            elif "run" in order:
                _one_run(line, share, int(order["run"]), float(order["ramp"]))
    except ConnectionError:
        # The coordinator decides when it is over.
        return
    finally:
        line.close()


def _connected(address: tuple[str, int], patience: float) -> Line:
    deadline = monotonic() + patience
    while True:
        try:
            return Line(socket.create_connection(address, timeout=5.0))
        except OSError as error:
            if monotonic() > deadline:
                raise stacks.TollgateError(
                    f"the coordinator at {address[0]}:{address[1]} cannot be reached: {error}"
                ) from error
            sleep(0.2)


def _one_run(line: Line, share: Share, number: int, ramp: float) -> None:
    def agreed() -> float:
        line.send({"ready": True})
        return float(line.receive(None)["begin"])

    told = 0
    with share.crew(number, ramp, agreed) as crew:
        while True:
            seen = crew.look()
            if not line.waiting():
                continue
            order = line.receive()
            if "look" in order:
                line.send(_packed(seen, told))
                # The last bins may still grow.
                told = max(0, len(seen.bin_ok) - 2)
            elif "stop" in order:
                break
        crew.stop()
        line.send({"stopped": True})
        order = line.receive(None)
        span = Span(began=crew.began, start=order["start"], end=order["end"])
        part, watch = crew.measure(span, share.objectives)
        line.send({"part": part.to_dict(), "watch": asdict(watch)})


def _packed(seen: Snapshot, told: int) -> dict[str, Any]:
    return {
        "from": told,
        "bins": [seen.bin_ok[told:], seen.bin_latency[told:], seen.bin_failed[told:]],
        "counts": [seen.ok, seen.failed, seen.in_flight],
        "flags": [seen.served, seen.all_sent, seen.done],
        "recent": base64.b64encode(seen.recent[-_RECENT:].tobytes()).decode(),
        "gaps": seen.gaps[-_RECENT:],
        "kinds": list(seen.kinds),
    }


# --- the coordinator's side


@dataclass
class _Worker:
    """`ahead`: its clock minus ours, in seconds; `trip`: the shortest round trip, half of which bounds the error of that."""

    line: Line
    index: int
    ahead: float = 0.0
    trip: float = math.inf
    bins: Any = None

    def ask(self, message: dict[str, Any], seconds: float | None = _ANSWER_SECONDS) -> dict[str, Any]:
        self.tell(message)
        return self.answer(seconds)

    def tell(self, message: dict[str, Any]) -> None:
        try:
            self.line.send(message)
        except OSError as error:
            raise self.gone(error) from error

    def answer(self, seconds: float | None = _ANSWER_SECONDS) -> dict[str, Any]:
        try:
            return self.line.receive(seconds)
        except OSError as error:
            raise self.gone(error) from error

    def gone(self, error: OSError) -> stacks.TollgateError:
        return stacks.TollgateError(
            f"load generator {self.index} is gone ({error}): what it sent is unknown, so the run counts for nothing"
        )

    def synchronize(self) -> None:
        for _ in range(_PINGS):
            asked = monotonic()
            theirs = float(self.ask({"ping": True})["now"])
            answered = monotonic()
            if answered - asked < self.trip:
                self.trip = answered - asked
                self.ahead = theirs - (asked + answered) / 2

    def unpack(self, told: dict[str, Any]) -> Snapshot:
        new = np.array(told["bins"], dtype=np.float64)
        self.bins = new if self.bins is None else np.concatenate([self.bins[:, : told["from"]], new], axis=1)
        ok, failed, in_flight = told["counts"]
        served, all_sent, done = told["flags"]
        return Snapshot(
            bin_ok=self.bins[0], bin_latency=self.bins[1], bin_failed=self.bins[2], ok=ok, failed=failed,
            in_flight=in_flight, served=served, all_sent=all_sent, done=done,
            recent=np.frombuffer(base64.b64decode(told["recent"]), dtype=ROW),
            gaps=np.array(told["gaps"], dtype=np.float32), kinds=tuple(told["kinds"]),
        )  # fmt: skip


class Gathering:
    """Listens until `count` workers with the right token are there; a context manager that lets them go at the end.

    `crews` is for `run`. Raises TollgateError when they are not all there within `patience` seconds.
    """

    def __init__(
        self, address: tuple[str, int], token: str, count: int, *, patience: float = 300.0,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._token, self._count, self._patience, self._say = token, count, patience, say
        self._workers: list[_Worker] = []
        self._server = socket.create_server(address, backlog=max(16, count))
        self.port = int(self._server.getsockname()[1])

    def __enter__(self) -> Gathering:
        deadline = monotonic() + self._patience
        try:
            while len(self._workers) < self._count:
                self._server.settimeout(max(0.01, deadline - monotonic()))
                try:
                    connection, _ = self._server.accept()
                except TimeoutError as error:
                    raise stacks.TollgateError(
                        f"{len(self._workers)} of {self._count} load generators came within {self._patience:.0f} s"
                    ) from error
                self._welcome(Line(connection))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        for worker in self._workers:
            worker.synchronize()
        worst = max(worker.trip for worker in self._workers) / 2
        self._say(f"{self._count} load generators, their clocks known to {worst * 1e6:.0f} µs")
        return self

    def _welcome(self, line: Line) -> None:
        try:
            hello = line.receive(5.0)
            known = hmac.compare_digest(str(hello.get("token", "")), self._token)
            index = int(hello.get("index", -1))
        except (OSError, ValueError, TypeError):
            line.close()
            return
        if not known or not 0 <= index < self._count or any(worker.index == index for worker in self._workers):
            line.close()
            return
        self._workers.append(_Worker(line, index))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.line.close()
        self._server.close()

    def crews(self, number: int, load: Load, source: Source) -> Crew:
        """All workers, as one crew. The load itself they know; only how long its beginning takes was found out here."""
        return _Remote(self._workers, number, load.ramp_seconds if isinstance(load, Closed) else 0.0)


class _Remote:
    """All workers for one run."""

    def __init__(self, workers: list[_Worker], number: int, ramp: float) -> None:
        self._workers, self._number, self._ramp = workers, number, ramp
        self.began = 0.0

    def __enter__(self) -> _Remote:
        for worker in self._workers:
            worker.bins = None
            worker.tell({"run": self._number, "ramp": self._ramp})
        for worker in self._workers:
            worker.answer()
        self.began = monotonic() + _HEAD_START
        for worker in self._workers:
            worker.tell({"begin": self.began + worker.ahead})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def look(self) -> Snapshot:
        sleep(max(_LOOK_SECONDS, self.began - monotonic()))
        for worker in self._workers:
            worker.tell({"look": True})
        return together([worker.unpack(worker.answer()) for worker in self._workers])

    def stop(self) -> None:
        for worker in self._workers:
            worker.tell({"stop": True})
        for worker in self._workers:
            worker.answer()

    def measure(self, span: Span, objectives: stacks.Objectives | None) -> tuple[Part, Watch]:
        for worker in self._workers:
            worker.tell({"start": span.start, "end": span.end})
        whole: Part | None = None
        watch: Watch | None = None
        for worker in self._workers:
            told = worker.answer(None)
            part, seen = Part.from_dict(told["part"]), Watch(**told["watch"])
            if whole is None or watch is None:
                whole, watch = part, seen
            else:
                whole.merge(part)
                watch = watch.worst(seen)
        if whole is None or watch is None:
            raise AssertionError("a crew of nobody")
        return whole, watch

    def keep(self, raw: RawFile, run: int) -> None:
        raise stacks.InputError(
            where="--raw", got="pods", allowed="one machine", fix="leave --raw out, or measure without --pods"
        )
