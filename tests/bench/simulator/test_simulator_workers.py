"""Several processes that are one server: one engine's slots, queue, blocks, models and numbers."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import ollama as official
import psutil
import pytest

from bench.simulator._share import BLOCKS, Board


def post(served: Any, path: str = "/v1/chat/completions", **body: Any) -> httpx2.Response:
    """On a connection of its own, so that the kernel chooses a worker."""
    base: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "ignore_eos": True}
    return httpx2.post(served.url + path, json=base | body, timeout=20, verify=False)


def answered(served: Any) -> bool:
    try:
        return post(served, max_tokens=4).status_code == 200
    except httpx2.HTTPError:
        return False


def gauge(served: Any, name: str) -> float:
    text = httpx2.get(served.url + "/metrics", verify=False).text
    line = next(line for line in text.splitlines() if line.startswith(f"vllm:{name}{{"))
    return float(line.rpartition(" ")[2])


def test_slots_are_those_of_one_engine_and_a_free_one_goes_to_whoever_waits(serve: Callable[..., Any]) -> None:
    served = serve(
        "vllm", "tiny", "--max-num-seqs", "2", TOLLGATE_SIM_TTFT="0", TOLLGATE_SIM_ITL="50ms", TOLLGATE_SIM_WORKERS="3"
    )
    begun = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(post, served, max_tokens=21) for _ in range(8)]
        running = [gauge(served, "num_requests_running")]
        while not all(one.done() for one in done):
            running.append(gauge(served, "num_requests_running"))
        assert [one.result().status_code for one in done] == [200] * 8
    taken = time.monotonic() - begun
    # Eight answers of a second by two slots, however the kernel spread them. A lost wake-up would leave one waiting until
    # its client gives up.
    assert max(running) == 2
    assert taken >= 3.95
    assert gauge(served, "num_requests_running") == 0
    assert gauge(served, "request_success_total") + gauge(served, "e2e_request_latency_seconds_count") >= 8


def test_the_batch_of_all_workers_decides_how_long_a_step_takes(serve: Callable[..., Any]) -> None:
    spans = []
    for workers in ("1", "3"):
        served = serve(
            "vllm", "gemma-3-4b-it", "--max-num-seqs", "8", "--max-model-len", "2048", TOLLGATE_SIM_WORKERS=workers,
            TOLLGATE_SIM_SPEED="6", TOLLGATE_ACCELERATOR="nvidia-l4",
        )  # fmt: skip
        with ThreadPoolExecutor(16) as pool:

            def ask(number: int, target: Any = served) -> int:
                said = [{"role": "user", "content": f"w{number} a b c"}]
                return post(target, model="gemma-3-4b-it", max_tokens=100, messages=said).status_code

            assert list(pool.map(ask, range(48))) == [200] * 48
        # By the engine's own clock, which does not mind a busy machine.
        spans.append(gauge(served, "request_decode_time_seconds_sum"))
        served.stop()
    assert spans[1] == pytest.approx(spans[0], rel=0.25)


def test_a_prompt_that_one_worker_has_seen_is_cached_for_all(serve: Callable[..., Any]) -> None:
    served = serve(
        "vllm", "gemma-3-4b-it", "--max-model-len", "2048", TOLLGATE_SIM_WORKERS="3", TOLLGATE_SIM_SPEED="50",
        TOLLGATE_ACCELERATOR="nvidia-l4",
    )  # fmt: skip
    said = [{"role": "user", "content": " ".join(f"w{at:04d}" for at in range(640))}]
    other = [{"role": "user", "content": " ".join(f"x{at:04d}" for at in range(640))}]
    for messages in (said, said, said, said, said, said, other):
        assert post(served, model="gemma-3-4b-it", max_tokens=1, messages=messages).status_code == 200
    assert gauge(served, "prefix_cache_queries_total") == 7 * 640
    # Whole blocks, and never all of a prompt.
    assert gauge(served, "prefix_cache_hits_total") == 5 * 624


def test_the_queue_limit_of_vllm_counts_all_workers_and_is_told_by_the_metrics(
    serve: Callable[..., Any], hold: Callable[..., None], eventually: Callable[..., None]
) -> None:
    served = serve(
        "vllm", "tiny", "--max-num-seqs", "2", "--max-num-queued-reqs", "4", TOLLGATE_SIM_TTFT="60s",
        TOLLGATE_SIM_WORKERS="2",
    )  # fmt: skip
    for there in range(4):
        hold(served, "/v1/completions", b'{"model":"tiny","prompt":"x"}')
        eventually(
            lambda: gauge(served, "num_requests_running") + gauge(served, "num_requests_waiting") == there + 1  # noqa: B023
        )
    answers = [post(served, max_tokens=2) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [503] * 6
    error = answers[0].json()["error"]
    assert (error["type"], error["code"]) == ("ServiceUnavailableError", 503)
    assert "max_num_queued_reqs" in error["message"]
    text = httpx2.get(served.url + "/metrics").text
    assert 'vllm:admission_rejections_total{model_name="tiny",reason="max_num_queued_reqs"} 6.0' in text


def test_a_prompt_backlog_above_the_limit_is_refused(
    serve: Callable[..., Any], hold: Callable[..., None], eventually: Callable[..., None]
) -> None:
    served = serve("vllm", "tiny", "--max-num-queued-tokens", "50", TOLLGATE_SIM_TTFT="2s", TOLLGATE_SIM_ITL="60s")
    prompt = " ".join(["able"] * 60)
    hold(served, "/v1/completions", b'{"model":"tiny","prompt":"%b","max_tokens":9}' % prompt.encode())
    eventually(lambda: gauge(served, "num_requests_running") == 1)
    assert post(served, max_tokens=1).status_code == 503
    eventually(lambda: gauge(served, "time_to_first_token_seconds_count") == 1)
    # The first has its first token: its prompt is no backlog any more.
    assert post(served, max_tokens=1).status_code == 200


def test_models_are_those_of_one_server(serve: Callable[..., Any], eventually: Callable[..., None]) -> None:
    served = serve(
        "ollama", OLLAMA_NUM_PARALLEL="2", TOLLGATE_SIM_WORKERS="3", TOLLGATE_SIM_LOAD_SECONDS="0.2",
        TOLLGATE_SIM_TTFT="1ms", TOLLGATE_SIM_SPEED="1",
    )  # fmt: skip

    def seen(path: str) -> set[tuple[str, ...]]:
        answers = (httpx2.get(served.url + path).json()["models"] for _ in range(12))
        return {tuple(model["name"] for model in models) for models in answers}

    client = official.Client(host=served.url)
    client.pull("tiny:1b")
    eventually(lambda: seen("/api/tags") == {("tiny:1b",)})
    assert client.generate(model="tiny:1b", prompt="x", options={"num_predict": 1}, keep_alive=60).done
    eventually(lambda: seen("/api/ps") == {("tiny:1b",)})
    expiries = {httpx2.get(served.url + "/api/ps").json()["models"][0]["expires_at"][:16] for _ in range(12)}
    assert len(expiries) <= 2
    client.generate(model="tiny:1b", prompt="", keep_alive=0)
    eventually(lambda: seen("/api/ps") == {()})
    client.copy("tiny:1b", "other")
    client.delete("tiny:1b")
    eventually(lambda: seen("/api/tags") == {("other:latest",)})


def listens(served: Any) -> bool:
    try:
        with socket.create_connection((served.host, served.port), timeout=1):
            return True
    except OSError:
        return False


def healthy(served: Any) -> bool:
    try:
        return httpx2.get(served.url + "/health").status_code == 200
    except httpx2.HTTPError:
        return False


def test_an_out_of_memory_kill_ends_all_and_a_restart_brings_all_back(
    serve: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    served = serve(
        "vllm", "tiny", TOLLGATE_SIM_TTFT="1ms", TOLLGATE_SIM_ITL="1ms", TOLLGATE_SIM_FAULTS="oom=0.05",
        TOLLGATE_SIM_RESTART="3s", TOLLGATE_SIM_WORKERS="2",
    )  # fmt: skip
    first = {child.pid for child in psutil.Process(served.process.pid).children()}
    assert not all(answered(served) for _ in range(500))
    eventually(lambda: not listens(served))
    eventually(lambda: healthy(served))
    assert served.process.poll() is None
    second = {child.pid for child in psutil.Process(served.process.pid).children()}
    assert len(second) == 2
    assert not first & second
    assert served.stop() == 0


def test_a_lone_worker_can_come_back_too_and_without_a_restart_the_status_is_137(
    serve: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    served = serve("vllm", "tiny", TOLLGATE_SIM_TTFT="0", TOLLGATE_SIM_FAULTS="oom=1", TOLLGATE_SIM_RESTART="50ms")
    for _ in range(2):
        with pytest.raises(httpx2.HTTPError):
            post(served, max_tokens=2)
        eventually(lambda: healthy(served))
    both = serve("vllm", "tiny", TOLLGATE_SIM_TTFT="0", TOLLGATE_SIM_FAULTS="oom=1", TOLLGATE_SIM_WORKERS="2")
    with pytest.raises(httpx2.HTTPError):
        post(both, max_tokens=2)
    assert both.process.wait(30) == 137


def test_workers_drain_together(serve: Callable[..., Any]) -> None:
    served = serve("vllm", "tiny", TOLLGATE_SIM_TTFT="1ms", TOLLGATE_SIM_ITL="20ms", TOLLGATE_SIM_WORKERS="2")
    # The longer the answers, the surer that all run at once on a busy machine.
    body = {"model": "tiny", "prompt": "x", "max_tokens": 120, "ignore_eos": True}
    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(httpx2.post, served.url + "/v1/completions", json=body, timeout=20) for _ in range(6)]
        deadline = time.monotonic() + 30
        while gauge(served, "num_requests_running") < 6:
            assert time.monotonic() < deadline
        served.process.send_signal(signal.SIGTERM)
        assert [one.result().json()["usage"]["completion_tokens"] for one in done] == [120] * 6
    assert served.process.wait(30) == 0


def test_a_board_counts_slots_across_forks_and_sums_what_workers_tell() -> None:
    board = Board(2, 3)
    child = os.fork()
    if child == 0:
        board.become(1)
        pool = board.pool("m")
        taken = sum(pool.take() for _ in range(2))
        board.put(BLOCKS, 7.0)
        os._exit(0 if taken == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    board.become(0)
    pool = board.pool("m")
    assert pool.free() == 1
    assert [pool.take(), pool.take()] == [True, False]
    assert board.pool("other").free() == 3
    board.put(BLOCKS, 2.0)
    assert board.others(BLOCKS) == 7.0
    pool.give()
    assert pool.free() == 1
    board.close()


def test_numbers_of_all_workers_are_summed_in_ollamas_exporter_too(serve: Callable[..., Any]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    served = serve(
        "ollama", TOLLGATE_SIM_MODELS="gemma3:4b", TOLLGATE_SIM_LOAD_SECONDS="0", TOLLGATE_SIM_TTFT="1ms",
        TOLLGATE_SIM_METRICS_PORT=str(port), TOLLGATE_SIM_WORKERS="3",
    )  # fmt: skip
    body = json.dumps({"model": "gemma3:4b", "prompt": "a b c", "stream": False, "options": {"num_predict": 5}})
    for _ in range(12):
        assert httpx2.post(served.url + "/api/generate", content=body.encode()).json()["eval_count"] == 5
    text = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
    assert 'ollama:generation_tokens_total{engine="0",model_name="gemma3:4b"} 60.0' in text


def test_what_runs_is_what_holds_a_slot_of_any_model() -> None:
    board = Board(2, 3)
    one, other = board.pool("one"), board.pool("other")
    assert board.running() == 0
    assert one.take()
    assert one.take()
    assert other.take()
    assert board.running() == 3
    one.give()
    assert board.running() == 2
    board.close()
