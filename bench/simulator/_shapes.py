"""Requests that differ from an earlier one in nothing but what the user says last need no second parse.

A shape is a body with the last message's text cut out. Where a new body has the same bytes before and after that text,
and the text is one that JSON writes as it is (printable ASCII, no backslash), then parsing would find the same request
with another text: the parser's state at the opening quote is the same, and so is all that follows the closing one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from ._words import count

if TYPE_CHECKING:
    from ._answers import Prepared

_MOST = 256
_LONGEST = 8192  # of the constant parts: at most 2 MiB are remembered
# What JSON strings hold as it is and this module understands: printable ASCII without quote and backslash.
_PLAIN = bytes(range(32, 127)).replace(b'"', b"").replace(b"\\", b"")
_PROBE = b"\x7f" * 3


class Shape:
    """`prepared`: the request as it was checked; `others`: prompt tokens and `before` the text of all but the last message;
    `most`: prompt tokens that the context has room for."""

    __slots__ = ("before", "most", "others", "prepared")

    def __init__(self, prepared: Prepared, others: int, before: str, most: int) -> None:
        self.most = most
        self.prepared = prepared
        self.others = others
        self.before = before


class Shapes:
    """The shapes of one route. `name`: of the member that varies; `limit`: tokens of prompt and answer together."""

    def __init__(self, name: str, limit: int) -> None:
        self._marker = f'"{name}":"'.encode()
        self._size = len(self._marker)
        self._spaced = f'"{name}": "'.encode()
        self._limit = limit
        self._known: dict[tuple[bytes, bytes], Shape] = {}
        # Hashes of what came once: a shape is worth learning when it comes again.
        self._once: set[int] = set()

    def _start(self, body: bytes) -> int:
        """Where the text begins that varies; 0 where there is none."""
        marker = self._marker
        at = body.rfind(marker)
        if at < 0:
            marker = self._spaced
            at = body.rfind(marker)
        return at + len(marker) if at >= 0 else 0

    def find(self, body: bytes) -> tuple[Prepared, int, str] | None:
        """The request that was checked, prompt tokens and text of this one; None where it has to be parsed."""
        start = body.rfind(self._marker) + self._size
        if start < self._size:
            start = self._start(body)
        end = body.find(b'"', start)
        shape = self._known.get((body[:start], body[end:]))
        if shape is None:
            return None
        said = body[start:end]
        if not said or said.translate(None, _PLAIN):
            return None
        text = said.decode("ascii")
        prompt = shape.others + count(text)
        return None if prompt > shape.most else (shape.prepared, prompt, shape.before + text)

    def learn(self, body: bytes, data: dict[str, Any], prepared: Prepared) -> None:
        """Remember the shape of a request that was parsed and checked, if its text can be told from the rest."""
        start = self._start(body)
        end = body.find(b'"', start)
        wanted = prepared.ask.max_tokens
        if not start or end <= start or len(body) - (end - start) > _LONGEST or not prepared.fast or wanted is None:
            return
        key = (body[:start], body[end:])
        if not self._again(hash(key)):
            return
        try:
            text = body[start:end].decode("ascii")
            other = orjson.loads(body[:start] + _PROBE + body[end:])
        except (UnicodeDecodeError, orjson.JSONDecodeError):
            return
        before = ""
        if "messages" in data:
            place, member = other["messages"][-1], "content"
            before = "".join(f"{message.get('content') or ''}\n" for message in data["messages"][:-1])
        else:
            place, member = other, "prompt"
        if place.get(member) != _PROBE.decode():
            return
        place[member] = text
        if other != data:
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[key] = Shape(prepared, prepared.prompt - count(text), before, self._limit - wanted)

    def _again(self, key: int) -> bool:
        if key in self._once:
            return True
        if len(self._once) >= 4 * _MOST:
            self._once.clear()
        self._once.add(key)
        return False
