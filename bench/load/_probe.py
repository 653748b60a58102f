"""Before the load: does the service answer, is the model there, and what does the service say of itself?"""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable
from typing import Any

import stacks

from ._prompts import Ask
from ._wire import Target, Wire

Facts = dict[str, str | int | float | bool]
_METRICS_BYTES = 4 << 20


def get(target: Target, path: str, timeout: float = 5.0) -> tuple[int, bytes]:
    """Status and body of one GET. Raises OSError or http.client.HTTPException."""
    return _exchange(target, "GET", path, b"", timeout)


def _exchange(target: Target, method: str, path: str, body: bytes, timeout: float) -> tuple[int, bytes]:
    context = target.tls()
    connection: http.client.HTTPConnection
    if context is not None:
        connection = http.client.HTTPSConnection(target.host, target.port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(target.host, target.port, timeout=timeout)
    try:
        headers = dict(target.base_headers()[1:])
        if body:
            headers["Content-Type"] = "application/json"
        connection.request(method, target.path + path, body=body or None, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.read(_METRICS_BYTES)
    finally:
        connection.close()


def wait(target: Target, *, timeout: float = 120.0, say: Callable[[str], None] = lambda _: None) -> Facts:
    """Wait until the service answers and has the model, and return what it says of itself.

    Raises TollgateError with the last thing that was wrong when that takes longer than `timeout` seconds, and at once
    where waiting cannot help (the service asks for credentials).
    """
    deadline = time.monotonic() + timeout
    pause, said = 0.1, ""
    while True:
        try:
            problem = _problem(target, max(1.0, deadline - time.monotonic()))
        except (OSError, http.client.HTTPException) as error:
            problem = f"{target.url} does not answer: {error}"
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            problem = f"{target.url} answers, but not as {target.engine} does: {error}"
        if not problem:
            return facts(target)
        if time.monotonic() + pause > deadline:
            raise stacks.TollgateError(f"gave up after {timeout:.0f} s: {problem}")
        if problem != said:
            said = problem
            say(f"waiting: {problem}")
        time.sleep(pause)
        pause = min(2.0, pause * 1.5)


def _problem(target: Target, left: float) -> str:
    """Why the service cannot be measured yet, or nothing."""
    status, body = get(target, "/api/tags" if target.engine == "ollama" else "/v1/models")
    if status in (401, 403):
        raise stacks.TollgateError(f"{target.url} answers {status}: give a valid API key")
    if status != 200:
        return f"{target.url} answers {status}"
    found = json.loads(body)
    names = (
        [str(model["name"]) for model in found["models"]]
        if target.engine == "ollama"
        else [str(model["id"]) for model in found["data"]]
    )
    if not _named(target, names):
        return f"{target.url} has no model {target.model} (it has {', '.join(names) or 'none'})"
    if target.engine == "ollama":
        _, body = get(target, "/api/ps")
        if not _named(target, [str(model["name"]) for model in json.loads(body)["models"]]):
            # Nothing but asking for it loads it.
            ask = json.dumps({"model": target.model, "prompt": "", "stream": False}).encode()
            status, body = _exchange(target, "POST", "/api/generate", ask, left)
            if status != 200:
                return f"{target.url} cannot load {target.model}: {status} {body[:200].decode(errors='replace')}"
    return ""


def _named(target: Target, names: list[str]) -> bool:
    if target.model in names:
        return True
    return target.engine == "ollama" and f"{target.model}:latest" in names


def one(target: Target, ask: Ask, timeout: float) -> float:
    """Ask once, unloaded, and return how long the whole answer took in seconds. Raises TollgateError when it fails."""
    wire = Wire(target)
    _, _, body = wire.request(ask).partition(b"\r\n\r\n")
    path = wire.path.removeprefix(target.path)
    begun = time.monotonic()
    try:
        status, reply = _exchange(target, "POST", path, body, timeout)
    except (OSError, http.client.HTTPException) as error:
        raise stacks.TollgateError(
            f"{target.url} broke off its first answer: {error or type(error).__name__}"
        ) from error
    if status != 200:
        text = " ".join(reply[:300].decode(errors="replace").split())
        raise stacks.TollgateError(f"{target.url}{path} answers {status}: {text}")
    problem = wire.reply(reply[-4096:]).problem
    if problem:
        raise stacks.TollgateError(f"{target.url}{path} answers, but its answer is no {target.engine} one: {problem}")
    return time.monotonic() - begun


def facts(target: Target) -> Facts:
    """What the engine says of itself: engine, version, model, and slots or cache size where it tells. Never raises for
    what is missing: a fact that cannot be had is left out."""
    known: Facts = {"engine": target.engine, "model": target.model}
    if target.engine == "ollama":
        known |= _facts_ollama(_json(target, "/api/version"), _json(target, "/api/ps"), target)
    else:
        version = _json(target, "/version")
        if isinstance(version.get("version"), str):
            known["version"] = version["version"]
        for model in _objects(_json(target, "/v1/models").get("data")):
            if model.get("id") == target.model and isinstance(model.get("max_model_len"), int):
                known["context_tokens"] = model["max_model_len"]
        known |= _facts_metrics(_text(target, "/metrics"))
    return known


def _facts_ollama(version: dict[str, Any], running: dict[str, Any], target: Target) -> Facts:
    known: Facts = {}
    if isinstance(version.get("version"), str):
        known["version"] = version["version"]
    for model in _objects(running.get("models")):
        if model.get("name") in (target.model, f"{target.model}:latest"):
            for key, name in (("context_length", "context_tokens"), ("size_vram", "vram_bytes"), ("digest", "digest")):
                if isinstance(model.get(key), int | str):
                    known[name] = model[key]
            detail = model.get("details")
            if isinstance(detail, dict) and isinstance(detail.get("quantization_level"), str):
                known["quantization"] = detail["quantization_level"]
    return known


def _objects(found: Any) -> list[dict[str, Any]]:
    """Those of a list that are objects; a service may answer anything."""
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


_CACHE_INFO = re.compile(r"^vllm:cache_config_info\{([^}]*)\}", re.MULTILINE)


def _facts_metrics(text: str) -> Facts:
    """From vLLM's `vllm:cache_config_info`, whose labels are the engine's cache settings."""
    found = _CACHE_INFO.search(text)
    if not found:
        return {}
    labels = dict(re.findall(r'(\w+)="([^"]*)"', found[1]))
    known: Facts = {}
    for name in ("num_gpu_blocks", "kv_cache_size_tokens", "block_size", "kv_cache_max_concurrency"):
        try:
            known[name] = float(labels[name]) if "." in labels[name] else int(labels[name])
        except (KeyError, ValueError):
            continue
    return known


def _text(target: Target, path: str) -> str:
    try:
        status, body = get(target, path)
    except (OSError, http.client.HTTPException):
        return ""
    return body.decode(errors="replace") if status == 200 else ""


def _json(target: Target, path: str) -> dict[str, Any]:
    try:
        found = json.loads(_text(target, path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
