"""What a hostile or careless client can do, and that others do not feel it."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def connected(served: Any) -> Iterator[socket.socket]:
    with socket.create_connection((served.host, served.port), timeout=10) as sock:
        yield sock


def everything(sock: socket.socket) -> bytes:
    """What the server sends until it hangs up."""
    data = b""
    try:
        while part := sock.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


def well(served: Any) -> bool:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    return httpx2.post(served.url + "/v1/chat/completions", json=body, timeout=5).status_code == 200


@pytest.fixture(scope="module")
def target(serve: Callable[..., Any]) -> Any:
    return serve(
        "vllm", "tiny", "--max-model-len", "2048", TOLLGATE_SIM_TTFT="1ms", TOLLGATE_SIM_ITL="1ms",
        TOLLGATE_SIM_HEAD_SECONDS="1", TOLLGATE_SIM_IDLE_SECONDS="1.5", TOLLGATE_SIM_MAX_BODY="100000",
        TOLLGATE_SIM_MAX_CONNECTIONS="50",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 10\r\nContent-Length: 11\r\n\r\n", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 200000\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", b"431"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (CHUNKED + b"zz\r\n", b"400"),
        (CHUNKED + (b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 8, b"413"),
    ],
)  # fmt: skip
def test_garbage_is_answered_with_an_error_and_hung_up_on(target: Any, sent: bytes, status: bytes) -> None:
    with connected(target) as sock:
        sock.sendall(sent)
        answer = everything(sock)
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
    assert well(target)


@pytest.mark.parametrize(
    "body",
    [b"\xff\xfe\x00", b'{"model":"tiny","messages":[{"role":"user","content":"\xff"}]}', b"[" * 50_000, b"[]", b"null", b'"x"',
     b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}', b"1e999", b'{"model":"tiny","messages":[1]}',
     b'{"model":"\\ud800","messages":[]}', b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1e400}',
     b'{"messages":[{"role":"user","content":"x"}],"n":9999999999}'],
)  # fmt: skip
def test_bodies_that_are_no_request_get_a_4xx(target: Any, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = httpx2.post(target.url + "/v1/chat/completions", content=body, headers=headers)
    assert 400 <= response.status_code < 500
    assert well(target)


def test_slow_heads_are_given_up_on(target: Any) -> None:
    with connected(target) as sock:
        begun = time.monotonic()
        sock.settimeout(0.2)
        answer = b""
        while time.monotonic() - begun < 40:
            try:
                sock.sendall(b"G" if not answer else b"")
                answer += sock.recv(1000)
                if answer:
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - begun < 15
        assert answer[:12] in (b"HTTP/1.1 408", b"HTTP/1.1 400")
    assert well(target)


def test_slow_bodies_are_given_up_on(target: Any) -> None:
    with connected(target) as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 90000\r\n\r\n")
        begun = time.monotonic()
        sock.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - begun < 40:
            with suppress(OSError):
                sock.sendall(b"x" * 50)
                answer = sock.recv(1000)
        assert answer.startswith(b"HTTP/1.1 408"), answer
        assert time.monotonic() - begun < 15
    assert well(target)


def test_a_half_closed_connection_is_closed_and_its_request_forgotten(serve: Callable[..., Any]) -> None:
    served = serve("vllm", "tiny", "--max-num-seqs", "1", TOLLGATE_SIM_TTFT="20s")
    body = b'{"model":"tiny","prompt":"x","max_tokens":4}'
    head = b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    for _ in range(20):
        with connected(served) as sock:
            sock.sendall(head + body)
            sock.shutdown(socket.SHUT_WR)
            assert everything(sock) == b""
    text = httpx2.get(served.url + "/metrics").text
    assert 'vllm:num_requests_running{engine="0",model_name="tiny"} 0.0' in text
    assert 'vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0' in text
    assert psutil.Process(served.process.pid).num_fds() < 40


def test_other_clients_are_served_in_time_while_some_attack(target: Any) -> None:
    """Forty connections send broken, slow and endless requests; an honest client's answers stay quick."""
    noise = [b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000, b"\x00" * 5000, b"POST /v1/completions HTTP/1.1\r\n",
             CHUNKED + b"fffffff\r\n" + b"x" * 50_000]  # fmt: skip
    spans = []
    with httpx2.Client(timeout=20) as client:
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
        for turn in range(40):
            with suppress(OSError), connected(target) as sock:
                sock.sendall(noise[turn % len(noise)])
                begun = time.monotonic()
                assert client.post(target.url + "/v1/completions", json=body).status_code == 200
                spans.append(time.monotonic() - begun)
    # Who had to wait for one of the others would wait until it is given up on, after a second; each fourth is one of those.
    assert len([span for span in spans if span > 0.9]) < 5


