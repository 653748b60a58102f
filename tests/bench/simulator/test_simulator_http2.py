"""HTTP/2, in clear and over TLS, and what can be done to a server by it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import httpx2
import psutil
import pytest

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "ignore_eos": True}


@pytest.fixture(scope="module")
def target(serve: Callable[..., Any]) -> Any:
    return serve(
        "vllm", "tiny", "--max-model-len", "200k", TOLLGATE_SIM_TTFT="2ms", TOLLGATE_SIM_ITL="1ms", TOLLGATE_SIM_HTTP2="1",
        TOLLGATE_SIM_HEAD_SECONDS="1", TOLLGATE_SIM_MAX_BODY="100000",
    )  # fmt: skip


def client(target: Any) -> httpx2.Client:
    return httpx2.Client(base_url=target.url, http1=False, http2=True, timeout=10)


def well(target: Any) -> bool:
    with client(target) as made:
        return made.post("/v1/chat/completions", json=BODY).status_code == 200


class Raw:
    """A client that does as it likes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
        self.h2.initiate_connection()
        self.flush()
        self.events: list[Any] = []
        self.closed = False

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def open(self, *more: tuple[str, str], path: str = "/v1/chat/completions", end: bool = False) -> int:
        number = self.h2.get_next_available_stream_id()
        head = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "x"),
                ("content-type", "application/json"), *more]  # fmt: skip
        self.h2.send_headers(number, head, end_stream=end)
        return int(number)

    def read(self, seconds: float) -> None:
        self.sock.settimeout(0.1)
        end = time.monotonic() + seconds
        while not self.closed and time.monotonic() < end:
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                continue
            except ConnectionResetError:
                data = b""
            if not data:
                self.closed = True
                return
            self.events += self.h2.receive_data(data)


@contextmanager
def raw(target: Any) -> Iterator[Raw]:
    with socket.create_connection((target.host, target.port), timeout=10) as sock:
        yield Raw(sock)


def test_one_connection_carries_whole_and_streamed_answers_side_by_side(target: Any) -> None:
    async def stream(made: httpx2.AsyncClient, number: int) -> int:
        wanted = 3 + number
        body = BODY | {"max_tokens": wanted, "stream": True}
        async with made.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        return sum('"content":" ' in line for line in lines) - wanted

    async def streams() -> list[int]:
        async with httpx2.AsyncClient(base_url=target.url, http1=False, http2=True, timeout=20) as made:
            return await asyncio.gather(*(stream(made, number) for number in range(40)))

    assert asyncio.run(streams()) == [0] * 40
    with client(target) as made:
        answer = made.post("/v1/chat/completions", json=BODY)
        assert answer.http_version == "HTTP/2"
        assert answer.json()["usage"]["completion_tokens"] == 5
        assert "transfer-encoding" not in answer.headers

        assert made.get("/nothing").status_code == 404
        assert made.head("/version").status_code == 200
        assert made.post("/v1/chat/completions", content=b"{").json()["error"]["code"] == 400


def test_the_same_port_still_speaks_http_1(target: Any) -> None:
    answer = httpx2.post(target.url + "/v1/chat/completions", json=BODY)
    assert (answer.status_code, answer.http_version) == (200, "HTTP/1.1")


