"""Prompts: exactly as many words as asked, never the same beginning, always the same for a seed."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

import stacks
from bench.load import Closed, Open, Stage, Synthetic
from bench.load._prompts import lengths


def traffic(prompt: object, output: object) -> stacks.Traffic:
    return stacks.Traffic.model_validate({"users": 1, "prompt_tokens": prompt, "output_tokens": output})


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 128, 100_000])
def test_a_prompt_has_exactly_as_many_words_as_asked(count: int) -> None:
    source = Synthetic(traffic(float(count), 1.0), seed=5)
    for serial in (0, 1, 77, 1_000_000):
        ask = source(serial)
        assert ask.prompt_tokens == count
        assert len(ask.content.decode().split(" ")) == count
        assert all(len(word) == 4 for word in ask.content.decode().split(" "))


def test_no_two_prompts_begin_alike_so_that_no_cache_helps() -> None:
    source = Synthetic(traffic(32.0, 1.0), seed=1)
    assert len({source(serial).content[:14] for serial in range(20_000)}) == 20_000


def test_the_same_seed_asks_the_same_and_another_seed_something_else() -> None:
    a, b, c = (Synthetic(traffic({"mean": 50.0, "cv": 0.5}, 20.0), seed=seed) for seed in (1, 1, 2))
    assert [a(i) for i in range(50)] == [b(i) for i in range(50)]
    assert [a(i) for i in range(50)] != [c(i) for i in range(50)]


@pytest.mark.parametrize("cv", [0.2, 0.6, 1.0])
def test_lengths_have_the_mean_and_spread_that_were_asked_for(cv: float) -> None:
    drawn = lengths(stacks.Tokens(mean=200.0, cv=cv), seed=3)
    mean = sum(drawn) / len(drawn)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in drawn) / len(drawn))
    assert mean == pytest.approx(200, rel=0.005)
    assert deviation / mean == pytest.approx(cv, rel=0.06)


def test_prompt_and_answer_stay_within_the_context() -> None:
    source = Synthetic(traffic({"mean": 900.0, "cv": 1.0}, {"mean": 900.0, "cv": 1.0}), seed=1, context_tokens=1024)
    asks = [source(i) for i in range(2000)]
    assert max(ask.prompt_tokens + ask.output_tokens for ask in asks) <= 1024
    assert min(ask.prompt_tokens for ask in asks) >= 1


def take(load: Open, until: float) -> list[float]:
    times = []
    for moment in load.times():
        if moment > until:
            return times
        times.append(moment)
    return times


def test_constant_arrivals_are_evenly_spaced() -> None:
    times = take(Open.steady(50.0, cv=0.0), 10.0)
    assert len(times) in (499, 500, 501)
    assert max(b - a for a, b in pairwise(times)) == pytest.approx(0.02, abs=1e-6)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gaps_have_the_rate_and_the_burstiness_that_were_asked_for(cv: float) -> None:
    times = take(Open.steady(100.0, cv=cv, seed=4), 400.0)
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert 1 / mean == pytest.approx(100, rel=0.05)
    assert deviation / mean == pytest.approx(cv, rel=0.08)


def test_a_ramp_sends_what_lies_under_its_line() -> None:
    load = Open(stages=(Stage(seconds=10, start=0, end=100), Stage(seconds=math.inf, start=100, end=100)), cv=0.0)
    times = take(load, 20.0)
    assert sum(t < 5 for t in times) == pytest.approx(125, abs=1)
    assert sum(t < 10 for t in times) == pytest.approx(500, abs=1)
    assert sum(10 <= t < 20 for t in times) == pytest.approx(1000, abs=1)


def test_workers_together_send_the_whole_rate_and_have_all_users() -> None:
    parts = [Open.steady(90.0, seed=2).part(number, 3) for number in range(3)]
    merged = sorted(t for part in parts for t in take(part, 60.0))
    assert len(merged) == pytest.approx(5400, rel=0.05)
    assert sum(Closed(users=50).part(number, 3).users for number in range(3)) == 50
    replay = Open(moments=(0.0, 1.0, 2.0, 3.0, 4.0))
    assert sorted(t for number in range(2) for t in take(replay.part(number, 2), 9)) == [0.0, 1.0, 2.0, 3.0, 4.0]
