"""`/metrics` of the Ollama dialect, on a port of its own: Ollama has none, but an autoscaler needs one.

Same metrics as vLLM's, with the prefix `ollama:`, so that one query serves both with the name changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._exposition import exposition
from ._http import Client
from ._message import UVICORN, Request

if TYPE_CHECKING:
    from ._machine import Machine
    from ._ollama import Ollama
    from ._vllm import Vllm

_TEXT = b"text/plain; version=0.0.4; charset=utf-8"


class Exporter:
    """The application of the metrics port: `GET /metrics` and nothing else."""

    head = UVICORN

    def __init__(self, machine: Machine, app: Ollama | Vllm) -> None:
        self.machine = machine
        self.app = app

    def handle(self, connection: Client, request: Request) -> bytes | None:
        if request.path != b"/metrics" or request.method != b"GET":
            return self.head.reply(404, b"text/plain", b"404 page not found")
        machine = self.machine

        def show(values: list[float], handlers: dict[tuple[str, str, str], list[float]]) -> bytes:
            prefix = self.app.options.dialect
            page = exposition(
                machine.stats, values, handlers, machine.options, machine.blocks, machine.started, prefix=prefix
            )
            return self.head.reply(200, _TEXT, page)

        return machine.collect(connection, self.app.gauges(), show)

    def refuse(self, status: int, message: str) -> bytes:
        return self.head.reply(status, b"text/plain; charset=utf-8", message.encode(), close=True)
