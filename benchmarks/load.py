"""How fast and how truthful the load generator is, on this machine: `python benchmarks/load.py`.

Server and client each get a core of their own. Speed is given beside wrk's on the same server in the same run, because
absolute numbers say more about the machine; accuracy is the reported minus the true time to first token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import stacks
from bench import load
from bench.results import Run

ROOT = Path(__file__).resolve().parents[1]
FAKE = ROOT / "tests" / "bench" / "load" / "fake_server.py"
SERVER_CORE, CLIENT_CORE = 0, 1
CONNECTIONS, TOKENS = 64, 64


class Instant(asyncio.Protocol):
    """Answers whatever comes with bytes made beforehand: the fastest server that Python can be."""

    whole = b""
    streamed = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET"):
            body = b'{"data":[{"id":"tiny"}]}'
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            self.transport.write(head % (len(body), body))
        else:
            self.transport.write(self.streamed if b'"stream":true' in data else self.whole)


def prepare() -> None:
    """Make the two replies."""
    usage = {"prompt_tokens": 16, "completion_tokens": TOKENS, "total_tokens": 16 + TOKENS}
    text = " ".join(["word"] * TOKENS)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
    body = json.dumps({"id": "c", "choices": [choice], "usage": usage}, separators=(",", ":")).encode()
    Instant.whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
    frames: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
    frames += [{"choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}] * TOKENS
    frames += [{"choices": [], "usage": usage}]
    lines = [b"data: " + json.dumps({"id": "c", **f}, separators=(",", ":")).encode() + b"\n\n" for f in frames]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in [*lines, b"data: [DONE]\n\n"])
    Instant.streamed = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunks
        + b"0\r\n\r\n"
    )


async def instant() -> None:
    """Serve for ever; the port is printed."""
    prepare()
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def server(*command: str) -> Iterator[str]:
    """A server process on its own core, gone afterwards; gives its address."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        os.sched_setaffinity(process.pid, {SERVER_CORE % (os.cpu_count() or 1)})
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def measure(url: str, users: int, seconds: float, *, stream: bool, tokens: int = TOKENS) -> Run:
    """One run of ours, vLLM's dialect."""
    traffic = stacks.Traffic.model_validate({"users": users, "prompt_tokens": 16.0, "output_tokens": float(tokens)})
    result = load.run(
        load.Target(url=url, engine="vllm", model="tiny", stream=stream),
        traffic,
        load.Settings(runs=1, seconds=seconds),
        release="sha256:" + "0" * 64,
        stack="none",
    )
    return result.runs[0]


def wrk(url: str, seconds: float, *, stream: bool) -> tuple[float, float]:
    """Requests/s of wrk with the same request, and per second of its processor time; nan where it is not installed."""
    if not shutil.which("wrk"):
        return math.nan, math.nan
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x " * 16}], "max_tokens": TOKENS})
    if stream:
        body = body[:-1] + ',"stream":true}'
    with NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method='POST'\nwrk.body='{body}'\nwrk.headers['Content-Type']='application/json'\n")
        script.flush()
        pinned = ["taskset", "-c", str(CLIENT_CORE)] if shutil.which("taskset") else []
        command = [*pinned, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:.0f}s", "-s", script.name]
        text = subprocess.run(
            [*command, f"{url}/v1/chat/completions"], capture_output=True, text=True, timeout=seconds + 30
        ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = re.search(r"Requests/sec:\s+([\d.]+)", text)
    total = re.search(r"(\d+) requests in", text)
    return (float(found[1]), int(total[1]) / used) if found and total else (math.nan, math.nan)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.serve:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            threading.Timer(600, os._exit, (1,)).start()
            runner.run(instant())
    os.sched_setaffinity(0, {CLIENT_CORE % (os.cpu_count() or 1)})
    rows: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    print(f"one client core, {CONNECTIONS} connections, {TOKENS} tokens an answer")
    with server(str(Path(__file__)), "--serve") as url:
        for words, stream in (("not streamed", False), ("streamed", True)):
            peer, peer_cpu = wrk(url, given.seconds, stream=stream)
            run = measure(url, CONNECTIONS, given.seconds, stream=stream)
            ours = run.metrics["requests_per_second"]
            ours_cpu = ours / run.client["cpu_share"]
            rows[words] = {
                "requests_per_second": ours,
                "wrk": peer,
                "ratio": ours / peer,
                "per_cpu_second": ours_cpu,
                "wrk_per_cpu_second": peer_cpu,
            }
            print(
                f"  {words:<14} {ours:9,.0f} req/s, wrk {peer:9,.0f}, ratio {ours / peer:.2f}; per second of client "
                f"processor time {ours_cpu:9,.0f}, wrk {peer_cpu:9,.0f}"
            )
    print("a server of exactly 200 ms to the first token and 20 ms between tokens")
    for users in (50, 500):
        with server(str(FAKE), "--ttft", "0.2", "--itl", "0.02") as url:
            run = measure(url, users, max(4.0, given.seconds), stream=True)
        kept = {key: run.metrics[f"{key}_seconds"] for key in ("ttft_mean", "ttft_p50", "ttft_p99", "itl_mean")}
        rows[f"accuracy {users}"] = {**kept, "valid": run.valid, "invalid_because": run.invalid_because}
        print(
            f"  {users:>3} concurrent: first token mean {kept['ttft_mean'] * 1e3 - 200:+.2f} ms, "
            f"p99 {kept['ttft_p99'] * 1e3 - 200:+.2f} ms; between tokens {kept['itl_mean'] * 1e3 - 20:+.3f} ms"
            # A busy machine makes server and client late; such a figure is none, and the run says so itself.
            + ("" if run.valid else f" (does not count: {run.invalid_because})")
        )
    if given.json:
        given.json.write_text(json.dumps({**rows, "at": time.time()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
