"""What is left of a batch and how fast it goes, for Prometheus; what KEDA scales an engine by while a batch waits for it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import stacks

from ._progress import Progress

BACKLOG_METRIC = "tollgate_batch_left"


def rendered(batch: str, found: Progress) -> str:
    """In Prometheus' text format."""
    counts, eta = found.counts, found.eta
    mine = f'batch="{batch}",shard="{found.part}"'
    gauges = {
        BACKLOG_METRIC: ("inputs that have no result yet", counts.left),
        "tollgate_batch_answered": ("inputs that have been answered", counts.ok),
        "tollgate_batch_failed": ("inputs that are listed as failed", counts.failed),
        "tollgate_batch_tokens_in": ("tokens of prompts, as the servers counted them", counts.tokens_in),
        "tollgate_batch_tokens_out": ("tokens of answers, as the servers counted them", counts.tokens_out),
        "tollgate_batch_eta_seconds": ("until the end at the sustained rate", eta.seconds),
        "tollgate_batch_eta_certain": ("1: the rate is sustained", int(eta.certain)),
        "tollgate_batch_spent_dollars": ("until now", found.spent),
    }
    lines = []
    for name, (words, value) in gauges.items():
        if not math.isnan(value):
            lines += [f"# HELP {name} {words}", f"# TYPE {name} gauge", f"{name}{{{mine}}} {_number(value)}"]
    name = "tollgate_batch_in_flight"
    lines += [f"# HELP {name} requests at an endpoint now", f"# TYPE {name} gauge"]
    lines += [f'{name}{{{mine},endpoint="{url}"}} {one["in_flight"]}' for url, one in found.endpoints.items()]
    return "\n".join([*lines, ""])


def _number(value: float) -> str:
    return "+Inf" if value == math.inf else repr(value)


class Metrics:
    """What was told last."""

    def __init__(self, batch: str) -> None:
        self._batch, self._text = batch, ""

    def tell(self, found: Progress) -> None:
        """Of now."""
        self._text = rendered(self._batch, found)

    @contextmanager
    def served(self, host: str, port: int) -> Iterator[int]:
        """At /metrics, in a thread of its own; the port, which is a free one for 0. Raises TollgateError."""
        metrics = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = metrics._text.encode()
                self.send_response(200 if self.path == "/metrics" else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        try:
            server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise stacks.TollgateError(f"metrics at {host}:{port}: {error.strerror}") from None
        threading.Thread(target=server.serve_forever, name="batch metrics", daemon=True).start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            server.server_close()
