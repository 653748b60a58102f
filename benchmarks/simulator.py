"""What the simulator reaches on one core, beside uvicorn and nginx in the same run.

    python benchmarks/simulator.py [--seconds 4] [--streams 100000] [--only closed,open,paced,held,start] [--json FILE]

Server on core 0, client on core 1. The closed loops need wrk; nginx is used where it is installed, uvicorn comes with the
development dependencies. Contenders take turns and the better turn counts. On a machine that does other work too, absolute
numbers fall with it: then the ratios count, and the processor time per request.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SERVER, CLIENT = "0", str(min(1, (os.cpu_count() or 1) - 1))
JSON_HEADER = {"Content-Type": "application/json"}
HEADERS = 'wrk.method="POST"\nwrk.headers["content-type"]="application/json"\n'
BODY = '{"model":"tiny","messages":[{"role":"user","content":"%s some good food"}],"max_tokens":64,"ignore_eos":true%s}'
# Each turn another number, in the text or elsewhere.
TURN = "{headers}local n=0\nfunction request() n=n+1 return wrk.format(nil,nil,nil,string.format([[{body}]],n%99991)) end\n"
ASGI = """
import pathlib
WHOLE = pathlib.Path(__file__).with_name("whole").read_bytes()
EVENTS = [e + b"\\n\\n" for e in pathlib.Path(__file__).with_name("stream").read_bytes().split(b"\\n\\n") if e]

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = (await receive())["body"]
    kind = b"text/event-stream" if b'"stream":true' in body else b"application/json"
    headers = [(b"content-type", kind)]
    if kind == b"application/json":
        headers.append((b"content-length", b"%d" % len(WHOLE)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if kind == b"application/json":
        await send({"type": "http.response.body", "body": WHOLE})
        return
    for event in EVENTS:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
"""
NGINX = """daemon off; master_process off; pid {folder}/pid; error_log /dev/null; events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 10000000; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
server {{ listen 127.0.0.1:{port}; root {folder}; }} }}
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number beside what was promised. `ratios`: to peers in the same run."""

    name: str
    value: float
    unit: str
    promise: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.promise is None:
            return None
        return self.value <= self.promise if self.at_most else self.value >= self.promise

    def line(self) -> str:
        limit = "" if self.promise is None else f"{'<=' if self.at_most else '>='} {self.promise:,g}"
        verdict = {None: "", True: "met", False: "NOT met"}[self.met]
        return f"{self.name:58} {self.value:11,.4g} {self.unit:10} {limit:>11} {verdict:8} {self.note}"


def free_port() -> int:
    """A free port of the loopback."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], port: int, *, core: str = SERVER, **env: str) -> Iterator[psutil.Process]:
    """`command` on its core, once it answers on `port`."""
    words = ["taskset", "-c", core, *command] if core and shutil.which("taskset") else command
    full = {"PATH": "/usr/sbin:/usr/bin:/bin"} | env
    process = subprocess.Popen(words, cwd=ROOT, env=full, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"does not serve: {' '.join(command)}")
            time.sleep(0.01)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def simulator(port: int, *words: str) -> list[str]:
    """The command of a simulated vLLM."""
    serve = ["vllm", "serve", "tiny", "--host", "127.0.0.1", "--port", str(port), "--max-num-seqs", "200000"]
    return [sys.executable, "-m", "bench.simulator", *serve, *words]


