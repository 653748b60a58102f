"""What the soak calls lost, explained, healed and flat."""

from __future__ import annotations

import json

import pytest

from benchmarks.soaking import Fault, Lost, classify, markdown, trend, whole, wrongs

STACK = "local-dev"


def lost(sent: float, failed: float, stack: str = STACK) -> Lost:
    return Lost(stack=stack, kind="short", sent=sent, failed=failed, why="ConnectionResetError")


def killed(at: float, *, dead: float | None = None, flying: int = 3, stack: str = STACK) -> Fault:
    return Fault(at=at, kind="pod", target="x", stack=stack, flying=flying, dead=dead or at + 0.5, healed=at + 5)


def test_a_request_in_flight_on_a_killed_pod_is_explained() -> None:
    by_fault, unexplained = classify([lost(99.5, 100.2)], [killed(20), killed(100)])
    assert (list(by_fault), unexplained) == ([1], [])
    assert wrongs([lost(99.5, 100.2)], [killed(100)], 60) == []


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(lost(102, 102.1), id="sent when the pod was long dead"),
        pytest.param(lost(90, 95), id="broken before the fault"),
        pytest.param(lost(99, 130), id="broken long after the fault"),
        pytest.param(lost(99.5, 100.2, "local-vllm"), id="of another stack"),
    ],
)
def test_a_request_that_no_fault_explains_is_wrong(one: Lost) -> None:
    assert "unexplained" in wrongs([one], [killed(100)], 60)[0]


def test_a_fault_that_kills_nothing_that_serves_explains_nothing() -> None:
    server = Fault(at=100, kind="kube-apiserver", target="1", healed=103)
    assert len(wrongs([lost(99.5, 100.2)], [server], 60)) == 1


def test_one_fault_explains_no_more_requests_than_it_had_in_flight() -> None:
    found = wrongs([lost(99.5, 100.2), lost(99.6, 100.2)], [killed(100, flying=1)], 60)
    assert found == ["pod at 100 s: 2 requests lost, but only 1 were in flight"]


def test_a_fault_that_does_not_heal_is_wrong() -> None:
    fault = Fault(at=100, kind="etcd", target="1")
    assert wrongs([], [fault], 60) == ["etcd at 100 s (1) has not healed within 60 s"]


def test_noise_and_a_saw_tooth_are_flat() -> None:
    assert trend("x", [(float(at), 100 + 20 * (at % 7) / 7) for at in range(0, 1800, 5)]).flat is True


def test_a_leak_is_not_flat_and_its_slope_is_told() -> None:
    found = trend("x", [(float(at), 100 + at / 36 + 5 * (at % 3)) for at in range(0, 1800, 5)])
    assert found.flat is False
    assert found.slope == pytest.approx(100, rel=0.05)
    assert found.p < 0.001


def test_prometheus_may_fill_its_two_hours_and_no_more() -> None:
    def rise(per_hour: float) -> bool | None:
        return trend("prometheus", [(float(at), 50 + per_hour * at / 3600) for at in range(0, 1800, 5)]).flat

    assert rise(150) is True
    assert rise(250) is False


def test_a_few_minutes_are_no_verdict() -> None:
    assert trend("x", [(float(at), 100.0 + at) for at in range(0, 300, 5)]).flat is None


def test_a_sure_but_small_rise_is_flat_and_few_samples_are_no_verdict() -> None:
    assert trend("x", [(float(at), 100 + at / 1000) for at in range(0, 1800, 5)]).flat is True
    assert trend("x", [(0.0, 1.0), (5.0, 100.0)]).flat is None
    assert trend("x", []).flat is None


@pytest.mark.parametrize(
    ("engine", "streams", "good", "cut"),
    [
        ("ollama", True, b'{"done":false}\n{"done":true}\n', b'{"done":false}\n'),
        ("ollama", False, b'{"done":true}', b""),
        ("vllm", True, b"data: {}\n\ndata: [DONE]\n\n", b"data: {}\n\n"),
        (
            "vllm",
            False,
            json.dumps({"choices": [{"finish_reason": "length"}]}).encode(),
            json.dumps({"choices": [{"finish_reason": None}]}).encode(),
        ),
    ],
)
def test_an_answer_that_was_cut_is_not_whole(engine: str, streams: bool, good: bytes, cut: bytes) -> None:
    assert whole(good, engine, streams)
    assert not whole(cut, engine, streams)


def test_the_page_says_what_was_wrong() -> None:
    report = {
        "date": "2026-01-01 00:00 UTC",
        "machine": "2 cores, 8 GiB",
        "load_average": [1, 2, 3],
        "seconds": 60,
        "faults": {"pod": {"faults": 1, "in_flight": 3, "lost": 2, "healed_seconds": [4.0]}},
        "requests": {
            STACK: {"answered": {"short": 5}, "lost": 2, "unexplained": 1, "door": 0, "door_longest_seconds": 0.0}
        },
        "memory": [
            {"name": "etcd", "starts": 1, "first": 10.0, "last": 30.0, "slope": 40.0, "p": 0.001, "flat": False}
        ],
        "gate": {"evidence verifies": 2},
        "wrong": ["memory of etcd grew"],
    }
    text = markdown(report)
    assert "| etcd | 1 | 10.0 | 30.0 | +40.0 | 0.001 | NO |" in text
    assert "- memory of etcd grew" in text
    assert "5 requests answered, 2 lost in flight on what was killed, 1 unexplained" in text
