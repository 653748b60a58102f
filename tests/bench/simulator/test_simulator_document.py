"""Every member of a request that a dialect reads is declared in its OpenAPI document: an undeclared one may be anything,
and what the document allows has to be accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from bench.simulator import _ask, _ollama
from bench.simulator._machine import Machine
from bench.simulator._message import Request
from bench.simulator._openapi import ollama_document, vllm_document
from bench.simulator._options import Engine, ollama_from, vllm_from
from bench.simulator._vllm import Vllm

Path = tuple[str, ...]
INSTANT = {"TOLLGATE_SIM_TTFT": "0", "TOLLGATE_SIM_ITL": "0", "TOLLGATE_SIM_LOAD_SECONDS": "0"}
VLLM = vllm_from(["serve", "tiny", "--max-model-len", "4096", "--enable-auto-tool-choice"], INSTANT, version="0.32.0")
OLLAMA = ollama_from(INSTANT | {"TOLLGATE_SIM_MODELS": "gemma3:4b"}, version="0.34.1")

TALK = [{"role": "user", "content": "hello"}]
PARTS = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "user", "content": [{"type": "text"}]}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
OPENAI_CHATS: list[dict[str, Any]] = [
    {"messages": TALK},
    {"messages": PARTS, "max_tokens": 3, "stop": "x", "response_format": FORM} | STREAMED,
    {"messages": TALK, "tools": TOOLS, "logprobs": True, "top_logprobs": 1, "tool_choice": "required"},
    {"messages": TALK, "tools": TOOLS},
    {"messages": TALK, "structured_outputs": {"json": SCHEMA}},
]
OPENAI_TEXTS: list[dict[str, Any]] = [
    {"prompt": "hello"},
    {"prompt": ["hello"], "response_format": FORM, "logprobs": 1, "stop": ["x"]} | STREAMED,
]
OPTIONS = {"num_predict": 3, "stop": "x"}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": OPENAI_CHATS,
    "/v1/completions": OPENAI_TEXTS,
    "/v1/embeddings": [{"input": ["hello"]}],
    "/tokenize": [{"prompt": "hello"}, {"messages": PARTS}],
    "/detokenize": [{"tokens": [1, 2]}],
    "/api/show": [{}],
    "/api/copy": [{"source": "gemma3:4b", "destination": "mine"}],
    "/api/delete": [{}],
    "/api/pull": [{}],
    "/api/generate": [{"prompt": "hello", "options": OPTIONS, "images": [""], "format": SCHEMA}, {"stream": False}],
    "/api/chat": [
        {"messages": [*TALK, {"role": "user", "images": [""]}], "options": OPTIONS, "tools": TOOLS},
        {"messages": TALK, "format": SCHEMA, "stream": False},
    ],
    "/api/embed": [{"input": "hello"}],
    "/api/embeddings": [{"prompt": "hello"}],
}


class Watched(dict[str, Any]):
    """An object of a request that notes which of its members anybody looks for."""

    def __init__(self, data: dict[str, Any], at: Path, seen: set[Path]) -> None:
        super().__init__({key: watched(value, (*at, key), seen) for key, value in data.items()})
        self.at, self.seen = at, seen

    def get(self, key: Any, default: Any = None) -> Any:
        self.seen.add((*self.at, key))
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.seen.add((*self.at, key))
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.seen.add((*self.at, str(key)))
        return super().__contains__(key)


def watched(value: Any, at: Path, seen: set[Path]) -> Any:
    if isinstance(value, dict):
        return Watched(value, at, seen)
    return [watched(one, (*at, "[]"), seen) for one in value] if isinstance(value, list) else value


class Connection:
    """A client of whom nothing is needed but that it can be written to."""

    busy: Any = None
    closing = False

    def write(self, data: bytes) -> None:
        self.busy = self.busy if data else None

    def done(self) -> None:
        self.busy = None


def variants(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema and all that it is put together from, at the same place of the value."""
    yield schema
    for part in [*schema.get("anyOf", []), *schema.get("allOf", [])]:
        yield from variants(part)


def declared(schema: dict[str, Any], path: Path) -> bool:
    """Whether `schema` says what may stand at `path`, or that nothing may."""
    if not path:
        return True
    for one in variants(schema):
        if one.get("additionalProperties") is False:
            return True
        inner = one.get("items") if path[0] == "[]" else one.get("properties", {}).get(path[0])
        if isinstance(inner, dict) and declared(inner, path[1:]):
            return True
    return False


def bodies(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The schema of what each (method, path) takes that takes something."""
    return {
        (method, path): operation["requestBody"]["content"]["application/json"]["schema"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if "requestBody" in operation
    }


async def looked_for(options: Engine, method: str, path: str, seen: set[Path]) -> list[bytes]:
    """What is answered to the route's bodies; `seen` gets what was looked for in them."""
    machine = Machine(options, asyncio.get_running_loop())
    app = Vllm(machine, options) if options.dialect == "vllm" else _ollama.Ollama(machine, options)
    answers = []
    for body in BODIES[path]:
        request = Request(
            method.upper().encode(), path.encode(), b"", orjson.dumps({"model": options.models[0]} | body), True
        )
        request.content_type = b"application/json"
        connection: Any = Connection()
        answers.append(app.handle(connection, request) or b"")
        for _ in range(4):
            await asyncio.sleep(0)
    return answers


@pytest.mark.parametrize(
    ("options", "document"), [(VLLM, vllm_document(VLLM)), (OLLAMA, ollama_document(OLLAMA))], ids=["vllm", "ollama"]
)
def test_every_member_of_a_request_that_is_read_is_declared(
    monkeypatch: pytest.MonkeyPatch, options: Engine, document: dict[str, Any]
) -> None:
    seen: set[Path] = set()
    ask_read, ollama_read = _ask.read, _ollama.Ollama._read
    monkeypatch.setattr(_ask, "read", lambda body: watched(ask_read(body), (), seen))
    monkeypatch.setattr(_ollama.Ollama, "_read", lambda self, request: watched(ollama_read(self, request), (), seen))
    undeclared: dict[str, list[Path]] = {}
    for (method, path), schema in bodies(document).items():
        seen.clear()
        answers = asyncio.run(looked_for(options, method, path, seen))
        refused = [answer for answer in answers if answer and b" 200 OK" not in answer[:20]]
        assert not refused, f"{path} does not serve what this test sends: {refused[0].decode()}"
        assert seen, f"nothing of {path} was watched"
        assert not declared(schema, ("no such member",)), f"this test would find nothing in {path}"
        undeclared[path] = sorted(one for one in seen if not declared(schema, one))
    assert {path: found for path, found in undeclared.items() if found} == {}


@pytest.mark.parametrize(("options", "document"), [(VLLM, vllm_document(VLLM)), (OLLAMA, ollama_document(OLLAMA))])
def test_every_route_that_is_served_is_documented_with_its_method(options: Engine, document: dict[str, Any]) -> None:
    async def served() -> dict[str, str]:
        machine = Machine(options, asyncio.get_running_loop())
        app = Vllm(machine, options) if options.dialect == "vllm" else _ollama.Ollama(machine, options)
        return {path.decode(): method.decode().lower() for path, (method, _) in app.routes.items()}

    told = {path: method for path, methods in document["paths"].items() for method in methods}
    assert told == {path: method for path, method in asyncio.run(served()).items() if path != "/openapi.json"}
