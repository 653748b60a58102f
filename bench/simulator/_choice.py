"""What one answer says, token by token, without holding it: a window of the corpus, or a given text in tokens of 4 characters."""

from __future__ import annotations

from ._words import LENGTH, Corpus

_SIZE = 4


class Choice:
    """One of the answers to a request and how it ends.

    `prompt`: tokens of its prompt; `tokens`: of the answer; `stop`: the stop string that ended it; `call`: (name,
    arguments) where the text is the arguments of a tool call.
    """

    __slots__ = ("_corpus", "_last", "_said", "_start", "call", "index", "prompt", "reason", "stop", "tokens")

    def __init__(self, corpus: Corpus, index: int, prompt: int, start: int, tokens: int, reason: str) -> None:
        self.index = index
        self.prompt = prompt
        self.tokens = tokens
        self.reason = reason
        self.stop: str | None = None
        self.call: tuple[str, str] | None = None
        self._corpus = corpus
        self._start = start % LENGTH
        self._said: str | None = None
        self._last: str | None = None

    def until(self, stops: tuple[str, ...]) -> None:
        """End before the first of `stops`, where one occurs."""
        used, text, stop = self._corpus.until(self._start, self.tokens, stops)
        if stop:
            self.tokens, self.reason, self.stop = used, "stop", stop
            self._last = text[len(self._corpus.text(self._start, used - 1)) :]

    def say(self, text: str, reason: str, room: int) -> None:
        """Answer with `text`, cut to `room` tokens."""
        self._said = text
        self.tokens = max(1, -(-len(text) // _SIZE))
        self.reason = reason
        if self.tokens > room:
            self.tokens, self.reason = room, "length"

    def piece(self, at: int) -> str:
        """Token `at` (0 <= at < tokens)."""
        if self._said is not None:
            return self._said[_SIZE * at : _SIZE * (at + 1)]
        if self._last is not None and at == self.tokens - 1:
            return self._last
        return self._corpus.piece(self._start + at).decode()

    def safe(self, at: int) -> bytes:
        """Token `at` as bytes that need no escapes in JSON; none where that is not known."""
        if self._said is not None or (self._last is not None and at == self.tokens - 1):
            return b""
        return self._corpus.piece(self._start + at)

    def text(self, tokens: int | None = None) -> str:
        """The first `tokens` tokens, or all."""
        size = self.tokens if tokens is None else tokens
        if self._said is not None:
            return self._said[: _SIZE * size]
        if self._last is not None and size == self.tokens:
            return self._corpus.text(self._start, size - 1).decode() + self._last
        return self._corpus.text(self._start, size).decode()