def test_silent_connections_are_closed(target: Any) -> None:
    with connected(target) as sock:
        begun = time.monotonic()
        assert everything(sock) == b""
        assert 1.0 <= time.monotonic() - begun < 15


def test_pipelined_requests_are_answered_in_order_and_garbage_after_them_is_refused(target: Any) -> None:
    one = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    other = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
    body = b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"max_tokens":3}'
    work = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
    with connected(target) as sock:
        sock.sendall(one + work + other + one * 200 + b"GARBAGE\r\n\r\n")
        answer = everything(sock)
    heads = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert heads[:3] == [b"200", b"200", b"404"]
    assert heads[3:-1] == [b"200"] * len(heads[3:-1])
    assert well(target)


def test_a_flood_of_connections_is_refused_above_the_limit_and_forgotten(target: Any) -> None:
    time.sleep(1.0)
    socks = [socket.create_connection((target.host, target.port), timeout=10) for _ in range(80)]
    refused = 0
    for sock in socks:
        # The others are closed without a word, for their silence.
        refused += sock.recv(12) == b"HTTP/1.1 503"
        sock.close()
    assert 5 <= refused <= 40
    assert well(target)


def test_a_burst_of_connections_waits_for_a_busy_server_and_none_is_lost(serve: Callable[..., Any]) -> None:
    served = serve("vllm", "tiny", TOLLGATE_SIM_TTFT="0", TOLLGATE_SIM_ITL="0")
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    with ExitStack() as stack:
        served.process.send_signal(signal.SIGSTOP)
        try:
            # Above the limit the kernel forgets who wants to connect, who then tries again a second later at the earliest.
            burst = [
                stack.enter_context(socket.create_connection((served.host, served.port), timeout=0.9))
                for _ in range(min(500, most // 2))
            ]
        finally:
            served.process.send_signal(signal.SIGCONT)
        for sock in burst:
            sock.settimeout(10)
            sock.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_client_that_does_not_read_costs_bounded_memory(serve: Callable[..., Any]) -> None:
    served = serve("vllm", "tiny", "--max-model-len", "200k", TOLLGATE_SIM_TTFT="0", TOLLGATE_SIM_ITL="1us")
    body = b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"max_tokens":150000,"ignore_eos":true,"stream":true}'
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    before = psutil.Process(served.process.pid).memory_info().rss
    socks = []
    for _ in range(4):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((served.host, served.port))
        sock.sendall(request)
        socks.append(sock)
    most = 0
    for _ in range(20):
        time.sleep(0.1)
        most = max(most, psutil.Process(served.process.pid).memory_info().rss)
    assert most - before < 4 * (12 << 20)
    assert well(served)
    for sock in socks:
        sock.close()


def test_a_client_that_goes_away_frees_its_slot(serve: Callable[..., Any]) -> None:
    served = serve("vllm", "tiny", "--max-num-seqs", "1", TOLLGATE_SIM_TTFT="1ms", TOLLGATE_SIM_ITL="50ms")
    body = (
        b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"max_tokens":1000,"ignore_eos":true,"stream":true}'
    )
    with connected(served) as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        assert sock.recv(100)
    assert well(served)
    text = httpx2.get(served.url + "/metrics").text
    assert 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="tiny"} 1.0' in text


