"""A batch runs to its end: every input exactly one result, whatever the endpoints do meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stacks
from bench import batch

Submit = Callable[..., batch.Queue]
Serve = Callable[..., Any]
Outputs = Callable[..., tuple[list[dict[str, Any]], list[dict[str, Any]]]]


def run(queue: batch.Queue, *urls: str, slots: int = 8, fixed: bool = True, **given: Any) -> batch.Ending:
    """With time-outs of tests, and an end for a test that would never end."""
    begun = time.monotonic()
    endpoint = {key: given.pop(key) for key in ("api_key", "model", "most") if key in given}
    progress = given.pop("progress", None)
    settings = batch.RunSettings(**{"timeout": 30.0, "grace": 30.0, **given})
    found = batch.run(
        queue,
        [batch.EndpointSettings(url=url, slots=slots, fixed=fixed, **endpoint) for url in urls],
        settings,
        signals=False,
        stop=lambda: time.monotonic() - begun > 150,
        progress=progress,
    )
    assert found.reason != "stopped", f"did not end within 150 s: {found}"
    return found


def later(seconds: float, what: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, what)
    timer.daemon = True
    timer.start()


def test_every_input_has_one_result_in_the_order_of_the_input(submit: Submit, serve: Serve, outputs: Outputs) -> None:
    server = serve(delay=0.002)
    queue = submit(1000)
    ending = run(queue, server.url)
    assert (ending.state, ending.counts.ok, ending.counts.failed) == ("done", 1000, 0)
    good, bad = outputs(queue)
    assert [line["custom_id"] for line in good] == [f"p{i}" for i in range(1000)]
    assert bad == []
    assert good[7]["response"]["status_code"] == 200
    assert good[7]["response"]["body"]["choices"][0]["message"]["content"] == "re: p7"
    assert (good[7]["tollgate"]["tokens_in"], good[7]["tollgate"]["tokens_out"]) == (10, 5)
    assert 0.001 < good[7]["tollgate"]["seconds"] < 60
    assert set(server.asked().values()) == {1}
    assert server.most() <= 8
    assert (ending.counts.tokens_in, ending.counts.tokens_out) == (10_000, 5000)


def test_several_endpoints_share_a_batch_by_their_capacity(submit: Submit, serve: Serve) -> None:
    # So slow that what a busy machine adds is little beside it.
    fast, slow = serve(delay=0.05), serve(delay=0.2)
    ending = run(submit(500), fast.url, slow.url)
    assert ending.state == "done"
    asked = [fast.asked(), slow.asked()]
    assert sum(map(len, asked)) == 500
    assert set(asked[0]).isdisjoint(asked[1])
    # Four times as fast: about four times as many.
    assert 1.7 < len(asked[0]) / len(asked[1]) < 8


def test_an_endpoints_own_model_replaces_that_of_the_inputs(submit: Submit, serve: Serve, outputs: Outputs) -> None:
    queue = submit(3)
    run(queue, serve().url, model="other")
    assert {line["response"]["body"]["model"] for line in outputs(queue)[0]} == {"other"}


def test_poison_is_isolated_after_its_tries_and_listed(submit: Submit, serve: Serve, outputs: Outputs) -> None:
    server = serve(delay=0.01)
    prompts = [f"p{i}" for i in range(300)]
    prompts[10], prompts[100], prompts[299] = "poison a", "garbage b", "refuse c"
    prompts[20] = "once d"
    queue = submit(prompts)
    ending = run(queue, server.url, tries=2)
    assert (ending.state, ending.counts.ok, ending.counts.failed) == ("done", 297, 3)
    good, bad = outputs(queue)
    assert len(good) == 297
    assert [(line["custom_id"], line["error"]["code"]) for line in bad] == [
        ("poison a", "http_500"), ("garbage b", "not_json"), ("refuse c", "http_400"),
    ]  # fmt: skip
    assert bad[0]["response"]["body"]["error"]["message"] == "the engine does not like this"
    asked = server.asked()
    # What the endpoint refuses as wrong is not asked twice; what failed was tried as often as allowed, and some times more
    # when nothing else had been answered meanwhile and it might have been the endpoint's fault: on a busy machine, often.
    assert (asked["refuse c"], asked["once d"]) == (1, 2)
    assert [line["tollgate"]["tries"] for line in bad] == [2, 2, 1]
    assert all(2 <= asked[name] <= 12 for name in ("poison a", "garbage b"))
    assert max(count for name, count in asked.items() if name.startswith("p") and name != "poison a") == 1


def test_a_batch_of_nothing_but_poison_ends_too(submit: Submit, serve: Serve) -> None:
    ending = run(submit(["poison a", "poison b"]), serve().url, tries=2)
    assert (ending.state, ending.counts.failed) == ("done", 2)


def test_an_input_that_kills_the_engine_is_found_and_no_other_suffers(
    submit: Submit, serve: Serve, outputs: Outputs, tmp_path: Path
) -> None:
    server = serve(delay=0.02, restart=0.1, log=tmp_path / "log")
    prompts = [f"p{i}" for i in range(200)]
    prompts[30] = "kill"
    queue = submit(prompts)
    ending = run(queue, server.url, slots=16)
    assert (ending.state, ending.counts.ok, ending.counts.failed) == ("done", 199, 1)
    [bad] = outputs(queue)[1]
    assert (bad["custom_id"], bad["error"]["code"]) == ("kill", "lost")
    assert 5 <= (tmp_path / "log").read_text().splitlines().count("kill") <= 6


def test_an_endpoint_that_is_gone_for_a_while_costs_no_input(submit: Submit, serve: Serve) -> None:
    server = serve(delay=0.005)
    queue = submit(1500)
    seen: list[batch.Progress] = []

    def trouble() -> None:
        while not server.asked():
            time.sleep(0.01)
        for options in ({"cut": True}, {"cut": False, "status": 503, "health": 503}, {"status": 500}, {"status": 404}):
            server.control(**options)
            time.sleep(0.6)
        server.control(status=200)

    later(0.0, trouble)
    ending = run(queue, server.url, tries=2, progress=seen.append)
    assert (ending.state, ending.counts.ok, ending.counts.failed) == ("done", 1500, 0)
    endpoint = server.url
    assert any(found.endpoints[endpoint]["state"] != "up" for found in seen)


def test_without_the_endpoint_the_other_goes_on(submit: Submit, serve: Serve) -> None:
    gone, there = serve(delay=0.01), serve(delay=0.01)
    queue = submit(1000)
    later(0.3, gone.kill)
    ending = run(queue, gone.url, there.url)
    assert (ending.state, ending.counts.ok) == ("done", 1000)


def test_retry_after_is_honoured_and_costs_no_try(submit: Submit, serve: Serve) -> None:
    server = serve(delay=0.002)
    queue = submit(300)
    server.control(status=429, retry_after=2)

    def relent() -> None:
        while not server.refused():
            time.sleep(0.05)
        server.control(status=200)

    later(0.0, relent)
    begun = time.monotonic()
    ending = run(queue, server.url, tries=1)
    assert (ending.state, ending.counts.ok) == ("done", 300)
    assert time.monotonic() - begun >= 2.0, "asked again before the time that Retry-After gave"


def test_a_limit_of_the_endpoint_is_found_by_its_429(submit: Submit, serve: Serve) -> None:
    server = serve(delay=0.02)
    server.control(most=6)
    queue = submit(600)
    ending = run(queue, server.url, slots=64, fixed=False, tries=1)
    assert (ending.state, ending.counts.ok) == ("done", 600)
    assert server.most() <= 6


def test_a_timeout_is_a_failure_of_the_input_when_others_are_answered(submit: Submit, serve: Serve) -> None:
    prompts = [f"p{i}" for i in range(400)]
    prompts[5] = "hang"
    ending = run(submit(prompts), serve(delay=0.02).url, timeout=2.0, tries=2)
    assert (ending.state, ending.counts.ok, ending.counts.failed) == ("done", 399, 1)


def test_a_wrong_key_pauses_the_batch_at_once_and_says_so(submit: Submit, serve: Serve) -> None:
    server = serve(key="secret")
    queue = submit(50)
    ending = run(queue, server.url)
    assert ending.state == "paused"
    assert "who are you?" in ending.reason
    assert "valid API key" in ending.reason
    with pytest.raises(stacks.TollgateError, match="valid API key"):
        run(queue, server.url)
    queue.set_state("running")
    assert run(queue, server.url, api_key="secret").counts.ok == 50


def test_a_model_that_is_not_there_pauses_the_batch_within_seconds(submit: Submit, serve: Serve) -> None:
    server = serve()
    server.control(status=404)
    ending = run(submit(1000), server.url)
    assert ending.state == "paused"
    assert "says that it is well and fails every input, with http_404: not now" in ending.reason
    assert ending.asked < 20


def test_a_batch_that_only_fails_is_paused_and_its_failures_can_be_asked_again(submit: Submit, serve: Serve) -> None:
    queue = submit([f"refuse {i}" for i in range(400)])
    server = serve(delay=0.001)
    ending = run(queue, server.url, stop_after=20)
    assert ending.state == "paused"
    assert "the last 20 inputs all failed, with http_400: too long" in ending.reason
    assert 20 <= ending.counts.failed < 60
    assert queue.reopen_failed() == ending.counts.failed
    assert queue.counts().done == 0
    assert run(queue, server.url, stop_after=0).counts.failed == 400


def test_pause_resume_and_cancel_reach_a_runner_from_outside(submit: Submit, serve: Serve, store: str) -> None:
    server = serve(delay=0.02)
    queue = submit(20_000)
    at: list[int] = []
    said: list[batch.Progress] = []

    def outside() -> None:
        other = batch.open_queue(store, queue.id)
        end = time.monotonic() + 120

        def until(condition: Callable[[], bool]) -> None:
            while not condition() and time.monotonic() < end:
                time.sleep(0.05)

        until(lambda: other.counts().done > 0)
        other.set_state("paused", reason="lunch")
        # Told twice: what was in flight at the first time has its answer by the second.
        until(lambda: [progress.state for progress in said].count("paused") > 1)
        at.append(other.counts().done)
        time.sleep(1.0)
        at.append(other.counts().done)
        other.set_state("running")
        until(lambda: other.counts().done > at[1])
        at.append(other.counts().done)
        other.set_state("cancelled")
        other.close()

    thread = threading.Thread(target=outside)
    thread.start()
    ending = batch.run(
        queue, [batch.EndpointSettings(url=server.url, slots=8, fixed=True)], progress=said.append, signals=False
    )
    thread.join()
    assert ending.state == "cancelled"
    # A pause is no slowness: the estimate stands still.
    paused = [progress.eta.sustained for progress in said if progress.state == "paused"]
    assert len(paused) > 1
    assert len(set(paused)) == 1
    assert 0 < at[0] == at[1] < at[2] < 20_000, at
    # What was answered is there, and nothing was asked that has no result but what was cut off in flight.
    assert len(server.asked()) - ending.counts.done <= 8


def test_dollars_are_told_of_each_endpoint_and_of_each_answer_within_eighty_columns(
    submit: Submit, serve: Serve, outputs: Outputs
) -> None:
    urls = [serve(delay=0.02).url, serve(delay=0.02).url]
    prices = batch.Prices(per_hour=3600.0, per_million_in=1000.0)
    settings = [batch.EndpointSettings(url=url, slots=4, fixed=True, per_hour=1800.0) for url in urls]
    queue, said = submit(400), list[batch.Progress]()
    deadline = time.time() + 0.1
    batch.run(queue, settings, batch.RunSettings(prices=prices, deadline=deadline), progress=said.append, signals=False)
    last = said[-1].endpoints
    for url in urls:
        # A dollar for two seconds, and one for a hundred prompts of ten tokens.
        assert last[url]["usd_hours"] == pytest.approx(0.5 * said[-1].busy, rel=0.01)
        assert last[url]["usd_tokens"] == pytest.approx(last[url]["ok"] / 100)
    lines = [line for progress in said for line in batch.status_text(batch.of_progress(queue.info(), progress))]
    assert max(map(len, lines)) <= 80
    assert any("the deadline has passed" in line for line in lines)
    assert any(line.endswith(" $") and "answered" in line for line in lines)
    good, _ = outputs(queue, prices=prices)
    each = [line["tollgate"]["cost_usd"] for line in good]
    assert sum(each) == pytest.approx(queue.info().busy + 4.0, rel=0.01)
    assert min(each) > 0.01
