"""The OpenAPI documents: what each dialect takes and answers, as far as it is checked. `/openapi.json` serves them.

What a document allows is accepted: a test sends what it generates from them. Prompts longer than the context are refused
nevertheless, which no schema can say.
"""

from __future__ import annotations

from typing import Any

from ._options import Engine

Schema = dict[str, Any]


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties}


def _list(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items} | bounds


_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_TOKENS: Schema = _list({"type": "integer", "minimum": 0, "maximum": 1 << 31})
_PART = _object(["type", "text"], type={"const": "text"}, text=_TEXT)
_MESSAGE = _object(
    ["role", "content"],
    role={"type": "string", "enum": ["system", "user", "assistant", "developer"]},
    content={"anyOf": [_TEXT, _list(_PART)]},
)
_MESSAGES = _list(_MESSAGE, minItems=1, maxItems=64)
_USAGE = _object(
    ["prompt_tokens", "total_tokens", "completion_tokens"],
    prompt_tokens=_WHOLE,
    total_tokens=_WHOLE,
    completion_tokens=_WHOLE,
)
_CHOICES = _list(_object(["index", "finish_reason"], index=_WHOLE, finish_reason=_TEXT))
_COMPLETION = _object(
    ["id", "object", "created", "model", "choices", "usage"],
    id=_TEXT,
    object=_TEXT,
    created=_WHOLE,
    model=_TEXT,
    choices=_CHOICES,
    usage=_USAGE,
)
_MODELS = _object(["object", "data"], object={"const": "list"}, data=_list(_object(["id", "object"], id=_TEXT)))
_VECTORS = _object(
    ["object", "data", "model", "usage"],
    data=_list(_object(["index", "embedding"], index=_WHOLE, embedding={"type": ["array", "string"]})),
)
_SAMPLING: dict[str, Schema] = {
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 16},
    "seed": {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1},
    "ignore_eos": _FLAG,
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "stop": {"anyOf": [{"type": "string"}, _list({"type": "string", "minLength": 1}, maxItems=16)]},
}
_VLLM_ERROR = _object(
    ["error"],
    error=_object(
        ["message", "type", "param", "code"],
        message=_TEXT,
        type=_TEXT,
        param={"type": ["string", "null"]},
        code=_WHOLE,
    ),
)
_OLLAMA_ERROR = _object(["error"], error={"anyOf": [_TEXT, _object(["message"], message=_TEXT)]})
# The schema is that of one event of the stream.
_EVENTS: dict[str, Schema] = {"text/event-stream": {"schema": _object(["data"], data=_TEXT)}}
_LINES: dict[str, Schema] = {"application/x-ndjson": {"schema": _TEXT}}


def _json(schema: Schema, text: str = "Successful Response", kind: str = "application/json") -> Schema:
    return {"description": text, "content": {kind: {"schema": schema}}}


