"""How fast and how truthful the load generator is, on this machine: `python benchmarks/load.py [--only PART,…]`.

Server and client each get a core of their own. Speed is given beside its peers' on the same server in the same minute, because
absolute numbers say more about the machine; accuracy is the reported minus the true time to first token. Every row ends with
what it must reach and whether it does. A row that misses while something else used the machine says so and counts for nothing.

Parts, each below five minutes: plain, streamed (beside wrk and vllm-bench), peers, peers-streamed (the Python ones, which take
half a minute to start), accuracy, held, merge, start. The peers are looked for as `benchmarks/load_peers.py` says.
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
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import psutil
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

sys.path.insert(0, str(Path(__file__).resolve().parent))

import load_peers as peers

import stacks
from bench import load
from bench.results import Run

ROOT = Path(__file__).resolve().parents[1]
FAKE = ROOT / "tests" / "bench" / "load" / "fake_server.py"
SERVER_CORE, CLIENT_CORE = 0, 1
CONNECTIONS, TOKENS = 64, 64
PARTS = ("plain", "streamed", "peers", "peers-streamed", "accuracy", "held", "merge", "start")
# Beyond this many cores in use by others, what misses is not the load generator's fault.
_BUSY_CORES = 0.25
# At least so many times a peer's rate, not streamed.
_TIMES = {"inference-endpoint": 4.0, "inference-perf": 75.0, "aiperf": 75.0, "guidellm": 75.0}
# What a client may ask for beside the answer.
_NAMES = {"id": "c", "created": 1, "model": "tiny"}


class Instant(asyncio.Protocol):
    """Answers whatever comes with bytes made beforehand: the fastest server that Python can be."""

    whole = b""
    streamed = b""
    told = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    rest = b""

    def data_received(self, data: bytes) -> None:
        if self.rest or not data.endswith((b"}", b"\r\n\r\n")) or not data.startswith((b"POST", b"GET")):
            # Some clients send head and body apart, or several requests at once.
            self.rest += data
            while (end := self._whole()) > 0:
                data, self.rest = self.rest[:end], self.rest[end:]
                self._answer(data)
        elif data.startswith(b"POST") and data.endswith(b"\r\n\r\n"):
            self.rest = data
        else:
            self._answer(data)

    def _whole(self) -> int:
        """The length of the first request in `rest`, 0 where it is not all there."""
        head = self.rest.find(b"\r\n\r\n")
        if head < 0:
            return 0
        found = re.search(rb"(?i)content-length: *(\d+)", self.rest[:head])
        end = head + 4 + (int(found[1]) if found else 0)
        return end if len(self.rest) >= end else 0

    def _answer(self, data: bytes) -> None:
        if data.startswith(b"GET"):
            body = b'{"data":[{"id":"tiny"}]}'
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            self.transport.write(head % (len(body), body))
        else:
            if not Instant.told:
                Instant.told = True
                print(f"{time.monotonic():.6f}", flush=True)
            streamed = b'"stream":true' in data or b'"stream": true' in data
            self.transport.write(self.streamed if streamed else self.whole)


def prepare() -> None:
    """Make the two replies."""
    usage = {"prompt_tokens": 16, "completion_tokens": TOKENS, "total_tokens": 16 + TOKENS}
    text = " ".join(["word"] * TOKENS)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
    body = json.dumps(
        {**_NAMES, "object": "chat.completion", "choices": [choice], "usage": usage}, separators=(",", ":")
    ).encode()
    Instant.whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
    frames: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
    frames += [{"choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}] * TOKENS
    frames += [{"choices": [], "usage": usage}]
    lines = [
        b"data: "
        + json.dumps({**_NAMES, "object": "chat.completion.chunk", **f}, separators=(",", ":")).encode()
        + b"\n\n"
        for f in frames
    ]
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


@contextmanager
def quiet(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The instant server, which also says when its first request came."""
    process = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True, cwd=folder)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def startup() -> float:
    """Seconds from starting `tollgate bench` to the first request, its own probe; the best of three."""
    times = []
    for _ in range(3):
        with quiet(ROOT) as process:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            began = time.monotonic()
            command = [sys.executable, "-m", "tollgate", "bench", "--url", url, "--model", "tiny", "--duration", "0.3"]
            subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
            times.append(float(process.stdout.readline()) - began)
    return min(times)


