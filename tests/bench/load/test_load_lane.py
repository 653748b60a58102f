"""One connection without a network: what is sent next, what is counted, and where the quick way is left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import count, islice
from typing import Any
from unittest import mock

import pytest

import stacks
from bench.load import Closed, SharedPrefix, Source, Synthetic
from bench.load._lane import Lane
from bench.load._session import Session
from bench.load._wire import Engine, Target, Wire

VARIED = {"mean": 40.0, "cv": 1.0}


def source(prompt: object = 16.0, output: object = 8.0, context_tokens: int | None = None) -> Synthetic:
    traffic = stacks.Traffic.model_validate({"users": 1, "prompt_tokens": prompt, "output_tokens": output})
    return Synthetic(traffic, 3, context_tokens)


def shared() -> SharedPrefix:
    traffic = stacks.Traffic.model_validate({"users": 1, "prompt_tokens": 40.0, "output_tokens": 8.0})
    return SharedPrefix(traffic, 3, prefix_tokens=20, hit_rate=0.5)


@pytest.mark.parametrize("asks", [source(), source(VARIED, VARIED), source(VARIED, VARIED, 64), source(2.0), shared()])
@pytest.mark.parametrize("engine", ["vllm", "ollama"])
def test_what_is_sent_is_each_ask_as_one_request(asks: Source, engine: Engine) -> None:
    wire = Wire(Target(url="http://127.0.0.1:1", engine=engine, model="tiny"))
    sent = list(islice(wire.requests(asks, count(7, 3)), 5000))
    assert sent == [wire.request(asks(serial)) for serial in islice(count(7, 3), 5000)]
    for request in sent[:100]:
        head, _, body = request.partition(b"\r\n\r\n")
        assert int(head.rpartition(b"Content-Length: ")[2]) == len(body)
        json.loads(body)


class Wired(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None: ...


def reply(body: dict[str, Any], status: str = "200 OK") -> bytes:
    text = json.dumps(body).encode()
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(text), text)


def chat(into: int, out: int) -> bytes:
    usage = {"prompt_tokens": into, "completion_tokens": out, "total_tokens": into + out}
    return reply({"choices": [{"message": {"content": 'what "usage" is'}}], "usage": usage})


def generate(into: int, out: int) -> bytes:
    return reply({"response": "x", "done": True, "prompt_eval_count": into, "eval_count": out})


def on_a_lane(engine: Engine, do: Callable[[Session, Lane, Wired], None], load: Closed | None = None) -> Session:
    """A session of one user whose connection is up and whose first request was sent; it is stopped afterwards."""

    async def run() -> Session:
        wire = Wire(Target(url="http://127.0.0.1:1", engine=engine, model="tiny", stream=False))
        session = Session(wire, load or Closed(users=1), source())
        session._addresses = [(2, "127.0.0.1", 1)]
        wired = Wired()
        opened: list[Lane] = []
        with mock.patch.object(session, "connect", opened.append):
            session.start()
        (lane,) = opened
        lane.connection_made(wired)
        lane.connected()
        do(session, lane, wired)
        session.stop()
        return session

    return asyncio.run(run())


@pytest.mark.parametrize(("engine", "answer"), [("vllm", chat), ("ollama", generate)])
def test_each_answer_has_its_own_counts_and_is_followed_by_another_question(
    engine: Engine, answer: Callable[[int, int], bytes]
) -> None:
    counts = [(16, 8), (16, 9), (16, 8), (17, 9), (16, 8), (17, 9), (16, 9)]

    def answered(session: Session, lane: Lane, wired: Wired) -> None:
        for into, out in counts:
            lane.data_received(answer(into, out))
        assert len(wired.written) == len(set(wired.written)) == len(counts) + 1

    session = on_a_lane(engine, answered)
    table = session.records.table()
    assert [(int(row["tokens_in"]), int(row["tokens_out"])) for row in table[:-1]] == counts
    assert (session.started, session.ok, session.failed, session.cut) == (len(counts) + 1, len(counts), 0, 1)


def test_an_error_between_answers_is_counted_and_waited_after() -> None:
    def answered(session: Session, lane: Lane, wired: Wired) -> None:
        for _ in range(3):
            lane.data_received(chat(16, 8))
        assert (len(wired.written), session.in_flight) == (4, 1)
        lane.data_received(reply({"error": "overloaded"}, "503 Service Unavailable"))
        # Not the next one at once, as after an answer: only after a pause.
        assert (len(wired.written), session.in_flight) == (4, 0)

    session = on_a_lane("vllm", answered)
    assert (session.started, session.ok, session.failed, session.cut) == (4, 3, 1, 0)
    assert session.records.kinds == ["http_503"]


def test_an_answer_in_two_reads_is_one_and_the_quick_way_goes_on_after_it() -> None:
    def answered(session: Session, lane: Lane, wired: Wired) -> None:
        for size in (1, 60, 120, 10_000, 10_000):
            whole = chat(16, 8)
            lane.data_received(whole[:size])
            if whole[size:]:
                lane.data_received(whole[size:])
        assert len(wired.written) == 6

    session = on_a_lane("vllm", answered)
    assert (session.started, session.ok, session.failed, session.cut) == (6, 5, 0, 1)
    assert set(session.records.table()["tokens_out"][:-1]) == {8}


def test_a_batch_ends_with_its_last_answer() -> None:
    def answered(session: Session, lane: Lane, wired: Wired) -> None:
        for _ in range(4):
            assert not session.done
            lane.data_received(chat(16, 8))
        assert session.done
        assert len(wired.written) == 4

    session = on_a_lane("vllm", answered, Closed(users=1, requests=4))
    assert (session.started, session.ok, session.cut) == (4, 4, 0)


def test_who_thinks_between_answers_does_not_ask_at_once() -> None:
    def answered(session: Session, lane: Lane, wired: Wired) -> None:
        lane.data_received(chat(16, 8))
        assert (len(wired.written), session.in_flight) == (1, 0)

    session = on_a_lane("vllm", answered, Closed(users=1, think_seconds=5.0))
    assert (session.started, session.ok) == (1, 1)


def test_bytes_that_nobody_asked_for_close_the_connection() -> None:
    def answered(session: Session, lane: Lane, wired: Wired) -> None:
        lane.data_received(chat(16, 8) + chat(16, 8))
        assert session.failed + session.ok == 1

    on_a_lane("vllm", answered)
