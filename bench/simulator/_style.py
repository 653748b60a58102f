"""How answers look on the wire: one `Style` per dialect, route and model, its constant bytes made once.

A streamed token is three byte strings: the length of its HTTP chunk with the start of the event, the part that is the
same for the whole stream (id, time, model), and the token with the rest. The first and the last are made once per
token of the corpus; so a token costs one join, and a whole stream that takes no time one join of the middle part.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any, cast

import orjson

from ._words import LENGTH, Corpus

Pairs = list[tuple[bytes, bytes]]
FINGERPRINT = b"vllm-0.32.0-bac2cd85"
DONE = b"e\r\ndata: [DONE]\n\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of a chunked HTTP body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(data: bytes) -> bytes:
    """`data` as one server-sent event in one HTTP chunk."""
    return b"%x\r\ndata: %b\n\n\r\n" % (len(data) + 8, data)


def _from(items: Pairs, start: int) -> Iterator[tuple[bytes, bytes]]:
    """The items from that place on; a slice or `islice` would copy or step over what lies before it."""
    made: Any = iter(items)
    made.__setstate__(start)  # how a list's iterator is unpickled
    return cast("Iterator[tuple[bytes, bytes]]", made)


def _around(items: Pairs, start: int) -> Iterator[tuple[bytes, bytes]]:
    """The items from that place on, again and again."""
    return chain(_from(items, start), chain.from_iterable(repeat(items)))


class Style:
    """Bytes of one route. `head(id, created)` is the constant part of a stream's events; see the module's docstring."""

    __slots__ = (
        "_corpus",
        "_tables",
        "_tails",
        "after",
        "before",
        "chat",
        "dialect",
        "first",
        "message",
        "middle",
        "model",
        "opens",
        "prefix",
        "whole_size",
    )

    def __init__(self, dialect: str, model: str, *, chat: bool, corpus: Corpus) -> None:
        self.dialect = dialect
        self.chat = chat
        self.model = orjson.dumps(model)
        self._corpus = corpus
        self._tables: dict[int, tuple[list[bytes], list[bytes], list[bytes], Pairs]] = {}
        vllm = dialect == "vllm"
        kind = b"chat.completion" if chat else b"text_completion"
        self.prefix = b"chatcmpl-" if chat else b"cmpl-"
        mark = b"" if vllm else b',"system_fingerprint":"fp_ollama"'
        part = kind + b".chunk" if chat else kind
        self.before = b'","object":"%b","created":' % part
        delta = (
            (b'"delta":{"content":"' if vllm else b'"delta":{"role":"assistant","content":"') if chat else b'"text":"'
        )
        self.first = b',"model":%b%b,"choices":[{"index":0,%b' % (self.model, mark, delta)
        close = b'"}' if chat else b'"'
        if vllm and chat:
            self.after = close + b',"logprobs":null,"finish_reason":null,"token_ids":null}]}'
        elif vllm:
            self.after = close + (
                b',"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}],'
                b'"usage":null}'
            )
        else:
            self.after = close + b',"finish_reason":null}]}'
        # An answer that is not streamed: `opens`, id, `middle`, time, `message`, text, tail.
        self.opens = b'{"id":"' + self.prefix
        self.middle = b'","object":"%b","created":' % kind
        self._tails: dict[tuple[str, int, int], bytes] = {}
        start = b'"message":{"role":"assistant","content":"' if chat else b'"text":"'
        self.message = b',"model":%b%b,"choices":[{"index":0,%b' % (self.model, mark, start)
        # Without id, text and tail; the second of the epoch has ten digits until the year 2286.
        self.whole_size = len(self.opens) + len(self.middle) + 10 + len(self.message)

    def head(self, ident: bytes, created: int) -> bytes:
        """The part of every event of one stream before the token."""
        return b'{"id":"%b%b%b%d%b' % (self.prefix, ident, self.before, created, self.first)

    def tables(self, head: int) -> tuple[list[bytes], list[bytes], list[bytes], Pairs]:
        """(starts, rests, middles, pairs) by token of the corpus for events whose constant part has `head` bytes.

        A middle is the rest of one token with the start of the next: `head.join(middles)` is a run of events. A pair is
        start and rest of a token: `head.join(pair)` is its event.
        """
        found = self._tables.get(head)
        if found is None:
            if len(self._tables) > 8:
                self._tables.clear()
            pieces = self._corpus.pieces[:LENGTH]
            fixed = head + len(self.after) + 8
            starts = [b"%x\r\ndata: " % (fixed + len(piece)) for piece in pieces]
            rests = [piece + self.after + b"\n\n\r\n" for piece in pieces]
            middles = [rest + after for rest, after in zip(rests, starts[1:] + starts[:1], strict=True)]
            pairs = list(zip(starts, rests, strict=True))
            found = self._tables[head] = (starts + starts, rests + rests, middles + middles, pairs + pairs)
        return found

    def events(self, head: bytes, start: int, tokens: int) -> Iterator[bytes]:
        """The events of `tokens` tokens (or more) from number `start` of the corpus (0 <= start < LENGTH) on, one by one."""
        pairs = self.tables(len(head))[3]
        return map(head.join, _from(pairs, start) if tokens <= LENGTH else _around(pairs, start))

    def opening(self, ident: bytes, created: int) -> bytes:
        """The event before the first token, where the dialect has one."""
        if self.dialect == "vllm" and self.chat:
            return event(
                b'{"id":"%b%b%b%d,"model":%b,"choices":[{"index":0,"delta":{"role":"assistant","content":""},'
                b'"logprobs":null,"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}'
                % (self.prefix, ident, self.before, created, self.model)
            )
        return b""

    def last(self, head: bytes, piece: bytes, reason: bytes) -> bytes:
        """The event(s) of the last token, with the reason for the end."""
        if self.dialect == "vllm":
            if self.chat:
                end = b'"},"logprobs":null,"finish_reason":"%b","stop_reason":null,"token_ids":null}]}' % reason
            else:
                end = (
                    b'","logprobs":null,"finish_reason":"%b","stop_reason":null,"prompt_token_ids":null,"token_ids":null}],'
                    b'"usage":null}' % reason
                )
            return event(head + piece + end)
        close = b'"}' if self.chat else b'"'
        return event(head + piece + self.after) + event(head + close + b',"finish_reason":"%b"}]}' % reason)

    def usage(self, ident: bytes, created: int, prompt: int, made: int) -> bytes:
        """The event with the counts, after the last token."""
        start = b'{"id":"%b%b%b%d,"model":%b' % (self.prefix, ident, self.before, created, self.model)
        if self.dialect == "vllm":
            return event(
                b'%b,"choices":[],"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d},'
                b'"system_fingerprint":"%b"}' % (start, prompt, prompt + made, made, FINGERPRINT)
            )
        return event(
            b'%b,"system_fingerprint":"fp_ollama","choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d,'
            b'"total_tokens":%d}}' % (start, prompt, made, prompt + made)
        )

    def tail_of(self, reason: str, prompt: int, made: int) -> bytes:
        """`tail`, remembered for the last few hundred kinds of answer."""
        key = (reason, prompt, made)
        found = self._tails.get(key)
        if found is None:
            if len(self._tails) >= 256:
                self._tails.clear()
            found = self._tails[key] = self.tail(reason.encode(), prompt, made)
        return found

    def tail(self, reason: bytes, prompt: int, made: int) -> bytes:
        """What follows the text of an answer that is not streamed."""
        if self.dialect == "vllm":
            if self.chat:
                choice = (
                    b'","refusal":null,"annotations":null,"audio":null,"function_call":null,"tool_calls":[],'
                    b'"reasoning":null},"logprobs":null,"finish_reason":"%b","stop_reason":null,"token_ids":null'
                    % reason
                )
                end = b',"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null}'
            else:
                choice = (
                    b'","logprobs":null,"finish_reason":"%b","stop_reason":null,"token_ids":null,'
                    b'"prompt_logprobs":null,"prompt_token_ids":null' % reason
                )
                end = b',"kv_transfer_params":null}'
            return (
                b'%b}],"service_tier":null,"system_fingerprint":"%b","usage":{"prompt_tokens":%d,"total_tokens":%d,'
                b'"completion_tokens":%d,"prompt_tokens_details":null}%b'
                % (choice, FINGERPRINT, prompt, prompt + made, made, end)
            )
        close = b'"}' if self.chat else b'"'
        return b'%b,"finish_reason":"%b"}],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}' % (
            close,
            reason,
            prompt,
            made,
            prompt + made,
        )

    def whole(self, ident: bytes, created: int, text: bytes, reason: bytes, prompt: int, made: int) -> bytes:
        """The body of an answer that is not streamed; `text` is safe inside a JSON string."""
        return b"".join(
            (self.opens, ident, self.middle, b"%d" % created, self.message, text, self.tail(reason, prompt, made))
        )
