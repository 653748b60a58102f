"""What a client asks of the OpenAI routes: read, checked as vLLM checks, and reduced to what the engine needs."""

from __future__ import annotations

import json
from typing import Any, TypeGuard

import orjson

from ._pattern import matching
from ._schema import TooLarge, instance
from ._words import content_tokens, count


class Refused(Exception):
    """A request that cannot be served: status, message, and vLLM's `type` and `param`."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param = status, message, kind, param


def _invalid(kind: str, where: str, message: str, value: Any, context: str = "") -> Refused:
    """One failed check in the words of vLLM's validation errors."""
    shown = f"'<dict of {len(value)} items>'" if isinstance(value, dict) else repr(value)[:200]
    text = f"{{'type': '{kind}', 'loc': 'body.{where}', 'msg': '{message}', 'input': {shown}{context}}}"
    return Refused(400, f"1 validation error:\n  {text}", "Bad Request", f"body.{where}")


def read(body: bytes) -> dict[str, Any]:
    """The JSON object of a request body."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _not_json(body) from None
    if not isinstance(data, dict):
        raise Refused(
            400,
            "1 validation error:\n  {'type': 'model_attributes_type', 'loc': 'body', 'msg': "
            "'Input should be a valid dictionary or object to extract fields from', 'input': " + repr(data)[:200] + "}",
            "Bad Request",
            "body",
        )
    return data


def _not_json(body: bytes) -> Refused:
    if not body:
        return Refused(
            400,
            "1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': None}",
            "Bad Request",
            "body",
        )
    position, reason = 0, "Expecting value"
    try:
        json.loads(body)
    except json.JSONDecodeError as error:
        position, reason = error.pos, error.msg
    except (ValueError, RecursionError):
        return Refused(400, "There was an error parsing the body", "Bad Request")
    return _invalid("json_invalid", str(position), "JSON decode error", {}, f", 'ctx': {{'error': '{reason}'}}")


# vLLM has no such limit; each is searched for in the whole answer, on the loop that serves everybody.
_MOST_STOPS = 64
# With nothing but these a chat needs no further look.
_COMMON = frozenset(
    ("model", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options", "temperature", "top_p")
) | {"seed", "ignore_eos", "n", "stop"}


class Ask:
    """One request, checked.

    `prompts`: tokens of each prompt (one for chat); `max_tokens`: None where the client left it open; `chain`: hashes
    of the prompt's blocks for the prefix cache; `said`: what has to be answered (structured output), else None;
    `call`: (name, arguments) of the tool call to answer with. `plain`: nothing that the fast path cannot render.
    """

    __slots__ = (
        "call",
        "chat",
        "echo",
        "ignore_eos",
        "logprobs",
        "max_tokens",
        "model",
        "n",
        "plain",
        "prompts",
        "said",
        "stops",
        "stream",
        "text",
        "usage",
        "usage_each",
    )

    def __init__(self, chat: bool, model: str) -> None:
        self.chat = chat
        self.model = model
        self.prompts: list[int] = []
        self.n = 1
        self.max_tokens: int | None = None
        self.stream = False
        self.usage = False
        self.usage_each = False
        self.ignore_eos = False
        self.stops: tuple[str, ...] = ()
        self.logprobs: int | None = None
        self.echo = False
        self.said: str | None = None
        self.call: tuple[str, str] | None = None
        self.plain = True
        self.text = ""


def _integer(data: dict[str, Any], name: str, default: int | None = None) -> int | None:
    value = data.get(name)
    if value is None:
        return default
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 20:
        return int(value)
    if isinstance(value, str):
        raise _invalid(
            "int_parsing", name, "Input should be a valid integer, unable to parse string as an integer", value
        )
    if isinstance(value, float):
        raise _invalid(
            "int_from_float", name, "Input should be a valid integer, got a number with a fractional part", value
        )
    raise _invalid("int_type", name, "Input should be a valid integer", value)


def _flag(data: dict[str, Any], name: str) -> bool:
    value = data.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    if value in (0, 1, "true", "false", "True", "False", "0", "1"):
        return value in (1, "true", "True", "1")
    raise _invalid(
        "bool_type" if not isinstance(value, str) else "bool_parsing", name, "Input should be a valid boolean", value
    )


def _number(data: dict[str, Any], name: str) -> float | None:
    value = data.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid("float_type", name, "Input should be a valid number", value)
    return float(value)


def _limits(data: dict[str, Any], ask: Ask) -> None:
    """The fields that both routes have."""
    if "n" in data:
        ask.n = _integer(data, "n", 1) or 0
        if not 1 <= ask.n <= 16384:
            raise Refused(400, f"n must be at least 1, got {ask.n}. (parameter=n, value={ask.n})", param="n")
    if "stream" in data:
        ask.stream = _flag(data, "stream")
    options = data.get("stream_options")
    if options is not None:
        if not isinstance(options, dict):
            raise _invalid("model_attributes_type", "stream_options", "Input should be a valid dictionary", options)
        if not ask.stream:
            raise Refused(
                400, "Stream options can only be defined when `stream=True`.", "Bad Request", "stream_options"
            )
        ask.usage = bool(options.get("include_usage"))
        ask.usage_each = ask.usage and bool(options.get("continuous_usage_stats"))
    if "ignore_eos" in data:
        ask.ignore_eos = _flag(data, "ignore_eos")
    if "temperature" in data:
        temperature = _number(data, "temperature")
        if temperature is not None and temperature < 0:
            raise Refused(
                400,
                f"temperature must be non-negative, got {temperature}. (parameter=temperature, value={temperature})",
                param="temperature",
            )
    if "top_p" in data:
        top = _number(data, "top_p")
        if top is not None and not 0 < top <= 1:
            raise Refused(400, f"top_p must be in (0, 1], got {top}. (parameter=top_p, value={top})", param="top_p")
    for name in ("presence_penalty", "frequency_penalty"):
        if name in data:
            value = _number(data, name)
            if value is not None and not -2 <= value <= 2:
                raise Refused(
                    400, f"{name} must be in [-2, 2], got {value}. (parameter={name}, value={value})", param=name
                )
    if data.get("seed") is not None:
        _integer(data, "seed")
    stop = data.get("stop")
    if stop:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or not all(isinstance(s, str) for s in stops):
            raise _invalid("string_type", "stop.str", "Input should be a valid string", stop)
        if len(stops) > _MOST_STOPS:
            raise Refused(400, f"stop must have at most {_MOST_STOPS} strings, got {len(stops)}.", param="stop")
        if any(not s for s in stops):
            raise Refused(400, "stop cannot contain an empty string. (parameter=stop)", param="stop")
        ask.stops = tuple(stops)


def _positive(value: int | None, name: str) -> int | None:
    if value is not None and value < 1:
        raise Refused(400, f"{name} must be at least 1, got {value}. (parameter={name}, value={value})", param=name)
    return value


def _model(data: dict[str, Any]) -> str:
    model = data.get("model")
    if model is None:
        return ""
    if not isinstance(model, str):
        raise _invalid("string_type", "model", "Input should be a valid string", model)
    return model


def chat(data: dict[str, Any], draw: int, *, auto_tools: bool) -> Ask:
    """A `/v1/chat/completions` request. `draw` decides what is left to the model (the values in structured output)."""
    ask = Ask(True, _model(data))
    messages = data.get("messages")
    if messages is None:
        raise _invalid("missing", "messages", "Field required", data)
    if not isinstance(messages, list):
        raise _invalid("list_type", "messages", "Input should be a valid list", messages)
    if not messages:
        raise Refused(400, "list index out of range", param="messages")
    total = 0
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _invalid("dict_type", f"messages.{at}", "Input should be a valid dictionary", message)
        role = message.get("role")
        if not isinstance(role, str):
            raise _invalid("missing", f"messages.{at}.role", "Field required", message)
        content = message.get("content")
        if type(content) is str:
            total += count(content)
        elif content is None and (role == "assistant" or "tool_calls" in message):
            total += 1
        elif isinstance(content, list):
            total += content_tokens(content)
        else:
            raise _invalid("string_type", f"messages.{at}.content", "Input should be a valid string", content)
    ask.prompts = [max(1, total)]
    if len(messages) == 1 and type(messages[0].get("content")) is str:
        ask.text = messages[0]["content"]
    else:
        ask.text = "\n".join(str(message.get("content") or "") for message in messages)
    limit = data.get("max_completion_tokens")
    if limit is None:
        ask.max_tokens = _positive(_integer(data, "max_tokens"), "max_tokens")
    else:
        ask.max_tokens = _positive(_integer(data, "max_completion_tokens"), "max_completion_tokens")
    _limits(data, ask)
    if not data.keys() <= _COMMON:
        if _flag(data, "logprobs"):
            ask.logprobs = _integer(data, "top_logprobs", 0)
            if not 0 <= (ask.logprobs or 0) <= 20:
                raise Refused(
                    400,
                    f"Requested sample logprobs of {ask.logprobs}, which is greater than max allowed: 20",
                    param="top_logprobs",
                )
        elif data.get("top_logprobs"):
            raise Refused(
                400, "when using `top_logprobs`, `logprobs` must be set to true.", "Bad Request", "top_logprobs"
            )
        if data.get("tools") or data.get("tool_choice") not in (None, "none", "auto"):
            _tools(data, ask, draw, auto_tools=auto_tools)
        _format(data.get("response_format"), ask, draw)
        _constrained(data, ask, draw)
    ask.plain = (
        ask.n == 1
        and not ask.stops
        and ask.logprobs is None
        and ask.said is None
        and ask.call is None
        and not ask.usage_each
    )
    return ask


def fitting(schema: Any, draw: int) -> str:
    """JSON that fits `schema`; refuses a schema that nothing of a sane size fits."""
    try:
        return orjson.dumps(instance(schema, draw)).decode()
    except (TooLarge, TypeError):
        raise Refused(
            400, "The JSON schema cannot be served: no instance of it is small enough.", "Bad Request"
        ) from None


def _tools(data: dict[str, Any], ask: Ask, draw: int, *, auto_tools: bool) -> None:
    tools = data.get("tools")
    choice = data.get("tool_choice", "auto")
    if not isinstance(tools, list) or not tools:
        raise Refused(400, "When using `tool_choice`, `tools` must be set.", "Bad Request", "tool_choice")
    functions: dict[str, Any] = {}
    for at, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            raise _invalid("missing", f"tools.{at}.function", "Field required", tool)
        functions[name] = function.get("parameters") or {"type": "object"} if isinstance(function, dict) else {}
    if choice in ("none", None):
        return
    if choice == "auto":
        if not auto_tools:
            raise Refused(
                400,
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
                param="tool_choice",
            )
        messages = data["messages"]
        if messages[-1].get("role") in ("tool", "assistant"):
            return
        name = next(iter(functions))
    elif choice == "required":
        name = list(functions)[draw % len(functions)]
    elif isinstance(choice, dict):
        inner = choice.get("function")
        name = inner.get("name") if isinstance(inner, dict) else None
        if name not in functions:
            raise Refused(
                400,
                "The tool specified in `tool_choice` does not match any of the specified `tools`",
                "Bad Request",
                "tool_choice",
            )
    else:
        raise Refused(
            400,
            f'Invalid value for `tool_choice`: {choice}! Only named tools, "none", "auto" or "required" are supported.',
            "Bad Request",
            "tool_choice",
        )
    ask.call = (str(name), fitting(functions[str(name)], draw))


def _constrained(data: dict[str, Any], ask: Ask, draw: int) -> None:
    """vLLM's own member `structured_outputs`: a schema, a choice or a pattern."""
    given = data.get("structured_outputs")
    if given is None:
        return
    if not isinstance(given, dict):
        raise _invalid("dict_type", "structured_outputs", "Input should be a valid dictionary", given)
    kinds = [kind for kind in ("json", "regex", "choice", "grammar", "json_object") if given.get(kind)]
    if len(kinds) > 1:
        message = f"You can only use one kind of structured outputs constraint but multiple are specified: {kinds}"
        raise Refused(400, message, "Bad Request", "structured_outputs")
    kind = kinds[0] if kinds else ""
    value = given.get(kind)
    if kind == "json":
        if isinstance(value, str):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError:
                raise Refused(400, "Invalid JSON schema.", "Bad Request", "structured_outputs") from None
        ask.said = fitting(value, draw)
    elif kind == "json_object":
        ask.said = '{"answer": "text"}'
    elif kind == "choice":
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            raise _invalid("list_type", "structured_outputs.choice", "Input should be a valid list", value)
        ask.said = value[draw % len(value)]
    elif kind:
        text = matching(value, draw) if kind == "regex" and isinstance(value, str) else None
        if not text:
            message = f"The simulator cannot write what fits this {kind}."
            raise Refused(400, message, "Bad Request", "structured_outputs")
        ask.said = text


