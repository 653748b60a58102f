# ruff: noqa: E501 - inputs are written as they are sent
"""What comes over a connection: answers of a server under test, requests to our own servers, metrics, logs of pods, objects."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import json
import random
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any
from unittest import mock

import orjson

import stacks
from bench import load, results
from bench.batch import _judge, _results
from bench.batch import _wire as batch_wire
from bench.batch._model import Outcome
from bench.load import _part, _probe, _session, _wire
from bench.simulator import _http as sim_http
from bench.simulator import _http2 as sim_http2
from bench.simulator._machine import Machine
from bench.simulator._options import ollama_from, vllm_from
from bench.simulator._server import application

from ._services import Peer, request
from ._target import Target

URL = "http://127.0.0.1:9"


class Pipe(asyncio.Transport):
    """The server's end of a connection that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.over = False
        self.protocol: Any = None

    def write(self, data: Any) -> None:
        if len(self.written) < 1 << 20:
            self.written += data

    def abort(self) -> None:
        self.over = True

    close = abort

    def is_closing(self) -> bool:
        return self.over

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None:
        """As if."""

    resume_reading = pause_reading

    def get_write_buffer_size(self) -> int:
        return 0

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default


def pieces(data: bytes) -> Iterator[bytes]:
    """As the network cuts it: by the data itself, so that the same input is always cut in the same places."""
    draw = random.Random(zlib.crc32(data))
    size = draw.choice((1, 7, 60, 4096, 1 << 20))
    for at in range(0, len(data), max(size, len(data) // 400)):
        yield data[at : at + max(size, len(data) // 400)]


def chunked(data: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole answer with that body."""
    head = b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces(data)) + b"0\r\n\r\n"


# --- the load generator, and the runner of batches, as clients of a hostile server

_DELTA = '{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{%s},"finish_reason":null}]}'
_SSE = (
    "data: " + _DELTA % '"role":"assistant","content":""' + "\n\n" + "".join(f"data: {_DELTA % one}\n\n" for one in ('"content":"a"',) * 3)
    + 'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}\n\ndata: [DONE]\n\n'
).encode()  # fmt: skip
_NDJSON = (
    '{"model":"m","message":{"role":"assistant","content":"a"},"done":false}\n'
    * 3
    + '{"model":"m","done":true,"total_duration":9000000,"load_duration":1,"prompt_eval_count":8,"prompt_eval_duration":2,'
    '"eval_count":3,"eval_duration":4}\n'
).encode()
_WHOLE = b'{"id":"c","choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":8,"completion_tokens":3}}'
_ERROR = b'{"error":{"message":"no","type":"server_error"}}'


def streams(folder: Path) -> list[Target]:
    """Answers as bytes, and as the body of answers that are HTTP."""
    targets = {
        "sse": load.Target(url=URL, engine="vllm", model="m"),
        "ndjson": load.Target(url=URL, engine="ollama", model="m"),
        "whole": load.Target(url=URL, engine="openai", model="m", stream=False),
    }
    bodies = {"sse": [_SSE], "ndjson": [_NDJSON], "whole": [_WHOLE, _ERROR]}
    found = []
    for name, target in targets.items():

        def body(data: bytes, target: load.Target = target) -> None:
            answered(target, chunked(data))
            batched(chunked(data))

        def raw(data: bytes, target: load.Target = target) -> None:
            answered(target, data)
            batched(data)

        plain = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(one), one) for one in bodies[name]]
        heads = [b"HTTP/1.1 503 Busy\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\nContent-Length: 0\r\n\r\n"]
        found.append(Target(f"{name}-body", "lines", bodies[name], body))
        found.append(Target(f"{name}-http", "bytes", [*plain, chunked(bodies[name][0]), *heads], raw))
    return found


def answered(target: load.Target, data: bytes) -> None:
    """The load generator's connection gets this, up to the counted and binned result."""

    async def go() -> None:
        session = _session.Session(_wire.Wire(target), load.Closed(users=1, requests=2), _source())
        session._running = True
        session.began = began = monotonic()
        lane = _session.Lane(session, 0)
        session.connect = lambda again: again.fail("connect_failed")  # type: ignore[method-assign]
        pipe = Pipe()
        lane.connection_made(pipe)
        session._send(lane, began)
        for piece in pieces(data):
            if pipe.over:
                break
            lane.data_received(piece)
        lane.connection_lost(None)
        session.stop()
        session.count_bins()
        span = _part.Span(began=began, start=0.0, end=monotonic() - began + 1.0)
        part = _part.part_of(session.records, span, stacks.Objectives(error_rate=0.5, goodput=0.1, ttft_p95_seconds=1))
        orjson.dumps(part.to_dict())

    _loop().run_until_complete(go())


@functools.cache
def _source() -> load.Synthetic:
    return load.Synthetic(stacks.Traffic(users=1, prompt_tokens=8, output_tokens=8), 1)


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def batched(data: bytes) -> None:
    """The batch runner's connection gets this, up to the line of the results."""
    replies: list[tuple[int, bytes, bytes]] = []
    broken: list[str] = []
    link = batch_wire.Link(
        lambda link, status, body, after: replies.append((status, body, after)),
        lambda link, code, stale: broken.append(code),
    )
    pipe = Pipe()
    link.connection_made(pipe)
    link.send(b"")
    for piece in pieces(data):
        if pipe.over:
            break
        link.data_received(piece)
    link.connection_lost(None)
    assert len(replies) + len(broken) == 1
    for status, body, after in replies:
        finding = _judge.judge(status, body, after)
        assert 0 <= finding.retry_after <= 3600
        assert max(finding.tokens_in, finding.tokens_out) < 2**53, "more tokens than a database can count"
        error = "" if finding.kind is _judge.Kind.ANSWER else finding.code
        outcome = Outcome(1, status, error, body, finding.tokens_in, finding.tokens_out, 0.0, 1.0, 1, "e")
        line = _results._line("batch_1", "id", outcome, None, 0.0)
        assert line.count(b"\n") == 1
        json.loads(line)


# --- our own servers and hostile clients

_CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": False, "seed": 1}
_TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
]
_ASKED: dict[str, list[tuple[str, Any]]] = {
    "vllm": [
        ("/v1/chat/completions", {**_CHAT, "stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", {**_CHAT, "tools": _TOOLS, "tool_choice": "required", "n": 2, "stop": ["x"]}),
        ("/v1/chat/completions", {**_CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "j", "schema": {"type": "object", "properties": {"a": {"enum": [1, "b"]}}}}}}),
        ("/v1/completions", {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 2, "echo": True, "logprobs": 1, "ignore_eos": True}),
        ("/v1/embeddings", {"model": "tiny", "input": ["a"], "encoding_format": "base64"}),
        ("/v1/responses", {"model": "tiny", "input": "a", "max_output_tokens": 2}),
        ("/tokenize", {"model": "tiny", "prompt": "a b"}),
    ],
    "ollama": [
        ("/api/chat", {"model": "gemma3:4b", "messages": [{"role": "user", "content": "hi"}], "stream": True, "options": {"num_predict": 3, "num_ctx": 64}}),
        ("/api/generate", {"model": "gemma3:4b", "prompt": "hi", "stream": False, "format": {"type": "object", "properties": {"a": {"type": "string"}}}, "keep_alive": "5m"}),
        ("/api/embed", {"model": "gemma3:4b", "input": ["a", "b"]}),
        ("/api/show", {"model": "gemma3:4b"}),
        ("/api/pull", {"model": "gemma3:4b", "stream": False}),
        ("/v1/chat/completions", {**_CHAT, "model": "gemma3:4b"}),
    ],
}  # fmt: skip


def simulator(folder: Path) -> list[Target]:
    """Both dialects over HTTP/1.1, and HTTP/2. What is not handled must not even be answered by 500."""
    loop = asyncio.new_event_loop()
    fixed = {"TOLLGATE_SIM_TTFT": "0", "TOLLGATE_SIM_ITL": "0", "TOLLGATE_SIM_LOAD_SECONDS": "0"}
    options = {
        "vllm": vllm_from(["serve", "tiny", "--max-model-len", "512"], fixed, version="0.32.0"),
        "ollama": ollama_from({**fixed, "TOLLGATE_SIM_MODELS": "gemma3:4b"}, version="0.17.4"),
    }
    found = []
    for name, option in options.items():
        machine = Machine(option, loop)
        app = application(option, machine)
        server = sim_http.Server(app, loop, max_connections=9, max_body=1 << 20, head_seconds=60, idle_seconds=60)
        seeds = [request(path, body) for path, body in _ASKED[name]] + [b"GET /metrics HTTP/1.0\r\n\r\n"]
        found.append(Target(f"{name}-server", "http", seeds, _served(loop, app, server.protocol)))
        if name == "vllm":
            either = functools.partial(sim_http2.Either, server)
            found.append(Target("http2-server", "bytes", [_h2()], _served(loop, app, either)))
    return found


def _served(loop: asyncio.AbstractEventLoop, app: Any, protocol: Callable[[], Any]) -> Callable[[bytes], None]:
    handle = app.handle

    def run(data: bytes) -> None:
        wrong: list[BaseException] = []

        def watched(connection: Any, request: Any) -> Any:
            try:
                return handle(connection, request)
            except Exception as error:
                wrong.append(error)
                raise

        def said(text: str) -> None:
            wrong.append(AssertionError(text))

        async def settle() -> None:
            for _ in range(6):
                await asyncio.sleep(0)

        loop.set_exception_handler(
            lambda _, context: wrong.append(context.get("exception") or AssertionError(str(context)))
        )
        connection, pipe = protocol(), Pipe()
        app.handle = watched
        with mock.patch.object(sim_http, "warn", said):
            pipe.set_protocol(connection)
            connection.connection_made(pipe)
            for piece in pieces(data):
                if pipe.over:
                    break
                # HTTP/2 has a protocol of its own once it is known to be that.
                pipe.protocol.data_received(piece)
            loop.run_until_complete(settle())
            pipe.protocol.connection_lost(None)
            loop.run_until_complete(settle())
        if wrong:
            raise wrong[0]

    return run


def _h2() -> bytes:
    import h2.connection

    client = h2.connection.H2Connection()
    client.initiate_connection()
    body = json.dumps(_CHAT).encode()
    head = [
        (":method", "POST"),
        (":path", "/v1/chat/completions"),
        (":scheme", "http"),
        (":authority", "a"),
        ("content-type", "application/json"),
    ]
    client.send_headers(1, head)
    client.send_data(1, body, end_stream=True)
    return client.data_to_send()


# --- metrics

_PAGE = (
    b'vllm:num_requests_running{engine="0",model_name="m"} 3.0\nvllm:kv_cache_usage_perc{engine="0"} 0.5\nollama:num_requests_waiting 2\n'
    b'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0\nDCGM_FI_DEV_GPU_UTIL{gpu="0"} 97\nvllm:prefix_cache_hits_total 1e3\n'
)  # fmt: skip


def metrics(folder: Path) -> list[Target]:
    """Pages of metrics, Prometheus' answers, and what an engine says of itself before a run."""
    run = results.Run(
        started=datetime(2026, 11, 21, tzinfo=UTC), seconds=3, warmup_seconds=1, sent=1, ok=1, failed=0, cut=0, metrics={}, valid=True,
        series={"seconds": (1.0, 2.0, 3.0, None)},
    )  # fmt: skip
    target = load.Target(url=URL, engine="vllm", model="m")

    class Connection(http.client.HTTPConnection):
        data = b""

        def connect(self) -> None:
            self.sock = Peer(self.data)  # type: ignore[assignment]

    def over(data: bytes, ask: Callable[[], object]) -> None:
        Connection.data = data
        with mock.patch.object(http.client, "HTTPConnection", Connection):
            ask()

    def scraped(data: bytes) -> None:
        from bench.load._observe import added
        from bench.load._observe import scraped as read

        seen = read(data.decode(errors="replace"))
        added(run, {name: (value,) for name, value in seen.items()})

    def prometheus(data: bytes) -> None:
        with mock.patch("time.time", return_value=now):
            over(data, lambda: load.Prometheus(url=URL).end(run, 5.0))

    def probed(data: bytes) -> None:
        def ask() -> None:
            for one in (target, load.Target(url=URL, engine="ollama", model="m")):
                with contextlib.suppress(
                    OSError, http.client.HTTPException, ValueError, KeyError, TypeError, RecursionError
                ):
                    _probe._problem(one, 1.0)
                _probe.facts(one)

        over(data, ask)

    now = 1_800_000_000.0
    said = {
        "status": "success",
        "data": {"resultType": "matrix", "result": [{"metric": {}, "values": [[now - 4, "1"], [now - 3, "2.5"]]}]},
    }
    models = {
        "data": [{"id": "m", "max_model_len": 512}],
        "models": [{"name": "m", "context_length": 1, "details": {"quantization_level": "q"}}],
        "version": "1",
    }

    def http_of(value: Any) -> bytes:
        text = json.dumps(value).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)

    page = b"HTTP/1.1 200 OK\r\n\r\n" + _PAGE
    return [
        Target("metrics-page", "text", [_PAGE], scraped),
        Target("prometheus", "http", [http_of(said)], prometheus),
        Target("engine", "http", [http_of(models), page], probed),
    ]
