"""What a reply means: is it an answer, the input's own fault, or the endpoint's trouble?

A failure counts against an input only where it is proven to be its own. Most are not: an engine that restarts fails whatever
it was asked. So the runner asks whether the endpoint has answered another input since this one was sent; here is only told
which replies raise the question.
"""

from __future__ import annotations

import email.utils
import time
from enum import Enum
from typing import Any, NamedTuple

import orjson

_MOST_WORDS = 300
_MOST_RETRY_AFTER = 3600.0
_MOST_TOKENS = 1 << 31


class Kind(Enum):
    """`ANSWER`: done. `REFUSED`: the input cannot be served, now or ever. `FAILED`: might be either's fault. `LOST`: the
    connection broke with the input in flight, which an input that kills the engine does too. `BUSY`: later, or slower.
    `AWAY`: nobody was there to fail at it."""

    ANSWER = 1
    REFUSED = 2
    FAILED = 3
    LOST = 4
    BUSY = 5
    AWAY = 6


class Finding(NamedTuple):
    """`code`: a word for counting. `words`: what the server said. `retry_after`: seconds, 0 where it named none."""

    kind: Kind
    code: str = ""
    words: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    retry_after: float = 0.0


def judge(status: int, body: bytes, retry_after: bytes = b"") -> Finding:
    """The finding on a complete reply."""
    if status == 200:
        return _answer(body)
    words = said(body)
    if status in (429, 503, 529):
        return Finding(Kind.BUSY, f"http_{status}", words, retry_after=seconds_of(retry_after))
    if status in (401, 403, 404, 407, 408, 409, 425) or status >= 500:
        # A model that is not loaded yet or a proxy without its upstream answers 404 as well as a wrong name does.
        return Finding(Kind.FAILED, f"http_{status}", words)
    return Finding(Kind.REFUSED, f"http_{status}", words)


def _answer(body: bytes) -> Finding:
    try:
        found: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Finding(Kind.FAILED, "not_json", body[:_MOST_WORDS].decode(errors="replace"))
    if not isinstance(found, dict) or found.get("error"):
        return Finding(Kind.FAILED, "error_body", said(body))
    usage = found.get("usage")
    if isinstance(usage, dict):
        into = usage.get("prompt_tokens", usage.get("input_tokens"))
        out = usage.get("completion_tokens", usage.get("output_tokens"))
    else:
        into, out = found.get("prompt_eval_count"), found.get("eval_count")
    return Finding(
        Kind.ANSWER,
        tokens_in=_count(into),
        tokens_out=_count(out),
    )


def _count(told: object) -> int:
    """Tokens as the server tells them; 0 where that is no number of tokens, or more than any database can count."""
    return told if isinstance(told, int) and 0 < told < _MOST_TOKENS else 0


def said(body: bytes) -> str:
    """What a server says went wrong, in a line."""
    try:
        found: Any = orjson.loads(body)
        for key in ("error", "message", "detail"):
            if isinstance(found, dict) and found.get(key):
                found = found[key]
        text = found if isinstance(found, str) else orjson.dumps(found).decode()
    except orjson.JSONDecodeError:
        text = body[: 4 * _MOST_WORDS].decode(errors="replace")
    # No database of text takes a zero byte.
    return " ".join(text.replace("\0", " ").split())[:_MOST_WORDS]


def seconds_of(value: bytes) -> float:
    """A Retry-After header in seconds, given as such or as a date (RFC 9110, 10.2.3); at most an hour, 0 for none."""
    text = value.decode("latin-1").strip()
    if not text:
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(0.0, seconds), _MOST_RETRY_AFTER) if seconds == seconds else 0.0
