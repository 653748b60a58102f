"""When things go wrong, every request is accounted for exactly once and the report says what happened."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import stacks
from bench import results
from bench.load._session import Session
from bench.load._wire import retry_after

Serve = Callable[..., str]
Measured = Callable[..., Any]


@pytest.mark.parametrize(
    ("engine", "fault", "kind"),
    [
        ("ollama", "503", "http_503"),
        ("vllm", "429", "http_429"),
        ("ollama", "garbage", "malformed_http"),
        ("vllm", "reset", "connection_lost"),
        ("vllm", "truncate", "truncated"),
        # What a stream says of its own end differs between the dialects.
        ("ollama", "no_end", "unfinished_stream"),
        ("vllm", "no_end", "unfinished_stream"),
        ("ollama", "stream_error", "stream_error"),
        ("vllm", "stream_error", "stream_error"),
    ],
)
def test_a_fault_is_counted_by_its_kind_and_the_others_succeed(
    serve: Serve, measured: Measured, engine: str, fault: str, kind: str
) -> None:
    # A server of its own for each try: the question before the load must not be the one that goes wrong.
    fails = partial(serve, "--ttft", 0.02, "--itl", 0.005, "--fault", fault, "--every", 7)
    (run,) = measured(fails, engine, seconds=0.8).runs
    assert run.sent == run.ok + run.failed + run.cut
    if fault == "reset":
        # On a kept connection that says nothing before it closes, one silent retry is what any HTTP client does.
        assert run.client["retries"] > 0
    else:
        assert set(run.errors) == {kind}
        assert run.failed == run.errors[kind] > 0
        # Whoever fails waits before asking again, so that shares of a short window vary.
        assert 0.01 < run.metrics["error_rate"] < 0.3
    assert run.ok > 8
    assert run.metrics["ttft_p50_seconds"] == pytest.approx(0.02, abs=0.01)


def test_a_body_that_is_cut_off_is_truncated_and_not_believed(serve: Serve, measured: Measured) -> None:
    url = serve("--ttft", 0.02, "--fault", "short", "--every", 7)
    (run,) = measured(url, "vllm", stream=False, seconds=0.8).runs
    assert run.sent == run.ok + run.failed + run.cut
    assert set(run.errors) == {"truncated"}
    assert run.failed == run.errors["truncated"] > 0
    assert run.ok > 8


def test_replicas_whose_certificate_nobody_trusts_are_counted_so_and_the_others_go_on(
    serve: Serve, measured: Measured, certificate: Path, stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, other = (serve("--ttft", 0.02, "--certificate", file, scheme="https") for file in (certificate, stranger))
    ports = tuple(int(url.rpartition(":")[2]) for url in (good, other))
    real = Session.resolve

    async def both(self: Session) -> None:
        await real(self)
        self._addresses = [(socket.AF_INET, "127.0.0.1", port) for port in ports]

    monkeypatch.setattr(Session, "resolve", both)
    (run,) = measured(good, "vllm", users=8, seconds=1.2, reconnect=True, ca_file=str(certificate)).runs
    assert run.sent == run.ok + run.failed + run.cut
    assert run.ok > 8
    assert run.failed == sum(run.errors.values()) > 4
    assert set(run.errors) == {"tls"}


def test_a_request_that_is_never_answered_times_out(serve: Serve, measured: Measured) -> None:
    url = serve("--ttft", 0.02, "--fault", "hang", "--every", 20)
    (run,) = measured(url, request_timeout=0.5).runs
    assert run.sent == run.ok + run.failed + run.cut
    assert set(run.errors) == {"timeout"}


def test_a_server_that_dies_mid_run_leaves_every_request_accounted_for(serve: Serve, measured: Measured) -> None:
    dies = partial(serve, "--ttft", 0.02, "--itl", 0.005, "--fault", "die", "--every", 70)
    (run,) = measured(dies, seconds=1.5).runs
    assert run.sent == run.ok + run.failed + run.cut
    assert run.failed > 0
    assert "connection_refused" in run.errors
    # A dead server is not flooded: five users wait longer after each refusal.
    assert run.errors["connection_refused"] < 100


def test_half_the_replicas_gone_is_seen_as_refused_connections_and_every_request_is_accounted_for(
    serve: Serve, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, kept = (
        int(serve("--ttft", 0.02, *more).rpartition(":")[2]) for more in (("--fault", "die", "--every", 60), ())
    )
    real = Session.resolve

    async def both(self: Session) -> None:
        await real(self)
        self._addresses = [(socket.AF_INET, "127.0.0.1", port) for port in (gone, kept)]

    monkeypatch.setattr(Session, "resolve", both)
    (run,) = measured(f"http://127.0.0.1:{kept}", users=8, seconds=1.5, reconnect=True).runs
    assert run.sent == run.ok + run.failed + run.cut
    assert run.failed == sum(run.errors.values())
    # The other half goes on answering all the while, as fast as the machine lets it.
    assert run.ok > 20
    assert run.errors["connection_refused"] > 5
    assert set(run.errors) <= {"connection_refused", "connection_lost", "truncated"}


def test_a_name_that_is_gone_when_the_load_begins_is_said(
    serve: Serve, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(self: Session) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(Session, "resolve", nobody)
    with pytest.raises(stacks.TollgateError, match="Name or service not known"):
        measured(serve("--ttft", 0.02))


def test_a_server_that_only_fails_gives_an_invalid_run(serve: Serve, measured: Measured) -> None:
    url = serve("--fault", "503", "--every", 1)
    with pytest.raises(stacks.TollgateError, match="503"):
        measured(url)


@pytest.mark.parametrize(
    ("line", "least", "most"),
    [
        (b"Retry-After: 7", 7.0, 7.0),
        (b"retry-after:  1.5 ", 1.5, 1.5),
        (b"Retry-After: IN-HALF-AN-HOUR", 1700.0, 1801.0),
        (b"Retry-After: Wed, 21 Oct 2015 07:28:00 GMT", 0.0, 0.0),
        (b"Retry-After: soon", 0.0, 0.0),
        (b"X-Other: 1", 0.0, 0.0),
    ],
)
def test_retry_after_is_read_in_both_of_its_forms(line: bytes, least: float, most: float) -> None:
    line = line.replace(b"IN-HALF-AN-HOUR", formatdate(time.time() + 1800, usegmt=True).encode())
    assert least <= retry_after(b"HTTP/1.1 503 X\r\n" + line + b"\r\nContent-Length: 0\r\n\r\n") <= most


def test_retry_after_is_waited_for(serve: Serve, measured: Measured) -> None:
    url = serve("--ttft", 0.01, "--fault", "503", "--every", 2)
    (run,) = measured(url, users=4, seconds=2.2).runs
    assert run.sent == run.ok + run.failed + run.cut
    # One of two fails and then waits for a second: about one failure per user and second.
    assert 3 <= run.failed <= 14


def test_nobody_there_is_said_in_one_line(measured: Measured) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(stacks.TollgateError, match=r"gave up after 1 s.*does not answer"):
        measured(f"http://127.0.0.1:{port}", ready_timeout=1.0)


def test_a_name_that_does_not_resolve_is_said_in_one_line(measured: Measured) -> None:
    with pytest.raises(stacks.TollgateError, match="does not answer"):
        measured("http://nobody.invalid", ready_timeout=0.5)


def test_a_model_that_is_not_there_is_named_with_those_that_are(serve: Serve) -> None:
    from bench.load import Target, wait

    with pytest.raises(stacks.TollgateError, match=r"has no model large \(it has tiny\)"):
        wait(Target(url=serve(), engine="ollama", model="large"), timeout=0.3)


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:80", "http://", "http://h:0x", "http://h/?q"])
def test_a_wrong_address_is_refused_before_anything_is_sent(measured: Measured, url: str) -> None:
    with pytest.raises(stacks.InputError, match="allowed: http"):
        measured(url)


def test_tls_and_api_keys_work_and_a_certificate_that_nobody_trusts_does_not(
    serve: Serve, measured: Measured, certificate: Path
) -> None:
    file = certificate
    url = serve("--ttft", 0.02, "--certificate", file, "--key", "sesame", scheme="https")
    (run,) = measured(url, "vllm", ca_file=str(file), api_key="sesame").runs
    assert run.failed == 0
    assert run.ok > 50
    with pytest.raises(stacks.TollgateError, match="API key"):
        measured(url, "vllm", ca_file=str(file), api_key="wrong")
    with pytest.raises(stacks.TollgateError, match="certificate"):
        measured(url, "vllm", api_key="sesame", ready_timeout=0.5)


def test_ctrl_c_gives_a_partial_result_that_says_so(serve: Serve, tmp_path: Path) -> None:
    url = serve("--ttft", 0.02)
    file = tmp_path / "result.json"
    command = [sys.executable, "-m", "tollgate", "bench", "--url", url, "--model", "tiny", "--engine", "ollama"]
    process = subprocess.Popen(
        [*command, "--duration", "60", "--json", str(file)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(stacks.__file__).parents[1],
    )
    assert process.stdout is not None
    while "alone" not in process.stdout.readline():
        pass
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "interrupted" in text
    (run,) = results.read(file).runs
    assert not run.valid
    assert run.sent == run.ok + run.failed + run.cut
    assert run.ok > 0
