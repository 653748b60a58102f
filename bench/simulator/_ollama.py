"""The Ollama dialect: its native routes, its OpenAI routes, and the life of a model: pulled, loaded, kept, unloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from . import _ask, _native_ask
from ._answers import Prepared
from ._ask import Ask, Refused
from ._http import Client
from ._library import Library, Model, full_name, stamp
from ._message import GIN, Request, headed
from ._native import NativeStream, NativeWhole
from ._options import Engine, OptionError, go_duration
from ._words import content_tokens, count

if TYPE_CHECKING:
    from ._machine import Machine

JSON = b"application/json; charset=utf-8"
NDJSON = b"application/x-ndjson"
TEXT = b"text/plain; charset=utf-8"
BUSY = "server busy, please try again.  maximum pending requests exceeded"
Handler = Callable[[Client, Request], bytes | None]


class Wait:
    """A connection whose request waits for a model to load or to be pulled."""

    __slots__ = ("gone",)

    def __init__(self) -> None:
        self.gone = False

    def abort(self) -> None:
        self.gone = True


class Ollama:
    """The application of one Ollama server."""

    head = GIN

    def __init__(self, machine: Machine, options: Engine) -> None:
        self.machine = machine
        self.options = options
        self.library = Library(machine, options, self.head)
        self.keys = frozenset(b"Bearer " + key.encode() for key in options.api_keys)
        self.draining = False
        post, get = b"POST", b"GET"
        self.routes: dict[bytes, tuple[bytes, Handler]] = {
            b"/": (get, self.root),
            b"/api/version": (get, self.version),
            b"/api/tags": (get, self.tags),
            b"/api/ps": (get, self.running),
            b"/api/show": (post, self.show),
            b"/api/pull": (post, self.pull),
            b"/api/delete": (b"DELETE", self.delete),
            b"/api/copy": (post, self.copy),
            b"/api/generate": (post, self.generate),
            b"/api/chat": (post, self.chat),
            b"/api/embed": (post, self.embed),
            b"/api/embeddings": (post, self.old_embeddings),
            b"/v1/chat/completions": (post, self.openai_chat),
            b"/v1/completions": (post, self.openai_completions),
            b"/v1/embeddings": (post, self.openai_embeddings),
            b"/v1/models": (get, self.openai_models),
            b"/openapi.json": (get, self.openapi),
        }

    def busy(self) -> bool:
        """Whether anybody still waits for an answer."""
        return self.library.busy()

    def told(self, message: dict[str, Any]) -> None:
        """Another worker's news of its models."""
        self.library.told(message)

    def gauges(self) -> tuple[int, int, float]:
        """Requests running, requests waiting, share of the slots in use, over all models in memory."""
        loaded = [model.scheduler for model in self.library.models.values() if model.loaded]
        active = sum(scheduler.active for scheduler in loaded)
        waiting = sum(scheduler.queued for scheduler in loaded) + sum(
            len(m.loading) for m in self.library.models.values()
        )
        return active, waiting, active / max(1, sum(scheduler.max_seqs for scheduler in loaded))

    def handle(self, connection: Client, request: Request) -> bytes | None:
        found = self.routes.get(request.path)
        if found is None:
            if request.path.startswith(b"/v1/models/") and request.method == b"GET":
                return self._openai_model(request.path[len(b"/v1/models/") :].decode("utf-8", "replace"))
            return self.head.reply(404, b"text/plain", b"404 page not found")
        method, handler = found
        if request.method != method and not (request.method == b"HEAD" and method == b"GET"):
            return self.head.reply(405, b"text/plain", b"405 method not allowed", extra=b"Allow: %b\r\n" % method)
        if self.keys and request.path != b"/" and request.authorization not in self.keys:
            # Ollama itself asks for none; what stands before it does, and answers so.
            return self._refused(request.path, Refused(401, "unauthorized"))
        try:
            response = handler(connection, request)
        except Refused as refused:
            response = self._refused(request.path, refused)
        return headed(response) if request.method == b"HEAD" else response

    def _refused(self, path: bytes, refused: Refused) -> bytes:
        if path.startswith(b"/v1/"):
            kind = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}.get(
                refused.status, "api_error"
            )
            body: Any = {"error": {"message": refused.message, "type": kind, "param": None, "code": None}}
        else:
            body = {"error": refused.message}
        return self._json(body, refused.status)

    def refuse(self, status: int, message: str) -> bytes:
        if status == 400:
            return self.head.reply(400, TEXT, b"400 Bad Request", close=True)
        return self.head.reply(status, JSON, orjson.dumps({"error": message}), close=True)

    def _json(self, value: Any, status: int = 200) -> bytes:
        return self.head.reply(status, JSON, orjson.dumps(value))

    # Small ones

    def root(self, connection: Client, request: Request) -> bytes:
        """GET /"""
        if self.draining:
            return self.head.reply(503, TEXT, b"Ollama is shutting down")
        return self.head.reply(200, TEXT, b"Ollama is running")

    def version(self, connection: Client, request: Request) -> bytes:
        """GET /api/version"""
        return self._json({"version": self.options.version})

    def tags(self, connection: Client, request: Request) -> bytes:
        """GET /api/tags"""
        return self._json({"models": [model.card() for model in self.library.models.values()]})

    def running(self, connection: Client, request: Request) -> bytes:
        """GET /api/ps"""
        return self._json({"models": [m.card(running=True) for m in self.library.models.values() if m.loaded]})

    def show(self, connection: Client, request: Request) -> bytes:
        """POST /api/show"""
        data = self._read(request)
        name = data.get("model") or data.get("name")
        if not isinstance(name, str) or not name:
            raise Refused(400, "model is required")
        return self._json(self._model(name).description())

    def pull(self, connection: Client, request: Request) -> bytes | None:
        """POST /api/pull: progress, then success"""
        data = self._read(request)
        name = data.get("model") or data.get("name")
        if not isinstance(name, str) or not name:
            raise Refused(400, "invalid model name")
        wait = Wait()
        connection.busy = wait
        stream = data.get("stream", True) is not False
        if stream:
            connection.write(self.head.stream(NDJSON))

        def report(status: dict[str, Any], last: bool) -> None:
            if wait.gone:
                return
            if stream:
                line = orjson.dumps(status) + b"\n"
                connection.write(b"%x\r\n%b\r\n%b" % (len(line), line, b"0\r\n\r\n" if last else b""))
            elif last:
                connection.write(self._json(status))
            if last:
                connection.done()

        self.library.pull(name, report)
        return None

    def delete(self, connection: Client, request: Request) -> bytes:
        """DELETE /api/delete"""
        data = self._read(request)
        name = str(data.get("model") or data.get("name") or "")
        self.library.delete(self._model(name))
        return self.head.reply(200, JSON, b"")

    def copy(self, connection: Client, request: Request) -> bytes:
        """POST /api/copy"""
        data = self._read(request)
        source, target = data.get("source"), data.get("destination")
        if not isinstance(source, str) or not isinstance(target, str) or not target:
            raise Refused(400, 'source "" is invalid')
        self.library.copy(self._model(source), target)
        return self.head.reply(200, JSON, b"")

    def openapi(self, connection: Client, request: Request) -> bytes:
        """GET /openapi.json (the simulator's own; Ollama serves none)"""
        from ._openapi import ollama_document

        return self._json(ollama_document(self.options))

    # Reading

    def _read(self, request: Request) -> dict[str, Any]:
        if not request.body.strip():
            raise Refused(400, "missing request body")
        try:
            data = orjson.loads(request.body)
        except orjson.JSONDecodeError as error:
            at = min(error.pos, len(request.body) - 1)
            if error.pos >= len(request.body):
                raise Refused(400, "unexpected EOF") from None
            shown = chr(request.body[at])
            raise Refused(400, f"invalid character {shown!r} looking for beginning of value") from None
        if not isinstance(data, dict):
            raise Refused(400, "json: cannot unmarshal value into Go value of type api.Request")
        return data

    def _model(self, name: str) -> Model:
        model = self.library.models.get(full_name(name))
        if model is None:
            raise Refused(404, f"model '{name}' not found")
        return model

    def _keep_alive(self, data: dict[str, Any]) -> float | None:
        value = data.get("keep_alive")
        if value is None:
            return None
        try:
            return go_duration(str(value), self.options.keep_alive)
        except OptionError as error:
            raise Refused(400, str(error)) from None

    # Generating, natively

    def generate(self, connection: Client, request: Request) -> bytes | None:
        """POST /api/generate"""
        data = self._read(request)
        name = data.get("model")
        model = self._model(name if isinstance(name, str) else "")
        prompt = data.get("prompt") or ""
        if not isinstance(prompt, str):
            raise Refused(
                400, "json: cannot unmarshal value into Go struct field GenerateRequest.prompt of type string"
            )
        system = data.get("system")
        text = f"{system} {prompt}" if isinstance(system, str) and system else prompt
        return self._native(
            connection,
            data,
            model,
            text,
            count(text) + _native_ask.image_tokens(data, "GenerateRequest"),
            chat=False,
            empty=not prompt,
        )

    def chat(self, connection: Client, request: Request) -> bytes | None:
        """POST /api/chat"""
        data = self._read(request)
        name = data.get("model")
        if not isinstance(name, str) or not name:
            raise Refused(400, "model is required")
        model = self._model(name)
        messages = data.get("messages") or []
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise Refused(
                400, "json: cannot unmarshal value into Go struct field ChatRequest.messages of type []api.Message"
            )
        for message in messages:
            content = message.get("content", "")
            if content is not None and not isinstance(content, str):
                raise Refused(
                    400, "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string"
                )
        text = "\n".join(message.get("content") or "" for message in messages)
        tokens = sum(
            content_tokens(m.get("content")) + _native_ask.image_tokens(m, "ChatRequest.messages") for m in messages
        )
        return self._native(connection, data, model, text, tokens, chat=True, empty=not messages)

    def _native(
        self,
        connection: Client,
        data: dict[str, Any],
        model: Model,
        text: str,
        tokens: int,
        *,
        chat: bool,
        empty: bool,
    ) -> bytes | None:
        keep_alive = self._keep_alive(data)
        predict, stops, context = _native_ask.options(data, self.options.context_tokens)
        said = _native_ask.structured(data, self.machine.draws.next())
        if self.draining:
            return self.refuse(503, "server is shutting down")
        if empty:
            if keep_alive == 0:
                self.library.expire(model)
                return self._json(self._ended(model, "unload", chat))
            return self._when_loaded(
                connection, model, keep_alive, lambda: self._json(self._ended(model, "load", chat))
            )
        room = max(1, context - 1)
        if predict is not None and predict > 0:
            room = min(predict, 1 << 17)
        tokens = max(1, min(tokens, context - 1))
        stream = data.get("stream", True) is not False
        arrived = self.library.clock()
        calls = _native_ask.tools(data) if chat and said is None else None

        def start() -> bytes | None:
            kind = NativeStream if stream else NativeWhole
            forced = predict is not None and predict > 0
            work = kind(model, connection, chat=chat, arrived=arrived, text=text, stops=stops, said=said, call=calls)
            return work.begin(tokens, room, forced=forced, busy=lambda: self._json({"error": BUSY}, 503))

        return self._when_loaded(connection, model, keep_alive, start)

    def _ended(self, model: Model, reason: str, chat: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model.asked, "created_at": stamp()}
        body |= {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
        return body | {"done": True, "done_reason": reason}

    def _when_loaded(
        self, connection: Client, model: Model, keep_alive: float | None, then: Callable[[], bytes | None]
    ) -> bytes | None:
        """Run `then` once `model` is in memory: now, or after it has been loaded."""
        if keep_alive is not None:
            model.keep_alive = keep_alive
        if model.loaded:
            self.library.touch(model)
            return then()
        wait = Wait()

        def ready() -> None:
            if wait.gone:
                return
            connection.busy = None
            response = then()
            if response is not None:
                connection.busy = wait
                connection.write(response)
                connection.done()

        if not self.library.load(model, ready):
            return self._json({"error": BUSY}, 503)
        connection.busy = wait
        return None

    # Embeddings

    def embed(self, connection: Client, request: Request) -> bytes | None:
        """POST /api/embed"""
        data = self._read(request)
        model = self._model(str(data.get("model") or ""))
        given = data.get("input")
        inputs = [given] if isinstance(given, str) else given
        if not isinstance(inputs, list) or not all(isinstance(i, str) for i in inputs):
            raise Refused(400, "invalid input type")
        start = self.library.clock()

        def then() -> bytes:
            made = self.machine.embeddings(inputs, {"dimensions": data.get("dimensions")}, model.asked)
            vectors = [row["embedding"] for row in made["data"]]
            taken = int((self.library.clock() - start) * 1e9)
            counts = {
                "total_duration": taken,
                "load_duration": taken // 2,
                "prompt_eval_count": made["usage"]["prompt_tokens"],
            }
            return self._json({"model": model.asked, "embeddings": vectors} | counts)

        return self._when_loaded(connection, model, self._keep_alive(data), then)

    def old_embeddings(self, connection: Client, request: Request) -> bytes | None:
        """POST /api/embeddings"""
        data = self._read(request)
        model = self._model(str(data.get("model") or ""))
        text = str(data.get("prompt") or "")

        def then() -> bytes:
            return self._json({"embedding": self.machine.embeddings([text], {}, model.asked)["data"][0]["embedding"]})

        return self._when_loaded(connection, model, self._keep_alive(data), then)

    # The OpenAI routes

    def _openai(self, connection: Client, request: Request, ask: Ask, draw: int, route: str) -> bytes | None:
        model = self._model(ask.model)
        if self.draining:
            return self.refuse(503, "server is shutting down")
        context = self.options.context_tokens
        ask.prompts = [min(p, context - 1) for p in ask.prompts]
        if ask.max_tokens is not None:
            # num_predict: the engine under /v1 is told no end-of-text to ignore, so the length is the limit itself.
            ask.ignore_eos = True
        room = min(ask.max_tokens, 1 << 17) if ask.max_tokens is not None else context - 1
        received = len(request.body)

        def then() -> bytes | None:
            response = Prepared(model.kitchen, ask, room, route).start(connection, draw, b"", received)
            if response is None and connection.busy is None:
                return self._refused(b"/v1/", Refused(503, BUSY))
            return response

        return self._when_loaded(connection, model, None, then)

    def openai_chat(self, connection: Client, request: Request) -> bytes | None:
        """POST /v1/chat/completions"""
        draw = self.machine.draws.next()
        data = _native_ask.known(self._read(request), _native_ask.OPENAI_CHAT)
        if not data.get("messages"):
            raise Refused(400, "[] is too short - 'messages'")
        return self._openai(connection, request, _ask.chat(data, draw, auto_tools=True), draw, "/v1/chat/completions")

    def openai_completions(self, connection: Client, request: Request) -> bytes | None:
        """POST /v1/completions"""
        draw = self.machine.draws.next()
        data = _native_ask.known(self._read(request), _native_ask.OPENAI_COMPLETION)
        ask = _ask.completion(data)
        if data.get("max_tokens") is None:
            ask.max_tokens = None
        return self._openai(connection, request, ask, draw, "/v1/completions")

    def openai_embeddings(self, connection: Client, request: Request) -> bytes | None:
        """POST /v1/embeddings"""
        data = self._read(request)
        model = self._model(str(data.get("model") or ""))
        given = data.get("input")
        inputs = given if isinstance(given, list) else [given]
        if not inputs or inputs == [None]:
            raise Refused(400, "invalid input")
        return self._when_loaded(
            connection, model, None, lambda: self._json(self.machine.embeddings(inputs, data, model.asked))
        )

    def openai_models(self, connection: Client, request: Request) -> bytes:
        """GET /v1/models"""
        return self._json({"object": "list", "data": [model.openai() for model in self.library.models.values()]})

    def _openai_model(self, name: str) -> bytes:
        try:
            return self._json(self._model(name).openai())
        except Refused as refused:
            return self._refused(b"/v1/", refused)
