"""What a client asks of Ollama's own routes, checked in Ollama's words."""

from __future__ import annotations

from typing import Any

import orjson

from ._ask import Refused, fitting

# What Ollama's OpenAI routes know; whatever else a client sends is ignored there, as Go's decoder ignores it.
_OPENAI: tuple[str, ...] = ("model", "stream", "stream_options", "max_tokens", "seed", "stop", "temperature", "top_p")
_OPENAI += ("frequency_penalty", "presence_penalty")
OPENAI_CHAT = (*_OPENAI, "messages", "response_format", "tools")
OPENAI_COMPLETION = (*_OPENAI, "prompt")
_IMAGE_TOKENS = 256


def known(data: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Of an OpenAI request the members that Ollama knows; its `stream_options` mean nothing without `stream`."""
    kept = {name: data[name] for name in names if name in data}
    if not kept.get("stream"):
        kept.pop("stream_options", None)
    return kept


def image_tokens(data: dict[str, Any], kind: str) -> int:
    """Prompt tokens of the images of a request or message (`kind`: the Go structure it is read into)."""
    images = data.get("images")
    if images is None:
        return 0
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise Refused(400, f"json: cannot unmarshal value into Go struct field {kind}.images of type []api.ImageData")
    return _IMAGE_TOKENS * len(images)


def options(data: dict[str, Any], context_tokens: int) -> tuple[int | None, tuple[str, ...], int]:
    """(num_predict, stop, num_ctx) of a native request."""
    given = data.get("options")
    if given is None:
        return None, (), context_tokens
    if not isinstance(given, dict):
        raise Refused(400, "json: cannot unmarshal value into Go struct field .options of type map[string]interface {}")
    for name in ("num_predict", "num_ctx", "seed", "top_k", "num_keep"):
        value = given.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Refused(400, f'option "{name}" must be of type integer')
    for name in ("temperature", "top_p", "repeat_penalty"):
        value = given.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Refused(400, f'option "{name}" must be of type float32')
    predict = given.get("num_predict")
    stop = given.get("stop") or ()
    if isinstance(stop, str):
        stop = (stop,)
    if not isinstance(stop, list | tuple) or not all(isinstance(s, str) for s in stop):
        raise Refused(400, 'option "stop" must be of an array')
    context = given.get("num_ctx") or context_tokens
    return (int(predict) if predict is not None else None), tuple(filter(None, stop)), max(4, int(context))


def structured(data: dict[str, Any], draw: int) -> str | None:
    """What has to be answered where the request gives a `format`."""
    form = data.get("format")
    if not form:
        return None
    if form == "json":
        return '{"answer": "text"}'
    if isinstance(form, dict):
        return fitting(form, draw)
    raise Refused(400, f'invalid format: {orjson.dumps(form).decode()}; expected "json" or a valid JSON Schema object')


def tools(data: dict[str, Any]) -> tuple[str, Any] | None:
    """The tool call to answer with: the first tool, when tools are given and the user spoke last."""
    given = data.get("tools")
    messages = data.get("messages") or [{}]
    if not isinstance(given, list) or not given or messages[-1].get("role") != "user":
        return None
    function = given[0].get("function") if isinstance(given[0], dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Refused(400, "invalid tool: a function with a name is required")
    return function["name"], orjson.loads(fitting(function.get("parameters") or {"type": "object"}, 1))
