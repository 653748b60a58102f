"""`tollgate simulate`: what it starts, and what it says of options that cannot be."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil
import pytest

from bench.simulator.tune import settings
from tests.ports import free_port

ROOT = Path(__file__).parents[3]


def begin(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tollgate", "simulate", *words], cwd=ROOT, text=True, stderr=subprocess.PIPE
    )


def reach(url: str, process: subprocess.Popen[str]) -> httpx2.Response:
    deadline = time.monotonic() + 60
    while True:
        try:
            return httpx2.get(url)
        except httpx2.HTTPError:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("words", "path", "said"),
    [
        (("--engine", "vllm", "--ttft", "1ms", "--", "--max-model-len", "999"), "/v1/models", '"max_model_len":999'),
        (("--release", "gemma-3-4b-vllm"), "/v1/models", "google/gemma-3-4b-it"),
        (("--release", "gemma-3-4b-ollama-8"), "/api/tags", "gemma"),
        (("--engine", "ollama", "--model", "x:1b", "--http2"), "/api/tags", "x:1b"),
    ],
)  # fmt: skip
def test_a_release_or_options_become_a_server_in_one_light_process(
    words: tuple[str, ...], path: str, said: str
) -> None:
    port = free_port()
    process = begin("--port", str(port), *words)
    try:
        assert said in reach(f"http://127.0.0.1:{port}{path}", process).text
        inside = psutil.Process(process.pid)
        assert inside.cmdline()[1:3] == ["-m", "bench.simulator"]
        assert inside.children() == []
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--engine", "vllm", "--ttft", "soon"), ("--ttft", "'soon'", "20ms")),
        (("--engine", "vllm", "--faults", "fire=1"), ("--faults", "'fire'", "disconnect")),
        (("--engine", "vllm", "--", "--max-num-seqs", "many"), ("--max-num-seqs", "'many'", "number")),
        (("--engine", "ollama", "--", "--max-num-seqs", "1"), ("further flags", "vllm", "OLLAMA_")),
        ((), ("--engine", "ollama, vllm", "--release")),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_with_what_can(words: tuple[str, ...], said: tuple[str, ...]) -> None:
    process = begin(*words)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert all(part in error for part in said), error


def test_tune_names_each_setting_with_the_command_that_changes_it() -> None:
    values = {"/proc/sys/net/core/somaxconn": "128", "/proc/sys/net/ipv4/ip_local_port_range": "1024 65535"}
    found = {setting.name: setting for setting in settings(lambda path: values.get(path, "9999999"))}
    assert not found["net.core.somaxconn"].enough
    assert found["net.core.somaxconn"].fix == "sysctl -w net.core.somaxconn=4096"
    assert found["net.ipv4.ip_local_port_range"].enough
    assert found["net.ipv4.tcp_max_syn_backlog"].enough
    assert "nofile (ulimit -n)" in found
