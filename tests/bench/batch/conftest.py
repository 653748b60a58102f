"""Endpoints that remember what they were asked, and batches in a folder or in a real PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx2
import pytest
from moto.server import ThreadedMotoServer

from bench import batch
from tests.ports import free_port


@dataclass
class Asked:
    process: subprocess.Popen[str]
    url: str

    def control(self, **options: object) -> None:
        httpx2.post(f"{self.url}/control", json=options, timeout=60).raise_for_status()

    def asked(self) -> dict[str, int]:
        return dict(httpx2.get(f"{self.url}/asked", timeout=60).json()["asked"])

    def most(self) -> int:
        return int(httpx2.get(f"{self.url}/asked", timeout=60).json()["most"])

    def refused(self) -> int:
        return int(httpx2.get(f"{self.url}/asked", timeout=60).json()["refused"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def serve() -> Iterator[Callable[..., Asked]]:
    """Start a server with these options (see `asked_server.py`)."""
    running: list[subprocess.Popen[str]] = []

    def start(**options: object) -> Asked:
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, str(Path(__file__).with_name("asked_server.py")), *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        return Asked(process, f"http://127.0.0.1:{int(process.stdout.readline())}")

    yield start
    for process in running:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "batches")


def chat(prompt: str) -> bytes:
    return json.dumps({"model": "tiny", "messages": [{"role": "user", "content": prompt}]}).encode()


@pytest.fixture
def submit(store: str) -> Callable[..., batch.Queue]:
    """A batch of so many plain prompts, or of these prompts; custom_id is the prompt."""

    def make(prompts: int | list[str], **given: Any) -> batch.Queue:
        texts = [f"p{i}" for i in range(prompts)] if isinstance(prompts, int) else prompts
        inputs = (batch.Input(text, "/v1/chat/completions", chat(text)) for text in texts)
        return batch.create(given.pop("store", store), inputs, **given)

    return make


@pytest.fixture
def outputs(tmp_path: Path) -> Callable[..., tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """The lines of results and errors."""

    def read(queue: batch.Queue, **given: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        paths = [tmp_path / "out.jsonl", tmp_path / "err.jsonl"]
        batch.write(queue, str(paths[0]), str(paths[1]), **given)
        found = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
        return found[0], found[1]

    return read


@pytest.fixture(scope="session")
def bucket() -> Iterator[tuple[Any, str]]:
    """A client of a bucket, and what stands after the name of an object in it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="prompts")
        yield client, f"?endpoint={host}:{port}&disableSSL=true&region=us-east-1"
    server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a real PostgreSQL of this session's own, in a folder that goes with it."""
    programs = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), *map(Path, os.environ["PATH"].split(os.pathsep))]
    found = next((path for path in programs if (path / "initdb").exists() and (path / "postgres").exists()), None)
    if found is None:
        pytest.skip("no PostgreSQL server here (initdb and postgres): install Debian's package postgresql")
    home = Path(tempfile.mkdtemp(prefix="tg-pg-"))
    as_user: dict[str, Any] = {}
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root.
        try:
            import pwd

            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            user = "nobody"
        as_user = {"user": user}
        shutil.chown(home, user)
    data = home / "data"
    port = free_port()
    subprocess.run(
        [found / "initdb", "-D", data, "-U", "tollgate", "-A", "trust", "-E", "UTF8", "--no-sync"],
        check=True, capture_output=True, cwd=home, timeout=240, **as_user,
    )  # fmt: skip
    options = ["-k", home, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=16MB"]
    # What it survives of itself is not what is tested; a disk that others write to makes each commit take a second.
    options += ["-c", "fsync=off", "-c", "full_page_writes=off"]
    server = subprocess.Popen(
        [found / "postgres", "-D", data, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=home,
        **as_user,
    )
    try:
        end = time.monotonic() + 120
        while True:
            ready = subprocess.run(
                [found / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"], timeout=60, check=False
            )
            if ready.returncode == 0:
                break
            assert server.poll() is None, "PostgreSQL did not start"
            assert time.monotonic() < end, "PostgreSQL did not answer within 120 s"
            time.sleep(0.05)
        yield f"postgresql://tollgate@127.0.0.1:{port}/postgres"
    finally:
        # Fast: whoever is still connected is cut off.
        server.send_signal(signal.SIGINT)
        server.wait(60)
        shutil.rmtree(home, ignore_errors=True)
