"""Answers with anything beyond plain text: several choices, stop strings, logprobs, tool calls, structured output, faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from ._answers import Kitchen, identity, natural
from ._ask import Ask, Refused, chain
from ._choice import Choice
from ._faults import Fate
from ._scheduler import Sequence, clock
from ._style import DONE, END, FINGERPRINT, event

if TYPE_CHECKING:
    from ._http import Client


# Of one request: what n and a list of prompts can make the server hold.
MOST_TOKENS = 1 << 20
_MOST_CHOICES = 4096


def choice(kitchen: Kitchen, ask: Ask, draw: int, index: int, prompt: int, room: int) -> Choice:
    """What choice number `index` says."""
    tokens, reason = natural(kitchen, ask, draw + index * 31, room)
    made = Choice(kitchen.corpus, index, prompt, draw + index * 131, tokens, reason)
    said = ask.call[1] if ask.call else ask.said
    if said is not None:
        made.say(said, "tool_calls" if ask.call else "stop", room)
        made.call = ask.call
    elif ask.stops:
        made.until(ask.stops)
    return made


def rich_answer(
    kitchen: Kitchen, connection: Client, ask: Ask, draw: int, room: int, given_id: bytes, route: str, received: int
) -> bytes | None:
    """As `_answers.answer`, for what that cannot render."""
    fate = Fate(kitchen.faults, draw) if kitchen.faulty else None
    if fate is not None and fate.error:
        body = b'{"error":{"message":"Internal Server Error","type":"InternalServerError","param":null,"code":500}}'
        if kitchen.dialect == "ollama":
            body = b'{"error":{"message":"llama runner process has terminated","type":"api_error","param":null,"code":null}}'
        kitchen.stats.http(route, "POST", 500, received, len(body), 0.0)
        return kitchen.head.reply(500, kitchen.json_type, body)
    choices_ = len(ask.prompts) * ask.n
    if choices_ > _MOST_CHOICES or (choices_ > 1 and choices_ * room > MOST_TOKENS):
        raise Refused(
            400, f"more than {MOST_TOKENS} tokens or {_MOST_CHOICES} answers in all choices together", param="n"
        )
    if ask.logprobs is not None and not ask.stream and choices_ * room * (ask.logprobs + 1) > MOST_TOKENS:
        raise Refused(400, f"more than {MOST_TOKENS} log probabilities in one answer; stream it", param="logprobs")
    choices = []
    for at, prompt in enumerate(ask.prompts):
        for copy in range(ask.n):
            choices.append(choice(kitchen, ask, draw, at * ask.n + copy, prompt, room))
    work = Rich(kitchen, connection, ask, choices, identity(draw, given_id), fate, route, received)
    connection.busy = work
    for made in choices:
        seq = Sequence(
            work,
            made.prompt,
            made.tokens,
            streams=ask.stream or fate is not None,
            draw=draw + made.index,
            reason="length" if made.reason == "length" else "stop",
            index=made.index,
        )
        seq.max_tokens = room
        seq.alone = choices_ == 1
        if fate is not None:
            seq.slow = fate.slow
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
        "fate",
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
        connection: Client,
        ask: Ask,
        choices: list[Choice],
        ident: bytes,
        fate: Fate | None,
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
        self.fate = fate
        if fate is not None:
            fate.within(choices[0].tokens)

    def on_token(self, seq: Sequence) -> None:
        if self.ask.stream:
            self._send(self._delta(self.choices[seq.index], seq, last=False))
        if self.fate is not None:
            self.fate.meet(self.connection, seq.made)

    def on_finish(self, seq: Sequence) -> None:
        if self.fate is not None and self.fate.meet(self.connection, seq.made, last=True):
            return
        self.left -= 1
        if self.ask.stream:
            self._send(self._delta(self.choices[seq.index], seq, last=True))
        if self.left:
            return
        kitchen = self.kitchen
        if len(self.seqs) > 1:
            n = self.ask.n
            for at in range(0, len(self.seqs), n):
                kitchen.stats.choices(n, max(one.made for one in self.seqs[at : at + n]))
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
        piece = made.piece(seq.made - 1)
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
                token = made.piece(at)
                entry = {"token": token, "logprob": own, "bytes": list(token.encode())}
                others = [
                    {"token": word, "logprob": own - 0.5 * rank, "bytes": list(word.encode())}
                    for rank, word in enumerate(_others(token, top))
                ]
                content.append(entry | {"top_logprobs": others})
            return {"content": content}
        offset = len(made.text(start)) if start else 0
        out: dict[str, Any] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for at in range(start, stop):
            own = _probability(made.index, at)
            out["text_offset"].append(offset)
            out["token_logprobs"].append(own)
            token = made.piece(at)
            out["tokens"].append(token)
            out["top_logprobs"].append(
                {word: own - 0.5 * rank for rank, word in enumerate(_others(token, max(1, top)))}
            )
            offset += len(token)
        return out

    def _whole(self) -> dict[str, Any]:
        vllm = self.kitchen.dialect == "vllm"
        out = []
        for made, seq in zip(self.choices, self.seqs, strict=True):
            text = made.text()
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
                if not self.ask.chat:
                    body |= {"prompt_logprobs": None, "prompt_token_ids": None}
            out.append(body)
        kind = "chat.completion" if self.ask.chat else "text_completion"
        start = {"id": self.ident, "object": kind, "created": self.created, "model": self.kitchen.model, "choices": out}
        if not vllm:
            return start | self._mark() | {"usage": self._usage()}
        # The same members as `_style` writes for plain answers.
        usage = self._usage() | {"prompt_tokens_details": None}
        end: dict[str, Any] = {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        end = end if self.ask.chat else {}
        return start | {"service_tier": None} | self._mark() | {"usage": usage} | end | {"kv_transfer_params": None}


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
