"""Client and service on one machine: what the machine can tell is said, and nothing that it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench import load
from bench.load._machine import Machine, _serving, pressure, waited

Serve = Callable[..., str]
_LISTEN = "import os,socket;os.sched_setaffinity(0,{core});s=socket.create_server(('127.0.0.1',0))\n"
_LISTEN += "print(s.getsockname()[1],flush=True)\nwhile True: pass"
_SPIN = "import os;os.sched_setaffinity(0,{core})\nwhile True: pass"

told = pytest.mark.skipif(waited("self") == 0.0, reason="this kernel keeps no times of waiting")


@pytest.fixture
def spinning() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    running = []
    core = str(min(os.sched_getaffinity(0)))

    def start(code: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code.replace("{core}", "{" + core + "}")]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@told
def test_a_service_that_is_kept_from_its_core_is_known_to_be(
    spinning: Callable[[str], subprocess.Popen[str]],
) -> None:
    service = spinning(_LISTEN)
    assert service.stdout is not None
    url = f"http://127.0.0.1:{service.stdout.readline().strip()}"
    machine = Machine(load.Target(url=url, engine="vllm", model="tiny"))
    assert machine.local
    spinning(_SPIN)
    machine.look()
    began = time.monotonic()
    for _ in range(3):
        time.sleep(1.0)
        machine.look()
    seen = machine.between(began, time.monotonic())
    # Two that never sleep share one core: each waits about half of the time.
    assert seen["service_waited_share"] > 0.25
    assert seen["service_waited_mean_seconds"] > 0
    if pressure() is not None:
        assert seen["machine_pressure_share"] > 0.25
    (text,) = machine.warnings(seen)
    assert "waited for a core" in text


def test_what_a_service_has_started_counts_as_the_service(
    spinning: Callable[[str], subprocess.Popen[str]],
) -> None:
    service = spinning(
        "import socket,subprocess,sys,time\ns=socket.create_server(('127.0.0.1',0))\n"
        "child=subprocess.Popen([sys.executable,'-c','input()'],stdin=subprocess.PIPE)\n"
        "print(s.getsockname()[1],child.pid,flush=True)\ntime.sleep(60)"
    )
    assert service.stdout is not None
    port, child = service.stdout.readline().split()
    target = load.Target(url=f"http://127.0.0.1:{port}", engine="vllm", model="tiny")
    assert _serving(target) == tuple(sorted((service.pid, int(child))))


def test_what_is_small_and_what_is_elsewhere_is_not_warned_of() -> None:
    here = Machine(load.Target(url="http://127.0.0.1:9", engine="vllm", model="tiny"))
    assert here.warnings({"service_waited_share": 0.05, "service_waited_mean_seconds": 1e-4}) == ()
    # Where the service's own processes are seen, what else waits on the machine is not its matter.
    quiet = {"service_waited_share": 0.05, "service_waited_mean_seconds": 1e-4, "machine_pressure_share": 0.9}
    assert here.warnings(quiet) == ()
    (text,) = here.warnings({"machine_pressure_share": 0.9})
    assert "may be partly the machine's" in text
    there = Machine(load.Target(url="http://192.0.2.1:9", engine="vllm", model="tiny"))
    assert not there.local
    assert there.warnings({"machine_pressure_share": 0.9}) == ()


def test_a_run_keeps_what_the_machine_told(serve: Serve, measured: Callable[..., Any]) -> None:
    (run,) = measured(serve("--ttft", 0.02, "--itl", 0.005), seconds=2.0).runs
    assert 0 <= run.client["core_waited_share"] < 1
    if waited("self"):
        assert 0 <= run.client["service_waited_share"] < 1
    assert all("this machine" in text for text in run.warnings)
