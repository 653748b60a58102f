"""The vLLM dialect: its OpenAI server's routes, errors and metrics, as version 0.32 has them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from . import _ask
from ._answers import JSON, Kitchen, Prepared
from ._ask import Refused
from ._exposition import exposition
from ._http import Client
from ._message import UVICORN, Request, headed
from ._options import Engine
from ._shapes import Shapes
from ._words import count

if TYPE_CHECKING:
    from ._machine import Machine

_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
# Requests remembered per route, and the longest of them: at most 1 MiB.
_REMEMBERED, _REMEMBERED_BYTES = 256, 4096
Handler = Callable[[Client, Request], bytes | None]


class Route:
    """One of the two ways to ask for text. `read`: checks what is asked; `same`: requests by their body, byte for byte;
    `shapes`: those that differ in their text only."""

    __slots__ = ("path", "read", "same", "shapes")

    def __init__(self, path: str, read: Callable[[dict[str, Any], int], _ask.Ask], shapes: Shapes) -> None:
        self.path = path
        self.read = read
        self.same: dict[bytes, Prepared] = {}
        self.shapes = shapes


class Vllm:
    """The application of one vLLM server."""

    head = UVICORN

    def __init__(self, machine: Machine, options: Engine) -> None:
        self.machine = machine
        self.options = options
        self.models = options.models
        self.kitchens = {name: machine.kitchen(name, self.head) for name in options.models}
        self.engine = machine.scheduler(options.source)
        self.created = int(time.time())
        self.keys = frozenset(b"Bearer " + key.encode() for key in options.api_keys)
        self.limited = options.max_queued_reqs > 0 or options.max_queued_tokens > 0
        self.draining = False
        limit, auto = options.context_tokens, options.auto_tools
        chats = Route(
            "/v1/chat/completions", lambda data, draw: _ask.chat(data, draw, auto_tools=auto), Shapes("content", limit)
        )
        texts = Route("/v1/completions", lambda data, draw: _ask.completion(data), Shapes("prompt", limit))
        # path -> (allowed method, handler)
        self.routes: dict[bytes, tuple[bytes, Handler]] = {
            b"/v1/chat/completions": (b"POST", partial(self._complete, chats)),
            b"/v1/completions": (b"POST", partial(self._complete, texts)),
            b"/v1/models": (b"GET", self.list_models),
            b"/v1/embeddings": (b"POST", self.embeddings),
            b"/health": (b"GET", self.health),
            b"/ping": (b"GET", self.health),
            b"/version": (b"GET", self.version),
            b"/metrics": (b"GET", self.metrics),
            b"/load": (b"GET", self.load),
            b"/tokenize": (b"POST", self.tokenize),
            b"/detokenize": (b"POST", self.detokenize),
            b"/openapi.json": (b"GET", self.openapi),
        }

    def busy(self) -> bool:
        """Whether anybody still waits for an answer, of this worker or another."""
        return self.engine.everywhere

    def told(self, message: dict[str, Any]) -> None:
        """Workers of vLLM have nothing to tell each other but their numbers."""

    def gauges(self) -> tuple[int, int, float]:
        """Requests running, requests waiting, share of the KV cache in use."""
        return self.engine.active, self.engine.queued, self.engine.kv_usage()

    def handle(self, connection: Client, request: Request) -> bytes | None:
        handler = request.handler
        if handler is None:
            handler = request.handler = self._handler(request)
        try:
            return handler(connection, request)
        except Refused as refused:
            answer = self._error(refused.status, refused.message, refused.kind, refused.param)
            path, method = request.path.decode(), request.method.decode()
            self.machine.stats.http(path, method, refused.status, len(request.body), len(answer), 0.0)
            return answer

    def _handler(self, request: Request) -> Handler:
        """Who answers: by path, method and key."""
        found = self.routes.get(request.path)
        if found is None:
            return lambda connection, request: self._error(404, "Not Found", "Not Found")
        method, handler = found
        if request.method == b"HEAD" and method == b"GET":
            return lambda connection, request: headed(handler(connection, request))
        if request.method != method:
            allowed = b"allow: %b\r\n" % method
            words = "Method Not Allowed"
            return lambda connection, request: self._error(405, words, words, extra=allowed)
        if self.keys and request.path.startswith(b"/v1") and request.authorization not in self.keys:
            return lambda connection, request: self.head.reply(401, JSON, b'{"error":"Unauthorized"}')
        return handler

    def refuse(self, status: int, message: str) -> bytes:
        if status == 400:
            return self.head.reply(400, b"text/plain; charset=utf-8", message.encode(), close=True)
        kind = {500: "InternalServerError", 503: "ServiceUnavailableError"}.get(status, "BadRequestError")
        return self._error(status, message, kind, close=True)

    def _error(
        self, status: int, message: str, kind: str, param: str | None = None, *, close: bool = False, extra: bytes = b""
    ) -> bytes:
        try:
            body = orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}})
        except TypeError:  # a lone surrogate in what the client sent
            body = orjson.dumps({"error": {"message": "invalid text", "type": kind, "param": None, "code": status}})
        return self.head.reply(status, JSON, body, close=close, extra=extra)

    def _json(self, value: Any) -> bytes:
        return self.head.reply(200, JSON, orjson.dumps(value))

    # Completions

    def _complete(self, route: Route, connection: Client, request: Request) -> bytes | None:
        """POST /v1/chat/completions, POST /v1/completions"""
        draw = self.machine.draws.next()
        body = request.body
        if request.content_type == JSON:
            prepared = route.same.get(body)
            if prepared is not None:
                return self._answer(connection, request, prepared, draw, 0, "")
            found = route.shapes.find(body)
            if found is not None:
                return self._answer(connection, request, found[0], draw, found[1], found[2])
        else:
            self._content_type(request)
        data = _ask.read(body)
        prepared = self._prepare(body, route.read(data, draw), route)
        route.shapes.learn(body, data, prepared)
        return self._answer(connection, request, prepared, draw, 0, "")

    def _content_type(self, request: Request) -> None:
        kind = request.content_type
        if kind != JSON and kind.lower().partition(b";")[0].strip() != JSON:
            message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
            raise Refused(400, message, "Bad Request")

    def _kitchen(self, model: str) -> Kitchen:
        kitchen = self.kitchens.get(model) if model else self.kitchens[self.models[0]]
        if kitchen is None:
            aliases = ", ".join(self.models)
            raise Refused(
                404, f"The model `{model}` does not exist. Valid aliases: {aliases}.", "NotFoundError", "model"
            )
        return kitchen

    def _prepare(self, body: bytes, ask: _ask.Ask, route: Route) -> Prepared:
        """Check the limits; what a client may send again, byte for byte, is remembered."""
        kitchen = self._kitchen(ask.model)
        limit = self.options.context_tokens
        prompt = max(ask.prompts)
        wanted = ask.max_tokens
        if wanted is not None and wanted > limit:
            raise Refused(
                400,
                f"max_tokens={wanted} cannot be greater than max_model_len={limit}. Please request fewer output tokens. "
                f"(parameter=max_tokens, value={wanted})",
                param="max_tokens",
            )
        if prompt + (wanted or 1) > limit:
            raise Refused(
                400,
                f"This model's maximum context length is {limit} tokens. However, you requested {wanted or 0} output "
                f"tokens and your prompt contains at least {prompt} input tokens, for a total of at least "
                f"{prompt + (wanted or 0)} tokens. Please reduce the length of the input prompt or the number of "
                f"requested output tokens. (parameter=input_tokens, value={prompt})",
                param="input_tokens",
            )
        prepared = Prepared(kitchen, ask, wanted if wanted is not None else limit - prompt, route.path)
        if ask.plain and len(body) <= _REMEMBERED_BYTES:
            if len(route.same) >= _REMEMBERED:
                route.same.clear()
            route.same[body] = prepared
        return prepared

    def _answer(
        self, connection: Client, request: Request, prepared: Prepared, draw: int, prompt: int, text: str
    ) -> bytes | None:
        if self.draining:
            return self.refuse(503, "The server is shutting down.")
        if self.limited:
            self._admit(prepared)
        found = prepared.start(connection, draw, request.request_id, len(request.body), prompt, text)
        if found is None and connection.busy is None and not connection.closing:
            return self._error(503, "Request queue is full.", "ServiceUnavailableError")
        return found

    def _admit(self, prepared: Prepared) -> None:
        """Refuse what vLLM's limits on its queue refuse."""
        limit = self.engine.over(len(prepared.ask.prompts) * prepared.ask.n)
        if limit:
            stats = self.machine.stats
            stats.values[stats.rejected if limit == "max_num_queued_reqs" else stats.rejected_tokens] += 1
            raise Refused(503, f"The request queue is full ({limit}). Please retry later.", "ServiceUnavailableError")

    # The rest

    def list_models(self, connection: Client, request: Request) -> bytes:
        """GET /v1/models"""
        permission = {
            "id": "modelperm-" + "%016x" % (self.created * 0x9E3779B97F4A7C15 & (1 << 64) - 1),
            "object": "model_permission",
            "created": self.created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        cards = [
            {
                "id": name,
                "object": "model",
                "created": self.created,
                "owned_by": "vllm",
                "root": self.options.source,
                "parent": None,
                "max_model_len": self.options.context_tokens,
                "permission": [permission],
            }
            for name in self.models
        ]
        return self._json({"object": "list", "data": cards})

    def health(self, connection: Client, request: Request) -> bytes:
        """GET /health: empty 200, or 503 once the server drains"""
        return self.head.reply(503 if self.draining else 200, JSON, b"")

    def version(self, connection: Client, request: Request) -> bytes:
        """GET /version"""
        return self._json({"version": self.options.version})

    def load(self, connection: Client, request: Request) -> bytes:
        """GET /load"""
        return self._json({"server_load": self.engine.active + self.engine.queued})

    def metrics(self, connection: Client, request: Request) -> bytes | None:
        """GET /metrics, of all workers together"""

        def show(values: list[float], handlers: dict[tuple[str, str, str], list[float]]) -> bytes:
            text = exposition(
                self.machine.stats, values, handlers, self.options, self.machine.blocks, self.machine.started
            )
            return self.head.reply(200, _TEXT, text)

        return self.machine.collect(connection, self.gauges(), show)

    def embeddings(self, connection: Client, request: Request) -> bytes:
        """POST /v1/embeddings"""
        self._content_type(request)
        data = _ask.read(request.body)
        self._kitchen(_ask._model(data))
        given = data.get("input")
        inputs = given if isinstance(given, list) and not _ask.tokens(given) else [given]
        if given is None or not inputs:
            raise _ask._invalid("missing", "input", "Field required", data)
        return self._json(self.machine.embeddings(inputs, data, self._kitchen(_ask._model(data)).model))

    def tokenize(self, connection: Client, request: Request) -> bytes:
        """POST /tokenize"""
        data = _ask.read(request.body)
        if isinstance(data.get("prompt"), str):
            total = count(data["prompt"])
        elif isinstance(data.get("messages"), list):
            total = _ask.chat({"messages": data["messages"]}, 0, auto_tools=True).prompts[0]
        else:
            raise _ask._invalid("missing", "prompt", "Field required", data)
        tokens = [1000 + (i * 7919) % 200000 for i in range(total)]
        answer_ = {"count": total, "max_model_len": self.options.context_tokens, "tokens": tokens, "token_strs": None}
        return self._json(answer_)

    def detokenize(self, connection: Client, request: Request) -> bytes:
        """POST /detokenize: words of the vocabulary, as many as tokens were given"""
        data = _ask.read(request.body)
        tokens = data.get("tokens")
        if not _ask.tokens(tokens) or any(t < 0 for t in tokens):
            raise _ask._invalid("list_type", "tokens", "Input should be a valid list", tokens)
        return self._json({"prompt": self.machine.corpus.text(0, len(tokens)).decode().strip()})

    def openapi(self, connection: Client, request: Request) -> bytes:
        """GET /openapi.json"""
        from ._openapi import vllm_document

        return self._json(vllm_document(self.options))
