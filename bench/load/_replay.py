"""Traces and files of prompts: what was really asked, and when."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

import stacks

from ._arrivals import Open
from ._prompts import Ask, Synthetic

# The names of the same three columns in the traces that are public: our own JSONL, Mooncake (milliseconds),
# Azure LLM inference (CSV, moments as text), BurstGPT (CSV, seconds).
_WHEN = ("time", "timestamp", "TIMESTAMP", "Timestamp")
_INPUT = ("prompt_tokens", "input_length", "ContextTokens", "Request tokens")
_OUTPUT = ("output_tokens", "output_length", "GeneratedTokens", "Response tokens")
# What a prompt is made of, block by block: prompts that begin with the same ones begin with the same words (Mooncake).
_BLOCKS, _BLOCK_TOKENS = "hash_ids", 512
_MAX_ROWS = 5_000_000
# More than fits into any context; words for a prompt are made in memory.
_MOST_TOKENS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Trace:
    """`moments`: seconds from the first request, rising; the lengths in tokens, by request; `blocks`: by request, the numbers
    of the blocks of 512 tokens that its prompt begins with (none: it has nothing in common with others)."""

    moments: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...] = ()

    def load(self, *, speed: float = 1.0, seconds: float | None = None) -> Open:
        """The arrivals, `speed` times as fast as they were, for at most `seconds` of the benchmark's time."""
        moments = tuple(moment / speed for moment in self.moments)
        if seconds is not None:
            moments = tuple(moment for moment in moments if moment <= seconds)
        return Open(moments=moments)

    def source(self, seed: int) -> TraceSource:
        """Prompts and answers of the trace's lengths."""
        return TraceSource(self, seed)


class TraceSource:
    """Synthetic words, as many as each request of the trace had; the same ones where the trace says that prompts were alike."""

    def __init__(self, trace: Trace, seed: int) -> None:
        self._trace = trace
        longest = stacks.Tokens(mean=float(max(_BLOCK_TOKENS, *trace.prompt_tokens)))
        traffic = stacks.Traffic(users=1, prompt_tokens=longest, output_tokens=longest)
        self._words, self._shared = Synthetic(traffic, seed), Synthetic(traffic, seed + 7919)

    def __call__(self, serial: int) -> Ask:
        row = serial % len(self._trace.prompt_tokens)
        count, output = self._trace.prompt_tokens[row], self._trace.output_tokens[row]
        left, parts = count, []
        for block in self._trace.blocks[row] if self._trace.blocks else ():
            if left > 0:
                parts.append(self._shared.words(block, min(left, _BLOCK_TOKENS)))
                left -= _BLOCK_TOKENS
        if left > 0:
            parts.append(self._words.words(serial, left))
        return Ask(b" ".join(parts), output, count)


def read_trace(path: Path) -> Trace:
    """Read a CSV or JSONL trace. Raises InputError naming the line that cannot be used."""
    moments: list[float] = []
    prompts: list[int] = []
    outputs: list[int] = []
    blocks: list[tuple[int, ...]] = []
    last = float("-inf")
    for number, row in _rows(path):
        try:
            when = _moment(row)
            prompt, output = int(float(_column(row, _INPUT))), int(float(_column(row, _OUTPUT)))
            same = tuple(int(number) for number in row.get(_BLOCKS) or ())
            if not (math.isfinite(when) and 0 <= prompt < _MOST_TOKENS and output < _MOST_TOKENS):
                raise ValueError(f"time {when:g}, {prompt:.12g} and {output:.12g} tokens")
        except (KeyError, ValueError, TypeError, OverflowError, OSError) as error:
            raise stacks.InputError(
                where=f"{path}, line {number}",
                got=str(error),
                allowed=f"a time ({', '.join(_WHEN)}), an input ({', '.join(_INPUT)}) and an output length",
                fix="correct the line, or convert the trace to JSONL of time, prompt_tokens, output_tokens",
            ) from error
        if when < last:
            raise stacks.InputError(
                where=f"{path}, line {number}", got="a time before the last one", allowed="rising times", fix="sort it"
            )
        last = when
        # Failed requests of a trace have no answer; there is nothing to ask for.
        if output > 0:
            moments.append(when)
            prompts.append(max(1, prompt))
            outputs.append(output)
            blocks.append(same)
    if not moments:
        raise stacks.InputError(where=str(path), got="no request", allowed="at least one", fix="give another trace")
    first = moments[0]
    return Trace(
        moments=tuple(moment - first for moment in moments),
        prompt_tokens=tuple(prompts),
        output_tokens=tuple(outputs),
        blocks=tuple(blocks) if any(blocks) else (),
    )


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                for number, row in enumerate(csv.DictReader(file), 2):
                    yield number, row
                return
            for number, line in enumerate(file, 1):
                if number > _MAX_ROWS:
                    return
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is no object")
                    yield number, row
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise stacks.InputError(
            where=str(path), got=str(error)[:200], allowed="a readable CSV or JSONL file", fix="correct the file"
        ) from error


def _column(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise KeyError(f"none of {', '.join(names)}")


def _moment(row: Mapping[str, Any]) -> float:
    value = _column(row, _WHEN)
    if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
        return datetime.fromisoformat(value).timestamp()
    # Mooncake counts milliseconds; it is known by its column of block hashes or of lengths.
    return float(value) / (1000.0 if "input_length" in row else 1.0)


class Conversations:
    """Prompts that people wrote: JSONL of {"prompt"} or {"messages"}, or a ShareGPT file.

    Each ask is one user turn with all that was said before it, as an engine with a prefix cache would see it;
    `output_tokens` of the traffic say how long answers are. Prompt tokens are the server's to count.
    """

    def __init__(self, dialogues: Sequence[Sequence[Mapping[str, str]]], output_tokens: Sequence[int]) -> None:
        self._asks = [
            orjson.dumps(list(dialogue[: turn + 1]))
            for dialogue in dialogues
            for turn, message in enumerate(dialogue)
            if message["role"] == "user"
        ]
        if not self._asks:
            raise stacks.InputError(
                where="prompts", got="none", allowed="at least one user turn", fix="give another file"
            )
        self._output = tuple(output_tokens)

    def __call__(self, serial: int) -> Ask:
        return Ask(self._asks[serial % len(self._asks)], self._output[serial % len(self._output)], -1, True)


# As the models of the time were called in the public copies of ShareGPT.
_ASSISTANTS = ("assistant", "gpt", "chatgpt", "bing", "bard", "model")
_ROLES = {"human": "user", "user": "user", "system": "system", **dict.fromkeys(_ASSISTANTS, "assistant")}


def read_dialogues(path: Path) -> list[list[dict[str, str]]]:
    """Read JSONL of prompts or messages, or a ShareGPT JSON file. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
        entries = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
        found = [_dialogue(entry) for entry in entries]
        # No request could carry what is no text.
        orjson.dumps(found)
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise stacks.InputError(
            where=str(path),
            got=f"{type(error).__name__}: {error}",
            allowed='JSONL of {"prompt": …} or {"messages": […]}, or ShareGPT\'s JSON',
            fix="correct the file",
        ) from error


def _dialogue(entry: Mapping[str, Any]) -> list[dict[str, str]]:
    if "prompt" in entry:
        return [{"role": "user", "content": str(entry["prompt"])}]
    if "messages" in entry:
        return [{"role": _ROLES[m["role"]], "content": str(m["content"])} for m in entry["messages"]]
    return [{"role": _ROLES[m["from"]], "content": str(m["value"])} for m in entry["conversations"]]
