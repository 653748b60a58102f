"""A server of exact timing in both dialects, run as a process of its own: `python fake_server.py --ttft 0.2 …`.

It prints its port. It is no model of an engine (that is the simulator): a request waits for one of `slots`, its first
token comes `ttft` seconds after that, each further one `itl` seconds after the one before, by the clock and not by sleeps.
`--fault` makes every n-th request go wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import importlib.util
import json
import os
import re
import ssl
from collections import deque
from email.utils import formatdate
from pathlib import Path
from time import monotonic, time
from typing import ClassVar

import httptools
import uvloop

# The one module alone: its room would take as long to import as many a test takes.
_FOUND = importlib.util.spec_from_file_location(
    "timer", Path(__file__).resolve().parents[3] / "bench" / "load" / "_timer.py"
)
assert _FOUND is not None
_MODULE = importlib.util.module_from_spec(_FOUND)
_FOUND.loader.exec_module(_MODULE)
Timer = _MODULE.Timer

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


CONTEXT = list(range(3000))


class Clock:
    """Calls back at a moment to within microseconds; the loop's own timers are right to a millisecond."""

    one: ClassVar[Clock]

    def __init__(self):
        self.heap, self.number = [], 0
        self.timer = Timer(asyncio.get_running_loop(), self.ring)

    def call_at(self, when, callback):
        self.number += 1
        heapq.heappush(self.heap, (when, self.number, callback))
        if self.heap[0][1] == self.number:
            self.timer.arm(when)

    def ring(self):
        while self.heap and self.heap[0][0] <= monotonic():
            heapq.heappop(self.heap)[2]()
        if self.heap:
            self.timer.arm(self.heap[0][0])


