"""The same queue in a real PostgreSQL: many runners, one of them killed, the server gone for a moment."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import stacks
from bench import batch
from bench.batch import _queue

from .test_batch_survives import ROOT, UNSETTLED, lines, start

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def cleaned(postgres: str) -> Iterator[None]:
    yield
    for name in batch.ids(postgres):
        batch.remove(postgres, name)


def test_three_runners_one_killed_share_a_batch(
    postgres: str, submit: Callable[..., batch.Queue], serve: Callable[..., Any], outputs: Any, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    server = serve(delay=0.02, log=log)
    queue = submit(2000, store=postgres)
    runners: list[subprocess.Popen[str]] = [start(postgres, queue.id, server.url) for _ in range(3)]
    while len(lines(log)) < 500:
        time.sleep(0.01)
    runners[0].kill()
    runners[0].communicate()
    for process in runners[1:]:
        out, err = process.communicate(timeout=180)
        assert out.split() == ["done", "2000", "0"], err
    good, bad = outputs(queue)
    assert ([line["custom_id"] for line in good], bad) == ([f"p{i}" for i in range(2000)], [])
    asked = Counter(lines(log))
    assert sum(asked.values()) - 2000 <= UNSETTLED


def test_a_runner_of_another_machine_loses_its_leases_by_time(
    postgres: str, submit: Callable[..., batch.Queue], serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_queue, "LEASE_SECONDS", 5.0)
    queue = submit(40, store=postgres)
    begun = time.monotonic()
    taken = queue.step("elsewhere.1/7/1.00/x", _queue.Step(claim=15, report={}))
    held = sum(len(items) for _, items in taken.blocks)
    assert held >= 15
    assert [runner.alive for runner in queue.runners()] == [True]
    endpoint = batch.EndpointSettings(url=serve(delay=0.001).url, slots=4, fixed=True)
    ending = batch.run(queue, [endpoint], signals=False)
    assert (ending.state, ending.counts.ok) == ("done", 40)
    assert time.monotonic() - begun > 4.0, "took what somebody still held"


def test_connections_that_break_are_made_anew(
    postgres: str, submit: Callable[..., batch.Queue], serve: Callable[..., Any]
) -> None:
    queue = submit(2000, store=postgres)
    cuts: list[int] = []
    over = threading.Event()

    def cut() -> None:
        while sum(cuts) < 4 and not over.wait(0.3):
            with psycopg.connect(postgres) as other:
                rows = other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tollgate batch'"
                )
                cuts.append(len(rows.fetchall()))

    thread = threading.Thread(target=cut)
    thread.start()
    endpoint = batch.EndpointSettings(url=serve(delay=0.01).url, slots=8, fixed=True)
    ending = batch.run(queue, [endpoint], signals=False)
    over.set()
    thread.join()
    assert (ending.state, ending.counts.ok) == ("done", 2000)
    assert sum(cuts) >= 2


def test_a_custom_id_that_stands_there_twice_is_named_and_leaves_nothing(
    postgres: str, submit: Callable[..., batch.Queue]
) -> None:
    with pytest.raises(stacks.InputError) as found:
        submit(["a", "b", "a"], store=postgres)
    assert "'a' twice" in found.value.got
    assert batch.ids(postgres) == []


def test_a_server_that_is_not_there_is_said_to_be_so() -> None:
    with pytest.raises(stacks.TollgateError, match="PostgreSQL"):
        batch.ids("postgresql://nobody@127.0.0.1:1/none")


def test_pods_of_a_job_submit_once_and_survive_being_killed_at_random(
    postgres: str, serve: Callable[..., Any], outputs: Any, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    server = serve(delay=0.02, log=log)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"custom_id": "p{i}", "prompt": "p{i}"}}\n' for i in range(2000)))
    command = [
        sys.executable, "-m", "bench", "batch", "nightly", "--store", postgres, "--input", str(tmp_path / "in.jsonl"),
        "--model", "m", "--endpoint", f"{server.url},slots=4,most=4",
    ]  # fmt: skip

    def pod() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    draw = random.Random(3)
    pods = [pod() for _ in range(3)]
    try:
        for number in range(1, 5):
            while len(lines(log)) < 300 * number:
                assert all(one.poll() is None for one in pods), [
                    one.communicate() for one in pods if one.poll() is not None
                ]
                time.sleep(0.01)
            gone = pods.pop(draw.randrange(3))
            gone.send_signal(draw.choice([signal.SIGKILL, signal.SIGTERM]))
            gone.communicate()
            pods.append(pod())
        for one in pods:
            out, err = one.communicate(timeout=180)
            assert one.returncode == 0, (out, err)
    finally:
        for one in pods:
            one.kill()
            one.communicate()
    queue = batch.open_queue(postgres, "nightly")
    good, bad = outputs(queue)
    assert ([line["custom_id"] for line in good], bad) == ([f"p{i}" for i in range(2000)], [])
    assert sum(Counter(lines(log)).values()) - 2000 <= 4 * (64 + 4)
