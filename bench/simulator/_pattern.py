"""Texts that match a regular expression, for JSON schemas with `pattern`: the shortest way through it, seeded by `draw`."""

from __future__ import annotations

import importlib
import re
import string
from typing import Any

# The standard library's own parser; it has no public name, and so no types.
codes: Any = importlib.import_module("re._constants")
parser: Any = importlib.import_module("re._parser")


_MOST = 4096
_PRINTABLE = string.ascii_lowercase + string.digits + string.ascii_uppercase + " _-.,:/"
_CATEGORIES: dict[Any, str] = {
    codes.CATEGORY_DIGIT: string.digits,
    codes.CATEGORY_NOT_DIGIT: string.ascii_lowercase,
    codes.CATEGORY_SPACE: " ",
    codes.CATEGORY_NOT_SPACE: string.ascii_lowercase,
    codes.CATEGORY_WORD: string.ascii_lowercase,
    codes.CATEGORY_NOT_WORD: " -.",
}


def matching(pattern: str, draw: int, *, least: int = 0) -> str | None:
    """A text of at least `least` characters in which `pattern` is found; None where none was found by the means here
    (look-around and back-references are tried, not solved)."""
    try:
        tree = parser.parse(pattern)
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return None
    # Repeats are first taken as short as they may be, then longer, until the text is long enough.
    for extra in (0, 1, 2, 4, 8, 16, 32, 64, 128):
        try:
            text = _Writer(draw, extra).sequence(tree)
        except (_TooLong, RecursionError):
            return None
        if len(text) >= least and compiled.search(text):
            return text
    return None


class _TooLong(Exception):
    """The text would have more than `_MOST` characters."""


class _Writer:
    def __init__(self, draw: int, extra: int) -> None:
        self.draw = draw
        self.extra = extra
        self.size = 0

    def sequence(self, tree: Any) -> str:
        return "".join(self._one(code, value) for code, value in tree)

    def _add(self, text: str) -> str:
        self.size += len(text)
        if self.size > _MOST:
            raise _TooLong
        return text

    def _one(self, code: Any, value: Any) -> str:
        if code is codes.LITERAL:
            return self._add(chr(value))
        if code is codes.NOT_LITERAL:
            return self._add("b" if value == ord("a") else "a")
        if code is codes.ANY:
            return self._add("a")
        if code is codes.IN:
            return self._add(self._in(value))
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            low, high, inner = value
            return "".join(self.sequence(inner) for _ in range(min(low + self.extra, int(high))))
        if code is codes.SUBPATTERN:
            return self.sequence(value[3])
        if code is codes.ATOMIC_GROUP:
            return self.sequence(value)
        if code is codes.BRANCH:
            options = value[1]
            return self.sequence(options[self.draw % len(options)])
        return ""  # anchors, look-around, back-references: the search at the end decides

    def _in(self, parts: list[tuple[Any, Any]]) -> str:
        negated = bool(parts) and parts[0][0] is codes.NEGATE
        allowed: list[str] = []
        for code, value in parts[1:] if negated else parts:
            if code is codes.LITERAL:
                allowed.append(chr(value))
            elif code is codes.RANGE:
                low, high = value
                allowed += [chr(c) for c in range(low, min(high, low + 64) + 1)]
            elif code is codes.CATEGORY:
                allowed += _CATEGORIES[value]
        if not negated:
            return allowed[self.draw % len(allowed)] if allowed else ""
        taken = set(allowed)
        return next((c for c in _PRINTABLE if c not in taken), "\u00e9")
