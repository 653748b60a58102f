"""Servers for the tests: each a process as a pod would start it, on a free port of the loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.ports import free_port

ROOT = Path(__file__).parents[3]


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(20)


def start(dialect: str, *words: str, wait: bool = True, **env: str) -> Served:
    port = free_port()
    full = {key: value for key, value in os.environ.items() if not key.startswith(("OLLAMA_", "TOLLGATE_", "POD_IP"))}
    arguments = [dialect, "serve", *words]
    if dialect == "vllm":
        arguments += ["--host", "127.0.0.1", "--port", str(port)]
    else:
        full["OLLAMA_HOST"] = f"127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", "bench.simulator", *arguments], cwd=ROOT, env=full | env)
    served = Served(process, "127.0.0.1", port)
    deadline = time.monotonic() + 60
    while wait:
        try:
            if httpx2.get(served.url + ("/health" if dialect == "vllm" else "/"), timeout=2).status_code == 200:
                break
        except httpx2.HTTPError:
            pass
        assert process.poll() is None, "the simulator ended before it served"
        assert time.monotonic() < deadline, "the simulator did not serve in 60 s"
        time.sleep(0.02)
    return served


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def begin(dialect: str, *words: str, wait: bool = True, **env: str) -> Served:
        served = start(dialect, *words, wait=wait, **env)
        running.append(served)
        return served

    yield begin
    for served in running:
        served.stop()


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until something is so, for at most 60 s: how long it takes is up to the machine."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it is not so after 60 s"
            time.sleep(0.02)

    return wait


@pytest.fixture
def hold() -> Iterator[Callable[[Served, str, bytes], None]]:
    """Sends a request, each on a connection of its own, and leaves it unanswered until the test is over."""
    with contextlib.ExitStack() as stack:

        def ask(served: Served, path: str, body: bytes) -> None:
            sock = stack.enter_context(socket.create_connection((served.host, served.port), timeout=10))
            head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            sock.sendall(head.encode() + body)

        yield ask


@pytest.fixture(scope="module")
def vllm(serve: Callable[..., Served]) -> Served:
    """Fast: 4 ms to the first token, 1 ms between tokens."""
    return serve(
        "vllm", "tiny", "--max-model-len", "2048", "--max-num-seqs", "32", "--enable-auto-tool-choice",
        TOLLGATE_SIM_TTFT="4ms", TOLLGATE_SIM_ITL="1ms",
    )  # fmt: skip


@pytest.fixture(scope="module")
def ollama(serve: Callable[..., Served]) -> Served:
    return serve(
        "ollama", OLLAMA_NUM_PARALLEL="4", TOLLGATE_SIM_SPEED="20", TOLLGATE_SIM_LOAD_SECONDS="2",
        TOLLGATE_SIM_MODELS="gemma3:4b",
    )  # fmt: skip
