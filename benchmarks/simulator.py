"""What the simulator reaches on one core, as ratios to uvicorn and nginx in the same run.

    python benchmarks/simulator.py [--seconds 4] [--peer-python PYTHON]

Server on core 0, wrk on core 1, 64 connections. Needs `wrk`; `nginx` and a Python with uvicorn, uvloop and httptools
(`--peer-python`) are used where they are there. Contenders take turns twice and the better turn counts: a shared
machine is never slower than itself twice in the same way.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADERS = 'wrk.method="POST"\nwrk.headers["content-type"]="application/json"\n'
BODY = '{"model":"tiny","messages":[{"role":"user","content":"%s some good food"}],"max_tokens":64,"ignore_eos":true%s}'
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


def port() -> int:
    """A free port of the loopback."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], at: int, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """`command` on core 0, once it answers on port `at`."""
    process = subprocess.Popen(["taskset", "-c", "0", *command], cwd=ROOT, env=env or None, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 15
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", at), timeout=1):
                break
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"does not serve: {' '.join(command)}")
            time.sleep(0.02)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def wrk(url: str, script: Path, seconds: int) -> tuple[float, float, int]:
    """(requests/s, p99 in ms, errors)."""
    words = ["taskset", "-c", "1", "wrk", "-t1", "-c64", f"-d{seconds}s", "--latency", "-s", str(script), url]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])  # type: ignore[index]
    value, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", out).groups()  # type: ignore[union-attr]
    errors = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout|responses:) (\d+)", out))
    return rate, float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit], errors


def main() -> None:
    """Print the table; exit status 1 where any request failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--peer-python", default="")
    given = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed; install it to run this benchmark")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scripts = {}
        for kind, extra in (("whole", ""), ("stream", ',"stream":true')):
            scripts[kind] = folder / f"{kind}.lua"
            scripts[kind].write_text(f"{HEADERS}wrk.body=[[{BODY % ('have', extra)}]]\n")
        scripts["different"] = folder / "different.lua"
        body = BODY % ("w%05d", "")
        scripts["different"].write_text(
            f"{HEADERS}local n=0\nfunction request() n=n+1 return wrk.format(nil,nil,nil,string.format([[{body}]],n%99991)) end\n"
        )
        rows: dict[str, tuple[float, float, int]] = {}

        def keep(label: str, found: tuple[float, float, int]) -> None:
            best = rows.get(label)
            errors = found[2] + (best[2] if best else 0)
            rows[label] = (*(found if best is None or found[0] > best[0] else best)[:2], errors)

        at = port()
        engine = [
            sys.executable,
            "-m",
            "bench.simulator",
            "vllm",
            "serve",
            "tiny",
            "--host",
            "127.0.0.1",
            "--port",
            str(at),
        ]
        zero = {"TOLLGATE_SIM_TTFT": "0", "TOLLGATE_SIM_ITL": "0", "PATH": "/usr/bin:/bin"}
        url = f"http://127.0.0.1:{at}/v1/chat/completions"
        with running(engine, at, **zero):
            for kind, extra in (("whole", ""), ("stream", ',"stream":true')):
                request = urllib.request.Request(
                    url, (BODY % ("have", extra)).encode(), {"Content-Type": "application/json"}
                )
                (folder / kind).write_bytes(urllib.request.urlopen(request, timeout=5).read())
        (folder / "peer.py").write_text(ASGI)
        for _ in range(2):
            with running(engine, at, **zero):
                keep("simulator", wrk(url, scripts["whole"], given.seconds))
                keep("simulator, every prompt different", wrk(url, scripts["different"], given.seconds))
                keep("simulator, streamed", wrk(url, scripts["stream"], given.seconds))
            if given.peer_python:
                other = port()
                words = [given.peer_python, "-m", "uvicorn", "peer:app", "--app-dir", name, "--port", str(other)]
                with running([*words, "--log-level", "warning", "--no-access-log"], other):
                    keep("uvicorn", wrk(f"http://127.0.0.1:{other}/", scripts["whole"], given.seconds))
                    keep("uvicorn, streamed", wrk(f"http://127.0.0.1:{other}/", scripts["stream"], given.seconds))
            if shutil.which("nginx"):
                other = port()
                (folder / "nginx.conf").write_text(
                    f"daemon off; worker_processes 1; pid {name}/pid; error_log /dev/null; events {{}}\n"
                    f"http {{ access_log off; keepalive_requests 10000000; client_body_temp_path {name}/b;"
                    f" proxy_temp_path {name}/p;"
                    f" fastcgi_temp_path {name}/f; uwsgi_temp_path {name}/u; scgi_temp_path {name}/s;\n"
                    f" server {{ listen 127.0.0.1:{other}; root {name}; }} }}\n"
                )
                get = folder / "get.lua"
                get.write_text("")
                folder.chmod(0o755)
                with running(["nginx", "-c", f"{name}/nginx.conf"], other):
                    keep("nginx, static file", wrk(f"http://127.0.0.1:{other}/whole", get, given.seconds))
    base = {"whole": rows.get("uvicorn"), "stream": rows.get("uvicorn, streamed")}
    print(f"{'':36} {'req/s':>9} {'p99 ms':>8} {'errors':>7} {'x uvicorn':>10}")
    for label, (rate, p99, errors) in rows.items():
        peer = base["stream" if "streamed" in label else "whole"]
        ratio = f"{rate / peer[0]:.2f}" if peer else "-"
        print(f"{label:36} {rate:9.0f} {p99:8.2f} {errors:7d} {ratio:>10}")
    print(
        json.dumps(
            {label: {"rate": rate, "p99_ms": p99, "errors": errors} for label, (rate, p99, errors) in rows.items()}
        )
    )
    raise SystemExit(any(row[2] for row in rows.values()))


if __name__ == "__main__":
    main()
