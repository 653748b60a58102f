"""How fast and how truthful the load generator is, on this machine: `python benchmarks/load.py`.

Server and client each get a core of their own. Speed is given beside its peers' on the same server in the same run, because
absolute numbers say more about the machine; accuracy is the reported minus the true time to first token. `wrk`, `guidellm`
and `aiperf` are used where they are on PATH (or named by --guidellm, --aiperf); each may take a minute to start.
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
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import psutil
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import stacks
from bench import load
from bench.results import Run

ROOT = Path(__file__).resolve().parents[1]
FAKE = ROOT / "tests" / "bench" / "load" / "fake_server.py"
SERVER_CORE, CLIENT_CORE = 0, 1
CONNECTIONS, TOKENS = 64, 64
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


_TOKENIZER = """
import sys
from pathlib import Path
from tokenizers import Tokenizer, models, pre_tokenizers
words = [a + b + c + d for a in "bcdfgmp" for b in "aeiou" for c in "lmnrst" for d in "aeiou"]
known = {"<unk>": 0, "</s>": 1, **{word: i + 2 for i, word in enumerate(words)}}
made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
made.pre_tokenizer = pre_tokenizers.Whitespace()
made.save(str(Path(sys.argv[1]) / "tokenizer.json"))
Path(sys.argv[1], "tokenizer_config.json").write_text(
    '{"tokenizer_class":"PreTrainedTokenizerFast","unk_token":"<unk>","eos_token":"</s>","model_max_length":100000}'
)
"""


def rival(name: str, program: str | None, url: str, seconds: float, *, stream: bool) -> float:
    """Requests/s that guidellm or aiperf reaches and says so itself; nan where it is not there or does not end well.

    A word-level tokenizer is made for them, because theirs would be fetched from the network.
    """
    if program is None:
        return math.nan
    with TemporaryDirectory() as folder:
        tokenizer, out = Path(folder, "tokenizer"), Path(folder, "out")
        tokenizer.mkdir()
        python = Path(program).resolve().parent / "python"
        python = python if python.exists() else Path(program).parent / "python"
        command = [str(python), "-c", _TOKENIZER, str(tokenizer)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return math.nan
        # One looks for a local tokenizer only when it is told to stay off the network, the other only when it is not.
        environment = {**os.environ, **({"HF_HUB_OFFLINE": "1"} if name == "guidellm" else {})}
        arguments = {
            "guidellm": [
                "run", "--backend", f"kind=openai_http,target={url},model=tiny,request_format=/v1/chat/completions"
                f",stream={str(stream).lower()}",
                "--profile", f"kind=concurrent,streams={CONNECTIONS}",
                "--constraint", f"kind=max_duration,seconds={max(6, seconds):.0f}",
                "--tokenizer", f"kind=huggingface_auto,model={tokenizer}",
                "--data", f"kind=synthetic_text,prompt_tokens=16,output_tokens={TOKENS}",
                "--output", f"kind=json,path={out}.json", "--disable-console",
            ],
            "aiperf": [
                "profile", "-m", "tiny", "-u", url, "--endpoint-type", "chat", "--tokenizer", str(tokenizer),
                "--concurrency", str(CONNECTIONS), "--benchmark-duration", f"{max(6, seconds):.0f}", "--isl", "16",
                "--osl", str(TOKENS), "--use-server-token-count", "--artifact-dir", str(out), "--ui", "none",
                *(["--streaming"] if stream else []),
            ],
        }[name]  # fmt: skip
        try:
            subprocess.run(
                [program, *arguments],
                env=environment,
                capture_output=True,
                timeout=seconds + 150,
                check=False,
                cwd=folder,
            )
            if name == "guidellm":
                found = json.loads(Path(f"{out}.json").read_text())["benchmarks"][0]["metrics"]["requests_per_second"]
                return float(found.get("successful", found)["mean"])
            return float(json.loads((out / "profile_export_aiperf.json").read_text())["request_throughput"]["avg"])
        except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired):
            return math.nan


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
    parser.add_argument("--guidellm", default=shutil.which("guidellm"), help="its program")
    parser.add_argument("--aiperf", default=shutil.which("aiperf"), help="its program")
    parser.add_argument("--streams", type=int, default=10_000, help="open at once; 0: leave that out")
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
            for name, program in (("guidellm", given.guidellm), ("aiperf", given.aiperf)):
                theirs = rival(name, program, url, given.seconds, stream=stream)
                if theirs == theirs:
                    rows[words][name] = theirs
                    print(f"                 {name:<9} {theirs:9,.0f} req/s, we {ours / theirs:.0f} times that")
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
    rows["startup_seconds"] = startup()
    print(f"from start to first request {rows['startup_seconds']:.2f} s")
    if given.streams:
        each, most = streams(given.streams)
        rows["streams"] = {"open": most, "bytes_each": each}
        print(f"{most:,} streams open at once, {each / 1e3:.1f} KB each")
    if given.json:
        given.json.write_text(json.dumps({**rows, "at": time.time()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