def spent(process: psutil.Process) -> float:
    """Processor seconds of a process and its children."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


@dataclass(frozen=True, kw_only=True)
class Closed:
    """One turn of wrk: requests/s, p99 in ms, errors, processor time of the server per request in microseconds."""

    rate: float
    p99: float
    errors: int
    cost: float

    @property
    def note(self) -> str:
        return (
            f"p99 {self.p99:.2f} ms; {self.cost:.1f} us of processor time each, {1e6 / self.cost:,.0f} per core-second"
        )


def wrk(process: psutil.Process, url: str, script: Path, seconds: int) -> Closed:
    """64 connections for so long, after a second of warm-up."""
    words = ["taskset", "-c", CLIENT, "wrk", "-t1", "-c64", "--latency", "-s", str(script), url]
    subprocess.run([*words, "-d1s"], capture_output=True, check=True)
    before = spent(process)
    out = subprocess.run([*words, f"-d{seconds}s"], capture_output=True, text=True, check=True).stdout
    used = spent(process) - before

    def found(pattern: str) -> tuple[str, ...]:
        match = re.search(pattern, out)
        if match is None:
            raise SystemExit(f"wrk printed nothing like {pattern!r}:\n{out}")
        return match.groups()

    value, unit = found(r"99%\s+([\d.]+)(us|ms|s)")
    requests = int(found(r"(\d+) requests in")[0])
    counted = re.findall(r"(?:connect|read|write|timeout|responses:) (\d+)", out)
    return Closed(
        rate=float(found(r"Requests/sec:\s+([\d.]+)")[0]),
        p99=float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit],
        errors=sum(int(number) for number in counted),
        cost=used / max(1, requests) * 1e6,
    )


def closed(seconds: int, turns: int, folder: Path) -> list[Row]:
    """The closed loops and the peers' share in them."""
    if not shutil.which("wrk"):
        print("wrk is not installed: no closed loops")
        return []
    scripts = {}
    for kind, more in (("whole", ""), ("stream", ',"stream":true')):
        scripts[kind] = folder / f"{kind}.lua"
        scripts[kind].write_text(f"{HEADERS}wrk.body=[[{BODY % ('have', more)}]]\n")
    for kind, body in (("text", BODY % ("w%05d", "")), ("parsed", BODY % ("have", ',"seed":%d'))):
        scripts[kind] = folder / f"{kind}.lua"
        scripts[kind].write_text(TURN.format(headers=HEADERS, body=body))
    scripts["get"] = folder / "get.lua"
    scripts["get"].write_text("")
    port = free_port()
    zero = {"TOLLGATE_SIM_TTFT": "0", "TOLLGATE_SIM_ITL": "0"}
    url = f"http://127.0.0.1:{port}"
    with running(simulator(port), port, **zero):
        for kind, more in (("whole", ""), ("stream", ',"stream":true')):
            asked = urllib.request.Request(f"{url}/v1/chat/completions", (BODY % ("have", more)).encode(), JSON_HEADER)
            (folder / kind).write_bytes(urllib.request.urlopen(asked, timeout=5).read())
    (folder / "peer.py").write_text(ASGI)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port))
    folder.chmod(0o755)
    best: dict[str, Closed] = {}
    errors = 0

    def keep(name: str, one: Closed) -> None:
        nonlocal errors
        errors += one.errors if name.startswith("simulator") else 0
        if name not in best or one.rate > best[name].rate:
            best[name] = one

    peer = [sys.executable, "-m", "uvicorn", "peer:app", "--app-dir", str(folder), "--port", str(port)]
    for _ in range(turns):
        with running(simulator(port), port, **zero) as process:
            for kind in ("whole", "text", "parsed", "stream"):
                keep(f"simulator {kind}", wrk(process, f"{url}/v1/chat/completions", scripts[kind], seconds))
        with running([*peer, "--log-level", "warning", "--no-access-log"], port) as process:
            for kind in ("whole", "stream"):
                keep(f"uvicorn {kind}", wrk(process, url, scripts[kind], seconds))
        if shutil.which("nginx", path="/usr/sbin:/usr/bin"):
            with running(["nginx", "-c", f"{folder}/nginx.conf"], port) as process:
                keep("nginx", wrk(process, f"{url}/whole", scripts["get"], seconds))
    nginx = best.get("nginx")
    if nginx is None:
        print("nginx is not installed: no ratio to it")
    rows = []
    words = {"whole": "the same request", "text": "another text each", "parsed": "parsed each", "stream": "streamed"}
    for kind, promise in (("whole", 45_000.0), ("text", 45_000.0), ("parsed", None), ("stream", 14_000.0)):
        one = best[f"simulator {kind}"]
        other = best[f"uvicorn {'stream' if kind == 'stream' else 'whole'}"]
        note = one.note
        rows.append(Row(name=f"64 tokens, {words[kind]}", value=one.rate, unit="req/s", promise=promise, note=note))
        rows.append(Row(name="    to uvicorn's bare ASGI", value=one.rate / other.rate, unit="x", promise=1.0))
        if nginx is not None and kind != "stream":
            ratio = one.rate / nginx.rate
            limit = 0.35 if kind != "parsed" else None
            rows.append(Row(name="    to nginx's static file", value=ratio, unit="x", promise=limit))
        if kind in ("whole", "text"):
            rows.append(Row(name="    p99", value=one.p99, unit="ms", promise=4.0, at_most=True))
    for name in ("uvicorn whole", "uvicorn stream", "nginx"):
        if name in best:
            one = best[name]
            note = one.note
            rows.append(Row(name=f"({name})", value=one.rate, unit="req/s", note=note))
    rows.append(Row(name="errors of the simulator in these", value=errors, unit="", promise=0.0, at_most=True))
    return rows


