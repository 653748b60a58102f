"""Batches in a bucket: a runner whose disk is gone goes on from its checkpoints, and of two that hold a shard one is told so."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import stacks
from bench import batch
from bench.batch import _files, _objects, _segments, _shard
from tests.waiting import until

ROOT = Path(__file__).parents[3]
SLOTS = 8
_numbers = count(1)

Submit = Callable[..., batch.Queue]
Serve = Callable[..., Any]


@pytest.fixture
def remote(bucket: tuple[Any, str]) -> str:
    """The address of a store that nobody else uses."""
    return f"s3://prompts/store-{next(_numbers)}{bucket[1]}"


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints as often as the runner looks."""
    monkeypatch.setattr(_shard, "_SHIP_SECONDS", 0.0)
    monkeypatch.setattr(_shard, "_ASK_SECONDS", 0.0)


@pytest.fixture
def start(remote: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def runner(name: str, url: str, *more: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            str(Path(__file__).with_name("runner_process.py")),
            remote,
            name,
            url,
            str(SLOTS),
            *more,
        ]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        running.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield runner
    for process in running:
        process.kill()
        process.wait()


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def settings(url: str) -> list[batch.EndpointSettings]:
    return [batch.EndpointSettings(url=url, slots=SLOTS, fixed=True)]


def test_a_runner_whose_machine_is_gone_with_its_disk_loses_only_what_came_after_the_last_checkpoint(
    submit: Submit, serve: Serve, remote: str, start: Callable[..., Any], tmp_path: Path, outputs: Any
) -> None:
    log = tmp_path / "log"
    server = serve(delay=0.02, log=log)
    queue = submit(1200, store=remote)
    process = start(queue.id, server.url)
    until(lambda: batch.open_queue(remote, queue.id).counts().ok > 200)
    process.kill()
    process.communicate()
    known = batch.open_queue(remote, queue.id).counts().ok
    again = len(lines(log)) - known
    assert "nobody works on it" in "\n".join(batch.status_text(batch.status(batch.open_queue(remote, queue.id))))
    ending = batch.run(queue, settings(server.url), signals=False)
    assert (ending.state, ending.counts.ok) == ("done", 1200)
    assert ending.asked <= 1200 - known + 1
    assert sum(Counter(lines(log)).values()) - 1200 <= again + SLOTS
    good, bad = outputs(queue)
    assert ([line["custom_id"] for line in good], bad) == ([f"p{i}" for i in range(1200)], [])
    assert batch.ids(remote) == [queue.id]
    batch.remove(remote, queue.id)
    assert batch.ids(remote) == []


def test_a_runner_that_is_told_to_stop_leaves_everything_in_the_bucket(
    submit: Submit, serve: Serve, remote: str, start: Callable[..., Any], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    server = serve(delay=0.1, log=log)
    queue = submit(1000, store=remote)
    process = start(queue.id, server.url)
    until(lambda: len(lines(log)) >= 30)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=120)[0].split() == ["running", str(len(lines(log))), "0"]
    server.control(delay=0.002)
    ending = batch.run(queue, settings(server.url), signals=False)
    assert (ending.state, ending.counts.ok) == ("done", 1000)
    assert Counter(Counter(lines(log)).values()) == {1: 1000}


def test_shards_are_worked_on_side_by_side_and_read_as_one_in_the_order_of_the_input(
    submit: Submit, serve: Serve, remote: str, start: Callable[..., Any], tmp_path: Path, outputs: Any
) -> None:
    log = tmp_path / "log"
    server = serve(delay=0.005, log=log)
    queue = submit(1000, store=remote, shards=2)
    runners = [start(queue.id, server.url, str(number)) for number in range(3)]
    said = [runner.communicate(timeout=180)[0].split() for runner in runners]
    # The last of them has no shard.
    assert [words[0] for words in said] == ["done"] * 3
    queue = batch.open_queue(remote, queue.id[:8])
    assert (queue.info().state, queue.counts().ok, len(queue.runners())) == ("done", 1000, 0)
    good, bad = outputs(queue)
    assert ([line["custom_id"] for line in good], bad) == ([f"p{i}" for i in range(1000)], [])
    assert Counter(Counter(lines(log)).values()) == {1: 1000}


@pytest.mark.usefixtures("often")
def test_pause_resume_and_asking_failures_again_go_through_the_bucket(
    submit: Submit, serve: Serve, remote: str, outputs: Any
) -> None:
    server = serve(delay=0.01)
    queue = submit([f"{'refuse' if i % 10 == 0 else 'p'} {i}" for i in range(400)], store=remote, shards=2)
    said: list[batch.Progress] = []

    def look(progress: batch.Progress) -> None:
        said.append(progress)
        if len(said) == 1:
            assert batch.open_queue(remote, queue.id).set_state("paused", reason="by hand")
        elif progress.state == "paused":
            batch.open_queue(remote, queue.id).set_state("running")

    ending = batch.run(queue, settings(server.url), batch.RunSettings(tries=1), progress=look, signals=False)
    assert (ending.state, ending.counts.ok, ending.counts.failed) == ("done", 360, 40)
    assert {progress.state for progress in said} == {"running", "paused"}
    assert {progress.part for progress in said} == {"shard 1 of 2", "shard 2 of 2"}
    assert queue.reopen_failed() == 40
    assert (queue.info().state, queue.counts().left) == ("running", 40)
    ending = batch.run(queue, settings(server.url), batch.RunSettings(tries=1), signals=False)
    assert (ending.asked, ending.counts.failed) == (40, 40)
    good, bad = outputs(queue)
    assert (len(good), len(bad)) == (360, 40)
    assert queue.set_state("cancelled") is False


@pytest.mark.usefixtures("often")
def test_of_two_runners_of_one_shard_the_older_is_stopped_and_no_input_has_two_results(
    submit: Submit, serve: Serve, remote: str, outputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So slow that it is at work when it is counted again, a second after its beginning.
    server = serve(delay=0.06)
    queue = submit(300, store=remote)
    found: list[batch.Ending] = []

    def overtake(progress: batch.Progress) -> None:
        if not found and progress.counts.ok:
            # As from another machine that believes this one to be dead.
            other = threading.Thread(target=younger)
            other.start()
            other.join()

    def younger() -> None:
        found.append(batch.run(batch.open_queue(remote, queue.id), settings(server.url), signals=False))

    monkeypatch.setattr("bench.batch._bucketed.Bucketed._await", lambda *_: None)
    with pytest.raises(stacks.TollgateError, match="another runner has taken over"):
        batch.run(queue, settings(server.url), progress=overtake, signals=False)
    assert found[0].counts.ok == 300
    assert queue.info().state == "done"
    good, bad = outputs(queue)
    assert ([line["custom_id"] for line in good], bad) == ([f"p{i}" for i in range(300)], [])


def test_what_an_overtaken_runner_still_says_does_not_count(
    submit: Submit, serve: Serve, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    queue = submit(["refuse", *(f"p {i}" for i in range(19))], store=remote)
    monkeypatch.setattr("bench.batch._bucketed.Bucketed._await", lambda *_: None)

    def reports() -> int:
        return sum("/report" in name for name in _objects.Objects(remote).sizes(f"{queue.id}/"))

    with contextlib.closing(batch.open_queue(remote, queue.id).parts()) as parts:
        older: Any = next(parts)
        ending = batch.run(queue, settings(server.url), batch.RunSettings(tries=1), signals=False)
        assert (ending.state, ending.counts.ok, reports()) == ("done", 19, 1)
        # As every few seconds, while nothing new was answered: so it does not notice that it has been overtaken.
        older._talk(older._about(older._me))
        assert reports() == 2
        again = batch.open_queue(remote, queue.id)
        assert (again.info().state, again.counts().ok, again.runners()) == ("done", 19, [])
    # Whoever takes the shard next deletes what was said before.
    assert again.reopen_failed() == 1
    assert (reports(), again.info().state, again.counts().left) == (1, "running", 1)


def test_a_shard_that_is_run_is_refused_with_who_runs_it(
    submit: Submit, serve: Serve, remote: str, start: Callable[..., Any]
) -> None:
    server = serve(delay=0.5)
    queue = submit(2000, store=remote)
    start(queue.id, server.url)
    until(lambda: bool(queue.runners()))
    with pytest.raises(stacks.TollgateError, match="shard 1 is being run by"):
        batch.run(queue, settings(server.url), signals=False)
    with pytest.raises(stacks.TollgateError, match="pause it first"):
        batch.open_queue(remote, queue.id).reopen_failed()


def outcome(seq: int, error: str = "") -> batch.Outcome:
    return batch.Outcome(seq, 200, error, b'{"a":"\\n\n"}', "http://e", 1.5, 0.25, 1, 2, 3)


def test_many_segments_become_few_and_say_the_same(remote: str) -> None:
    objects = _objects.Objects(remote)
    segments = _segments.Segments(objects, "b/shard-00000/")
    for number in range(150):
        segments.write(_segments.pack([outcome(number)], [], owner="me", reopened=number == 100))
        segments.join()
    assert len(objects.sizes("b/shard-00000/")) == 2 + 150 - 128
    again = _segments.Segments(objects, "b/shard-00000/")
    said = [found for data in again.read() for found in _segments.unpack(data, "x")]
    assert said == [*map(outcome, range(100)), True, *map(outcome, range(100, 150))]
    assert again.next == 150
    # Whoever slept while others wrote is told so, although the number that it would write is free again.
    asleep = _segments.Segments(objects, "b/shard-00000/")
    asleep.next = 3
    with pytest.raises(stacks.TollgateError, match="another runner has taken over"):
        asleep.check()
    objects.delete(["b/shard-00000/00000064-00000127.gz"])
    with pytest.raises(stacks.TollgateError, match="segment 64 is missing"):
        list(again.read())


def test_a_segment_that_is_damaged_is_said_to_be() -> None:
    data = _segments.pack([outcome(1)], [], owner="me")
    with pytest.raises(stacks.TollgateError, match="shard 3: is damaged"):
        list(_segments.unpack(data[:-9], "shard 3"))


@pytest.mark.usefixtures("often")
def test_while_the_bucket_is_away_the_work_goes_on_for_a_while_and_then_waits(
    submit: Submit, serve: Serve, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(delay=0.02)
    queue = submit(1200, store=remote)
    monkeypatch.setattr(_shard, "_AWAY_SECONDS", 0.5)
    create = _objects.Objects.create
    seen: list[str] = []
    end = time.monotonic() + 60

    def away(self: Any, name: str, data: bytes) -> bool:
        # Until the runner has said so.
        if "bucket: is away" not in seen and time.monotonic() < end:
            raise batch.DatabaseTrouble("bucket: is away")
        return create(self, name, data)

    def look(progress: batch.Progress) -> None:
        seen.append(progress.trouble)
        if len(seen) == 1:
            monkeypatch.setattr(_objects.Objects, "create", away)

    ending = batch.run(queue, settings(server.url), progress=look, signals=False)
    assert (ending.state, ending.counts.ok, ending.asked) == ("done", 1200, 1200)
    assert "bucket: is away" in seen
    assert queue.counts().ok == 1200


def test_what_killed_runners_leave_on_a_disk_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "tollgate-batch-killed"
    left.mkdir()
    (left / "lock").touch()
    with _files.scratch() as first, _files.scratch() as second:
        assert sorted(tmp_path.iterdir()) == sorted([first, second])
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_is_there_is_not_overwritten_and_one_that_is_not_is_said_to_be_missing(
    submit: Submit, remote: str
) -> None:
    submit(3, store=remote, id="nightly")
    with pytest.raises(stacks.InputError, match="an id that is not taken"):
        submit(4, store=remote, id="nightly")
    assert batch.open_queue(remote, "night").counts().total == 3
    with pytest.raises(stacks.InputError, match="nightly"):
        batch.open_queue(remote, "weekly")
