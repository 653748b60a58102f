"""The OpenAPI documents: what each dialect takes and answers, as far as it is checked. `/openapi.json` serves them."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties}


_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 1, "maximum": 256}
_MESSAGE = _object(["role", "content"], role={"type": "string", "enum": ["system", "user", "assistant"]}, content=_TEXT)
_MESSAGES: Schema = {"type": "array", "items": _MESSAGE, "minItems": 1, "maxItems": 8}
_USAGE = _object(
    ["prompt_tokens", "total_tokens", "completion_tokens"],
    prompt_tokens={"type": "integer"},
    total_tokens={"type": "integer"},
    completion_tokens={"type": "integer"},
)
_CHOICES: Schema = {"type": "array", "items": {"type": "object", "required": ["index", "finish_reason"]}}
_COMPLETION = _object(
    ["id", "object", "created", "model", "choices", "usage"],
    id=_TEXT,
    object=_TEXT,
    created={"type": "integer"},
    model=_TEXT,
    choices=_CHOICES,
    usage=_USAGE,
)
_SAMPLING: dict[str, Schema] = {
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 4},
    "seed": {"type": "integer"},
    "ignore_eos": {"type": "boolean"},
    "stop": {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 4},
}
_VLLM_ERROR = _object(
    ["error"],
    error=_object(["message", "type", "code"], message=_TEXT, type=_TEXT, code={"type": "integer"}),
)
_OLLAMA_ERROR = _object(["error"], error={"anyOf": [_TEXT, {"type": "object"}]})


def _json(schema: Schema, text: str = "Successful Response", kind: str = "application/json") -> Schema:
    return {"description": text, "content": {kind: {"schema": schema}}}


def _post(
    name: str, body: Schema, answer: Schema, error: Schema, *codes: int, extra: dict[str, Schema] | None = None
) -> Schema:
    responses = {
        "200": {
            "description": "Successful Response",
            "content": {"application/json": {"schema": answer}} | (extra or {}),
        }
    }
    responses |= {str(code): _json(error, "Error") for code in codes}
    return {
        "post": {
            "operationId": name,
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": responses,
        }
    }


def _get(name: str, answer: Schema | None = None, kind: str = "application/json") -> Schema:
    shown = _json(answer, kind=kind) if answer is not None else {"description": "Successful Response"}
    return {"get": {"operationId": name, "responses": {"200": shown}}}


def vllm_document(version: str) -> Schema:
    """Of the vLLM dialect."""
    chat = _object(
        ["messages"], model=_TEXT, messages=_MESSAGES, max_tokens=_COUNT, stream={"type": "boolean"}, **_SAMPLING
    )
    text = _object(
        ["prompt"], model=_TEXT, prompt={"type": "string", "maxLength": 2000}, max_tokens=_COUNT, **_SAMPLING
    )
    events: dict[str, Schema] = {"text/event-stream": {"schema": _TEXT}}
    embeddings = _object(
        ["input"], model=_TEXT, input={"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "vLLM (simulated)", "version": version},
        "paths": {
            "/health": _get("health"),
            "/version": _get("version", _object(["version"], version=_TEXT)),
            "/metrics": _get("metrics", _TEXT, "text/plain"),
            "/v1/models": _get("models", _object(["object", "data"], object=_TEXT, data={"type": "array"})),
            "/v1/chat/completions": _post("chat", chat, _COMPLETION, _VLLM_ERROR, 400, 404, 503, extra=events),
            "/v1/completions": _post("completions", text, _COMPLETION, _VLLM_ERROR, 400, 404, 503, extra=events),
            "/v1/embeddings": _post("embeddings", embeddings, {"type": "object"}, _VLLM_ERROR, 400, 404),
            "/tokenize": _post(
                "tokenize",
                _object(["prompt"], prompt=_TEXT),
                _object(["count", "tokens"], count={"type": "integer"}),
                _VLLM_ERROR,
                400,
            ),
        },
    }


def ollama_document(version: str) -> Schema:
    """Of the Ollama dialect."""
    options = {"type": "object", "properties": {"num_predict": _COUNT, "temperature": {"type": "number"}}}
    common: dict[str, Schema] = {"model": _TEXT, "stream": {"type": "boolean"}, "options": options}
    lines: dict[str, Schema] = {"application/x-ndjson": {"schema": _TEXT}}
    done = _object(["model", "created_at", "done"], model=_TEXT, created_at=_TEXT, done={"type": "boolean"})
    chat = _object(["model"], messages=_MESSAGES, **common)
    generate = _object(["model"], prompt=_TEXT, **common)
    models = _object(["models"], models={"type": "array"})
    embed = _object(["model", "input"], model=_TEXT, input={"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]})
    openai = _object(["model", "messages"], model=_TEXT, messages=_MESSAGES, max_tokens=_COUNT)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Ollama (simulated)", "version": version},
        "paths": {
            "/": _get("root", _TEXT, "text/plain"),
            "/api/version": _get("version", _object(["version"], version=_TEXT)),
            "/api/tags": _get("tags", models),
            "/api/ps": _get("ps", models),
            "/v1/models": _get("models", _object(["object", "data"], object=_TEXT, data={"type": "array"})),
            "/api/show": _post("show", _object(["model"], model=_TEXT), _object(["details"]), _OLLAMA_ERROR, 400, 404),
            "/api/generate": _post("generate", generate, done, _OLLAMA_ERROR, 400, 404, 503, extra=lines),
            "/api/chat": _post("chat", chat, done, _OLLAMA_ERROR, 400, 404, 503, extra=lines),
            "/api/embed": _post("embed", embed, _object(["embeddings"]), _OLLAMA_ERROR, 400, 404, 503),
            "/v1/chat/completions": _post("openai_chat", openai, _COMPLETION, _OLLAMA_ERROR, 400, 404, 503),
        },
    }
