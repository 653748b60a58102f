"""Several machines are one load generator: they begin together, lose nothing, and what they hand over survives the log."""

from __future__ import annotations

import json
import multiprocessing
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stacks
from bench import job, load, pods
from bench.load import Part, Span
from bench.load._part import part_of
from bench.load._recorder import CUT, OK, Records, pack_row
from bench.results import Result, Run

Serve = Callable[..., str]
TOKEN = "0123456789abcdef"


def shares(url: str, of: int, **traffic: Any) -> list[load.Share]:
    asked = {"users": 5, "prompt_tokens": 16.0, "output_tokens": 4.0, **traffic}
    return [
        load.Share(
            target=load.Target(url=url, engine="ollama", model="tiny"),
            traffic=stacks.Traffic.model_validate(asked),
            scenario=load.Scenario(),
            settings=load.Settings(runs=2, seconds=0.8, ready_timeout=5.0),
            objectives=None,
            index=index,
            of=of,
        )
        for index in range(of)
    ]


def measure(share: load.Share, crews: load.Crews) -> Result:
    return load.run(
        share.target, share.traffic, share.settings, release="sha256:" + "0" * 64, stack="test", crews=crews,
    )  # fmt: skip


def test_three_of_them_send_what_one_would_and_every_request_is_counted_once(serve: Serve) -> None:
    wanted = shares(serve("--ttft", 0.05, "--itl", 0.01), 3, users=7)
    gathering = load.Gathering(("127.0.0.1", 0), TOKEN, 3, patience=30.0)
    context = multiprocessing.get_context("spawn")
    address = ("127.0.0.1", gathering.port)
    workers = [context.Process(target=load.work, args=(address, TOKEN, share), daemon=True) for share in wanted]
    for worker in workers:
        worker.start()
    try:
        with gathering:
            result = measure(wanted[0], gathering.crews)
    finally:
        for worker in workers:
            worker.join(10.0)
            ended = worker.exitcode
            worker.kill()
            assert ended == 0
    assert len(result.runs) == 2
    for run in result.runs:
        assert run.sent == run.ok + run.failed + run.cut
        assert run.failed == 0
        assert run.metrics["concurrency_mean"] == pytest.approx(7, rel=0.1)
        assert run.metrics["ttft_p50_seconds"] == pytest.approx(0.05, abs=0.015)
        assert run.client["connections"] == 7
        assert load.Histogram.from_dict(run.histograms["e2e_seconds"]).count == run.ok


def test_one_that_goes_away_makes_the_run_count_for_nothing(serve: Serve) -> None:
    (share,) = shares(serve("--ttft", 0.05), 1)
    gathering = load.Gathering(("127.0.0.1", 0), TOKEN, 1, patience=10.0)

    def leave() -> None:
        with socket.create_connection(("127.0.0.1", gathering.port)) as connection:
            line = connection.makefile("rwb")
            line.write(json.dumps({"token": TOKEN, "index": 0}).encode() + b"\n")
            line.flush()
            while b"ping" in line.readline():
                line.write(b'{"now": 1.0}\n')
                line.flush()

    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    with gathering, pytest.raises(stacks.TollgateError, match="load generator 0 is gone"):
        measure(share, gathering.crews)
    thread.join(5.0)


def test_whoever_does_not_know_the_token_is_not_let_in() -> None:
    gathering = load.Gathering(("127.0.0.1", 0), TOKEN, 1, patience=0.7)
    with socket.create_connection(("127.0.0.1", gathering.port)) as stranger:
        stranger.sendall(b'{"token": "wrong", "index": 0}\n')
        with pytest.raises(stacks.TollgateError, match="0 of 1 load generators came"):
            gathering.__enter__()
        assert stranger.recv(10) == b""


def records(seed: int) -> Records:
    """A few thousand requests of a made-up process."""
    dice = np.random.default_rng(seed)
    made = Records()
    for number in range(3000):
        sent = 100.0 + float(dice.uniform(0, 30))
        first, end = sent + float(dice.lognormal(-3, 0.4)), sent + float(dice.lognormal(-0.5, 0.6)) + 1.0
        status = CUT if number % 97 == 0 else made.status_of(f"http_{500 + seed % 3}") if number % 31 == 0 else OK
        gaps = [float(gap) for gap in dice.lognormal(-4, 0.2, 3)] if status == OK else []
        made.gaps.extend(gaps)
        made.rows += pack_row(
            sent, sent, first, first + sum(gaps), end, 16, 4, len(gaps) + 1, len(gaps), 0, status, 0, 0.01, 3
        )
    return made