def streams(count: int) -> tuple[float, int]:
    """Bytes of memory per open stream, and how many were open at once, of this process as client."""
    seen: list[tuple[int, int]] = []
    own = psutil.Process()
    with server(str(FAKE), "--ttft", "6", "--itl", "1") as url:

        def progress(now: load.Progress) -> None:
            seen.append((now.concurrency, own.memory_info().rss))

        traffic = stacks.Traffic.model_validate({"users": count, "prompt_tokens": 16.0, "output_tokens": 4.0})
        load.run(
            load.Target(url=url, engine="vllm", model="tiny"), traffic, load.Settings(runs=1, seconds=4.0, patience=5.0),
            release="sha256:" + "0" * 64, stack="none", progress=progress,
        )  # fmt: skip
    few = min(memory for open_, memory in seen[:3])
    most = max(seen)
    return (most[1] - few) / max(1, most[0]), most[0]


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


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: `kept` is None where nothing could be measured."""

    what: str
    found: str
    target: str
    kept: bool | None
    # Why a miss says nothing about the load generator.
    excuse: str = ""

    @property
    def verdict(self) -> str:
        if self.kept is None:
            return "not measured"
        return "pass" if self.kept else f"does not count: {self.excuse}" if self.excuse else "MISS"


class Table:
    """Prints rows as they come and keeps them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.excuse = ""

    def part(self, name: str) -> None:
        """A part begins: is the machine free for it?"""
        used = load.cores_in_use()
        self.excuse = f"{used:.1f} cores were in use before" if used > _BUSY_CORES else ""
        print(f"{name}{f' ({self.excuse})' if self.excuse else ''}", flush=True)

    def row(self, what: str, found: str, target: str, kept: bool | None, excuse: str = "") -> None:
        row = Row(what=what, found=found, target=target, kept=kept, excuse=excuse or self.excuse)
        self.rows.append(row)
        print(f"  {what:<42} {found:<34} {target:<16} {row.verdict}", flush=True)

    def ratio(self, what: str, ours: float, theirs: float, least: float, why: str = "") -> None:
        """How many times a peer's rate ours is."""
        if theirs != theirs or theirs <= 0:
            self.row(what, why or "not here", f">= {least:g} x", None)
            return
        found = f"{ours:,.0f} / {theirs:,.0f} = {ours / theirs:.3g} x"
        self.row(what, found, f">= {least:g} x", ours >= least * theirs)


