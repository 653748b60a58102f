"""A server that remembers what it was asked, run as a process of its own: `python asked_server.py --delay 0.01 …`.

It prints its port. Words in a prompt make it misbehave: `poison` answers 500 always, `refuse` answers 400, `once` fails the
first time it is asked, `kill` makes it exit (with --restart it comes back on its port), `garbage` answers no JSON, `hang`
never answers. POST /control sets its options while it runs: {"status": 503, "retry_after": 1, "delay": 0.1, "cut": true}.
GET /asked: how often each prompt was asked. With --log each asking is appended to a file, a line each, at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

import httptools
import uvloop

WORDS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    429: "Too Many",
    500: "Error",
    503: "Busy",
}


class Server(asyncio.Protocol):
    asked: ClassVar[Counter[str]] = Counter()
    options: ClassVar[dict[str, object]] = {}
    running = 0
    most = 0
    refused = 0
    log = -1

    def connection_made(self, transport):
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.handle = None

    def data_received(self, data):
        self.parser.feed_data(data)

    def connection_lost(self, error):
        if self.handle is not None:
            self.handle.cancel()
            self.handle = None
            Server.running -= 1

    def on_url(self, url):
        self.url, self.body, self.headers = url.decode(), b"", {}

    def on_header(self, name, value):
        self.headers[name.lower()] = value

    def on_body(self, body):
        self.body += body

    def reply(self, status, value, headers=b""):
        body = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
        if not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b"
                % (status, WORDS.get(status, "X").encode(), headers, len(body), body)
            )

    def on_message_complete(self):
        if self.url == "/control":
            Server.options.update(json.loads(self.body))
            self.reply(200, {})
        elif self.url == "/asked":
            self.reply(200, {"asked": Server.asked, "most": Server.most, "refused": Server.refused})
        elif self.url == "/health":
            self.reply(int(Server.options.get("health", 200)), {})
        else:
            self.ask(json.loads(self.body))

    def ask(self, body):
        options = Server.options
        key = options.get("key")
        if key and self.headers.get(b"authorization") != f"Bearer {key}".encode():
            self.reply(401, {"error": {"message": "who are you?"}})
            return
        if options.get("cut"):
            self.transport.abort()
            return
        status = int(options.get("status", 200))
        crowded = options.get("most") is not None and Server.running >= int(options["most"])
        if status != 200 or crowded:
            Server.refused += 1
            after = options.get("retry_after")
            extra = b"Retry-After: %d\r\n" % int(after) if after else b""
            self.reply(429 if crowded else status, {"error": {"message": "not now"}}, extra)
            return
        prompt = body["messages"][-1]["content"] if "messages" in body else str(body.get("prompt", body.get("input")))
        Server.asked[prompt] += 1
        if Server.log >= 0:
            os.write(Server.log, prompt.encode() + b"\n")
        if "kill" in prompt:
            os._exit(9)
        if "poison" in prompt or ("once" in prompt and Server.asked[prompt] == 1):
            self.reply(500, {"error": {"message": "the engine does not like this"}})
        elif "refuse" in prompt:
            self.reply(400, {"error": {"message": "too long"}})
        elif "garbage" in prompt:
            self.reply(200, b"<html>")
        elif "hang" not in prompt:
            Server.running += 1
            Server.most = max(Server.most, Server.running)
            delay = float(options.get("delay", 0))
            if delay:
                self.handle = asyncio.get_running_loop().call_later(delay, self.answer, prompt, body)
            else:
                self.answer(prompt, body)

    def answer(self, prompt, body):
        Server.running -= 1
        self.handle = None
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        choice = {"index": 0, "message": {"role": "assistant", "content": f"re: {prompt}"}, "finish_reason": "stop"}
        self.reply(
            200, {"id": "c", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}
        )


async def main(a):
    Server.options = {"delay": a.delay, "key": a.key}
    if a.log:
        Server.log = os.open(a.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    server = await asyncio.get_running_loop().create_server(Server, a.host, a.port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.wait_for(server.serve_forever(), a.life)


def supervise(a):
    """Start the server again, on its port, each time it has been killed."""
    end = time.monotonic() + a.life
    command = [sys.executable, str(Path(__file__)), "--delay", str(a.delay), "--log", a.log]
    port = a.port
    while time.monotonic() < end:
        child = subprocess.Popen(
            [*command, "--port", str(port), "--life", str(end - time.monotonic()), "--parent", str(os.getpid())],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        line = child.stdout.readline()
        if not port:
            port = int(line)
            print(port, flush=True)
        child.wait()
        time.sleep(a.restart)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--key", default="")
    parser.add_argument("--log", default="")
    parser.add_argument("--restart", type=float)
    parser.add_argument("--parent", type=int)
    # Never left behind, whatever happens to the test.
    parser.add_argument("--life", type=float, default=300.0)
    given = parser.parse_args()
    if given.parent:
        import ctypes

        # PR_SET_PDEATHSIG: gone with whoever started it.
        ctypes.CDLL(None).prctl(1, 9)
    try:
        if given.restart is not None:
            supervise(given)
        else:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main(given))
    except (TimeoutError, KeyboardInterrupt):
        pass