class _Document:
    def __init__(self, title: str, options: Engine, error: Schema) -> None:
        self.paths: Schema = {}
        self.error = error
        self.document: Schema = {
            "openapi": "3.1.0",
            "info": {"title": title, "version": options.version},
            "paths": self.paths,
        }
        self.secured = bool(options.api_keys)
        if self.secured:
            self.document["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}

    def get(self, path: str, name: str, answer: Schema | None = None, kind: str = "application/json") -> None:
        shown = _json(answer, kind=kind) if answer is not None else {"description": "Successful Response"}
        self._add(path, "get", {"operationId": name, "responses": {"200": shown}})

    def post(
        self,
        path: str,
        name: str,
        body: Schema,
        answer: Schema,
        *codes: int,
        also: dict[str, Schema] | None = None,
        method: str = "post",
    ) -> None:
        good = {
            "description": "Successful Response",
            "content": {"application/json": {"schema": answer}} | (also or {}),
        }
        responses = {"200": good} | {str(code): _json(self.error, "Error") for code in codes}
        content = {"required": True, "content": {"application/json": {"schema": body}}}
        self._add(path, method, {"operationId": name, "requestBody": content, "responses": responses})

    def _add(self, path: str, method: str, operation: Schema) -> None:
        if self.secured and path.startswith(("/v1", "/api")):
            operation["security"] = [{"key": []}]
            operation["responses"]["401"] = {"description": "Unauthorized"}
        self.paths.setdefault(path, {})[method] = operation


def _model(options: Engine) -> Schema:
    return {"type": "string", "enum": list(options.models)} if options.models else _TEXT


def vllm_document(options: Engine) -> Schema:
    """Of the vLLM dialect."""
    made = _Document("vLLM (simulated)", options, _VLLM_ERROR)
    model = _model(options)
    count: Schema = {"type": "integer", "minimum": 1, "maximum": max(1, options.context_tokens // 2)}
    stream: dict[str, Schema] = {"stream": _FLAG}
    form = {
        "anyOf": [
            _object(["type"], type={"enum": ["text", "json_object"]}),
            _object(
                ["type", "json_schema"],
                type={"const": "json_schema"},
                json_schema=_object(
                    ["name", "schema"],
                    name=_TEXT,
                    schema=_object(["type"], type={"enum": ["object", "string", "null"]}),
                ),
            ),
        ]
    }
    chat = _object(
        ["messages"],
        model=model,
        messages=_MESSAGES,
        max_tokens=count,
        max_completion_tokens=count,
        logprobs=_FLAG,
        response_format=form,
        **stream,
        **_SAMPLING,
    )
    prompt: Schema = {"anyOf": [_TEXT, _list(_TEXT, minItems=1, maxItems=16), _TOKENS | {"minItems": 1}]}
    text = _object(["prompt"], model=model, prompt=prompt, max_tokens=count, echo=_FLAG, **stream, **_SAMPLING)
    made.get("/health", "health")
    made.get("/ping", "ping")
    made.get("/load", "load", _object(["server_load"], server_load=_WHOLE))
    made.get("/version", "version", _object(["version"], version=_TEXT))
    made.get("/metrics", "metrics", _TEXT, "text/plain")
    made.get("/v1/models", "models", _MODELS)
    made.post("/v1/chat/completions", "chat", chat, _COMPLETION, 400, 404, 503, also=_EVENTS)
    made.post("/v1/completions", "completions", text, _COMPLETION, 400, 404, 503, also=_EVENTS)
    given: Schema = {"anyOf": [_TEXT, _list(_TEXT, minItems=1), _TOKENS | {"minItems": 1}]}
    dimensions: Schema = {"type": "integer", "minimum": 1, "maximum": 4096}
    vectors = _object(
        ["input"],
        model=model,
        input=given,
        dimensions=dimensions,
        encoding_format={"type": "string", "enum": ["float", "base64"]},
    )
    made.post("/v1/embeddings", "embeddings", vectors, _VECTORS, 400, 404)
    tokenized = _object(["count", "tokens", "max_model_len"], count=_WHOLE, tokens=_list(_WHOLE))
    asked = {"anyOf": [_object(["prompt"], prompt=_TEXT), _object(["messages"], messages=_MESSAGES)]}
    made.post("/tokenize", "tokenize", asked, tokenized, 400)
    made.post("/detokenize", "detokenize", _object(["tokens"], tokens=_TOKENS), _object(["prompt"], prompt=_TEXT), 400)
    return made.document


def ollama_document(options: Engine) -> Schema:
    """Of the Ollama dialect."""
    made = _Document("Ollama (simulated)", options, _OLLAMA_ERROR)
    model = _model(options)
    count: Schema = {"type": "integer", "minimum": 1, "maximum": max(1, options.context_tokens // 2)}
    settings = _object(
        [],
        num_predict=count,
        num_ctx={"type": "integer", "minimum": 64, "maximum": 1 << 20},
        seed=_WHOLE,
        temperature=_NUMBER,
        top_p=_NUMBER,
        stop=_list(_TEXT, maxItems=16),
    )
    common: dict[str, Schema] = {"model": model, "stream": _FLAG, "options": settings}
    common["keep_alive"] = {
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": 3600}, {"enum": ["5m", "1h30m", "-1"]}]
    }
    common["format"] = {"anyOf": [{"const": "json"}, _object(["type"], type={"enum": ["object", "string"]})]}
    spoken = _object(["role"], role={"enum": ["system", "user", "assistant", "tool"]}, content=_TEXT)
    done = _object(["model", "created_at", "done"], model=_TEXT, created_at=_TEXT, done=_FLAG)
    models = _object(["models"], models=_list(_object(["name", "model"], name=_TEXT)))
    named = _object(["model"], model=model)
    made.get("/", "root", _TEXT, "text/plain")
    made.get("/api/version", "version", _object(["version"], version=_TEXT))
    made.get("/api/tags", "tags", models)
    made.get("/api/ps", "ps", models)
    made.get("/v1/models", "models", _MODELS)
    made.post("/api/show", "show", named, _object(["details", "model_info"]), 400, 404)
    pulled = _object(
        ["model"], model={"type": "string", "pattern": "^[a-z][a-z0-9]{0,20}(:[a-z0-9]{1,9})?$"}, stream=_FLAG
    )
    made.post("/api/pull", "pull", pulled, _object(["status"], status=_TEXT), 400, 404, also=_LINES)
    made.post("/api/generate", "generate", _object(["model"], prompt=_TEXT, **common), done, 400, 404, 503, also=_LINES)
    talk = _object(["model"], messages=_list(spoken, maxItems=64), **common)
    made.post("/api/chat", "chat", talk, done, 400, 404, 503, also=_LINES)
    given: Schema = {"anyOf": [_TEXT, _list(_TEXT)]}
    embedded = _object(["embeddings"], embeddings=_list(_list(_NUMBER)))
    made.post("/api/embed", "embed", _object(["model", "input"], model=model, input=given), embedded, 400, 404, 503)
    one = _object(["embedding"], embedding=_list(_NUMBER))
    made.post(
        "/api/embeddings", "embeddings", _object(["model", "prompt"], model=model, prompt=_TEXT), one, 400, 404, 503
    )
    talk = _object(["model", "messages"], model=model, messages=_MESSAGES, max_tokens=count, stream=_FLAG)
    made.post("/v1/chat/completions", "openai_chat", talk, _COMPLETION, 400, 404, 503, also=_EVENTS)
    text = _object(["model", "prompt"], model=model, prompt=_TEXT, max_tokens=count, stream=_FLAG)
    made.post("/v1/completions", "openai_completions", text, _COMPLETION, 400, 404, 503, also=_EVENTS)
    vectors = _object(["model", "input"], model=model, input={"anyOf": [_TEXT, _list(_TEXT, minItems=1)]})
    made.post("/v1/embeddings", "openai_embeddings", vectors, _VECTORS, 400, 404, 503)
    return made.document
