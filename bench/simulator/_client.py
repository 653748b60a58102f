"""The client half of the `ollama` command, as far as pods use it in hooks and probes: pull, run, ps, list, show, stop, rm."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ._options import ollama_host, warn


def _call(
    env: Mapping[str, str], method: str, path: str, body: dict[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    host, port = ollama_host(env)
    connection = http.client.HTTPConnection(host, port, timeout=600)
    try:
        data = json.dumps(body) if body is not None else None
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status >= 400:
            text = response.read().decode("utf-8", "replace")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                text = json.loads(text)["error"]
            raise ConnectionError(text)
        for line in response:
            if line.strip():
                yield json.loads(line)
    finally:
        connection.close()


def ollama_command(words: list[str], env: Mapping[str, str]) -> int:
    """Run one client command; 0, or 1 with the server's error on standard error."""
    command, rest = words[0], [w for w in words[1:] if not w.startswith("-")]
    try:
        return _run(command, rest, env)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, ConnectionRefusedError):
            warn("Error: could not connect to ollama server, run 'ollama serve' to start it")
        else:
            warn(f"Error: {error}")
        return 1


def _run(command: str, rest: list[str], env: Mapping[str, str]) -> int:
    out = sys.stdout
    if command in ("-v", "--version", "version"):
        for found in _call(env, "GET", "/api/version"):
            out.write(f"ollama version is {found['version']}\n")
    elif command == "pull" and rest:
        last = ""
        for found in _call(env, "POST", "/api/pull", {"model": rest[0]}):
            if found.get("status") != last:
                last = str(found.get("status"))
                out.write(last + "\n")
    elif command == "run" and rest:
        body = {"model": rest[0], "prompt": " ".join(rest[1:])}
        try:
            for found in _call(env, "POST", "/api/generate", body):
                out.write(found.get("response", ""))
        except ConnectionError as error:
            if "not found" not in str(error):
                raise
            _run("pull", rest[:1], env)
            for found in _call(env, "POST", "/api/generate", body):
                out.write(found.get("response", ""))
        out.write("\n")
    elif command in ("list", "ls", "ps"):
        running = command == "ps"
        out.write("NAME\tID\tSIZE\n")
        for found in _call(env, "GET", "/api/ps" if running else "/api/tags"):
            for model in found["models"]:
                out.write(f"{model['name']}\t{model['digest'][:12]}\t{model['size'] / 1e9:.1f} GB\n")
    elif command == "show" and rest:
        for found in _call(env, "POST", "/api/show", {"model": rest[0]}):
            out.write(json.dumps(found["details"], indent=2) + "\n")
    elif command == "stop" and rest:
        for _ in _call(env, "POST", "/api/generate", {"model": rest[0], "keep_alive": 0}):
            pass
    elif command == "rm" and rest:
        for _ in _call(env, "DELETE", "/api/delete", {"model": rest[0]}):
            pass
    else:
        warn(
            f'Error: unknown command "{command}" for "ollama" (the simulator knows serve, pull, run, ps, list, show, stop, rm)'
        )
        return 1
    return 0