def loaded(traffic: dict[str, Any], url: str, seconds: float) -> Any:
    """One run of the load generator, which times from the intended send."""
    import stacks
    from bench import load

    target = load.Target(url=url, engine="vllm", model="tiny", stream=traffic.pop("stream"))
    result = load.run(
        target,
        stacks.Traffic.model_validate(traffic),
        load.Settings(runs=1, seconds=seconds),
        release="sha256:" + "0" * 64,
        stack="none",
    )
    return result.runs[0]


def opened(seconds: float) -> list[Row]:
    """12,400 requests/s whatever the server does."""
    port = free_port()
    with running(simulator(port), port, TOLLGATE_SIM_TTFT="0", TOLLGATE_SIM_ITL="0") as process:
        before, begun = spent(process), time.monotonic()
        traffic = {"arrival": "constant", "requests_per_second": 12_400, "prompt_tokens": 16, "output_tokens": 64}
        run = loaded(traffic | {"stream": False}, f"http://127.0.0.1:{port}", seconds)
        cores = (spent(process) - before) / (time.monotonic() - begun)
    note = "" if run.valid else f"does not count: {run.invalid_because}"
    name = "open loop of 12,400 req/s, from the intended send"
    p50, p99 = (run.metrics[f"e2e_p{p}_seconds"] * 1e3 for p in (50, 99))
    return [
        Row(name=f"{name}: rate", value=run.metrics["requests_per_second"], unit="req/s", note=note),
        Row(name="    p50", value=p50, unit="ms", promise=0.2, at_most=True),
        Row(name="    p99", value=p99, unit="ms", promise=3.0, at_most=True),
        Row(name="    server", value=cores, unit="cores", promise=0.7, at_most=True),
        Row(name="    errors", value=run.metrics["error_rate"], unit="", promise=0.0, at_most=True),
    ]


def generated(url: str) -> float:
    """Tokens that the server at `url` has made so far."""
    text = urllib.request.urlopen(f"{url}/metrics", timeout=5).read().decode()
    return float(re.findall(r"vllm:generation_tokens_total\{[^}]*\} (\S+)", text)[0])


def paced(seconds: float) -> list[Row]:
    """Streams of 20 ms between tokens: what a token costs, and how true first token and gaps are."""
    rows = []
    for users in (500, 2000):
        port = free_port()
        with running(simulator(port), port, TOLLGATE_SIM_TTFT="200ms", TOLLGATE_SIM_ITL="20ms") as process:
            url = f"http://127.0.0.1:{port}"
            # What is imported and made once is no part of a token.
            asked = urllib.request.Request(
                f"{url}/v1/chat/completions", (BODY % ("have", ',"stream":true')).encode(), JSON_HEADER
            )
            urllib.request.urlopen(asked, timeout=5).read()
            before, there = spent(process), generated(url)
            traffic = {"users": users, "prompt_tokens": 16, "output_tokens": 100, "stream": True}
            run = loaded(traffic, url, max(6.0, seconds))
            used, tokens = spent(process) - before, generated(url) - there
        name = f"{users} streams of 20 ms tokens"
        cost = used / tokens * 1e6
        rows.append(Row(name=f"{name}: processor time a token", value=cost, unit="us", promise=12.0, at_most=True))
        note = "" if run.valid else f"does not count: {run.invalid_because}"
        if users == 500:
            late, last = (run.metrics[f"ttft_p{p}_seconds"] * 1e3 - 200 for p in (50, 99))
            gap = abs(run.metrics["itl_mean_seconds"] / 0.02 - 1) * 100
            rows.append(
                Row(name="    first token late by (p50)", value=late, unit="ms", promise=2.0, at_most=True, note=note)
            )
            rows.append(Row(name="    first token late by (p99)", value=last, unit="ms", note=note))
            rows.append(Row(name="    gaps off by (mean)", value=gap, unit="%", promise=0.5, at_most=True, note=note))
        failed = run.metrics["error_rate"]
        rows.append(Row(name="    errors", value=failed, unit="", promise=0.0, at_most=True))
    return rows


