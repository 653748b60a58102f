"""Whole benchmarks against a server of exact timing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

import stacks
from bench.load import Costs, Histogram, Progress, Stopper

Serve = Callable[..., str]
Measured = Callable[..., Any]


def consistent(run: Any) -> None:
    assert run.sent == run.ok + run.failed + run.cut
    assert sum(run.errors.values()) == run.failed
    assert all(math.isfinite(value) for value in run.metrics.values())


@pytest.mark.parametrize("engine", ["ollama", "vllm"])
@pytest.mark.parametrize("endpoint", ["chat", "generate"])
def test_first_token_gaps_and_tokens_are_what_the_server_does(
    serve: Serve, measured: Measured, engine: str, endpoint: str
) -> None:
    url = serve("--ttft", 0.1, "--itl", 0.02)
    result = measured(url, engine, users=15, endpoint=endpoint, output_tokens=11.0, seconds=0.8)
    (run,) = result.runs
    consistent(run)
    assert run.valid, run.invalid_because
    assert run.errors == {}
    # As sharp as it must be to see one token too many or too few; how exact it is, `benchmarks/load.py` says.
    assert run.metrics["ttft_p50_seconds"] == pytest.approx(0.100, abs=0.012)
    assert run.metrics["itl_mean_seconds"] == pytest.approx(0.020, abs=0.0012)
    assert run.metrics["itl_p50_seconds"] == pytest.approx(0.020, abs=0.002)
    assert run.metrics["tpot_mean_seconds"] == pytest.approx(0.020, abs=0.0012)
    assert run.metrics["e2e_p50_seconds"] == pytest.approx(0.300, abs=0.014)
    assert run.metrics["output_tokens_mean"] == 11
    assert run.metrics["input_tokens_mean"] == 16
    assert run.metrics["requests_per_second"] == pytest.approx(15 / 0.301, rel=0.25)
    assert run.metrics["concurrency_mean"] == pytest.approx(15, rel=0.06)
    assert Histogram.from_dict(run.histograms["itl_seconds"]).count == 10 * run.ok


@pytest.mark.parametrize("engine", ["ollama", "vllm"])
def test_without_streaming_there_is_no_first_token(serve: Serve, measured: Measured, engine: str) -> None:
    url = serve("--ttft", 0.1, "--itl", 0.01)
    (run,) = measured(url, engine, users=10, stream=False, output_tokens=11.0).runs
    consistent(run)
    assert run.valid, run.invalid_because
    assert run.metrics["e2e_p50_seconds"] == pytest.approx(0.2, abs=0.02)
    assert run.metrics["output_tokens_mean"] == 11
    assert not [name for name in run.metrics if name.startswith(("ttft", "itl", "tpot"))]


def test_fifty_users_on_five_slots_queue_and_warm_up_is_as_long_as_the_queue_takes(
    serve: Serve, measured: Measured
) -> None:
    # Service time 0.2 s: 25 req/s, and a user waits 50 / 25 = 2 s.
    url = serve("--ttft", 0.1, "--itl", 0.01, "--slots", 5)
    (run,) = measured(url, users=50, output_tokens=11.0, seconds=2.0).runs
    consistent(run)
    assert run.valid, run.invalid_because
    assert run.warmup_seconds >= 1.8
    assert run.metrics["requests_per_second"] == pytest.approx(25, rel=0.2)
    assert run.metrics["e2e_p50_seconds"] == pytest.approx(2.0, rel=0.2)
    assert run.metrics["queue_mean_seconds"] < 0.2


def test_poisson_arrivals_are_timed_from_their_schedule(serve: Serve, measured: Measured) -> None:
    url = serve("--ttft", 0.02, "--itl", 0.005)
    (run,) = measured(url, arrival="poisson", users=None, requests_per_second=80.0, seconds=2.5).runs
    consistent(run)
    assert run.valid, run.invalid_because
    assert run.metrics["requests_per_second"] == pytest.approx(80, rel=0.25)
    assert run.metrics["ttft_p50_seconds"] == pytest.approx(0.020, abs=0.008)
    assert run.client["schedule_lag_p99_seconds"] < 0.2


def test_an_open_loop_above_capacity_is_not_called_steady(serve: Serve, measured: Measured) -> None:
    url = serve("--ttft", 0.1, "--slots", 2)
    (run,) = measured(url, arrival="constant", users=None, requests_per_second=40.0, output_tokens=1.0).runs
    consistent(run)
    assert not run.valid
    assert "not representative" in run.invalid_because
    # What was waiting is cut and said to be, not forgotten.
    assert run.cut > 20


def test_a_new_connection_for_every_request_when_asked(serve: Serve, measured: Measured) -> None:
    url = serve("--ttft", 0.02)
    (run,) = measured(url, reconnect=True).runs
    consistent(run)
    assert run.valid, run.invalid_because
    assert run.client["connections"] >= run.ok
    (kept,) = measured(url, reconnect=False).runs
    assert kept.client["connections"] == 5


def test_a_server_that_closes_after_each_reply_costs_no_request(serve: Serve, measured: Measured) -> None:
    (run,) = measured(serve("--ttft", 0.02, "--close")).runs
    consistent(run)
    assert run.failed == 0
    assert run.ok > 50


def test_goodput_counts_the_requests_that_kept_every_promise_and_cost_is_per_token(
    serve: Serve, measured: Measured
) -> None:
    url = serve("--ttft", 0.05, "--itl", 0.01)
    kept = Costs(objectives=stacks.Objectives(ttft_p95_seconds=0.5, e2e_p95_seconds=2.0), per_hour_usd=7.2)
    missed = Costs(objectives=stacks.Objectives(e2e_p95_seconds=0.01))
    (run,) = measured(url, costs=kept).runs
    assert run.metrics["goodput"] == pytest.approx(1.0, abs=0.05)
    per_second = run.metrics["output_tokens_per_second"]
    assert run.metrics["cost_per_million_tokens_usd"] == pytest.approx(7.2 / 3600 / per_second * 1e6)
    (run,) = measured(url, costs=missed).runs
    assert run.metrics["goodput"] == 0.0
    assert run.metrics["error_rate"] == 0.0


def test_a_run_of_which_hardly_a_request_ends_is_not_representative(serve: Serve, measured: Measured) -> None:
    (run,) = measured(serve("--ttft", 0.4), users=1, seconds=0.3).runs
    consistent(run)
    assert not run.valid
    assert "not representative" in run.invalid_because


def test_a_stopped_benchmark_keeps_what_it_has_and_says_so(serve: Serve, measured: Measured) -> None:
    stopper = Stopper()

    def progress(now: Progress) -> None:
        if now.ok > 20:
            stopper.stop()

    result = measured(serve("--ttft", 0.05), progress=progress, stopper=stopper, runs=3, seconds=20.0)
    (run,) = result.runs
    consistent(run)
    assert not run.valid
    assert "interrupted" in run.invalid_because
    assert run.ok > 10
    assert "ttft_p50_seconds" in run.metrics


@pytest.mark.parametrize("engine", ["ollama", "vllm"])
def test_answers_without_a_word_are_counted_apart_and_many_of_them_make_a_run_invalid(
    serve: Serve, measured: Measured, engine: str
) -> None:
    (run,) = measured(serve("--ttft", 0.02, "--fault", "empty", "--every", 20), engine, output_tokens=2.0).runs
    consistent(run)
    assert run.valid, run.invalid_because
    assert run.failed == 0
    assert run.metrics["empty_answer_rate"] == pytest.approx(0.05, abs=0.02)
    # An empty answer has no first token: one counted as at once would bring the mean below what each takes.
    assert 0.0198 <= run.metrics["ttft_mean_seconds"] <= 0.2
    (run,) = measured(serve("--ttft", 0.02, "--fault", "empty", "--every", 2), engine, output_tokens=2.0).runs
    assert "of the answers had no word in them" in run.invalid_because


def test_progress_tells_phase_rate_and_time_left(serve: Serve, measured: Measured) -> None:
    seen: list[Progress] = []

    def progress(now: Progress) -> None:
        if now.phase == "probe":
            # Another attempt, on a machine that was too busy for the one before.
            seen.clear()
        seen.append(now)

    measured(serve("--ttft", 0.05), progress=progress, runs=2)
    assert seen[0].phase == "probe"
    assert {now.run for now in seen[1:]} == {1, 2}
    assert seen[-1].phase == "measuring"
    assert seen[-1].rate == pytest.approx(5 / 0.0505, rel=0.4)
    assert seen[-1].eta < 1.0 < seen[1].eta


def test_what_the_server_says_of_itself_is_kept(serve: Serve, measured: Measured) -> None:
    url = serve("--ttft", 0.02)
    assert measured(url, "ollama").server == {
        "engine": "ollama",
        "model": "tiny",
        "version": "0.0.1",
        "context_tokens": 2048,
    }
    assert measured(url, "vllm").server["num_gpu_blocks"] == 7


def test_an_open_loop_that_may_open_no_more_connections_says_so_and_loses_no_request(
    serve: Serve, measured: Measured
) -> None:
    url = serve("--ttft", 0.3, "--itl", 0.001)
    (run,) = measured(url, arrival="constant", users=None, requests_per_second=60.0, seconds=1.0, max_open=5).runs
    consistent(run)
    assert run.errors["client_limit"] > 0
    assert run.ok > 0
    assert run.invalid_because == "client-bound: the client could open no more connections"
