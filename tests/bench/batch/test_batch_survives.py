"""Killed, out of disk, with a torn journal: nothing is lost, nothing is there twice, little is asked again."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import stacks
from bench import batch

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
SLOTS = 16
# What may be answered and not yet written (see `_runner`), and what is in flight.
UNSETTLED = 64 + SLOTS


def start(store: str, name: str, url: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("runner_process.py")), store, name, url, str(SLOTS)]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def test_fifty_kills_at_random_leave_every_input_exactly_one_result(
    submit: Callable[..., batch.Queue], serve: Callable[..., Any], store: str, outputs: Any, tmp_path: Path
) -> None:
    draw = random.Random(11)
    log = tmp_path / "log"
    # So slow that it is not done before it has been killed often enough.
    server = serve(delay=0.03, log=log)
    total, kills, working, end = 20_000, 0, 0, time.monotonic() + 400
    queue = submit(total)
    command = [sys.executable, str(Path(__file__).with_name("runner_process.py")), "--many"]
    many = subprocess.Popen(
        [*command, store, queue.id, server.url, str(SLOTS)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert many.stdin is not None
    assert many.stdout is not None
    size = 0
    try:
        while kills < 50:
            many.stdin.write("\n")
            many.stdin.flush()
            child = int(many.stdout.readline())
            if kills % 5:
                # At work for certain; each fifth may be killed at any moment from its first instruction on.
                while log.stat().st_size == size if log.exists() else True:
                    assert time.monotonic() < end, f"only {kills} kills in time"
                    time.sleep(0.002)
                working += 1
            time.sleep(draw.uniform(0, 0.3) * draw.random())
            os.kill(child, signal.SIGKILL)
            kills += 1
            while psutil.pid_exists(child):
                time.sleep(0.001)
            size = log.stat().st_size if log.exists() else 0
            done = queue.counts().done
            unsettled = len(set(lines(log))) - done
            assert 0 <= unsettled <= UNSETTLED, f"kill {kills}: {unsettled} were asked and have no result"
        assert working == 40
        assert 40 < queue.counts().done < total, "was done before it had been killed fifty times"
        server.control(delay=0.005)
        many.stdin.write("\n")
        many.stdin.flush()
        many.stdout.readline()
        assert many.stdout.readline().split() == ["done", str(total), "0"]
    finally:
        many.kill()
        many.communicate()
    asked = Counter(lines(log))
    assert sum(asked.values()) - len(asked) <= kills * UNSETTLED
    good, bad = outputs(queue)
    assert ([line["custom_id"] for line in good], bad) == ([f"p{i}" for i in range(total)], [])
    assert all(
        line["response"]["body"]["choices"][0]["message"]["content"] == f"re: {line['custom_id']}" for line in good
    )


def test_a_runner_that_is_told_to_stop_finishes_what_is_in_flight_and_asks_nothing_twice(
    submit: Callable[..., batch.Queue], serve: Callable[..., Any], store: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    server = serve(delay=0.1, log=log)
    queue = submit(2000)
    process = start(store, queue.id, server.url)
    while len(lines(log)) < 50:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert queue.counts().done == len(lines(log))
    assert out.split() == ["running", str(queue.counts().ok), "0"]
    server.control(delay=0.005)
    process = start(store, queue.id, server.url)
    assert process.communicate(timeout=120)[0].split() == ["done", "2000", "0"]
    assert Counter(Counter(lines(log)).values()) == {1: 2000}


def test_a_journal_whose_tail_is_torn_loses_only_what_stood_there(
    submit: Callable[..., batch.Queue], serve: Callable[..., Any], store: str, outputs: Any, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    server = serve(delay=0.01, log=log)
    queue = submit(8000)
    queue.close()
    process = start(store, queue.id, server.url)
    while len(lines(log)) < 1500:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    journal = Path(store) / f"{queue.id}.sqlite-wal"
    size = journal.stat().st_size
    assert size > 50_000
    with journal.open("r+b") as file:
        # The end is missing, and what is now the last page is half garbage.
        file.truncate(size * 3 // 4)
        file.seek(size * 3 // 4 - 3000)
        file.write(os.urandom(3000))
    again = batch.open_queue(store, queue.id)
    kept = again.counts().done
    assert 0 < kept < len(lines(log))
    assert len(list(again.results())) == kept
    server.control(delay=0.001)
    process = start(store, queue.id, server.url)
    assert process.communicate(timeout=120)[0].split() == ["done", "8000", "0"]
    assert [line["custom_id"] for line in outputs(again)[0]] == [f"p{i}" for i in range(8000)]


def test_a_file_that_is_damaged_is_said_to_be(submit: Callable[..., batch.Queue], store: str) -> None:
    queue = submit(10)
    queue.close()
    path = Path(store) / f"{queue.id}.sqlite"
    path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])
    with pytest.raises(stacks.TollgateError, match="its beginning is damaged"):
        batch.open_queue(store, queue.id)


def test_a_full_disk_stops_the_asking_and_loses_nothing(
    submit: Callable[..., batch.Queue], serve: Callable[..., Any]
) -> None:
    server = serve(delay=0.002)
    queue = submit(1500)
    connection: sqlite3.Connection = queue.database._connection  # type: ignore[attr-defined]
    [pages] = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages + 8}")
    troubles: list[str] = []
    asked: list[int] = []

    def watch(progress: batch.Progress) -> None:
        if progress.trouble and progress.trouble not in troubles:
            troubles.append(progress.trouble)

    def look() -> bool:
        if troubles and len(asked) < 15:
            asked.append(len(server.asked()))
            time.sleep(0.02)
            if len(asked) == 15:
                # There is room again.
                connection.execute(f"PRAGMA max_page_count={pages + 100_000}")
        return False

    endpoint = batch.EndpointSettings(url=server.url, slots=8, fixed=True)
    ending = batch.run(queue, [endpoint], signals=False, progress=watch, stop=look)
    assert (ending.state, ending.counts.ok) == ("done", 1500)
    assert "full" in troubles[0]
    # Nobody was asked in vain while there was no room for the answers.
    assert asked[7] == asked[14] < 1500
    assert set(server.asked().values()) == {1}


def test_submission_is_whole_or_nothing(store: str, tmp_path: Path) -> None:
    def inputs() -> Any:
        yield batch.Input("a", "/v1/chat/completions", b"{}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.create(store, inputs())
    assert batch.ids(store) == []
    assert list(Path(store).iterdir()) == []


def test_two_runners_share_a_batch_and_ask_nothing_twice(
    submit: Callable[..., batch.Queue], serve: Callable[..., Any], store: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    # Slow until both are there.
    server = serve(delay=0.5, log=log)
    queue = submit(2000)
    both = [start(store, queue.id, server.url) for _ in range(2)]
    while len(queue.runners()) < 2 or server.most() <= SLOTS:
        assert all(process.poll() is None for process in both)
        time.sleep(0.05)
    server.control(delay=0.02)
    found = [process.communicate(timeout=120) for process in both]
    assert [out.split() for out, _ in found] == [["done", "2000", "0"]] * 2, found
    assert Counter(Counter(lines(log)).values()) == {1: 2000}
    # Both were at work: more was in flight than one of them may have.
    assert SLOTS < server.most() <= 2 * SLOTS
