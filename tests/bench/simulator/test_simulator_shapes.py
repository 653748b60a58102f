"""What is remembered of requests must never change an answer."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx2
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulator import _ask
from bench.simulator._shapes import Shapes

LIMIT = 400


def checked(body: bytes, chat: bool) -> Any:
    """(prompt tokens, text) by the parser; None where it refuses."""
    try:
        data = _ask.read(body)
        ask = _ask.chat(data, 1, auto_tools=False) if chat else _ask.completion(data)
    except _ask.Refused:
        return None
    return ask, data


def learned(body: bytes, chat: bool) -> Shapes:
    shapes = Shapes("content" if chat else "prompt", LIMIT)
    ask, data = checked(body, chat)
    prepared: Any = SimpleNamespace(fast=ask.plain, prompt=ask.prompts[0], ask=ask)
    for _ in range(2):
        shapes.learn(body, data, prepared)
    return shapes


BASES = [
    b'{"model":"m","messages":[{"role":"user","content":"T"}],"max_tokens":64}',
    b'{"model": "m", "messages": [{"role": "user", "content": "T"}], "max_tokens": 64}',
    b'{"messages":[{"role":"system","content":"be kind"},{"content":"T","role":"user"}],"max_tokens":8,"stream":true}',
    b'{"max_tokens":64,"messages":[{"role":"user","content":"a \\"content\\":\\"x"},{"role":"user","content":"T"}]}',
]
WORDS = st.one_of(
    st.text(max_size=80),
    st.from_regex(r"\A[a-z0-9]{1,13}( [a-z0-9]{1,13}){0,30} ?\Z"),
    st.text(alphabet='ab "\\{}[]:,\x00\x7fé\n', max_size=12),
)


@pytest.mark.parametrize("base", BASES)
def test_a_known_shape_reads_any_text_as_the_parser_does(base: bytes) -> None:
    shapes = learned(base.replace(b"T", b"once upon a time"), chat=True)
    hits = 0

    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(text=WORDS, raw=st.booleans())
    def attempt(text: str, raw: bool) -> None:
        nonlocal hits
        inside = (
            text.encode("utf-8", "surrogatepass")
            if raw
            else orjson.dumps(text.encode("utf-8", "ignore").decode())[1:-1]
        )
        body = base.replace(b"T", inside)
        found = shapes.find(body)
        if found is None:
            return
        hits += 1
        parsed = checked(body, chat=True)
        assert parsed is not None
        ask = parsed[0]
        assert (found[1], found[2]) == (ask.prompts[0], ask.text)
        assert found[1] + (ask.max_tokens or 0) <= LIMIT
        assert (found[0].ask.max_tokens, found[0].ask.stream) == (ask.max_tokens, ask.stream)

    attempt()
    assert hits > 50


@pytest.mark.parametrize(
    "body",
    [
        # The last such member is not what is said last, or not only.
        b'{"messages":[{"role":"user","content":"T"}],"max_tokens":9,"metadata":{"content":"x"}}',
        b'{"messages":[{"role":"user","content":"other","content":"T"}],"max_tokens":9,"content":"x"}',
        b'{"messages":[{"role":"user","content":"T"},{"role":"user","content":["x"]}],"max_tokens":9}',
        b'{"messages":[{"role":"user","content":"T"}]}',
        b'{"messages":[{"role":"user","content":"T"}],"max_tokens":9,"stop":["a"]}',
    ],
)
def test_what_cannot_be_told_apart_is_not_remembered(body: bytes) -> None:
    try:
        shapes = learned(body, chat=True)
    except TypeError:
        return  # the parser refuses it
    assert shapes.find(body) is None


def test_prompts_of_completions_have_shapes_too_and_long_ones_are_looked_at() -> None:
    base = b'{"prompt":"T","max_tokens":100}'
    shapes = learned(base.replace(b"T", b"a b c"), chat=False)
    found = shapes.find(base.replace(b"T", b"able baker charlie dog"))
    assert found is not None
    assert found[1:] == (4, "able baker charlie dog")
    assert shapes.find(base.replace(b"T", b"able " * 301)) is None
    assert shapes.find(base.replace(b"T", b"able " * 299 + b"x")) is not None


def test_the_number_of_shapes_is_bounded() -> None:
    shapes = Shapes("content", LIMIT)
    for at in range(1000):
        body = b'{"messages":[{"role":"user","content":"T"}],"max_tokens":9,"seed":%d}' % at
        ask, data = checked(body, chat=True)
        prepared: Any = SimpleNamespace(fast=True, prompt=1, ask=ask)
        shapes.learn(body, data, prepared)
        assert shapes.find(body) is None
        shapes.learn(body, data, prepared)
        assert shapes.find(body) is not None
    assert len(shapes._known) <= 256
    assert len(shapes._once) <= 1024


def head(body: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join(
        (b"POST /v1/completions HTTP/1.1", b"Host: x", b"Content-Type: application/json", *lines,
         b"Content-Length: %d" % len(body), b"", body)
    )  # fmt: skip


def answer(sock: socket.socket) -> tuple[bytes, Any]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    top, _, rest = data.partition(b"\r\n\r\n")
    size = int(next(line for line in top.lower().split(b"\r\n") if line.startswith(b"content-length")).split(b":")[1])
    while len(rest) < size:
        rest += sock.recv(65536)
    assert len(rest) == size
    return top.split(b"\r\n")[0], orjson.loads(rest)


def test_requests_are_read_the_same_however_they_are_cut_and_repeated(serve: Callable[..., Any]) -> None:
    served = serve("vllm", "tiny", "--max-model-len", "2048", TOLLGATE_SIM_TTFT="0", TOLLGATE_SIM_ITL="0")
    rng = random.Random(5)
    with socket.create_connection((served.host, served.port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for turn in range(300):
            words = rng.randint(1, 30)
            wanted = rng.choice((1, 5, 5, 5))
            said = b" ".join(b"w%d" % rng.randint(0, 9) for _ in range(words))
            body = b'{"model":"tiny","prompt":"%b","max_tokens":%d,"ignore_eos":true}' % (said, wanted)
            whole = head(body)
            if turn % 3 == 0:
                cut = rng.randint(1, len(whole) - 1)
                sock.sendall(whole[:cut])
                if turn % 2:
                    sock.sendall(b"")
                sock.sendall(whole[cut:])
            else:
                sock.sendall(whole)
            status, found = answer(sock)
            assert status == b"HTTP/1.1 200 OK"
            assert (found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"]) == (words, wanted)
            assert len(found["choices"][0]["text"].split()) == wanted


def test_the_same_body_with_another_head_is_another_request(serve: Callable[..., Any]) -> None:
    served = serve("vllm", "tiny", "--api-key", "k", TOLLGATE_SIM_TTFT="0", TOLLGATE_SIM_ITL="0")
    body = b'{"model":"tiny","prompt":"a b","max_tokens":2,"ignore_eos":true}'
    good = head(body, b"Authorization: Bearer k")
    with socket.create_connection((served.host, served.port), timeout=10) as sock:
        for _ in range(3):
            sock.sendall(good)
            assert answer(sock)[0].endswith(b"200 OK")
            sock.sendall(head(body, b"Authorization: Bearer l"))
            assert answer(sock)[0].endswith(b"401 Unauthorized")
            sock.sendall(head(body, b"Authorization: Bearer k", b"X-Request-Id: abc"))
            assert answer(sock)[1]["id"] == "cmpl-abc"
            sock.sendall(good)
            assert answer(sock)[1]["id"] != "cmpl-abc"
    text = httpx2.get(served.url + "/metrics").text
    assert 'http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 9.0' in text
    assert 'http_request_duration_seconds_count{handler="/v1/completions",method="POST"} 9.0' in text
    assert "http_request_duration_highr_seconds_count 9.0" in text