def _format(form: Any, ask: Ask, draw: int) -> None:
    if form is None:
        return
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "json_object":
        ask.said = '{"answer": "text"}'
    elif kind == "json_schema":
        outer = form.get("json_schema")
        schema = outer.get("schema") if isinstance(outer, dict) else None
        if not isinstance(schema, dict):
            raise Refused(
                400,
                "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
                "Bad Request",
                "response_format",
            )
        ask.said = fitting(schema, draw)
    elif kind != "text":
        raise _invalid(
            "literal_error", "response_format.type", "Input should be text, json_object or json_schema", kind
        )


def tokens(value: Any) -> TypeGuard[list[float]]:
    """Whether `value` is a list of token ids; JSON knows no difference between 7 and 7.0."""
    return isinstance(value, list) and all(type(t) is int or (type(t) is float and t.is_integer()) for t in value)


def completion(data: dict[str, Any]) -> Ask:
    """A `/v1/completions` request; its prompt may be text, tokens, or a list of either."""
    ask = Ask(False, _model(data))
    prompt = data.get("prompt")
    if prompt is None:
        raise Refused(400, "Either prompt or prompt_embeds must be provided and non-empty.", "Bad Request", "prompt")
    if isinstance(prompt, str):
        ask.prompts, ask.text = [max(1, count(prompt))], prompt
    elif isinstance(prompt, list) and prompt and all(isinstance(p, str) for p in prompt):
        ask.prompts, ask.text = [max(1, count(p)) for p in prompt], prompt[0]
    elif tokens(prompt) and prompt:
        ask.prompts = [len(prompt)]
    elif isinstance(prompt, list) and prompt and all(tokens(p) for p in prompt):
        ask.prompts = [max(1, len(p)) for p in prompt]
    else:
        raise _invalid("string_type", "prompt.str", "Input should be a valid string", prompt)
    if len(ask.prompts) > 1024:
        raise Refused(400, "too many prompts in one request", param="prompt")
    ask.max_tokens = _positive(_integer(data, "max_tokens", 16), "max_tokens")
    _limits(data, ask)
    ask.echo = _flag(data, "echo")
    ask.logprobs = _integer(data, "logprobs")
    if ask.logprobs is not None and not 0 <= ask.logprobs <= 20:
        raise Refused(
            400, f"Requested sample logprobs of {ask.logprobs}, which is greater than max allowed: 20", param="logprobs"
        )
    _format(data.get("response_format"), ask, 0)
    _constrained(data, ask, 0)
    ask.plain = (
        ask.n == 1
        and len(ask.prompts) == 1
        and not ask.stops
        and ask.logprobs is None
        and ask.said is None
        and not ask.echo
        and not ask.usage_each
    )
    return ask


def chain(text: str, salt: int = 0) -> tuple[int, ...]:
    """Hashes of the text's blocks of 64 characters (16 tokens), each over all before it: two prompts share a prefix of
    blocks exactly where they share a prefix of hashes."""
    out = []
    key = salt
    for at in range(0, min(len(text), 64 * 4096) - 63, 64):
        key = hash((key, text[at : at + 64]))
        out.append(key)
    return tuple(out)
