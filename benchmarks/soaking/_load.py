"""Mixed load on two stacks: short answers, streams and long ones, each read to its end and accounted for."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# kind: words of the prompt, tokens of the answer, whether it streams.
KINDS = {"short": (16, 8, False), "stream": (32, 24, True), "long": (256, 64, True)}
TIMEOUT_SECONDS = 60.0
_THINK_SECONDS = 0.25
_DOOR_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A request that was sent and not answered whole. Times in seconds since the start of the run."""

    stack: str
    kind: str
    sent: float
    failed: float
    why: str


@dataclass
class Tally:
    """What came of one stack's requests. `door`: connections that were refused and tried again; `closed`: the longest time
    for which one client was not let in; `answered` by kind."""

    answered: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    door: int = 0
    closed: float = 0.0
    lost: list[Lost] = field(default_factory=list)
    sent: int = 0
    in_flight: int = 0


class Incomplete(Exception):
    """A stream that ended before its last event, or an answer that is none."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A stack's Service. `clients(seconds)`: how many ask at that time."""

    stack: str
    engine: str
    model: str
    host: str
    most: int
    clients: Callable[[float], int]


class Load:
    """Clients of both stacks, each in a thread, until `stop`."""

    def __init__(self, targets: list[Target]) -> None:
        self.began = time.monotonic()
        self.tallies = {one.stack: Tally() for one in targets}
        self._over, self._lock = threading.Event(), threading.Lock()
        self._threads = [
            threading.Thread(target=self._client, args=(one, number), daemon=True)
            for one in targets
            for number in range(one.most)
        ]

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def start(self) -> None:
        """Let them ask."""
        self.began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each finish what it has asked; gives up after twice the time that a request may take."""
        self._over.set()
        end = time.monotonic() + 2 * TIMEOUT_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def flying(self, stack: str) -> tuple[int, int]:
        """Requests of that stack that are sent and not answered yet, and all that were ever sent."""
        with self._lock:
            return self.tallies[stack].in_flight, self.tallies[stack].sent

    def answered(self) -> dict[str, int]:
        """Requests answered whole, by stack."""
        with self._lock:
            return {name: sum(tally.answered.values()) for name, tally in self.tallies.items()}

    def lost(self) -> list[Lost]:
        """All requests that were lost until now."""
        with self._lock:
            return [one for tally in self.tallies.values() for one in tally.lost]

    def _client(self, target: Target, number: int) -> None:
        tally, kinds = self.tallies[target.stack], itertools.cycle(KINDS)
        for _ in range(number % len(KINDS)):
            next(kinds)
        while not self._over.wait(_THINK_SECONDS):
            if number >= target.clients(self.now()):
                continue
            kind = next(kinds)
            connection = self._let_in(target, tally)
            if connection is None:
                return
            with self._lock:
                tally.sent += 1
                tally.in_flight += 1
            sent, why = self.now(), ""
            try:
                ask(connection, target, kind)
            except Incomplete as error:
                why = str(error)
            except (OSError, http.client.HTTPException) as error:
                why = type(error).__name__
            finally:
                connection.close()
            failed = self.now()
            with self._lock:
                tally.in_flight -= 1
                if why:
                    tally.lost.append(Lost(stack=target.stack, kind=kind, sent=sent, failed=failed, why=why))
                else:
                    tally.answered[kind] += 1

    def _let_in(self, target: Target, tally: Tally) -> http.client.HTTPConnection | None:
        """A connection; what is refused at the door is tried again, as clients do. None when the run is over."""
        began = self.now()
        while not self._over.is_set():
            connection = http.client.HTTPConnection(target.host, 80, timeout=TIMEOUT_SECONDS)
            try:
                connection.connect()
                return connection
            except OSError:
                with self._lock:
                    tally.door += 1
                    tally.closed = max(tally.closed, self.now() - began)
                self._over.wait(_DOOR_SECONDS)
        return None


def ask(connection: http.client.HTTPConnection, target: Target, kind: str) -> None:
    """One request, read to its end. Raises Incomplete, OSError or HTTPException."""
    words, tokens, streams = KINDS[kind]
    body: dict[str, Any] = {"model": target.model, "prompt": "word " * words, "stream": streams}
    if target.engine == "ollama":
        path, body = "/api/generate", {**body, "options": {"num_predict": tokens}}
    else:
        path, body = "/v1/completions", {**body, "max_tokens": tokens, "ignore_eos": True}
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise Incomplete(f"status {answer.status}")
    if not whole(text, target.engine, streams):
        raise Incomplete("the answer ended before its end")


def whole(text: bytes, engine: str, streams: bool) -> bool:
    """Whether the last thing in an answer is what its API ends with."""
    if engine == "ollama":
        lines = text.strip().splitlines()
        return bool(lines) and json.loads(lines[-1]).get("done") is True
    if streams:
        return text.rstrip().endswith(b"data: [DONE]")
    return bool(json.loads(text)["choices"][0].get("finish_reason"))
