"""Several processes are one load generator; raw records; what a sweep finds; traces and files of prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import stacks
from bench import load, matrix, results
from bench.load import Histogram, sweep
from bench.results import Run

Serve = Callable[..., str]
Measured = Callable[..., Any]


def test_two_processes_share_the_users_and_count_every_request_once(
    serve: Serve, measured: Measured, tmp_path: Path
) -> None:
    raw = tmp_path / "raw.jsonl"
    url = serve("--ttft", 0.1, "--itl", 0.02)
    (run,) = measured(url, users=11, workers=2, output_tokens=11.0, raw_file=raw).runs
    assert run.valid, run.invalid_because
    assert run.sent == run.ok + run.failed + run.cut
    assert run.metrics["concurrency_mean"] == pytest.approx(11, rel=0.06)
    assert run.metrics["ttft_p50_seconds"] == pytest.approx(0.1, abs=0.012)
    assert run.client["connections"] == 11
    rows = [json.loads(line) for line in raw.read_text().splitlines()]
    assert sum(row["status"] == "cut" for row in rows) == run.cut
    latencies = sorted(row["end"] - row["scheduled"] for row in rows if row["status"] == "ok")
    merged = Histogram.from_dict(run.histograms["e2e_seconds"])
    assert merged.count == run.ok <= len(latencies)
    assert merged.quantile(0.5) == pytest.approx(latencies[len(latencies) // 2], rel=0.01)


def test_raw_records_are_the_same_as_lines_and_as_parquet(serve: Serve, measured: Measured, tmp_path: Path) -> None:
    import pyarrow.parquet

    url = serve("--ttft", 0.02, "--fault", "503", "--every", 11)
    for name in ("raw.jsonl", "raw.parquet"):
        result = measured(url, runs=2, raw_file=tmp_path / name, seconds=0.3)
        if name == "raw.jsonl":
            rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        else:
            table = pyarrow.parquet.read_table(tmp_path / name)
            assert table.schema.field("first").type == pyarrow.float64()
            rows = table.to_pylist()
        assert {row["run"] for row in rows} == {1, 2}
        assert {row["status"] for row in rows} >= {"ok", "http_503"}
        for number, run in enumerate(result.runs, 1):
            own = [row for row in rows if row["run"] == number and row["status"] == "ok"]
            assert len(own) >= run.ok
            assert all(row["tokens_out"] == 8 and row["scheduled"] <= row["first"] <= row["end"] for row in own)


def test_errors_of_several_processes_are_added_by_kind(serve: Serve, measured: Measured) -> None:
    url = serve("--ttft", 0.02, "--fault", "truncate", "--every", 9)
    (run,) = measured(url, users=8, workers=2).runs
    assert set(run.errors) == {"truncated"}
    assert run.failed == run.errors["truncated"] > 2


def fake(rate: float, capacity: float) -> Run:
    keeps_up = rate <= capacity
    return Run(
        started=datetime.now(UTC), seconds=10, warmup_seconds=0, sent=100, ok=100, failed=0, cut=0,
        metrics={"requests_per_second": min(rate, capacity), "e2e_p95_seconds": 1.0 + rate / capacity,
                 "e2e_mean_seconds": 1.0 / max(0.01, 1 - rate / capacity / 1.1)},
        valid=keeps_up, invalid_because="" if keeps_up else "not representative: latency changed",
    )  # fmt: skip


@pytest.mark.parametrize("capacity", [0.7, 3.3, 18.0, 417.0])
def test_a_sweep_finds_the_capacity_within_its_precision(capacity: float) -> None:
    tried: list[float] = []

    def measure(rate: float) -> Run:
        tried.append(rate)
        return fake(rate, capacity)

    found = sweep(measure, start=4.0, precision=0.05)
    assert found.highest <= capacity <= found.lowest_refused
    assert found.lowest_refused - found.highest <= 0.05 * found.highest
    assert len(tried) < 20


def test_the_knee_is_where_power_is_greatest_and_below_the_limit() -> None:
    # Latency 1 / (1 - rate / 22): rate over latency is greatest at half of that.
    found = sweep(lambda rate: fake(rate, 20.0), start=1.0)
    assert found.knee == pytest.approx(11.0, rel=0.25)
    assert found.knee < found.highest


def test_an_interrupted_sweep_gives_what_it_found() -> None:
    tried: list[float] = []

    def measure(rate: float) -> Run:
        tried.append(rate)
        run = fake(rate, 20.0)
        stopped = {"valid": False, "invalid_because": "interrupted: what was measured until then is reported"}
        return run if len(tried) < 4 else run.model_copy(update=stopped)

    found = sweep(measure, start=1.0)
    assert found.interrupted
    assert (found.highest, len(found.steps), len(tried)) == (4.0, 3, 4)


def test_a_sweep_keeps_the_promises_and_not_only_the_rate() -> None:
    found = sweep(lambda rate: fake(rate, 20.0), start=1.0, objectives=stacks.Objectives(e2e_p95_seconds=1.5))
    assert found.highest == pytest.approx(10.0, rel=0.05)
    assert "e2e_p95_seconds" in next(step.because for step in found.steps if step.because)


def test_a_sweep_whose_client_is_too_slow_finds_nothing_instead_of_something_wrong() -> None:
    bound = fake(1.0, 2.0).model_copy(update={"valid": False, "invalid_because": "client-bound: its event loop"})
    with pytest.raises(stacks.TollgateError, match="client-bound"):
        sweep(lambda _: bound, start=1.0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "own.jsonl",
            '{"time":5,"prompt_tokens":10,"output_tokens":3}\n{"time":6.5,"prompt_tokens":20,"output_tokens":4}\n',
        ),
        (
            "mooncake.jsonl",
            '{"timestamp":5000,"input_length":10,"output_length":3,"hash_ids":[1]}\n'
            '{"timestamp":6500,"input_length":20,"output_length":4,"hash_ids":[2]}\n',
        ),
        (
            "azure.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.0000000,10,3\n2023-11-16 18:17:04.5000000,20,4\n",
        ),
        (
            "burstgpt.csv",
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
            "5,ChatGPT,10,3,13,Conversation log\n5.2,ChatGPT,7,0,7,Conversation log\n6.5,GPT-4,20,4,24,API log\n",
        ),
    ],
)
def test_public_traces_are_read_in_their_own_columns(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    trace = load.read_trace(file)
    assert trace.moments == (0.0, 1.5)
    assert trace.prompt_tokens == (10, 20)
    assert trace.output_tokens == (3, 4)
    assert list(trace.load(speed=2.0).times()) == [0.0, 0.75]
    ask = trace.source(1)(1)
    assert len(ask.content.split()) == 20
    assert ask.output_tokens == 4


def test_prompts_of_a_trace_begin_alike_where_it_says_that_they_did(tmp_path: Path) -> None:
    file = tmp_path / "mooncake.jsonl"
    rows = [([1, 2, 3], 1300), ([1, 2, 4], 1300), ([5], 100), ([], 700)]
    file.write_text(
        "".join(
            json.dumps({"timestamp": 0, "input_length": length, "output_length": 1, "hash_ids": blocks}) + "\n"
            for blocks, length in rows
        )
    )
    source = load.read_trace(file).source(1)
    first, second, short, alone = (source(serial).content.decode().split(" ") for serial in range(4))
    assert [len(prompt) for prompt in (first, second, short, alone)] == [1300, 1300, 100, 700]
    assert first[:1024] == second[:1024]
    assert first[1024:1027] != second[1024:1027]
    # The same request asked again is the same again; one without blocks has a new beginning each time.
    assert source(4).content.decode().split(" ") == first
    assert source(7).content.decode().split(" ")[:3] != alone[:3]


def test_a_trace_that_goes_back_in_time_is_refused_by_line(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"time":5,"prompt_tokens":1,"output_tokens":3}\n{"time":4,"prompt_tokens":1,"output_tokens":3}\n')
    with pytest.raises(stacks.InputError, match="line 2"):
        load.read_trace(file)


def test_a_replay_sends_every_request_of_the_trace_and_ends(serve: Serve, measured: Measured, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    rows = [{"time": i * 0.02, "prompt_tokens": 12, "output_tokens": 3} for i in range(100)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = measured(serve("--ttft", 0.02), scenario=load.Scenario(trace=file, speed=2.0), seconds=30.0).runs
    assert run.seconds < 10.0
    assert run.ok == 100
    assert run.cut == run.failed == 0
    assert run.metrics["input_tokens_mean"] == 12
    assert run.valid, run.invalid_because


def test_dialogues_ask_each_user_turn_with_what_was_said_before(tmp_path: Path) -> None:
    file = tmp_path / "sharegpt.json"
    turns = [("human", "one"), ("gpt", "two"), ("human", 'three "quoted"')]
    file.write_text(json.dumps([{"id": 1, "conversations": [{"from": f, "value": v} for f, v in turns]}]))
    source = load.Conversations(load.read_dialogues(file), [5])
    first, second = json.loads(source(0).content), json.loads(source(1).content)
    assert [m["role"] for m in first] == ["user"]
    assert [m["content"] for m in second] == ["one", "two", 'three "quoted"']


def test_dialogues_of_other_assistants_are_read_and_their_answers_vary_in_length(tmp_path: Path) -> None:
    file = tmp_path / "sharegpt.json"
    turns = [{"from": who, "value": who} for who in ("system", "human", "bard", "user", "chatgpt")]
    file.write_text(json.dumps([{"conversations": turns}]))
    traffic = stacks.Traffic.model_validate(
        {"users": 1, "prompt_tokens": 9.0, "output_tokens": {"mean": 100, "cv": 0.5}}
    )
    source = load.Scenario(prompts=file).sources(traffic, 1, None)(0)
    assert [m["role"] for m in json.loads(source(1).content)] == ["system", "user", "assistant", "user"]
    assert len({source(serial).output_tokens for serial in range(50)}) > 20


@pytest.mark.parametrize("engine", ["ollama", "vllm"])
def test_dialogues_are_served_like_any_other_prompt(
    serve: Serve, measured: Measured, tmp_path: Path, engine: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a b c"}\n{"messages": [{"role": "user", "content": "d e f"}]}\n')
    (run,) = measured(serve("--ttft", 0.02), engine, scenario=load.Scenario(prompts=file)).runs
    assert run.valid, run.invalid_because
    assert run.metrics["input_tokens_mean"] == 3


def test_a_shared_prefix_is_shared_within_its_group_and_nothing_else_is() -> None:
    traffic = stacks.Traffic.model_validate({"users": 1, "prompt_tokens": 100.0, "output_tokens": 1.0})
    source = load.SharedPrefix(traffic, 1, prefix_tokens=60, groups=2)
    prompts = [source(i).content.decode().split(" ") for i in range(4)]
    assert {len(prompt) for prompt in prompts} == {100}
    assert prompts[0][:60] == prompts[2][:60] != prompts[1][:60]
    assert prompts[0][60:63] != prompts[2][60:63]
    assert math.isclose(source(0).prompt_tokens, 100)


def test_the_traffic_s_own_prefix_is_shared_by_as_many_requests_as_it_says() -> None:
    asked = {"users": 1, "prompt_tokens": 100.0, "output_tokens": 1.0, "prefix": {"tokens": 60, "hit_rate": 0.75}}
    traffic = stacks.Traffic.model_validate(asked)
    source = load.Scenario().sources(traffic, 1, None)(0)
    begins = [b" ".join(source(i).content.split(b" ")[:60]) for i in range(400)]
    common = max(set(begins), key=begins.count)
    assert begins.count(common) == pytest.approx(300, abs=3)
    assert len(set(begins)) == 401 - begins.count(common)


def test_prompts_with_a_shared_prefix_are_as_long_as_the_traffic_says_and_fit_the_context() -> None:
    asked = {
        "users": 1, "prompt_tokens": {"mean": 100, "cv": 0.8}, "output_tokens": {"mean": 50, "cv": 0.5},
        "prefix": {"tokens": 60, "hit_rate": 1.0},
    }  # fmt: skip
    traffic = stacks.Traffic.model_validate(asked)
    source = load.Scenario().sources(traffic, 1, 160)(0)
    asks = [source(serial) for serial in range(2000)]
    lengths = [len(ask.content.split(b" ")) for ask in asks]
    assert lengths == [ask.prompt_tokens for ask in asks]
    assert max(ask.prompt_tokens + ask.output_tokens for ask in asks) <= 160
    unbound = load.Scenario().sources(traffic, 1, None)(0)
    free = [unbound(serial).prompt_tokens for serial in range(4096)]
    assert sum(free) / len(free) == pytest.approx(100, rel=0.01)
    common = asks[lengths.index(max(lengths))].content.split(b" ")[:60]
    assert all(ask.content.split(b" ")[:20] == common[:20] for ask in asks if ask.prompt_tokens > 20)


def test_conversations_drop_their_oldest_turns_where_the_context_is_full() -> None:
    traffic = stacks.Traffic.model_validate({"users": 2, "prompt_tokens": 100.0, "output_tokens": 50.0})
    source = load.Scenario(turns=8).sources(traffic, 1, 300)(0)
    asks = [source(serial) for serial in range(16)]
    assert all(ask.prompt_tokens + ask.output_tokens <= 300 for ask in asks)
    last = json.loads(asks[-1].content)
    assert last[-1]["role"] == last[0]["role"] == "user"
    assert sum(len(message["content"].split(" ")) for message in last) == asks[-1].prompt_tokens
    assert len(last) > 1


def test_a_service_that_answers_from_what_it_saved_up_is_called_out(serve: Serve, measured: Measured) -> None:
    # Twenty answers at once, then four at a time each 0.15 s: the case of 14.65 requests/s on 20 against 1.3 sustained.
    url = serve("--ttft", 0.002, "--fast", 5, "--then", 0.15)
    scenario = load.Scenario(requests=84)
    result = measured(url, users=4, output_tokens=1.0, scenario=scenario, seconds=30.0)
    (run,) = result.runs
    assert run.metrics["first_20_requests_per_second"] > 3 * run.metrics["sustained_requests_per_second"]
    assert run.metrics["sustained_requests_per_second"] < 1.15 * 4 / 0.15
    # Whether this machine had the time to be believed is another matter.
    cell = results.Cell(batch=84, workers=4, run=run.model_copy(update={"valid": True}))
    sample = matrix.sample_of(cell)
    assert sample is not None
    found = matrix.analyse([sample], forecasts=(50_000,))
    assert found is not None
    assert any("a small sample flatters: the first 20 requests with 4 workers" in text for text in found.warnings)
    # And what is promised for a large batch is what was sustained.
    assert found.forecasts[0].seconds == pytest.approx(50_000 / sample.rate, rel=0.01)
