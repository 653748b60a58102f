"""Answers with anything beyond plain text: several choices, stop strings, logprobs, tool calls, structured output, faults."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import orjson

from ._answers import Kitchen, identity, natural
from ._ask import Ask, Refused, chain
from ._engine import Sequence, clock
from ._style import DONE, END, FINGERPRINT, event
from ._words import LENGTH, share

if TYPE_CHECKING:
    from ._http import Connection


# Of one request: what n and a list of prompts can make the server hold.
_MOST_TOKENS = 1 << 20


class Choice:
    """One of the answers to a request: its pieces of text, one per token, and how it ends."""

    __slots__ = ("call", "index", "pieces", "prompt", "reason", "shown", "stop")

    def __init__(self, index: int, pieces: list[str], reason: str, prompt: int) -> None:
        self.index = index
        self.pieces = pieces
        self.reason = reason
        self.prompt = prompt
        self.stop: str | None = None
        self.call: tuple[str, str] | None = None
        self.shown = 0


def _pieces(text: str) -> list[str]:
    """A given text in tokens of 4 characters."""
    return [text[at : at + 4] for at in range(0, len(text), 4)] or [""]


def choice(kitchen: Kitchen, ask: Ask, draw: int, index: int, prompt: int, room: int) -> Choice:
    """What choice number `index` says."""
    said = ask.call[1] if ask.call else ask.said
    if said is not None:
        pieces = _pieces(said)
        reason = "tool_calls" if ask.call else "stop"
        if len(pieces) > room:
            pieces, reason = pieces[:room], "length"
        made = Choice(index, pieces, reason, prompt)
        made.call = ask.call
        return made
    tokens, reason = natural(kitchen, ask, draw + index * 31, room)
    start = (draw + index * 131) % LENGTH
    pieces = [kitchen.corpus.piece(start + at).decode() for at in range(tokens)]
    made = Choice(index, pieces, reason, prompt)
    if ask.stops:
        used, text, stop = kitchen.corpus.until(start, tokens, ask.stops)
        if stop:
            made.pieces = pieces[:used]
            made.pieces[-1] = text[len("".join(pieces[: used - 1])) :]
            made.reason, made.stop = "stop", stop
    return made


def rich_answer(
    kitchen: Kitchen, connection: Connection, ask: Ask, draw: int, room: int, given_id: bytes, route: str, received: int
) -> bytes | None:
    """As `_answers.answer`, for what that cannot render."""
    faults = kitchen.faults
    if kitchen.faulty and share(draw, 1) < faults.error:
        body = b'{"error":{"message":"Internal Server Error","type":"InternalServerError","param":null,"code":500}}'
        if kitchen.dialect == "ollama":
            body = b'{"error":{"message":"llama runner process has terminated","type":"api_error","param":null,"code":null}}'
        kitchen.stats.http(route, "POST", 500, received, len(body), 0.0)
        return kitchen.head.reply(500, kitchen.json_type, body)
    if len(ask.prompts) * ask.n * room > _MOST_TOKENS and len(ask.prompts) * ask.n > 1:
        raise Refused(400, f"more than {_MOST_TOKENS} tokens in all choices together", param="n")
    choices = []
    for at, prompt in enumerate(ask.prompts):
        for copy in range(ask.n):
            choices.append(choice(kitchen, ask, draw, at * ask.n + copy, prompt, room))
    work = Rich(kitchen, connection, ask, choices, identity(draw, given_id), draw, route, received)
    connection.busy = work
    for made in choices:
        seq = Sequence(
            work,
            made.prompt,
            len(made.pieces),
            streams=ask.stream or faults.disconnect > 0 or faults.oom > 0,
            draw=draw + made.index,
            reason="length" if made.reason == "length" else "stop",
            index=made.index,
        )
        seq.max_tokens = room
        if kitchen.faulty and share(draw, 2) < faults.slow:
            seq.slow = faults.slow_factor
        if kitchen.caching:
            seq.chain = chain(ask.text)
        work.seqs.append(seq)
        if not kitchen.scheduler.submit(seq):
            connection.busy = None
            work.abort()
            return None
    if ask.stream and kitchen.dialect == "vllm" and not work.opened:
        work.opened = True
        connection.write(kitchen.head.stream(kitchen.events_type))
    return None


class Rich:
    """The work of a request whose answer is rendered as JSON objects, one by one."""

    __slots__ = (
        "ask",
        "choices",
        "connection",
        "created",
        "cut",
        "dies",
        "ident",
        "kitchen",
        "left",
        "opened",
        "received",
        "route",
        "seqs",
    )

    def __init__(
        self,
        kitchen: Kitchen,
        connection: Connection,
        ask: Ask,
        choices: list[Choice],
        ident: bytes,
        draw: int,
        route: str,
        received: int,
    ) -> None:
        self.kitchen = kitchen
        self.connection = connection
        self.ask = ask
        self.choices = choices
        self.seqs: list[Sequence] = []
        self.left = len(choices)
        self.ident = (("chatcmpl-" if ask.chat else "cmpl-").encode() + ident).decode()
        self.created = kitchen.head.refresh()
        self.route = route
        self.received = received
        self.opened = False
        faults = kitchen.faults
        length = len(choices[0].pieces)
        self.cut = 1 + int(share(draw, 4) * max(1, length - 1)) if share(draw, 3) < faults.disconnect else 0
        self.dies = share(draw, 5) < faults.oom

    def on_token(self, seq: Sequence) -> None:
        if self.dies:
            # What the kernel does to a container over its memory limit: exit code 137, nothing flushed.
            os.kill(os.getpid(), signal.SIGKILL)
        if self.ask.stream:
            self._send(self._delta(self.choices[seq.index], seq, last=False))
        if self.cut and seq.made >= self.cut:
            self.connection.abort()

    def on_finish(self, seq: Sequence) -> None:
        if self.cut:
            self.connection.abort()
            return
        self.left -= 1
        if self.ask.stream:
            self._send(self._delta(self.choices[seq.index], seq, last=True))
        if self.left:
            return
        kitchen = self.kitchen
        if self.ask.stream:
            end = b""
            if self.ask.usage:
                end = event(orjson.dumps(self._chunk([]) | {"usage": self._usage()} | self._mark()))
            self.connection.write(end + DONE + END)
            sent = 0
        else:
            body = orjson.dumps(self._whole())
            sent = len(body)
            self.connection.write(b"%b%d\r\n\r\n%b" % (kitchen.head.ok(kitchen.json_type), sent, body))
        kitchen.stats.http(self.route, "POST", 200, self.received, sent, clock() - seq.arrived)
        self.connection.done()

    def abort(self) -> None:
        for seq in self.seqs:
            if seq.state < 2:
                self.kitchen.scheduler.cancel(seq)

    # Rendering

    def _send(self, events: list[dict[str, Any]]) -> None:
        data = b"".join(event(orjson.dumps(e)) for e in events)
        if not self.opened:
            self.opened = True
            data = self.kitchen.head.stream(self.kitchen.events_type) + data
        self.connection.write(data)

    def _mark(self) -> dict[str, Any]:
        return {"system_fingerprint": "fp_ollama" if self.kitchen.dialect == "ollama" else FINGERPRINT.decode()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.ask.chat else "text_completion"
        start = {"id": self.ident, "object": kind, "created": self.created, "model": self.kitchen.model}
        return start | (self._mark() if self.kitchen.dialect == "ollama" else {}) | {"choices": choices}

    def _usage(self) -> dict[str, int]:
        prompt = sum(self.ask.prompts)
        made = sum(seq.made for seq in self.seqs)
        return {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}

    def _delta(self, made: Choice, seq: Sequence, *, last: bool) -> list[dict[str, Any]]:
        piece = made.pieces[seq.made - 1]
        at = seq.made - 1
        reason = made.reason if last else None
        choices: list[dict[str, Any]] = []
        vllm = self.kitchen.dialect == "vllm"
        if self.ask.chat:
            first: dict[str, Any] = {"role": "assistant", "content": ""}
            delta: dict[str, Any] = {"content": piece} if vllm else {"role": "assistant", "content": piece}
            if made.call:
                call: dict[str, Any] = {"index": 0, "function": {"arguments": piece}}
                if at == 0:
                    call = {
                        "id": self._call_id(made),
                        "type": "function",
                        "index": 0,
                        "function": {"name": made.call[0], "arguments": piece},
                    }
                delta = {"tool_calls": [call]}
            if at == 0 and vllm:
                choices.append({"index": made.index, "delta": first, "logprobs": None, "finish_reason": None})
            body: dict[str, Any] = {"index": made.index, "delta": delta}
        else:
            text = piece
            if at == 0 and self.ask.echo:
                text = self.ask.text + piece
            body = {"index": made.index, "text": text}
        body["logprobs"] = self._logprobs(made, at, at + 1)
        body["finish_reason"] = reason
        if last and vllm:
            body["stop_reason"] = made.stop
        if vllm:
            body["token_ids"] = None
        choices.append(body)
        events = [self._chunk([c]) for c in choices]
        if self.ask.usage_each:
            for one in events:
                one["usage"] = self._usage()
        return events

    def _call_id(self, made: Choice) -> str:
        return f"chatcmpl-tool-{self.ident.partition('-')[2][:16]}{made.index}"

    def _logprobs(self, made: Choice, start: int, stop: int) -> dict[str, Any] | None:
        top = self.ask.logprobs
        if top is None:
            return None
        if self.ask.chat:
            content = []
            for at in range(start, stop):
                own = _probability(made.index, at)
                token = made.pieces[at]
                entry = {"token": token, "logprob": own, "bytes": list(token.encode())}
                others = [
                    {"token": word, "logprob": own - 0.5 * rank, "bytes": list(word.encode())}
                    for rank, word in enumerate(_others(token, top))
                ]
                content.append(entry | {"top_logprobs": others})
            return {"content": content}
        offset = sum(len(piece) for piece in made.pieces[:start])
        out: dict[str, Any] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for at in range(start, stop):
            own = _probability(made.index, at)
            out["text_offset"].append(offset)
            out["token_logprobs"].append(own)
            out["tokens"].append(made.pieces[at])
            out["top_logprobs"].append(
                {word: own - 0.5 * rank for rank, word in enumerate(_others(made.pieces[at], max(1, top)))}
            )
            offset += len(made.pieces[at])
        return out

    def _whole(self) -> dict[str, Any]:
        vllm = self.kitchen.dialect == "vllm"
        out = []
        for made, seq in zip(self.choices, self.seqs, strict=True):
            text = "".join(made.pieces)
            logprobs = self._logprobs(made, 0, seq.made)
            body: dict[str, Any] = {"index": made.index}
            if self.ask.chat:
                message: dict[str, Any] = {"role": "assistant", "content": text}
                if vllm:
                    message |= {
                        "refusal": None,
                        "annotations": None,
                        "audio": None,
                        "function_call": None,
                        "tool_calls": [],
                        "reasoning": None,
                    }
                if made.call:
                    function = {"name": made.call[0], "arguments": text}
                    message |= {
                        "content": None if vllm else "",
                        "tool_calls": [{"id": self._call_id(made), "type": "function", "function": function}],
                    }
                body["message"] = message
            else:
                body["text"] = (self.ask.text if self.ask.echo else "") + text
            body["logprobs"] = logprobs
            body["finish_reason"] = made.reason
            if vllm:
                body |= {"stop_reason": made.stop, "token_ids": None}
            out.append(body)
        kind = "chat.completion" if self.ask.chat else "text_completion"
        start = {"id": self.ident, "object": kind, "created": self.created, "model": self.kitchen.model, "choices": out}
        if vllm:
            start |= {"service_tier": None}
        return start | self._mark() | {"usage": self._usage() | ({"prompt_tokens_details": None} if vllm else {})}


def _probability(index: int, at: int) -> float:
    return -0.05 - ((at * 37 + index * 11) % 97) / 100


def _others(token: str, top: int) -> list[str]:
    """The token itself and further candidates, `top` in all."""
    words = (
        " the",
        " of",
        " and",
        " to",
        " a",
        " in",
        " is",
        " it",
        " that",
        " was",
        " for",
        " on",
        " as",
        " at",
        " by",
        " an",
        " or",
        " we",
        " so",
        " no",
    )
    return [token, *(word for word in words if word != token)][:top]