def test_tls_clients_choose_by_alpn(serve: Callable[..., Any], tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    served = serve(
        "vllm", "tiny", wait=False, TOLLGATE_SIM_CERTIFICATE=str(certificate), TOLLGATE_SIM_PRIVATE_KEY=str(key),
        TOLLGATE_SIM_HTTP2="1",
    )  # fmt: skip
    context = ssl.create_default_context(cafile=str(certificate))
    url = f"https://127.0.0.1:{served.port}/version"
    deadline = time.monotonic() + 30
    while True:
        try:
            with httpx2.Client(http2=True, verify=context) as made:
                assert made.get(url).http_version == "HTTP/2"
            break
        except httpx2.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with httpx2.Client(http2=False, verify=context) as made:
        assert made.get(url).http_version == "HTTP/1.1"


def test_streams_that_are_opened_only_to_be_reset_end_the_connection(target: Any) -> None:
    with raw(target) as attacker:
        try:
            for _ in range(600):
                number = attacker.open()
                attacker.h2.reset_stream(number)
                attacker.flush()
        except (OSError, h2.exceptions.ProtocolError):
            pass
        attacker.read(3)
        assert attacker.closed
    assert well(target)


def test_a_violation_amid_streams_ends_them_and_nobody_else(target: Any) -> None:
    body = (
        b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"max_tokens":5000,"ignore_eos":true,"stream":true}'
    )
    with raw(target) as attacker:
        for _ in range(5):
            attacker.h2.send_data(attacker.open(), body, end_stream=True)
        attacker.flush()
        attacker.read(0.2)
        # A frame of data for a stream that was never opened.
        attacker.sock.sendall(b"\x00\x00\x01\x00\x00" + (99).to_bytes(4, "big") + b"x")
        attacker.read(3)
        assert attacker.closed
    assert well(target)
    text = httpx2.get(target.url + "/metrics").text
    assert 'vllm:num_requests_running{engine="0",model_name="tiny"} 0.0' in text


def test_more_streams_than_allowed_are_refused_by_the_protocol(target: Any) -> None:
    with raw(target) as attacker:
        attacker.read(0.3)
        assert attacker.h2.remote_settings.max_concurrent_streams == 128
        for _ in range(128):
            attacker.open()
        with pytest.raises(h2.exceptions.TooManyStreamsError):
            attacker.open()
    assert well(target)


def test_bodies_and_targets_that_are_too_long_are_refused_in_words(target: Any) -> None:
    with raw(target) as attacker:
        attacker.read(0.2)
        long = attacker.open(path="/" + "a" * 20_000, end=True)
        large = attacker.open()
        attacker.flush()
        for _ in range(8):
            attacker.h2.send_data(large, b"x" * 16_000)
            attacker.flush()
            attacker.read(0.05)
        attacker.read(0.5)
        heads = {e.stream_id: dict(e.headers) for e in attacker.events if isinstance(e, h2.events.ResponseReceived)}
        assert heads[long][b":status"] == b"414"
        assert heads[large][b":status"] == b"413"
    assert well(target)


def test_a_head_that_is_too_large_or_no_frame_at_all_ends_the_connection(target: Any) -> None:
    with raw(target) as attacker:
        attacker.open(*((f"x-{at}", "v" * 900) for at in range(100)), end=True)
        attacker.flush()
        attacker.read(3)
        assert attacker.closed
    with raw(target) as attacker:
        attacker.sock.sendall(b"\xff" * 500)
        attacker.read(3)
        assert attacker.closed
    assert well(target)


def test_a_request_that_never_ends_is_given_up_on(target: Any) -> None:
    with raw(target) as attacker:
        attacker.open()
        attacker.flush()
        attacker.read(4)
        assert attacker.closed
    assert well(target)


def test_a_client_that_opens_no_window_costs_bounded_memory_and_loses_its_slot(
    target: Any, eventually: Callable[..., None]
) -> None:
    process = psutil.Process(target.process.pid)
    before = process.memory_info().rss
    with raw(target) as attacker:
        body = b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"max_tokens":150000,"ignore_eos":true,"stream":true}'
        for _ in range(20):
            attacker.h2.send_data(attacker.open(), body, end_stream=True)
        attacker.flush()
        for _ in range(30):
            time.sleep(0.05)
            assert process.memory_info().rss - before < 48 << 20
    none = 'vllm:num_requests_running{engine="0",model_name="tiny"} 0.0'
    eventually(lambda: none in httpx2.get(target.url + "/metrics").text)
    assert well(target)