def speed(table: Table, seconds: float, *, stream: bool) -> None:
    """In turns with the fastest peer, three times: the best of each, and the ratio of the middle pair."""
    words, least = ("streamed, every token timed", 12_000) if stream else ("not streamed", 45_000)
    runs: list[Run] = []
    pairs: list[tuple[float, float]] = []
    whys = ""
    with server(str(Path(__file__)), "--serve") as url:
        for _ in range(3):
            runs.append(measure(url, CONNECTIONS, seconds, stream=stream))
            ours = runs[-1].metrics["requests_per_second"]
            if stream:
                theirs, whys = peers.rate(
                    "vllm-bench", url, connections=CONNECTIONS, tokens=TOKENS, seconds=seconds, stream=True
                )
            else:
                theirs, _ = wrk(url, seconds, stream=False)
            pairs.append((ours, theirs))
    best = max(runs, key=lambda run: run.metrics["requests_per_second"])
    rate = best.metrics["requests_per_second"]
    per_cpu = rate / best.client["cpu_share"]
    table.row(
        f"{words}, 64 connections", f"{rate:,.0f} req/s ({per_cpu:,.0f} per CPU second)", f">= {least:,}", rate >= least
    )
    known = sorted((pair for pair in pairs if pair[1] == pair[1]), key=lambda pair: pair[0] / pair[1])
    middle = known[len(known) // 2] if known else (rate, math.nan)
    if stream:
        table.ratio("  beside vllm-bench (Rust)", *middle, 1.2, whys)
    else:
        table.ratio("  beside wrk", *middle, 0.4, "wrk is not here")


def beside(table: Table, seconds: float, *, stream: bool) -> None:
    """Ours, a peer, ours, the next peer: each is compared with the mean of ours before and after."""
    least = {"guidellm": 40.0, "aiperf": 40.0} if stream else _TIMES
    with server(str(Path(__file__)), "--serve") as url:
        before = measure(url, CONNECTIONS, seconds, stream=stream).metrics["requests_per_second"]
        for name, times in least.items():
            theirs, why = peers.rate(name, url, connections=CONNECTIONS, tokens=TOKENS, seconds=seconds, stream=stream)
            after = measure(url, CONNECTIONS, seconds, stream=stream).metrics["requests_per_second"]
            table.ratio(f"beside {name}{', streamed' if stream else ''}", (before + after) / 2, theirs, times, why)
            before = after


def accuracy(table: Table, seconds: float) -> None:
    """The reported minus the true times of a server of 200 ms to the first token and 20 ms between tokens."""
    for users, mean, tail in ((50, 1.5, 4.0), (500, 2.5, 15.0)):
        with server(str(FAKE), "--ttft", "0.2", "--itl", "0.02") as url:
            run = measure(url, users, max(6.0, seconds), stream=True)
        # What the run itself says against being believed: a busy machine makes both client and server late.
        because = run.invalid_because or "; ".join(run.warnings)
        excuse = "why is below" if because else ""
        late = {name: run.metrics[f"ttft_{name}_seconds"] * 1e3 - 200 for name in ("mean", "p99")}
        gap = run.metrics["itl_mean_seconds"] * 1e3 - 20
        for name, limit in (("mean", mean), ("p99", tail)):
            kept = -0.5 <= late[name] <= limit
            table.row(
                f"{users} concurrent: first token, {name}", f"{late[name]:+.2f} ms", f"<= {limit:+g} ms", kept, excuse
            )
        table.row(f"{users} concurrent: between tokens", f"{gap:+.3f} ms", "+-0.1 ms", abs(gap) <= 0.1, excuse)
        if because:
            print(f"    {because}")
        waited = run.client.get("service_waited_share", math.nan)
        print(
            f"    the server waited for its core {waited:.1%} of the time, the client {run.client['core_waited_share']:.1%}"
        )


def merged(table: Table) -> None:
    """Percentiles of the histograms of eight workers, merged, against one pass over every record of a real run."""
    with server(str(FAKE), "--ttft", "0.02", "--itl", "0.002", "--slots", "40") as url, TemporaryDirectory() as folder:
        file = Path(folder, "raw.jsonl")
        traffic = stacks.Traffic.model_validate(
            {"users": 64, "prompt_tokens": 16.0, "output_tokens": {"mean": 8, "cv": 1}}
        )
        load.run(
            load.Target(url=url, engine="vllm", model="tiny"), traffic, load.Settings(runs=1, seconds=4.0, raw_file=file),
            release="sha256:" + "0" * 64, stack="none",
        )  # fmt: skip
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    values = sorted(row["end"] - row["scheduled"] for row in rows if row["status"] == "ok")
    whole = load.Histogram()
    for worker in range(8):
        whole.merge(load.Histogram.of(values[worker::8]))
    worst = 0.0
    for share in (0.5, 0.9, 0.95, 0.99, 0.999):
        exact = values[max(0, math.ceil(share * len(values)) - 1)]
        worst = max(worst, abs(whole.quantile(share) / exact - 1))
    words = f"{worst:.2%} over {len(values):,} records"
    table.row("merged percentiles of 8 workers, worst", words, "<= 1 %", worst <= 0.01)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help=f"of {', '.join(PARTS)}, with commas; default: all")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--streams", type=int, default=10_000, help="open at once, of the part held")
    parser.add_argument("--json", type=Path, help="write the rows there")
    given = parser.parse_args()
    if given.serve:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            threading.Timer(600, os._exit, (1,)).start()
            runner.run(instant())
    asked = [part for part in given.only.split(",") if part] or list(PARTS)
    if not set(asked) <= set(PARTS):
        parser.error(f"--only takes {', '.join(PARTS)}")
    os.sched_setaffinity(0, {CLIENT_CORE % (os.cpu_count() or 1)})
    table = Table()
    for part in asked:
        table.part(part)
        if part in ("plain", "streamed"):
            speed(table, given.seconds, stream=part == "streamed")
        elif part in ("peers", "peers-streamed"):
            beside(table, given.seconds, stream=part == "peers-streamed")
        elif part == "accuracy":
            accuracy(table, given.seconds)
        elif part == "held":
            each, most = streams(given.streams)
            found = f"{most:,} open, {each / 1e3:.1f} KB each"
            table.row(
                f"{given.streams:,} streams from one core", found, "<= 10 KB", most >= given.streams and each <= 10e3
            )
        elif part == "merge":
            merged(table)
        else:
            seconds = startup()
            table.row("from start to first request", f"{seconds:.2f} s", "<= 1 s", seconds <= 1.0)
    if given.json:
        rows = [{**vars(row), "verdict": row.verdict} for row in table.rows]
        given.json.write_text(json.dumps({"rows": rows, "at": time.time()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
