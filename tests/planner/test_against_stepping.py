"""The queueing formulas against an engine stepped token by token with the same timing."""

from __future__ import annotations

import math
import random

import pytest

import planner
from stacks import Tokens, Traffic

TIMING = planner.timing_for(engine="ollama", model="gemma3:4b", quantization="q4-k-m", gpu="nvidia-l4")


def stepped(rate: float, slots: int, output: int, spread: bool, count: int = 4000) -> tuple[float, float, float]:
    """Mean and p95 of end-to-end seconds and mean TTFT of one replica under Poisson arrivals, first tenth left out."""
    random_ = random.Random(7)
    arrivals, now = [], 0.0
    for _ in range(count):
        now += random_.expovariate(rate)
        arrivals.append((now, max(1, round(random_.expovariate(1 / output))) if spread else output))
    clock, nxt = 0.0, 0
    running: list[list[float]] = []  # arrival, tokens left, context, first token at
    waiting: list[tuple[float, int]] = []
    done: list[tuple[float, float]] = []
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
        while waiting and len(running) < slots:
            arrived, tokens = waiting.pop(0)
            running.append([arrived, float(tokens), 128.0, -1.0])
            prompts += 128
        step = TIMING.decode_step_seconds(old, context)
        if prompts:
            step += TIMING.prefill_seconds(prompts, old)
        clock += step
        for sequence in running:
            sequence[1] -= 1
            sequence[2] += 1
            if sequence[3] < 0:
                sequence[3] = clock
        done += [(clock - s[0], s[3] - s[0]) for s in running if s[1] <= 0]
        running = [sequence for sequence in running if sequence[1] > 0]
    kept = done[count // 10 :]
    latencies = sorted(latency for latency, _ in kept)
    mean = sum(latencies) / len(latencies)
    return mean, latencies[math.floor(0.95 * len(latencies))], sum(first for _, first in kept) / len(kept)


@pytest.mark.parametrize(
    ("rate", "spread", "mean_within", "late_within"),
    [(0.5, False, 0.05, 0.15), (1.5, False, 0.08, 0.25), (2.0, False, 0.10, 0.30), (1.5, True, 0.10, 0.35)],
)
def test_open_arrivals_come_out_as_in_a_stepped_engine(
    rate: float, spread: bool, mean_within: float, late_within: float
) -> None:
    mean, late, _ = stepped(rate, 8, 128, spread)
    traffic = Traffic(
        arrival="poisson",
        requests_per_second=rate,
        prompt_tokens=Tokens(mean=128),
        output_tokens=Tokens(mean=128, cv=1.0 if spread else 0.0),
    )
    found = planner.predict(TIMING, slots=8, replicas=1, traffic=traffic)
    assert found.e2e_mean_seconds == pytest.approx(mean, rel=mean_within)
    assert found.e2e_p95_seconds == pytest.approx(late, rel=late_within)


def test_capacity_is_where_a_stepped_engine_falls_behind() -> None:
    traffic = Traffic(
        arrival="poisson", requests_per_second=1.0, prompt_tokens=Tokens(mean=128), output_tokens=Tokens(mean=128)
    )
    capacity = planner.predict(TIMING, slots=8, replicas=1, traffic=traffic).capacity
    below, above = stepped(capacity * 0.8, 8, 128, False)[0], stepped(capacity * 1.1, 8, 128, False)[0]
    assert below < 5.0
    assert above > 30.0