def test_sigterm_lets_streams_finish_and_turns_health_to_503(
    serve: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    served = serve("vllm", "tiny", TOLLGATE_SIM_TTFT="1ms", TOLLGATE_SIM_ITL="20ms")
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 150,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx2.stream("POST", served.url + "/v1/chat/completions", json=body, timeout=20) as response:
        lines = response.iter_lines()
        next(lines)
        served.process.send_signal(signal.SIGTERM)
        eventually(lambda: httpx2.get(served.url + "/health").status_code == 503)
        rest = [line for line in lines if line.startswith("data: ")]
    assert rest[-1] == "data: [DONE]"
    assert sum('"content":" ' in line for line in rest) == 150
    assert served.process.wait(30) == 0


def test_shutdown_timeout_zero_cuts_streams_as_vllm_does(serve: Callable[..., Any]) -> None:
    served = serve("vllm", "tiny", "--shutdown-timeout", "0", TOLLGATE_SIM_TTFT="1ms", TOLLGATE_SIM_ITL="50ms")
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 400,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx2.stream("POST", served.url + "/v1/chat/completions", json=body, timeout=20) as response:
        lines = response.iter_lines()
        next(lines)
        begun = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx2.HTTPError):
            list(lines)
        assert time.monotonic() - begun < 10
    assert served.process.wait(30) == 0


def test_faults_come_when_they_are_asked_for(serve: Callable[..., Any]) -> None:
    served = serve(
        "vllm", "tiny", TOLLGATE_SIM_TTFT="0", TOLLGATE_SIM_ITL="0", TOLLGATE_SIM_FAULTS="error=0.3,disconnect=0.3"
    )
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 8, "ignore_eos": True}
    seen = {200: 0, 500: 0, 0: 0}
    with httpx2.Client(base_url=served.url) as client:
        for _ in range(200):
            try:
                seen[client.post("/v1/chat/completions", json=body).status_code] += 1
            except httpx2.HTTPError:
                seen[0] += 1
    assert 40 <= seen[500] <= 80
    assert 25 <= seen[0] <= 60


def test_an_out_of_memory_kill_looks_like_one(serve: Callable[..., Any]) -> None:
    served = serve("vllm", "tiny", TOLLGATE_SIM_TTFT="1ms", TOLLGATE_SIM_ITL="1ms", TOLLGATE_SIM_FAULTS="oom=1")
    with pytest.raises(httpx2.HTTPError):
        httpx2.post(
            served.url + "/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 8, "ignore_eos": True}
        )
    assert served.process.wait(30) == -signal.SIGKILL


def test_workers_share_the_address_and_add_up_their_numbers(serve: Callable[..., Any]) -> None:
    served = serve("vllm", "tiny", TOLLGATE_SIM_TTFT="0", TOLLGATE_SIM_ITL="0", TOLLGATE_SIM_WORKERS="3")
    assert len(psutil.Process(served.process.pid).children()) == 3
    for _ in range(30):
        assert well(served)
    for _ in range(5):
        text = httpx2.get(served.url + "/metrics").text
        assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 30.0' in text
    assert served.stop() == 0


def test_tls_is_an_option(serve: Callable[..., Any], tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    served = serve(
        "vllm", "tiny", wait=False, TOLLGATE_SIM_CERTIFICATE=str(certificate), TOLLGATE_SIM_PRIVATE_KEY=str(key)
    )
    context = ssl.create_default_context(cafile=str(certificate))
    deadline = time.monotonic() + 30
    while True:
        try:
            response = httpx2.get(f"https://127.0.0.1:{served.port}/v1/models", verify=context)
            break
        except httpx2.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert response.json()["data"][0]["id"] == "tiny"


def test_it_starts_and_idles_at_little_cost(serve: Callable[..., Any]) -> None:
    served = serve("vllm", "tiny", TOLLGATE_SIM_TTFT="1ms", TOLLGATE_SIM_ITL="1ms")
    process = psutil.Process(served.process.pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(1.0)
    assert sum(process.cpu_times()[:2]) - before <= 0.05
    assert before < 1.5
    assert process.memory_info().rss < 48 << 20


def test_options_that_cannot_be_used_are_named(serve: Callable[..., Any]) -> None:
    served = serve("vllm", "tiny", "--max-num-seqs", "none", wait=False)
    assert served.process.wait(10) == 2