def hold(port: int, address: str, streams: int) -> None:
    """The client of `held`: opens streams from one source address and reads them to their end.

    Prints one line when all are open and their requests sent, and then how many came to their end.
    """
    body = (BODY % ("have", ',"stream":true')).replace(":64,", ":4,").encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    selector = selectors.EpollSelector()
    opened = []
    for at in range(streams):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(30)
        try:
            sock.bind((address, 0))
            sock.connect(("127.0.0.1", port))
            sock.sendall(request)
        except OSError as error:
            print(f"stream {at} from {address}: {error}", file=sys.stderr)
            sock.close()
            continue
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
        opened.append(sock)
        if at % 500 == 499:
            time.sleep(0.01)
    print("open", flush=True)
    tails = dict.fromkeys((sock.fileno() for sock in opened), b"")
    done, left = 0, len(opened)
    deadline = time.monotonic() + 300
    while left and time.monotonic() < deadline:
        for key, _ in selector.select(timeout=5):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            data = b""
            with contextlib.suppress(OSError):
                data = sock.recv(65536)
            tail = tails[key.fd] = (tails[key.fd] + data)[-32:]
            ended = tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            if ended or not data:
                done += ended
                left -= 1
                selector.unregister(sock)
                sock.close()
    print(done, flush=True)


def held(streams: int) -> list[Row]:
    """So many streams open at once, over several workers and client processes, each of which has its own 127.0.0.x."""
    limit = psutil.Process().rlimit(psutil.RLIMIT_NOFILE)[1]
    each = 15_000 if limit < 0 else max(500, min(15_000, limit - 2000))
    parts = -(-streams // each)
    port = free_port()
    # All are open before the first token is due.
    wait = 20 + streams / 1000
    env = {"TOLLGATE_SIM_TTFT": f"{wait:.0f}s", "TOLLGATE_SIM_ITL": "2s", "TOLLGATE_SIM_WORKERS": str(parts + 1)}
    words = [sys.executable, __file__, "--hold", str(port)]
    with running(simulator(port), port, core="", **env) as process:
        time.sleep(1)
        servers = process.children(recursive=True) or [process]
        before = sum(one.memory_full_info().uss for one in servers)
        begun = time.monotonic()
        clients = []
        for at in range(parts):
            part = [*words, f"127.0.1.{at + 1}", str(min(each, streams - at * each))]
            clients.append(subprocess.Popen(part, stdout=subprocess.PIPE, text=True))
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()
        took = time.monotonic() - begun
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        there = float(re.findall(r"vllm:num_requests_running\{[^}]*\} (\S+)", text)[0])
        memory = sum(one.memory_full_info().uss for one in servers) - before
        done = sum(int(client.communicate(timeout=wait + 120)[0]) for client in clients)
    name, note = f"{streams:,} streams: open at once", f"opened in {took:.1f} s"
    return [
        Row(name=name, value=there, unit="", promise=streams, note=note),
        Row(name="    completed", value=done, unit="", promise=streams),
        Row(name="    server memory each", value=memory / streams / 1000, unit="KB", promise=4.0, at_most=True),
    ]


def started() -> list[Row]:
    """From the start of the process to the first answer."""
    times = []
    for _ in range(7):
        port = free_port()
        begun = time.monotonic()
        with running(simulator(port), port, TOLLGATE_SIM_TTFT="0", TOLLGATE_SIM_ITL="0"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).read()
            times.append(time.monotonic() - begun)
    return [
        Row(name="cold start to the first answer", value=statistics.median(times), unit="s", promise=0.3, at_most=True)
    ]


def main() -> None:
    """Print the table; exit status 1 where a promise about errors or completion was not kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parser.add_argument("--turns", type=int, default=2, help="of each contender")
    parser.add_argument("--streams", type=int, default=100_000, help="open at once")
    parser.add_argument("--only", default="start,closed,open,paced,held")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--hold", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hold:
        hold(int(given.hold[0]), given.hold[1], int(given.hold[2]))
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for part in given.only.split(","):
            if part == "closed":
                found = closed(given.seconds, given.turns, Path(name))
            elif part in ("open", "paced"):
                psutil.Process().cpu_affinity([int(CLIENT)])
                found = opened(given.seconds) if part == "open" else paced(given.seconds)
                psutil.Process().cpu_affinity([])
            else:
                found = held(given.streams) if part == "held" else started()
            for row in found:
                print(row.line(), flush=True)
            rows += found
    judged = [row for row in rows if row.met is not None]
    missed = [row.name.strip() for row in judged if not row.met]
    print(
        f"{len(judged) - len(missed)} of {len(judged)} promises met" + (f"; not: {', '.join(missed)}" if missed else "")
    )
    if given.json:
        given.json.write_text(
            json.dumps({"rows": [asdict(row) for row in rows], "load": os.getloadavg()}, indent=1) + "\n"
        )
    raise SystemExit(any(row.met is False for row in rows if "errors" in row.name or "completed" in row.name))


if __name__ == "__main__":
    main()
