"""Writes stepping.md: the queueing formulas against an engine stepped token by token. Run: python docs/planner/stepping.py"""

from __future__ import annotations

import math
import random
from pathlib import Path

import planner
from stacks import Tokens, Traffic

TIMING = planner.timing_for(engine="ollama", model="gemma3:4b", quantization="q4-k-m", gpu="nvidia-l4")
SLOTS, TOKENS = 8, 128
# Arrivals per second, and whether replies are exponential in length (else all of 128 tokens).
CASES = ((0.5, False), (1.5, False), (2.0, False), (1.5, True), (2.2, True))


def stepped(rate: float, spread: bool, count: int = 4000) -> tuple[float, float]:
    """Mean and p95 of end-to-end seconds of one replica under Poisson arrivals, the first tenth left out."""
    random_ = random.Random(7)
    arrivals, now = [], 0.0
    for _ in range(count):
        now += random_.expovariate(rate)
        arrivals.append((now, max(1, round(random_.expovariate(1 / TOKENS))) if spread else TOKENS))
    clock, nxt = 0.0, 0
    running: list[list[float]] = []  # arrival, tokens left, context
    waiting: list[tuple[float, int]] = []
    done: list[float] = []
    while len(done) < count:
        while nxt < count and arrivals[nxt][0] <= clock:
            waiting.append(arrivals[nxt])
            nxt += 1
        if not running and not waiting:
            clock = arrivals[nxt][0]
            continue
        old = len(running)
        context = sum(sequence[2] for sequence in running) / old if old else 0.0
        prompts = 0
        while waiting and len(running) < SLOTS:
            arrived, tokens = waiting.pop(0)
            running.append([arrived, float(tokens), 128.0])
            prompts += 128
        clock += TIMING.decode_step_seconds(old, context) + (TIMING.prefill_seconds(prompts, old) if prompts else 0.0)
        for sequence in running:
            sequence[1] -= 1
            sequence[2] += 1
        done += [clock - sequence[0] for sequence in running if sequence[1] <= 0]
        running = [sequence for sequence in running if sequence[1] > 0]
    kept = sorted(done[count // 10 :])
    return sum(kept) / len(kept), kept[math.floor(0.95 * len(kept))]


def planned(rate: float, spread: bool) -> planner.Prediction:
    """The same by formula."""
    traffic = Traffic(
        arrival="poisson",
        requests_per_second=rate,
        prompt_tokens=Tokens(mean=128),
        output_tokens=Tokens(mean=TOKENS, cv=1.0 if spread else 0.0),
    )
    return planner.predict(TIMING, slots=SLOTS, replicas=1, traffic=traffic)


def document() -> str:
    """The whole page."""
    rows = []
    for rate, spread in CASES:
        mean, late = stepped(rate, spread)
        found = planned(rate, spread)
        replies = "exponential" if spread else f"{TOKENS} tokens"
        rows.append(
            f"| {rate:g} | {replies} | {mean:.2f} s | {found.e2e_mean_seconds:.2f} s | {found.e2e_mean_seconds / mean - 1:+.0%} "
            f"| {late:.2f} s | {found.e2e_p95_seconds:.2f} s | {found.e2e_p95_seconds / late - 1:+.0%} |"
        )
    return "\n".join(
        [
            "# The queueing formulas against an engine stepped token by token",
            "",
            "Written by `python docs/planner/stepping.py`: Gemma 3 4B on one L4 by Ollama with 8 slots, Poisson arrivals,",
            "prompts of 128 tokens, 4,000 requests, the same `Timing` on both sides. End-to-end seconds.",
            "",
            "| arrivals/s | replies | mean stepped | planned | | p95 stepped | planned | |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    Path(__file__).with_name("stepping.md").write_text(document(), encoding="utf-8")
