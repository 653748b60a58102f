"""The server's side of a run: from Prometheus, from the engine itself, and never at the price of the run."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

import stacks
from bench import load
from bench.load._observe import _grown
from bench.results import Run

Serve = Callable[..., str]
Measured = Callable[..., Any]


class Fake(http.server.BaseHTTPRequestHandler):
    """Answers range queries by what stands in `values` for a word of the query."""

    values: ClassVar[dict[str, Callable[[float], str]]] = {}
    asked: ClassVar[list[dict[str, str]]] = []
    broken: ClassVar[bool] = False

    def do_GET(self) -> None:
        given = {key: value[0] for key, value in parse_qs(urlsplit(self.path).query).items()}
        Fake.asked.append(given)
        series = [form for word, form in Fake.values.items() if word in given["query"]]
        start, end, step = (float(given[key]) for key in ("start", "end", "step"))
        moments = [start + i * step for i in range(int((end - start) / step + 1e-6) + 1)]
        found = [{"metric": {}, "values": [[m, series[0](m)] for m in moments]}] if series else []
        status = 503 if Fake.broken else 200
        body = json.dumps({"status": "success", "data": {"result": found}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def prometheus() -> Iterator[str]:
    Fake.values, Fake.asked, Fake.broken = {}, [], False
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def run() -> Run:
    return Run(
        started=datetime.now(UTC), seconds=3.0, warmup_seconds=2.0, sent=1, ok=1, failed=0, cut=0, metrics={}, valid=True,
        series={"seconds": (1.0, 2.0, 3.0, 4.0, 5.0)},
    )  # fmt: skip


def test_prometheus_fills_the_run_s_own_steps_and_only_the_window_is_summed_up(prometheus: str) -> None:
    began = time.time() - 5.0
    Fake.values = {
        "num_requests_waiting": lambda moment: str(round(moment - began)),
        "count(count by (pod": lambda moment: "2" if moment - began < 3.5 else "4",
        "DCGM_FI_DEV_FB_USED": lambda _: str(3 << 30),
        "DCGM_FI_DEV_GPU_UTIL": lambda _: "NaN",
    }
    seen = load.Prometheus(url=prometheus, namespace="dev").end(run(), 5.0)
    assert seen.series["server_waiting"] == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert seen.series["replicas"] == (2.0, 2.0, 2.0, 4.0, 4.0)
    assert seen.metrics["server_waiting_mean"] == 4.0
    assert seen.metrics["server_waiting_max"] == 5.0
    assert (seen.metrics["replicas_min"], seen.metrics["replicas_max"]) == (2.0, 4.0)
    assert seen.metrics["gpu_memory_bytes_max"] == 3 << 30
    assert "gpu_utilization" not in seen.series
    assert all('namespace="dev"' in asked["query"] for asked in Fake.asked)


def test_a_prometheus_that_fails_costs_the_metrics_and_not_the_run(prometheus: str) -> None:
    said: list[str] = []
    Fake.broken = True
    before = run()
    assert load.Prometheus(url=prometheus, say=said.append).end(before, 5.0) == before
    assert "no server metrics" in said[0]
    assert "503" in said[0]
    gone = load.Prometheus(url="http://127.0.0.1:1", say=said.append).end(run(), 5.0)
    assert gone.metrics == {}
    assert "refused" in said[-1]


@pytest.mark.parametrize("url", ["prometheus:9090", "ftp://p", "http://p/?q"])
def test_a_wrong_address_of_prometheus_is_refused_before_the_run(url: str) -> None:
    with pytest.raises(stacks.InputError, match="--prometheus"):
        load.Prometheus(url=url)


PAGE = """# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0"} 2.0
vllm:gpu_cache_usage_perc{engine="0"} 0.25
vllm:gpu_cache_usage_perc{engine="1"} 0.75
DCGM_FI_DEV_FB_USED{gpu="0"} 1024
DCGM_FI_DEV_GPU_UTIL{gpu="0"} 50
vllm:num_requests_running_total{engine="0"} 99
"""


def test_the_engine_s_own_page_is_added_up_over_engines_and_shares_are_averaged() -> None:
    assert load.scraped(PAGE) == {
        "server_running": 7.0,
        "server_waiting": 2.0,
        "server_kv_usage": 0.5,
        "gpu_memory_bytes": 1024 * 2**20,
        "gpu_utilization": 0.5,
    }


def test_the_engine_is_looked_at_while_it_works(serve: Serve, measured: Measured) -> None:
    url = serve("--ttft", 0.05, "--itl", 0.005)
    observer = load.Scrape(load.Target(url=url, engine="vllm", model="tiny"))
    (one,) = measured(url, "vllm", users=4, seconds=2.2, observer=observer).runs
    assert one.valid, one.invalid_because
    assert one.metrics["server_running_mean"] == pytest.approx(4, abs=2.0)


def test_a_clock_that_is_set_while_it_measures_changes_nothing(
    serve: Serve, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])

    def step(now: load.Progress) -> None:
        # Half an hour back, then a day ahead.
        shift[0] = -1800.0 if now.ok < 40 else 86_400.0

    (one,) = measured(serve("--ttft", 0.05, "--itl", 0.005), progress=step, seconds=1.0).runs
    assert shift[0] == 86_400.0
    assert one.valid, one.invalid_because
    assert one.sent == one.ok + one.failed + one.cut
    assert one.metrics["e2e_p50_seconds"] == pytest.approx(0.085, abs=0.02)
    assert one.seconds == pytest.approx(1.0, abs=0.3)


def test_prometheus_says_what_a_request_waited_and_found_in_the_prefix_cache(prometheus: str) -> None:
    Fake.values = {"request_queue_time_seconds_sum": lambda _: "0.25", "prefix_cache_hits_total": lambda _: "0.75"}
    seen = load.Prometheus(url=prometheus, namespace="dev").end(run(), 5.0)
    assert seen.metrics["server_queue_mean_seconds"] == 0.25
    assert seen.metrics["server_prefix_cache_hit_rate"] == 0.75
    (asked,) = (one for one in Fake.asked if "request_queue_time_seconds_sum" in one["query"])
    # Over the window of three seconds, and of this namespace on both sides of the division.
    assert "[3s]" in asked["query"]
    assert asked["query"].count('namespace="dev"') == 2


def test_counters_of_the_engine_s_own_page_are_told_apart_by_their_growth() -> None:
    page = (
        'vllm:request_queue_time_seconds_sum{{engine="0"}} {}\nvllm:request_queue_time_seconds_count{{engine="0"}} {}\n'
        'vllm:prefix_cache_hits_total{{engine="0"}} {}\nvllm:prefix_cache_queries_total{{engine="0"}} {}\n'
    )
    before, after = (load.scraped(page.format(*values)) for values in ((5, 10, 100, 400), (7, 20, 400, 800)))
    assert _grown([before, after]) == {"server_queue_mean_seconds": 0.2, "server_prefix_cache_hit_rate": 0.75}
    # An engine that began anew has smaller counters; nothing can be said of it.
    assert _grown([after, before]) == {}
    assert _grown([after]) == {}