class Server(asyncio.Protocol):
    frames: ClassVar[dict] = {}
    free = 0
    waiting: ClassVar[deque[tuple[Server, dict]]] = deque()
    served = 0
    arguments: argparse.Namespace

    def connection_made(self, transport):
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.holds = False
        self.handles = []
        self.asked = 0

    def data_received(self, data):
        self.parser.feed_data(data)

    def connection_lost(self, error):
        for handle in self.handles:
            handle.cancel()
        if self.holds:
            self.release()

    def on_url(self, url):
        self.url, self.body, self.headers = url.decode(), b"", {}

    def on_header(self, name, value):
        self.headers[name.lower()] = value

    def on_body(self, body):
        self.body += body

    def release(self):
        self.holds = False
        while Server.waiting:
            server, asked = Server.waiting.popleft()
            if not server.transport.is_closing():
                server.serve(asked)
                return
        Server.free += 1

    def reply(self, status, value, headers=b""):
        body = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
        self.transport.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b"
            % (status, headers, len(body), body)
        )

    def on_message_complete(self):
        a = self.arguments
        if a.key and self.headers.get(b"authorization") != b"Bearer " + a.key.encode():
            self.reply(401, {"error": "no"})
            return
        if self.url == "/api/version":
            self.reply(200, {"version": "0.0.1"})
        elif self.url == "/version":
            self.reply(200, {"version": "0.0.2"})
        elif self.url in ("/api/tags", "/api/ps"):
            self.reply(200, {"models": [{"name": "tiny", "context_length": 2048}]})
        elif self.url == "/v1/models":
            self.reply(200, {"data": [{"id": "tiny", "max_model_len": 2048}]})
        elif self.url == "/metrics":
            running = a.slots - Server.free
            page = (
                b'vllm:cache_config_info{num_gpu_blocks="7",engine="0"} 1.0\nvllm:num_requests_running{engine="0"} %d\n'
            )
            self.reply(200, page % running)
        else:
            self.ask(json.loads(self.body))

    def ask(self, asked):
        a = self.arguments
        Server.served += 1
        self.asked += 1
        self.fault = a.fault if a.every and Server.served % a.every == 0 else ""
        if self.fault == "die":
            os._exit(1)
        if self.fault == "503":
            self.reply(503, {"error": "busy"}, b"Retry-After: 1\r\n")
        elif self.fault == "429":
            until = formatdate(time() + 2.0, usegmt=True).encode()
            self.reply(429, {"error": {"message": "slow down"}}, b"Retry-After: %b\r\n" % until)
        elif self.fault == "garbage":
            self.transport.write(b"\x00\x01 this is not HTTP\r\n\r\n")
        elif self.fault == "reset":
            self.transport.abort()
        elif self.fault == "hang":
            pass
        elif Server.free:
            Server.free -= 1
            self.serve(asked)
        else:
            Server.waiting.append((self, asked))

    def serve(self, asked):
        a = self.arguments
        loop = asyncio.get_running_loop()
        self.holds = True
        self.ollama = self.url.startswith("/api/")
        self.chat = "chat" in self.url
        self.stream = asked.get("stream", self.ollama)
        self.total = asked["options"]["num_predict"] if self.ollama else asked["max_tokens"]
        text = asked["messages"][-1]["content"] if self.chat else asked["prompt"]
        self.prompt = len(re.split(r"\s+", text.strip()))
        self.sent = 0
        self.begun = monotonic()
        if not self.stream:
            wait = a.ttft + a.itl * (self.total - 1)
            if self.fault == "short":
                self.transport.write(b'HTTP/1.1 200 X\r\nContent-Length: 999\r\n\r\n{"choices":[{"index":0,"message":')
                self.transport.close()
                return
            if wait <= 0:
                self.whole()
            else:
                self.handles = [loop.call_later(wait, self.whole)]
            return
        kind = b"application/x-ndjson" if self.ollama else b"text/event-stream"
        self.transport.write(HEAD % kind)
        if not self.ollama and self.chat:
            self.frame(
                {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
            )
        if a.ttft + a.itl == 0:
            while self.holds:
                self.token()
        else:
            self.next()

    def next(self):
        a = self.arguments
        # A server that answers a while from what it has saved up.
        saved = not a.fast or self.asked <= a.fast
        Clock.one.call_at(self.begun + (a.ttft if saved else a.then) + a.itl * self.sent, self.tokens)

    def tokens(self):
        if self.holds and not self.transport.is_closing():
            if self.fault == "empty":
                self.empty()
                return
            self.token()
            if self.holds:
                self.next()

    def frame(self, value):
        line = json.dumps({"model": "tiny", **value}, separators=(",", ":")).encode()
        self.transport.write(chunk(line + b"\n" if self.ollama else b"data: " + line + b"\n\n"))

    def empty(self):
        """An answer that ends well and has no word in it."""
        if self.ollama:
            self.frame({"response": "", "done": True, "done_reason": "stop", **self.usage()})
        else:
            self.frame({"choices": [], "usage": self.usage()})
            self.transport.write(chunk(b"data: [DONE]\n\n"))
        self.transport.write(b"0\r\n\r\n")
        self.end()

    def word(self, last):
        """One token's frame; made once for all requests, so that 25,000 of them a second are no effort."""
        key = (self.ollama, self.chat, last)
        if key not in Server.frames:
            text = "word "
            if self.ollama:
                value = {"message": {"role": "assistant", "content": text}} if self.chat else {"response": text}
                line = json.dumps({"model": "tiny", **value, "done": False}, separators=(",", ":")).encode() + b"\n"
            else:
                choice = {"index": 0, "finish_reason": "length" if last else None}
                choice |= {"delta": {"content": text}} if self.chat else {"text": text}
                line = b"data: " + json.dumps({"choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"
            Server.frames[key] = chunk(line)
        self.transport.write(Server.frames[key])

    def token(self):
        if self.sent == self.total // 2 and self.fault in ("truncate", "stream_error", "no_end"):
            if self.fault == "stream_error":
                error = {"error": "out of memory"}
                self.transport.write(
                    chunk(
                        json.dumps(error).encode() + b"\n"
                        if self.ollama
                        else b"data: " + json.dumps(error).encode() + b"\n\n"
                    )
                )
            if self.fault == "truncate":
                self.transport.write(b"ff\r\nhalf a chunk")
                self.transport.close()
            else:
                self.transport.write(b"0\r\n\r\n")
            self.release()
            return
        self.sent += 1
        last = self.sent == self.total
        self.word(last)
        if last and self.ollama:
            text = (
                {"message": {"role": "assistant", "content": ""}} if self.chat else {"response": "", "context": CONTEXT}
            )
            self.frame({**text, "done": True, "done_reason": "length", **self.usage()})
        elif last:
            if asked_usage(self.body):
                self.frame({"choices": [], "usage": self.usage()})
            self.transport.write(chunk(b"data: [DONE]\n\n"))
        if last:
            self.transport.write(b"0\r\n\r\n")
            self.end()

    def usage(self):
        if self.ollama:
            spent = int((monotonic() - self.begun) * 1e9)
            return {
                "total_duration": spent,
                "prompt_eval_count": self.prompt,
                "eval_count": self.total,
                "eval_duration": spent,
            }
        return {"prompt_tokens": self.prompt, "completion_tokens": self.total, "total_tokens": self.prompt + self.total}

    def whole(self):
        text = "w " * self.total
        if self.ollama:
            content = {"message": {"role": "assistant", "content": text}} if self.chat else {"response": text}
            self.reply(200, {"model": "tiny", **content, "done": True, **self.usage()})
        else:
            content = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            self.reply(200, {"choices": [{"index": 0, **content, "finish_reason": "length"}], "usage": self.usage()})
        self.end()

    def end(self):
        self.release()
        if self.arguments.close:
            self.transport.close()


def asked_usage(body):
    return json.loads(body).get("stream_options", {}).get("include_usage")


async def main(a):
    Server.arguments, Server.free, Clock.one = a, a.slots, Clock()
    context = None
    if a.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(a.certificate)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", a.port, ssl=context, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.wait_for(server.serve_forever(), a.life)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft", type=float, default=0.0)
    parser.add_argument("--itl", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=1 << 20)
    parser.add_argument("--fault", default="")
    parser.add_argument("--every", type=int, default=0)
    parser.add_argument("--key", default="")
    parser.add_argument("--certificate", default="")
    parser.add_argument("--close", action="store_true")
    parser.add_argument("--fast", type=int, default=0, help="so many answers on each connection, then:")
    parser.add_argument("--then", type=float, default=0.0, help="seconds to the first token")
    # Never left behind, whatever happens to the test.
    parser.add_argument("--life", type=float, default=300.0)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(parser.parse_args()))
    except (TimeoutError, KeyboardInterrupt):
        pass
