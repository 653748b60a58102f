"""`ollama pull|run|ps|list|show|stop|rm|--version` against the server in this pod, for hooks and probes.

Run as `python -I -S`: every pod runs it several times while it starts, so it imports next to nothing.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

DEFAULT_PORT = 11434


def address(env: dict[str, str]) -> tuple[str, int]:
    """Host and port from OLLAMA_HOST as the real client reads it; every address means this pod's own."""
    text = env.get("OLLAMA_HOST", "").strip().strip("\"'")
    text = text.split("://", 1)[-1].split("/", 1)[0]
    host, _, port = text.partition(":")
    if host in ("", "0.0.0.0", "localhost"):
        host = env.get("POD_IP") or "127.0.0.1"
    return host, int(port) if port.isdigit() else DEFAULT_PORT


def call(method: str, path: str, body: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Each JSON document of the answer. Raises OSError, also for an answer of 400 or above."""
    host, port = address(dict(os.environ))
    data = b"" if body is None else json.dumps(body).encode()
    with socket.create_connection((host, port), 600) as connection:
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
        with connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            headers = {}
            while (line := answer.readline()).strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip().lower()
            text = b"".join(chunks(answer)) if headers.get("transfer-encoding") == "chunked" else answer.read()
    if status >= 400:
        try:
            raise OSError(json.loads(text)["error"])
        except (ValueError, KeyError, TypeError):
            raise OSError(text.decode("utf-8", "replace")) from None
    for line in text.splitlines():
        if line.strip():
            yield json.loads(line)


def chunks(answer: Any) -> Iterator[bytes]:
    """The pieces of a chunked body."""
    while (size := int(answer.readline().split(b";")[0] or b"0", 16)) > 0:
        yield answer.read(size)
        answer.readline()


def run(command: str, rest: list[str]) -> int:
    """Carry out one command; its exit status."""
    model = {"model": rest[0]} if rest else {}
    if command in ("-v", "--version", "version"):
        for found in call("GET", "/api/version"):
            print(f"ollama version is {found['version']}")
    elif command in ("list", "ls", "ps"):
        print("NAME\tID\tSIZE")
        for found in call("GET", "/api/ps" if command == "ps" else "/api/tags"):
            for one in found["models"]:
                print(f"{one['name']}\t{one['digest'][:12]}\t{one['size'] / 1e9:.1f} GB")
    elif command == "pull" and rest:
        said = ""
        for found in call("POST", "/api/pull", model):
            if found.get("status", said) != said:
                said = found["status"]
                print(said)
            if found.get("error"):
                raise OSError(found["error"])
    elif command == "run" and rest:
        prompt = {**model, "prompt": " ".join(rest[1:])}
        try:
            parts = list(call("POST", "/api/generate", prompt))
        except OSError as error:
            if "not found" not in str(error):
                raise
            run("pull", rest[:1])
            parts = list(call("POST", "/api/generate", prompt))
        print("".join(part.get("response", "") for part in parts))
    elif command == "show" and rest:
        for found in call("POST", "/api/show", model):
            print(json.dumps(found.get("details"), indent=2))
    elif command == "stop" and rest:
        list(call("POST", "/api/generate", {**model, "keep_alive": 0}))
    elif command == "rm" and rest:
        list(call("DELETE", "/api/delete", model))
    else:
        known = "serve, pull, run, ps, list, show, stop, rm"
        print(f'Error: unknown command "{command}" for "ollama" (known here: {known})', file=sys.stderr)
        return 1
    return 0


def main(words: list[str]) -> int:
    """0, or 1 with the reason on standard error."""
    try:
        return run(words[0], [word for word in words[1:] if not word.startswith("-")])
    except ConnectionRefusedError:
        print("Error: could not connect to ollama server, run 'ollama serve' to start it", file=sys.stderr)
    except (OSError, ValueError, IndexError, KeyError) as error:
        print(f"Error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
