# ruff: noqa: E501 - inputs are written as they are sent
"""What an attacker makes of a valid file: values of another kind, size or place, and bytes that are no text at all.

Byte mutation alone, as a fuzzer does it, hardly gets past a parser of YAML or JSON. So most inputs here are valid documents
with something wrong in them.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import random
from collections.abc import Callable
from typing import Any, Literal

import yaml

Kind = Literal["yaml", "json", "lines", "http", "text", "bytes"]

_DEEP: Any = 0
for _ in range(60):
    _DEEP = [_DEEP]
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 65536, 2**31, -(2**31) - 1, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e-300, 1e308, -1e308,
    float("inf"), float("-inf"), float("nan"), "", " ", "0", "-1", "1e999", "nan", "null", "auto", "a" * 3000, "9" * 4500, "\ud800", "\0",
    "\u202e", "\n", "a\nb", "../../etc/passwd", "/dev/zero", "{{ .Values.x }}", "$(reboot)", "=1+1", "--help", "é" * 70, "²", "٣",
    "2026-11-21T12:00:00", "0001-01-01T00:00:00+23:59", "2026-13-45", "sha256:" + "0" * 64, [], {}, [[]], {"": None}, {"a": {"a": {}}}, [None],
    [0] * 300, _DEEP,
)  # fmt: skip
_TOKENS = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n\n", b"\n", b",", b'"', b"'", b"{", b"}", b"[" * 300, b"]", b":", b": ", b"- ", b"#", b"&a ",
    b"*a", b"!!python/object:os.system ", b"<<: ", b"|", b">", b"?", b"%", b"NaN", b"Infinity", b"1e999", b"-0", b"null", b"true", b"\\ud800",
    b"9" * 25, b"9" * 4400, b"=", b"+Inf", b"\xed\xa0\x80", b"\x1b[2J", b"data: ", b"data:", b"[DONE]", b"\n\n\n", b"Content-Length: ", b"\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"Connection: close\r\n", b"Retry-After: ", b"HTTP/1.1 ", b"HTTP/1.0 ", b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n",
)  # fmt: skip
Place = tuple[Any, Any]


class _Plain(yaml.CSafeDumper):
    """What stands twice is written twice: aliases are refused before anything else is looked at."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def mutated(data: bytes, kind: Kind, draw: random.Random, other: bytes) -> bytes:
    """`data` with one to four things wrong; `other`: another valid input of the same kind, to take parts from."""
    if kind in ("yaml", "json", "lines", "http") and draw.random() < 0.75:
        made = _document(data, kind, draw)
        if made is not None:
            return made
    for _ in range(draw.choice((1, 1, 2, 4))):
        data = _bytes(data, draw, other)
    return data


def _document(data: bytes, kind: Kind, draw: random.Random) -> bytes | None:
    if kind == "http":
        head, blank, body = data.partition(b"\r\n\r\n")
        made = _document(body, "json", draw) if body else None
        if made is None:
            return None
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
        return b"\r\n".join([*lines, b"Content-Length: %d" % len(made)]) + blank + made
    if kind == "lines":
        lines = data.splitlines(keepends=True)
        with_json = [number for number, line in enumerate(lines) if b"{" in line]
        if not with_json:
            return None
        number = draw.choice(with_json)
        if draw.random() < 0.2:
            lines.insert(draw.randrange(len(lines) + 1), lines[number])
            return b"".join(lines)
        before, brace, rest = lines[number].partition(b"{")
        made = _document(brace + rest.rstrip(b"\r\n"), "json", draw)
        if made is None:
            return None
        lines[number] = before + made + b"\n"
        return b"".join(lines)
    try:
        value = yaml.load(data, Loader=yaml.CSafeLoader) if kind == "yaml" else json.loads(data)
    except (ValueError, yaml.YAMLError, RecursionError):
        return None
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        value = _change(value, draw)
    with contextlib.suppress(ValueError, yaml.YAMLError, RecursionError):
        if kind == "yaml":
            return yaml.dump(value, Dumper=_Plain, sort_keys=False).encode("utf-8", "surrogatepass")
        return json.dumps(value, separators=(",", ":"), default=str).encode()
    return None


def _places(value: Any) -> list[Place]:
    """Every (container, key) of a document."""
    found: list[Place] = []
    left = [value]
    while left:
        inner = left.pop()
        keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        for key in keys:
            found.append((inner, key))
            left.append(inner[key])
    return found


def _change(whole: Any, draw: random.Random) -> Any:
    places = _places(whole)
    if not places or draw.random() < 0.02:
        return copy.deepcopy(draw.choice(HOSTILE))
    container, key = draw.choice(places)
    value = container[key]
    way = draw.random()
    if way < 0.35:
        container[key] = copy.deepcopy(draw.choice(HOSTILE))
    elif way < 0.5:
        container[key] = _other(value, draw)
    elif way < 0.6:
        del container[key]
    elif way < 0.7:
        other, its = draw.choice(places)
        # By value: a document cannot hold itself.
        with contextlib.suppress(KeyError, IndexError, ValueError, RecursionError, TypeError):
            container[key] = json.loads(json.dumps(other[its]))
    elif way < 0.8:
        container[key] = draw.choice(([value], {"a": value}, [value] * 2, str(value), {str(value)[:9]: value}))
    elif isinstance(container, dict):
        name = draw.choice(("", "name", "kind", "0", "a" * 300, "$ref", "__proto__", str(key) + " ", 1, None, True))
        container[name] = container.pop(key) if way < 0.9 else copy.deepcopy(draw.choice(HOSTILE))
    else:
        container.extend(copy.deepcopy(value) for _ in range(draw.choice((1, 2, 40))))
    return whole


def _other(value: Any, draw: random.Random) -> Any:
    """A value of the same kind that is not the same."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        ways: tuple[Callable[[Any], Any], ...] = (
            lambda n: -n, lambda n: n + 1, lambda n: n * 10, lambda n: n * 10**6, lambda n: n * 1e-6, float, lambda n: n / 3,
        )  # fmt: skip
        with contextlib.suppress(OverflowError):
            return draw.choice(ways)(value)
        return str(value)
    if isinstance(value, str):
        return draw.choice(
            (value[::-1], value + "x", value[: len(value) // 2], value * 40, value.upper(), f" {value}", f"{value}\n")
        )
    if isinstance(value, list):
        return draw.choice((value[::-1], value[:1], value * 2))
    if isinstance(value, dict):
        return list(value)
    return datetime.date(2026, 1, 1)


def _bytes(data: bytes, draw: random.Random, other: bytes) -> bytes:
    at = draw.randrange(len(data) + 1)
    end = min(len(data), at + draw.choice((1, 1, 2, 8, 64, 512)))
    way = draw.randrange(8)
    if way == 0 and at < len(data):
        return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
    if way == 1:
        return data[:at] + draw.choice(_TOKENS) + data[at:]
    if way == 2:
        return data[:at] + data[end:]
    if way == 3:
        return data[:at] + data[at:end] * draw.choice((2, 3, 50, 1000 if end - at < 20 else 4)) + data[end:]
    if way == 4:
        return data[:at] + other[draw.randrange(len(other) + 1) :]
    if way == 5:
        return data[:at]
    if way == 6:
        return data[:at] + draw.choice(_TOKENS) + data[end:]
    start = draw.randrange(len(other) + 1)
    return data[:at] + other[start : start + draw.choice((4, 40, 400))] + data[at:]
