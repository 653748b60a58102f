"""`ollama pull|run|ps|list|show|stop|rm|--version` against the server in this pod, for hooks and probes.

Run as `python -I -S`: every pod runs it several times while it starts, so it imports next to nothing (the modules `socket`,
`json` and `typing` alone would triple its time).
"""

from __future__ import annotations

import os
import sys
from _socket import AF_INET, SOCK_STREAM, socket

MYPY = False
if MYPY:
    from typing import Any

DEFAULT_PORT = 11434


def parse(text: str) -> Any:
    """A JSON document. Raises ValueError."""
    try:
        from _json import make_scanner
    except ImportError:
        import json

        return json.loads(text)
    scanner: Any = make_scanner
    try:
        return scanner(_Plain)(text.strip(), 0)[0]
    except StopIteration:
        raise ValueError(f"not JSON: {text[:80]}") from None


class _Plain:
    """What `json.JSONDecoder` is by default."""

    strict, object_hook, object_pairs_hook = True, None, None
    parse_float, parse_int, parse_constant = float, int, float
    memo: dict[str, str] = {}  # noqa: RUF012 - read by the scanner as it is


def quoted(text: str) -> str:
    """As a JSON string."""
    plain = "".join(c if c >= " " and c not in '"\\' else f"\\u{ord(c):04x}" for c in text)
    return f'"{plain}"'


def address(env: dict[str, str]) -> tuple[str, int]:
    """Host and port from OLLAMA_HOST as the real client reads it; every address means this pod's own."""
    text = env.get("OLLAMA_HOST", "").strip().strip("\"'")
    text = text.split("://", 1)[-1].split("/", 1)[0]
    host, _, port = text.partition(":")
    if host in ("", "0.0.0.0", "localhost"):
        host = env.get("POD_IP") or "127.0.0.1"
    return host, int(port) if port.isdigit() else DEFAULT_PORT


def call(method: str, path: str, body: dict[str, str] | None = None) -> list[Any]:
    """All JSON documents of the answer. Raises OSError, also for an answer of 400 or above."""
    host, port = address(dict(os.environ))
    # The values are JSON already.
    fields = ",".join(f'"{key}":{value}' for key, value in (body or {}).items())
    data = b"" if body is None else b"{" + fields.encode() + b"}"
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    connection = socket(AF_INET, SOCK_STREAM)
    try:
        connection.connect((host, port))
        connection.sendall(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
        received = bytearray()
        while piece := connection.recv(65_536):
            received += piece
    finally:
        connection.close()
    before, _, after = bytes(received).partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in before.lower():
        after = unchunked(after)
    text = after.decode("utf-8", "replace")
    if int(before.split(None, 2)[1]) >= 400:
        try:
            raise OSError(parse(text)["error"])
        except (ValueError, KeyError, TypeError):
            raise OSError(text) from None
    return [parse(line) for line in text.splitlines() if line.strip()]


def unchunked(body: bytes) -> bytes:
    """The content of a chunked body."""
    whole = bytearray()
    while body:
        size, _, body = body.partition(b"\r\n")
        count = int(size.split(b";")[0] or b"0", 16)
        if count == 0:
            break
        whole += body[:count]
        body = body[count + 2 :]
    return bytes(whole)


def run(command: str, rest: list[str]) -> int:
    """Carry out one command; its exit status."""
    model = {"model": quoted(rest[0])} if rest else {}
    if command in ("-v", "--version", "version"):
        print(f"ollama version is {call('GET', '/api/version')[0]['version']}")
    elif command in ("list", "ls", "ps"):
        print("NAME\tID\tSIZE")
        for one in call("GET", "/api/ps" if command == "ps" else "/api/tags")[0]["models"]:
            print(f"{one['name']}\t{one['digest'][:12]}\t{one['size'] / 1e9:.1f} GB")
    elif command == "pull" and rest:
        said = ""
        for found in call("POST", "/api/pull", model):
            if found.get("error"):
                raise OSError(found["error"])
            if found.get("status", said) != said:
                said = found["status"]
                print(said)
    elif command == "run" and rest:
        prompt = {**model, "prompt": quoted(" ".join(rest[1:]))}
        try:
            parts = call("POST", "/api/generate", prompt)
        except OSError as error:
            if "not found" not in str(error):
                raise
            run("pull", rest[:1])
            parts = call("POST", "/api/generate", prompt)
        print("".join(part.get("response", "") for part in parts))
    elif command == "show" and rest:
        for found in call("POST", "/api/show", model):
            for key, value in found.get("details", {}).items():
                print(f"{key}\t{value}")
    elif command == "stop" and rest:
        call("POST", "/api/generate", {**model, "keep_alive": "0"})
    elif command == "rm" and rest:
        call("DELETE", "/api/delete", model)
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
