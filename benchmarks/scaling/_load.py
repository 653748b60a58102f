"""Load by the room's own generator, every request kept: nothing may be lost while replicas come and go."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stacks
from bench import load as generator

TRAFFIC = {"prompt_tokens": 32, "output_tokens": 16, "arrival": "poisson", "requests_per_second": 1.0}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request: when it was due and done, in seconds since the load began; whether it got all of its tokens."""

    due: float
    done: float
    ok: bool
    status: str
    ttft: float

    @property
    def latency(self) -> float:
        return self.done - self.due


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of all requests."""

    answers: tuple[Answer, ...]

    @property
    def lost(self) -> int:
        return sum(not one.ok for one in self.answers)

    def p95(self, start: float = 0.0, end: float = float("inf")) -> float:
        """Of the time to the last token of those due in that span."""
        found = sorted(one.latency for one in self.answers if one.ok and start <= one.due < end)
        return found[min(len(found) - 1, int(0.95 * len(found)))] if found else float("nan")

    def recovered(self, limit: float, after: float, window: float = 2.0) -> float:
        """Seconds after `after` from which on all windows keep the p95 limit; infinity if they never do."""
        end = max((one.due for one in self.answers), default=0.0)
        at, good = after, None
        while at < end:
            kept = not (self.p95(at, at + window) > limit)
            good = (at if good is None else good) if kept else None
            at += window
        return float("inf") if good is None else good - after


def send(url: str, model: str, stages: Sequence[tuple[float, float, float]], *, seed: int = 1) -> Outcome:
    """An open loop of (seconds, first rate, last rate) stages, read to the last token of the last answer."""
    traffic = stacks.Traffic.model_validate(TRAFFIC)
    target = generator.Target(url=url, engine="vllm", model=model)
    whole = sum(stage[0] for stage in stages)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.jsonl"
        settings = generator.Settings(
            runs=1, seconds=whole, max_seconds=whole + 60, seed=seed, reconnect=True, request_timeout=90, raw_file=raw
        )
        scenario = generator.Scenario(stages=tuple(stages))
        generator.run(target, traffic, settings, release=stacks.digest(url), stack="scaling", scenario=scenario)
        rows = [json.loads(line) for line in raw.read_text().splitlines()]
    return Outcome(answers=tuple(_answer(row) for row in rows))


def _answer(row: dict[str, Any]) -> Answer:
    due = float(row["scheduled"])
    return Answer(
        due=due,
        done=float(row["end"] if row["end"] is not None else due),
        ok=row["status"] == "ok",
        status=str(row["status"]),
        ttft=float(row["first"] - due) if row["first"] is not None else float("nan"),
    )


def ask_at_once(url: str, model: str, number: int, *, seconds: float = 60.0) -> Outcome:
    """So many requests at one moment, without any look at the service before: what a sleeping one gets."""
    import httpx2

    body = {"model": model, "max_tokens": 8, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    answers: list[Answer] = []
    began = time.monotonic()

    def ask() -> None:
        status, first = "no answer", float("nan")
        try:
            with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=seconds) as answer:
                status = str(answer.status_code)
                text = ""
                for line in answer.iter_lines():
                    first = first if first == first else time.monotonic() - began
                    text = line or text
                whole = answer.status_code == 200 and text.strip() == "data: [DONE]"
        except httpx2.HTTPError as error:
            whole, status = False, type(error).__name__
        done = time.monotonic() - began
        answers.append(Answer(due=0.0, done=done, ok=whole, status=status, ttft=first))

    threads = [threading.Thread(target=ask) for _ in range(number)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(seconds + 5)
    return Outcome(answers=tuple(answers))
