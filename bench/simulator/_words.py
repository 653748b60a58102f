"""What the simulator says and how it counts: answers from a fixed vocabulary, prompt tokens without a tokenizer.

Prompt tokens are counted without knowing the model's vocabulary, always the same for the same text:

- text in the synthetic form of the load generator, lower-case words of at most 12 letters and digits separated by
  single spaces, has exactly one token per word (decided by its first 64 characters);
- any other text has one token per 4 characters, rounded up, which is English prose by most vocabularies.
"""

from __future__ import annotations

import random
import re
from typing import Any

_SYNTHETIC = re.compile(r"[a-z0-9]{1,12}(?: [a-z0-9]{1,12})* ?").fullmatch
_VOCABULARY = [
    "the",
    "of",
    "and",
    "to",
    "a",
    "in",
    "is",
    "it",
    "you",
    "that",
    "he",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
    "his",
    "they",
    "be",
    "at",
    "one",
    "have",
    "this",
    "from",
    "or",
    "had",
    "by",
    "hot",
    "but",
    "some",
    "what",
    "there",
    "we",
    "can",
    "out",
    "other",
    "were",
    "all",
    "your",
    "when",
    "up",
    "use",
    "word",
    "how",
    "said",
    "an",
    "each",
    "she",
    "which",
    "do",
    "their",
    "time",
    "if",
    "will",
    "way",
    "about",
    "many",
    "then",
    "them",
    "would",
    "write",
    "like",
    "so",
    "these",
    "her",
    "long",
    "make",
    "thing",
    "see",
    "him",
    "two",
    "has",
    "look",
    "more",
    "day",
    "could",
    "go",
    "come",
    "did",
    "my",
    "sound",
    "no",
    "most",
    "number",
    "who",
    "over",
    "know",
    "water",
    "than",
    "call",
    "first",
    "people",
    "may",
    "down",
    "side",
    "been",
    "now",
    "find",
    "any",
    "new",
    "work",
    "part",
    "take",
    "get",
    "place",
    "made",
    "live",
    "where",
    "after",
    "back",
    "little",
    "only",
    "round",
    "man",
    "year",
    "came",
    "show",
    "every",
    "good",
    "me",
    "give",
    "our",
    "under",
]

LENGTH = 2048
"""Tokens in the corpus; an answer is a window of it, going round at its end."""


def count(text: str) -> int:
    """Prompt tokens of `text` by the rule in this module's docstring; 0 for the empty text."""
    if not text:
        return 0
    head = text[:64]
    if _SYNTHETIC(head) or (len(text) > 64 and _SYNTHETIC(head.rpartition(" ")[0] or head)):
        return text.count(" ") + 1
    return (len(text) + 3) >> 2


def content_tokens(content: Any) -> int:
    """Tokens of a message's content: text, or a list of parts (an image counts as 256 tokens, audio as 128)."""
    if isinstance(content, str):
        return count(content)
    if isinstance(content, list):
        total = 0
        for part in content:
            if isinstance(part, str):
                total += count(part)
            elif isinstance(part, dict):
                text = part.get("text")
                total += count(text) if isinstance(text, str) else 128 if "audio" in str(part.get("type")) else 256
        return total
    return 0


class Corpus:
    """A seeded sequence of `LENGTH` tokens, each a space and a word, ASCII, safe inside JSON strings.

    `pieces[i]` are the bytes of token i, for i up to twice the length, so that a window need not be folded.
    """

    __slots__ = ("_ends", "_raw", "pieces")

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        words = [b" " + rng.choice(_VOCABULARY).encode() for _ in range(LENGTH)]
        self.pieces: list[bytes] = words + words
        self._raw = b"".join(self.pieces)
        ends = [0]
        for piece in self.pieces:
            ends.append(ends[-1] + len(piece))
        self._ends = ends

    def text(self, start: int, tokens: int) -> bytes:
        """The bytes of `tokens` tokens from `start` (0 <= start < LENGTH)."""
        ends = self._ends
        if tokens <= LENGTH:
            return self._raw[ends[start] : ends[start + tokens]]
        half = self._raw[: ends[LENGTH]]
        whole, rest = divmod(start + tokens, LENGTH)
        return half[ends[start] :] + half * (whole - 1) + half[: ends[rest]]

    def piece(self, index: int) -> bytes:
        """Token number `index`, going round."""
        return self.pieces[index % LENGTH]

    def until(self, start: int, tokens: int, stops: tuple[str, ...]) -> tuple[int, str, str]:
        """(tokens, text, stop) of the window cut before the first of `stops`; stop is "" where none occurs."""
        text = self.text(start, tokens).decode()
        found = [(at, stop) for stop in stops if stop and (at := text.find(stop)) >= 0]
        if not found:
            return tokens, text, ""
        at, stop = min(found)
        length = 0
        for used in range(tokens):
            length += len(self.piece(start + used))
            if length >= at + len(stop):
                return used + 1, text[:at], stop
        return tokens, text[:at], stop


class Draws:
    """Everything random of one engine, by number of the request: the same seed gives the same answers in the same order.

    `lengths`: 1,024 natural lengths from a log-normal with the given mean and coefficient of variation.
    """

    __slots__ = ("_lengths", "_mask", "_state")

    def __init__(self, seed: int, mean: float, cv: float) -> None:
        self._state = ((seed ^ (seed >> 31)) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        rng = random.Random(seed ^ 0x5EED)
        self._lengths: list[int] = []
        self._mask = 1023
        if mean > 0:
            import math

            sigma = math.sqrt(math.log1p(cv * cv))
            mu = math.log(mean) - sigma * sigma / 2
            self._lengths = [max(1, round(rng.lognormvariate(mu, sigma))) for _ in range(1024)]

    def next(self) -> int:
        """A fresh 64-bit number for one request: a Weyl sequence, folded, so that none comes twice."""
        value = self._state = (self._state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        return value ^ (value >> 32)

    def length(self, draw: int, limit: int) -> int:
        """Natural length of the answer of that draw, at most `limit` tokens."""
        if not self._lengths:
            return limit
        return min(limit, self._lengths[draw & self._mask])


def share(draw: int, salt: int) -> float:
    """A number in [0, 1) for a draw, independent for each salt."""
    value = ((draw ^ (salt * 0xD6E8FEB86659FD93)) * 0xD6E8FEB86659FD93) & 0xFFFFFFFFFFFFFFFF
    return (value >> 11) / float(1 << 53)