def test_eight_parts_through_json_are_the_part_of_all_records_together() -> None:
    span = Span(began=100.0, start=5.0, end=25.0)
    promised = stacks.Objectives(e2e_p95_seconds=2.0)
    whole = Records()
    merged: Part | None = None
    for seed in range(8):
        own = records(seed)
        part = Part.from_dict(json.loads(json.dumps(part_of(own, span, promised).to_dict())))
        whole.merge(own)
        if merged is None:
            merged = part
        else:
            merged.merge(part)
    assert merged is not None
    once = part_of(whole, span, promised)
    assert {k: v for k, v in merged.counts.items() if k != "busy_seconds"} == {
        k: v for k, v in once.counts.items() if k != "busy_seconds"
    }
    assert merged.counts["busy_seconds"] == pytest.approx(once.counts["busy_seconds"])
    assert merged.errors == once.errors
    for name, histogram in once.families.items():
        assert json.dumps(merged.families[name].to_dict()) == json.dumps(histogram.to_dict())
    exact = np.sort(once.exact["e2e_seconds"])  # type: ignore[index]
    for share in (0.5, 0.95, 0.99):
        raw = exact[int(np.ceil(share * len(exact))) - 1]
        assert merged.families["e2e_seconds"].quantile(share) == pytest.approx(raw, rel=0.01)


def result(size: int = 3) -> Result:
    run = Run(
        started=datetime(2026, 1, 2, tzinfo=UTC), seconds=2.0, warmup_seconds=1.0, sent=1, ok=1, failed=0, cut=0,
        metrics={f"m{n}": float(np.random.default_rng(n).random()) for n in range(size * 500)}, valid=True,
    )  # fmt: skip
    return Result(
        release="sha256:" + "0" * 64, stack="s", url="http://h", replicas=1, runs=(run,), tool_version="0",
        traffic=stacks.Traffic(users=5, prompt_tokens=stacks.Tokens(mean=1), output_tokens=stacks.Tokens(mean=1)),
    )  # fmt: skip


def test_a_result_survives_the_log_in_pieces_and_damage_is_noticed() -> None:
    lines = list(job.pieces(result().model_dump_json()))
    assert len(lines) > 2
    assert max(map(len, lines)) < 16_000
    taken = job.Pieces()
    for line in lines[:-1]:
        taken.take(line)
        assert taken.result() is None
    taken.take(lines[-1])
    assert taken.result() == result()
    broken = job.Pieces()
    for line in [lines[0][:-9] + "AAAAAAAA" + lines[0][-1], *lines[1:]]:
        broken.take(line)
    with pytest.raises(stacks.TollgateError, match="damaged"):
        broken.result()


def test_progress_goes_through_a_line_and_unknown_stays_unknown() -> None:
    now = load.Progress(phase="warm-up", run=1, runs=2, elapsed=1.0, eta=3.0, rate=4.5, errors={"http_503": 2})
    said: list[str] = []
    job._together.teller(said.append)(now)
    back = job.progress_of(said[0])
    assert (back.rate, back.errors, back.phase) == (4.5, {"http_503": 2}, "warm-up")
    assert back.ttft_p50 != back.ttft_p50


def test_the_objects_of_a_load_carry_no_secret_outside_of_the_secret_and_spread_over_machines(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"time": 0, "prompt_tokens": 1, "output_tokens": 1}\n')
    config = job.JobConfig.model_validate(
        {
            "url": "http://engine.a.svc", "engine": "vllm", "model": "m", "stack": "s", "pods": 4,
            "release": "sha256:" + "0" * 64, "coordinator": "10.0.0.1:8765", "token": TOKEN, "api_key": "sesame",
            "traffic": {"users": 1, "prompt_tokens": 1, "output_tokens": 1}, "scenario": {"trace": str(trace)},
        }
    )  # fmt: skip
    inside, files = pods._job.inside(config)
    assert inside.scenario.trace == Path("/etc/tollgate/trace.jsonl")
    kept = pods.secret("load-1", inside, files)
    assert set(kept["data"]) == {"bench.json", "trace.jsonl"}
    made = pods.job("load-1", 4, 600, cpu=2)
    text = json.dumps([made, pods.service("load-1")])
    assert "sesame" not in text
    assert TOKEN not in text
    spec = made["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (
        "Indexed",
        4,
        4,
        0,
    )
    assert spec["template"]["spec"]["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"
    assert pods.service("load-1")["spec"]["selector"]["batch.kubernetes.io/job-completion-index"] == "0"


def test_several_pods_without_a_token_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(
        json.dumps(
            {
                "url": "http://h", "engine": "vllm", "model": "m", "stack": "s", "pods": 2, "coordinator": "h:1",
                "release": "sha256:" + "0" * 64, "traffic": {"users": 1, "prompt_tokens": 1, "output_tokens": 1},
            }
        )
    )  # fmt: skip
    with pytest.raises(stacks.InputError, match="token of at least 16"):
        job.load(file)
