"""The OpenAPI documents: what each dialect takes and answers, as far as it is checked. `/openapi.json` serves them.

What a document allows is accepted: a test sends what it generates from them, and another watches that every member that
is read is declared (an undeclared one may be anything). Prompts longer than the context are refused nevertheless, which
no schema can say.
"""

from __future__ import annotations

from typing import Any

from ._options import Engine
from ._rich import MOST_TOKENS

Schema = dict[str, Any]


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties}


def _closed(required: list[str], **properties: Schema) -> Schema:
    return _object(required, **properties) | {"additionalProperties": False}


def _only(schema: Schema, *rules: tuple[Schema, Schema]) -> Schema:
    """`schema` where of each rule one side or the other holds (both by member)."""
    return schema | {"allOf": [{"anyOf": [_when(**one), _when(**other)]} for one, other in rules]}


def _when(**properties: Schema) -> Schema:
    """A condition on members: those that are not `_ABSENT` must be there."""
    return {"properties": properties, "required": [name for name, value in properties.items() if value is not _ABSENT]}


def _list(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items} | bounds


# A member that is not there, or says nothing.
_ABSENT: Schema = {"type": "null"}
_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_TOKENS: Schema = _list({"type": "integer", "minimum": 0, "maximum": 1 << 31})
_PART = _object(["type", "text"], type={"const": "text"}, text=_TEXT)
_MESSAGE = _object(
    ["role", "content"],
    role={"type": "string", "enum": ["system", "user", "assistant", "developer", "tool"]},
    content={"anyOf": [_TEXT, _list(_PART)]},
    tool_calls=_list({"type": "object"}, maxItems=4),
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
_DIMENSIONS: Schema = {"type": "integer", "minimum": 1, "maximum": 4096}
_ENCODING: Schema = {"type": "string", "enum": ["float", "base64"]}
# Both dialects' OpenAI routes.
_SAMPLING: dict[str, Schema] = {
    "stream": _FLAG,
    "stream_options": _object([], include_usage=_FLAG, continuous_usage_stats=_FLAG),
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "seed": {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "stop": {"anyOf": [{"type": "string"}, _list({"type": "string", "minLength": 1}, maxItems=16)]},
}
# JSON schemas that the answer has to fit: simple ones of those that are understood, so that each has an instance.
_SIMPLE = _closed(["type"], type={"enum": ["string", "integer", "number", "boolean", "null"]})
_FITTED = _closed(
    ["type"],
    type={"const": "object"},
    properties={"type": "object", "maxProperties": 4, "additionalProperties": _SIMPLE},
)
_SCHEMA: Schema = {"anyOf": [_SIMPLE, _FITTED]}
_FORM: Schema = {
    "anyOf": [
        _object(["type"], type={"enum": ["text", "json_object"]}),
        _object(
            ["type", "json_schema"],
            type={"const": "json_schema"},
            json_schema=_object(["name", "schema"], name=_TEXT, schema=_SCHEMA),
        ),
    ]
}
_TOOL = _object(
    ["type", "function"],
    type={"const": "function"},
    function=_object(["name"], name={"type": "string", "minLength": 1}, parameters=_FITTED),
)
_TOOLS = _list(_TOOL, minItems=1, maxItems=4)
_CONSTRAINED: Schema = {
    "anyOf": [
        _closed(["json"], json=_SCHEMA),
        _closed(["json_object"], json_object={"const": True}),
        _closed(["choice"], choice=_list({"type": "string", "minLength": 1}, minItems=1, maxItems=8)),
        _closed(["regex"], regex={"enum": ["[a-z]{3,5}", "(yes|no)"]}),
    ]
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
        answer: Schema | None,
        *codes: int,
        also: dict[str, Schema] | None = None,
        method: str = "post",
    ) -> None:
        good: Schema = {"description": "Successful Response"}
        if answer is not None:
            good["content"] = {"application/json": {"schema": answer}} | (also or {})
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
    # What one request may ask for in all is bounded: choices times tokens times log probabilities.
    most = MOST_TOKENS // max(1, options.context_tokens)
    top: Schema = {"type": "integer", "minimum": 0, "maximum": max(0, min(5, most - 1))}
    several: Schema = {"type": "integer", "minimum": 1, "maximum": max(1, min(8, most // (top["maximum"] + 1)))}
    common: dict[str, Schema] = {"model": model, "max_tokens": count, "n": several, "ignore_eos": _FLAG}
    common |= {"response_format": _FORM, "structured_outputs": _CONSTRAINED} | _SAMPLING
    streamed = ({"stream_options": _ABSENT}, {"stream": {"const": True}})
    chosen = ["none", "required", "auto"] if options.auto_tools else ["none", "required"]
    common["stream_options"] = {"anyOf": [_ABSENT, common["stream_options"]]}
    chat = _only(
        _object(
            ["messages"],
            messages=_MESSAGES,
            max_completion_tokens=count,
            logprobs=_FLAG,
            top_logprobs={"anyOf": [_ABSENT, top]},
            tools={"anyOf": [_ABSENT, _TOOLS]},
            tool_choice={"enum": [None, *chosen]},
            **common,
        ),
        streamed,
        ({"top_logprobs": _ABSENT}, {"logprobs": {"const": True}}),
        ({"tools": _ABSENT, "tool_choice": _ABSENT}, {"tools": _TOOLS, "tool_choice": {"enum": chosen}}),
    )
    prompt: Schema = {"anyOf": [_TEXT, _list(_TEXT, minItems=1, maxItems=4), _TOKENS | {"minItems": 1}]}
    text = _only(_object(["prompt"], prompt=prompt, echo=_FLAG, logprobs=top, **common), streamed)
    made.get("/health", "health")
    made.get("/ping", "ping")
    made.get("/load", "load", _object(["server_load"], server_load=_WHOLE))
    made.get("/version", "version", _object(["version"], version=_TEXT))
    made.get("/metrics", "metrics", _TEXT, "text/plain")
    made.get("/v1/models", "models", _MODELS)
    made.post("/v1/chat/completions", "chat", chat, _COMPLETION, 400, 404, 503, also=_EVENTS)
    made.post("/v1/completions", "completions", text, _COMPLETION, 400, 404, 503, also=_EVENTS)
    given: Schema = {"anyOf": [_TEXT, _list(_TEXT, minItems=1), _TOKENS | {"minItems": 1}]}
    vectors = _object(["input"], model=model, input=given, dimensions=_DIMENSIONS, encoding_format=_ENCODING)
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
        top_k=_WHOLE,
        num_keep=_WHOLE,
        temperature=_NUMBER,
        top_p=_NUMBER,
        repeat_penalty=_NUMBER,
        stop={"anyOf": [_TEXT, _list(_TEXT, maxItems=16)]},
    )
    common: dict[str, Schema] = {"model": model, "stream": _FLAG, "options": settings}
    kept: Schema = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 3600}, {"enum": ["5m", "1h30m", "-1"]}]}
    common["keep_alive"] = kept
    common["format"] = {"anyOf": [{"const": "json"}, _SCHEMA]}
    images = _list(_TEXT, maxItems=4)
    role: Schema = {"enum": ["system", "user", "assistant", "tool"]}
    spoken = _object(["role"], role=role, content=_TEXT, images=images)
    done = _object(["model", "created_at", "done"], model=_TEXT, created_at=_TEXT, done=_FLAG)
    models = _object(["models"], models=_list(_object(["name", "model"], name=_TEXT)))
    named = _object(["model"], model=model)
    made.get("/", "root", _TEXT, "text/plain")
    made.get("/api/version", "version", _object(["version"], version=_TEXT))
    made.get("/api/tags", "tags", models)
    made.get("/api/ps", "ps", models)
    made.get("/v1/models", "models", _MODELS)
    made.post("/api/show", "show", named, _object(["details", "model_info"]), 400, 404)
    named_so: Schema = {"type": "string", "pattern": "^[a-z][a-z0-9]{0,20}(:[a-z0-9]{1,9})?$"}
    pulled = _object(["model"], model=named_so, stream=_FLAG)
    made.post("/api/pull", "pull", pulled, _object(["status"], status=_TEXT), 400, 404, also=_LINES)
    ask = _object(["model"], prompt=_TEXT, system=_TEXT, images=images, **common)
    made.post("/api/generate", "generate", ask, done, 400, 404, 503, also=_LINES)
    talk = _object(["model"], messages=_list(spoken, maxItems=64), tools=_TOOLS, **common)
    made.post("/api/chat", "chat", talk, done, 400, 404, 503, also=_LINES)
    given: Schema = {"anyOf": [_TEXT, _list(_TEXT)]}
    embedded = _object(["embeddings"], embeddings=_list(_list(_NUMBER)))
    wanted = _object(["model", "input"], model=model, input=given, keep_alive=kept, dimensions=_DIMENSIONS)
    made.post("/api/embed", "embed", wanted, embedded, 400, 404, 503)
    one = _object(["embedding"], embedding=_list(_NUMBER))
    wanted = _object(["model", "prompt"], model=model, prompt=_TEXT, keep_alive=kept)
    made.post("/api/embeddings", "embeddings", wanted, one, 400, 404, 503)
    both: dict[str, Schema] = {"model": model, "max_tokens": count} | _SAMPLING
    talk = _object(["model", "messages"], messages=_MESSAGES, response_format=_FORM, tools=_TOOLS, **both)
    made.post("/v1/chat/completions", "openai_chat", talk, _COMPLETION, 400, 404, 503, also=_EVENTS)
    text = _object(["model", "prompt"], prompt=_TEXT, **both)
    made.post("/v1/completions", "openai_completions", text, _COMPLETION, 400, 404, 503, also=_EVENTS)
    given = {"anyOf": [_TEXT, _list(_TEXT, minItems=1)]}
    vectors = _object(["model", "input"], model=model, input=given, dimensions=_DIMENSIONS, encoding_format=_ENCODING)
    made.post("/v1/embeddings", "openai_embeddings", vectors, _VECTORS, 400, 404, 503)
    copied = _object(["source", "destination"], source=model, destination=named_so)
    made.post("/api/copy", "copy", copied, None, 400, 404)
    # Last: who tries them all in their order would find no model after it.
    made.post("/api/delete", "delete", named, None, 400, 404, method="delete")
    return made.document
