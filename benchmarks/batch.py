"""How fast batches run, how little memory they need, how soon they go on: `python benchmarks/batch.py [--rows 1000000]`.

Runner and endpoint each get a core of their own; the endpoint answers with bytes made beforehand, at once or after 100 ms. The
load generator without any durability does the same in the same run: what matters is the ratio.

    durable throughput          requests/s on one core, every answer committed with a synchronised disk
    at 100 ms, 512 in flight    beside the bare load generator
    170,000 requests            none lost, none doubled; the largest memory of submission, run and results
    resume                      from the start of the process to the first request, after a kill in a batch of --rows
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httptools
import uvloop

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SERVER_CORE, RUNNER_CORE = 0, 1


class Instant(asyncio.Protocol):
    """Answers each request with the same bytes after `delay` seconds; counts them in a shared file where one is given."""

    delay = 0.0
    reply = b""
    models = b""
    asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.parser = httptools.HttpRequestParser(self)
        self.path = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.path = url

    def on_message_complete(self) -> None:
        if self.parser.get_method() == b"GET":
            self.transport.write(
                self.head(json.dumps({"asked": Instant.asked}).encode()) if self.path == b"/asked" else self.models
            )
            return
        Instant.asked += 1
        if self.delay:
            asyncio.get_running_loop().call_later(self.delay, self.answer)
        else:
            self.answer()

    def answer(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.reply)

    @staticmethod
    def head(body: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def serve(delay: float) -> None:
    """Print the port and serve for ever."""
    usage = {"prompt_tokens": 128, "completion_tokens": 64, "total_tokens": 192}
    choice = {"index": 0, "message": {"role": "assistant", "content": "word " * 64}, "finish_reason": "length"}
    Instant.delay = delay
    Instant.reply = Instant.head(json.dumps({"id": "c", "choices": [choice], "usage": usage}).encode())
    Instant.models = Instant.head(b'{"data":[{"id":"tiny"}]}')
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def endpoint(delay: float) -> Iterator[str]:
    """An endpoint in a process on its own core."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(delay)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        os.sched_setaffinity(process.pid, {SERVER_CORE % (os.cpu_count() or 1)})
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def write_inputs(path: Path, rows: int) -> None:
    """A file in OpenAI's Batch format, some 600 bytes a line."""
    with path.open("w") as file:
        for number in range(rows):
            body = {
                "model": "tiny",
                "max_tokens": 64,
                "messages": [{"role": "user", "content": f"{number} " + "word " * 90}],
            }
            line = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def child(*words: object) -> subprocess.Popen[str]:
    """A part of a batch in a process of its own, on the runner's core; it prints one line of JSON."""
    return subprocess.Popen(
        [sys.executable, __file__, "--part", *map(str, words)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def part(*words: object) -> dict[str, Any]:
    """What that part found."""
    process = child(*words)
    out, _ = process.communicate(timeout=3600)
    if process.returncode:
        raise SystemExit(f"{words}: exit code {process.returncode}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def do_part(kind: str, store: str, *words: str) -> dict[str, Any]:
    """In the child."""
    os.sched_setaffinity(0, {RUNNER_CORE % (os.cpu_count() or 1)})
    from bench import batch

    begun = time.perf_counter()
    found: dict[str, Any] = {}
    if kind == "submit":
        [source] = words
        found["id"] = batch.create(store, batch.read(source, batch.Recipe())).id
    elif kind == "run":
        id, url, slots = words
        queue = batch.open_queue(store, id)
        cpu = time.process_time()
        ending = batch.run(queue, [batch.EndpointSettings(url=url, slots=int(slots), fixed=True)], signals=False)
        found = {"ok": ending.counts.ok, "asked": ending.asked, "cpu": time.process_time() - cpu}
    else:
        id, output = words
        found["lines"] = batch.write(batch.open_queue(store, id), output)[0]
    found["seconds"] = time.perf_counter() - begun
    found["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def bare(url: str, users: int, seconds: float) -> float:
    """Requests/s of the load generator, which keeps no answers."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import os; os.sched_setaffinity(0, {int(sys.argv[4])})\n"
        "import stacks; from bench import load\n"
        "t = stacks.Traffic.model_validate({'users': int(sys.argv[3]), 'prompt_tokens': 96.0, 'output_tokens': 64.0})\n"
        "r = load.run(load.Target(url=sys.argv[2], engine='openai', model='tiny', stream=False), t,"
        " load.Settings(runs=1, seconds=float(sys.argv[5])), release='sha256:' + '0' * 64, stack='none')\n"
        "print(r.runs[0].metrics['requests_per_second'])"
    )
    words = [str(ROOT), url, str(users), str(RUNNER_CORE % (os.cpu_count() or 1)), str(seconds)]
    out = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=True, timeout=300
    )
    return float(out.stdout)


def throughput(folder: Path, delay: float, slots: int, rows: int, seconds: float) -> dict[str, float]:
    """Ours and the bare load generator's, in turn; the better of two of each."""
    source = folder / f"in-{rows}.jsonl"
    write_inputs(source, rows)
    ours, cpu, peers = 0.0, 0.0, 0.0
    with endpoint(delay) as url:
        for turn in range(2):
            store = str(folder / f"store-{delay}-{turn}")
            id = part("submit", store, source)["id"]
            found = part("run", store, id, url, slots)
            assert found["ok"] == rows == found["asked"]
            ours = max(ours, rows / found["seconds"])
            cpu = max(cpu, rows / found["cpu"])
            peers = max(peers, bare(url, slots, seconds))
    return {"requests_per_second": ours, "per_cpu_second": cpu, "bare_load_generator": peers, "ratio": ours / peers}


def everything(folder: Path, rows: int) -> dict[str, Any]:
    """Submission, run and results of that many, with memory and what came out."""
    source, store, output = folder / "all.jsonl", str(folder / "all"), folder / "all-out.jsonl"
    write_inputs(source, rows)
    with endpoint(0.0) as url:
        submitted = part("submit", store, source)
        ran = part("run", store, submitted["id"], url, 256)
    wrote = part("results", store, submitted["id"], output)
    names = [json.loads(line)["custom_id"] for line in output.open()]
    return {
        "rows": rows, "lost": rows - len(set(names)), "doubled": len(names) - len(set(names)),
        "in_order": names == [f"request-{number}" for number in range(rows)], "submit_seconds": submitted["seconds"],
        "run_seconds": ran["seconds"], "results_seconds": wrote["seconds"],
        "rss_mb": {"submit": submitted["rss_mb"], "run": ran["rss_mb"], "results": wrote["rss_mb"]},
        "input_mb": source.stat().st_size / 1e6,
    }  # fmt: skip


def resumed(folder: Path, rows: int) -> dict[str, Any]:
    """Killed when a third is done, started anew: seconds until the first request arrives at the endpoint, best of three."""
    from urllib.request import urlopen

    source, store = folder / "resume.jsonl", str(folder / "resume")
    write_inputs(source, rows)
    submitted = part("submit", store, source)
    source.unlink()
    times = []

    def asked() -> int:
        with urlopen(f"{url}/asked", timeout=5) as reply:
            return int(json.load(reply)["asked"])

    with endpoint(0.0) as url:
        for turn in range(3):
            before = asked()
            begun = time.perf_counter()
            runner = child("run", store, submitted["id"], url, 256)
            while asked() == before:
                time.sleep(0.005)
            times.append(time.perf_counter() - begun)
            while asked() < before + rows // 6 and turn < 2:
                time.sleep(0.05)
            runner.send_signal(signal.SIGKILL)
            runner.wait()
    # The first of them found a batch on which nobody had worked.
    return {
        "rows": rows,
        "seconds": min(times[1:]),
        "submit_seconds": submitted["seconds"],
        "submit_rss_mb": submitted["rss_mb"],
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=int, default=170_000)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the batch that is resumed")
    parser.add_argument("--seconds", type=float, default=4.0, help="of the load generator's runs")
    parser.add_argument("--only", default="", help="zero, delay, all, resume")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.serve is not None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            threading.Timer(1800, os._exit, (1,)).start()
            runner.run(serve(given.serve))
    if given.part:
        print(json.dumps(do_part(*given.part)))
        return
    table: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    only = given.only.split(",") if given.only else ["zero", "delay", "all", "resume"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, words, delay, slots in (
            ("zero", "no latency, 128 in flight", 0.0, 128),
            ("delay", "100 ms, 512 in flight", 0.1, 512),
        ):
            if kind in only:
                found = throughput(folder, delay, slots, 40_000, given.seconds)
                table[kind] = found
                print(
                    f"{words:<28} {found['requests_per_second']:8,.0f} req/s, {found['per_cpu_second']:8,.0f} per second of "
                    f"processor; bare load generator {found['bare_load_generator']:8,.0f} req/s, ratio {found['ratio']:.2f}"
                )
        if "all" in only:
            found = table["all"] = everything(folder, given.requests)
            times = ", ".join(f"{key} {found[f'{key}_seconds']:.1f} s" for key in ("submit", "run", "results"))
            memory = ", ".join(f"{key} {value:.0f} MB" for key, value in found["rss_mb"].items())
            print(
                f"{found['rows']:,} requests: {found['lost']} lost, {found['doubled']} doubled, in order: {found['in_order']}"
            )
            print(f"    {times}; memory: {memory} for {found['input_mb']:.0f} MB of input")
        if "resume" in only:
            found = table["resume"] = resumed(folder, given.rows)
            print(
                f"resume after kill -9 in {found['rows']:,} rows: {found['seconds']:.2f} s to the first request "
                f"(submission took {found['submit_seconds']:.0f} s and {found['submit_rss_mb']:.0f} MB)"
            )
    if given.json:
        given.json.write_text(json.dumps({**table, "at": time.time()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
