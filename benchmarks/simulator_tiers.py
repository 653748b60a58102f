"""What each tier of remembering saves the simulator, and what further tiers could: microseconds per request in process.

    python benchmarks/simulator_tiers.py

No sockets but for the last line: requests go into the server's protocol and answers into a transport that drops them. Each
number is the best of many short batches, which is how long the work takes when nothing disturbs it.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import mmap
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.simulator import vllm_from
from bench.simulator._http import Server
from bench.simulator._machine import Machine
from bench.simulator._server import application

BODY = (
    b'{"model":"tiny","messages":[{"role":"user","content":"%s some good food"}],"max_tokens":64,"ignore_eos":true%s}'
)
BATCH, BATCHES = 300, 40


class Nowhere:
    """A transport that drops what is written, and keeps the last of it."""

    last = b""

    def write(self, data: bytes) -> None:
        self.last = data

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_: None


def best(work: Callable[[int], object]) -> float:
    """Microseconds of one call, by the best batch."""
    shortest = float("inf")
    for batch in range(BATCHES):
        begun = time.perf_counter()
        for at in range(batch * BATCH, (batch + 1) * BATCH):
            work(at)
        shortest = min(shortest, time.perf_counter() - begun)
    return shortest / BATCH * 1e6


def request(body: bytes, more: bytes = b"") -> bytes:
    """The bytes of a chat."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: application/json\r\n"
    return head + more + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


async def tiers() -> tuple[dict[str, float], bytes]:
    """Each tier alone, and an answer's bytes."""
    loop = asyncio.get_running_loop()
    env = {"TOLLGATE_SIM_TTFT": "0", "TOLLGATE_SIM_ITL": "0"}
    options = vllm_from(["serve", "tiny"], env, version="0.32.0")
    app = application(options, Machine(options, loop))
    server = Server(app, loop, max_connections=9, max_body=1 << 20, head_seconds=60, idle_seconds=60)
    connection, transport = server.protocol(), Nowhere()
    connection.connection_made(transport)  # type: ignore[arg-type]
    gc.collect()
    gc.freeze()
    feed = connection.data_received
    total = BATCH * BATCHES

    def run(requests: Sequence[bytes]) -> float:
        return best(lambda at: feed(requests[at]))

    marks = (b"X-Request-Id: %d\r\n" % at for at in range(total))
    found = {
        "nothing remembered: head and body parsed and checked": run(
            [request(BODY % (b"have", b',"seed":%d' % (at + 100_000)), mark) for at, mark in enumerate(marks)]
        ),
        "the head was there before, the body is parsed": run(
            [request(BODY % (b"have", b',"seed":%d' % (at + 100_000))) for at in range(total)]
        ),
        "the head was there before, of the body all but the text": run(
            [request(BODY % (b"w%d" % (at + 100_000), b"")) for at in range(total)]
        ),
        "head and body were there before": run([request(BODY % (b"have", b""))] * total),
    }
    return found, transport.last


def further(answer: bytes) -> dict[str, float]:
    """What tiers would cost that are not there."""
    keys = [BODY % (b"w%d" % at, b"") for at in range(BATCH * BATCHES)]
    table = dict.fromkeys(keys, answer)
    memory = mmap.mmap(-1, 2048 * 16384)
    for at in range(16384):
        memory[2048 * at : 2048 * at + 2] = struct.pack("<H", len(answer))

    def shared(at: int) -> bytes:
        digest = hashlib.blake2b(keys[at], digest_size=16).digest()
        base = 2048 * (int.from_bytes(digest[:2], "little") & 16383)
        (size,) = struct.unpack_from("<H", memory, base)
        found: bytes = memory[base + 18 : base + 18 + size]
        return found if memory[base + 2 : base + 18] != digest else b""

    here, there = socket.socketpair()

    def reply() -> None:
        while there.recv(4096):
            there.sendall(answer)

    threading.Thread(target=reply, daemon=True).start()

    def asked(at: int) -> bytes:
        here.sendall(keys[at])
        return here.recv(4096)

    found = {
        "a whole answer from a dictionary of this process": best(lambda at: table[keys[at]]),
        "a whole answer from memory that workers share, without its locks": best(shared),
        "a whole answer from another process on this node (Redis), at least": best(asked),
    }
    here.close()
    return found


def main() -> None:
    """Print both lists."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found, answer = runner.run(tiers())
    for name, value in found.items():
        print(f"{name:70} {value:7.2f} us")
    print(f"only fetching {len(answer)} bytes instead:")
    for name, value in further(answer).items():
        print(f"{name:70} {value:7.2f} us")


if __name__ == "__main__":
    main()
