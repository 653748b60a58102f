"""Batches against what was promised of them: `python benchmarks/batch.py`; one row: `--only zero|delay|all|resume|eta`.

Runner and endpoint each get a core of their own; the endpoint answers with bytes made beforehand, at once or after 100 ms. The
load generator without any durability does the same in the same run: what matters is the ratio.

    zero    requests/s on one core, every answer committed with a synchronised disk
    delay   100 ms replies, 512 in flight: beside the bare load generator
    all     170,000 requests: lost, doubled, the largest memory of submission, run and results
    resume  from the start of the process to the first request, after kill -9 in a batch of --rows
    eta     a whole run that slows down tenfold after its first minute, nine hours in three minutes: everything is real but
            the clock that the estimate looks at
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
    # Answers per second before and after so many seconds from the first request; none: as fast as they come.
    throttle: tuple[float, float, float] | None = None
    first = due = 0.0
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
        if self.throttle is not None:
            self.throttled(*self.throttle)
        elif self.delay:
            asyncio.get_running_loop().call_later(self.delay, self.answer)
        else:
            self.answer()

    def throttled(self, before: float, after: float, seconds: float) -> None:
        """One after the other, as fast as an engine is that has so much throughput."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        Instant.first = Instant.first or now
        Instant.due = max(now, Instant.due) + 1 / (before if now - Instant.first < seconds else after)
        loop.call_at(Instant.due, self.answer)

    def answer(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.reply)

    @staticmethod
    def head(body: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def serve(delay: float, throttle: tuple[float, float, float] | None) -> None:
    """Print the port and serve for ever."""
    usage = {"prompt_tokens": 128, "completion_tokens": 64, "total_tokens": 192}
    choice = {"index": 0, "message": {"role": "assistant", "content": "word " * 64}, "finish_reason": "length"}
    Instant.delay, Instant.throttle = delay, throttle
    Instant.reply = Instant.head(json.dumps({"id": "c", "choices": [choice], "usage": usage}).encode())
    Instant.models = Instant.head(b'{"data":[{"id":"tiny"}]}')
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def endpoint(*words: float) -> Iterator[str]:
    """An endpoint in a process on its own core: its delay, or how it is throttled."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", *map(str, words)], stdout=subprocess.PIPE, text=True, cwd=ROOT
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
    elif kind == "eta":
        id, url, hastened = words
        found = watched(batch.open_queue(store, id), url, float(hastened))
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


def watched(queue: Any, url: str, hastened: float) -> dict[str, Any]:
    """A run whose estimates are made by a clock that goes so much faster, about once in its second; all that they said."""
    from bench.batch import EndpointSettings, _forecast, _keeper, _runner, run

    class Hastened(_forecast.Forecast):
        def __init__(self, began: float) -> None:
            super().__init__(0.0)
            self.began = began

        def feed(self, now: float, done: int) -> None:
            super().feed((now - self.began) * hastened, done)

    _keeper._BEAT_SECONDS = 1 / hastened
    _runner.Forecast = Hastened  # type: ignore[misc]
    begun, said = time.monotonic(), []

    def say(progress: Any) -> None:
        eta = progress.eta
        said.append(((time.monotonic() - begun) * hastened, progress.counts.done, eta.seconds, eta.certain))

    run(queue, [EndpointSettings(url=url, slots=16, fixed=True)], progress=say, signals=False)
    return {"end": (time.monotonic() - begun) * hastened, "said": said}


def estimated(folder: Path) -> dict[str, Any]:
    """50 requests/s of 170,000 for a minute, then 5; here a tenth of both and of the inputs, as one answer of ten would do."""
    rows, hastened = 17_000, 170.0
    source, store = folder / "eta.jsonl", str(folder / "eta")
    write_inputs(source, rows)
    with endpoint(5.0 * hastened, 0.5 * hastened, 60 / hastened) as url:
        id = part("submit", store, source)["id"]
        found = part("eta", store, id, url, hastened)
    end, said = found["end"], found["said"]
    # How wrong each was; of the last fiftieth nobody needs an estimate.
    wrong = [
        (at, done / rows, abs(eta / (end - at) - 1), certain) for at, done, eta, certain in said if done < 0.98 * rows
    ]
    certain = [(at, error) for at, _, error, sure in wrong if sure]
    at_share = next((at, error, sure) for at, share, error, sure in wrong if share >= 0.02)
    return {
        "hours": end / 3600, "estimates": len(wrong), "certain_within_first_minute": sum(at <= 60 for at, _ in certain),
        "at_2_percent": {"second": at_share[0], "error": at_share[1], "certain": at_share[2]},
        "certain_from_second": certain[0][0] if certain else None,
        "worst_error_while_certain": max((error for _, error in certain), default=None),
        "worst_error_before": max((error for _, _, error, sure in wrong if not sure and error == error), default=None),
    }  # fmt: skip


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
    """Print the table; exit code 1 where a promise was missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", nargs="+", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=int, default=170_000)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the batch that is resumed")
    parser.add_argument("--seconds", type=float, default=4.0, help="of the load generator's runs")
    parser.add_argument("--only", default="", help=", ".join(ROWS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.serve is not None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            threading.Timer(1800, os._exit, (1,)).start()
            delay, *rest = given.serve
            runner.run(serve(0.0, (delay, *rest)) if rest else serve(delay, None))
    if given.part:
        print(json.dumps(do_part(*given.part)))
        return
    only = given.only.split(",") if given.only else list(ROWS)
    if wrong := set(only) - set(ROWS):
        parser.error(f"--only {', '.join(sorted(wrong))}: choose from {', '.join(ROWS)}")
    table: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    missed = 0
    print(f"{'':<42} {'promised':<28} {'measured':<34}")
    with tempfile.TemporaryDirectory() as name:
        for kind in only:
            table[kind], lines = ROWS[kind](Path(name), given)
            for words, promised, measured, kept in lines:
                missed += not kept
                print(f"{words:<42} {promised:<28} {measured:<34} {'pass' if kept else 'MISS'}", flush=True)
    if given.json:
        given.json.write_text(json.dumps({**table, "at": time.time()}, indent=1) + "\n")
    raise SystemExit(min(1, missed))


Line = tuple[str, str, str, bool]


def row_zero(folder: Path, given: argparse.Namespace) -> tuple[dict[str, Any], list[Line]]:
    found = throughput(folder, 0.0, 128, 40_000, given.seconds)
    rate = found["requests_per_second"]
    return found, [
        ("durable throughput, one runner core", ">= 5,000 req/s", f"{rate:,.0f} req/s", rate >= 5000),
        ("    of the bare load generator", "", f"{found['ratio']:.0%}", True),
    ]


def row_delay(folder: Path, given: argparse.Namespace) -> tuple[dict[str, Any], list[Line]]:
    found = throughput(folder, 0.1, 512, 40_000, given.seconds)
    measured = f"{found['ratio']:.0%} ({found['requests_per_second']:,.0f} of {found['bare_load_generator']:,.0f})"
    promised = ">= 70 % of the load generator"
    return found, [("100 ms replies, 512 in flight", promised, measured, found["ratio"] >= 0.7)]


def row_all(folder: Path, given: argparse.Namespace) -> tuple[dict[str, Any], list[Line]]:
    found = everything(folder, given.requests)
    right = not found["lost"] and not found["doubled"] and found["in_order"]
    measured = f"{found['lost']} lost, {found['doubled']} doubled{'' if found['in_order'] else ', not in order'}"
    memory = found["rss_mb"]
    parts = ", ".join(f"{key} {value:.0f}" for key, value in memory.items())
    times = ", ".join(f"{key} {found[f'{key}_seconds']:.0f} s" for key in ("submit", "run", "results"))
    return found, [
        (f"{found['rows']:,} requests", "0 lost, 0 doubled", measured, right),
        (f"    memory, {found['input_mb']:.0f} MB of input", "<= 200 MB", f"{max(memory.values()):.0f} MB ({parts})",
         max(memory.values()) <= 200),
        (f"    {times}", "", "", True),
    ]  # fmt: skip


def row_resume(folder: Path, given: argparse.Namespace) -> tuple[dict[str, Any], list[Line]]:
    found = resumed(folder, given.rows)
    measured = f"{found['seconds']:.2f} s to the first request"
    return found, [(f"resume after kill -9 at {found['rows']:,} rows", "<= 2 s", measured, found["seconds"] <= 2)]


def row_eta(folder: Path, _given: argparse.Namespace) -> tuple[dict[str, Any], list[Line]]:
    found = estimated(folder)
    at, worst = found["at_2_percent"], found["worst_error_while_certain"]
    early = found["certain_within_first_minute"]
    sure = "certain" if at["certain"] else "uncertain"
    measured = (
        "never certain" if worst is None else f"{worst:.1%} off at worst, from {found['certain_from_second']:.0f} s on"
    )
    return found, [
        ("ETA, 10x slower after the first minute", "<= 25 % off once sustained", measured, worst is not None and worst <= 0.25),
        ("    before that", "marked uncertain", f"{early} called certain", not early),
        (f"    at 2 % ({at['second']:.0f} s of {found['hours']:.1f} h)", "", f"{at['error']:.1%} off, {sure}", True),
    ]  # fmt: skip


ROWS = {"zero": row_zero, "delay": row_delay, "all": row_all, "resume": row_resume, "eta": row_eta}


if __name__ == "__main__":
    main()
