"""Prefix caching: what prompts have in common is worked once, and kept once where the engine shares it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

import planner
import tollgate.__main__ as command_line
from bench.load._scenario import Scenario
from gate import _lines
from stacks import InputError, Prefix, Release, Tokens, Traffic, load_release, load_stack

OLLAMA, VLLM = load_release("gemma-3-4b-ollama-8"), load_release("gemma-3-4b-vllm")


def traffic(prefix: Prefix | None, users: int = 200) -> Traffic:
    return Traffic(users=users, prompt_tokens=Tokens(mean=1024), output_tokens=Tokens(mean=64), prefix=prefix)


def predicted(release: Release, prefix: Prefix | None) -> planner.Prediction:
    return planner.predict(planner.timing(release), slots=16, replicas=20, traffic=traffic(prefix))


def memory(release: Release, prefix: Prefix | None) -> planner.Memory:
    known = planner.catalog()
    return planner.memory_for(
        engine=known.engine(release.engine),
        model=known.model("llama3.1:8b"),
        quantization=known.quantization(release.quantization),
        gpu=known.gpu("nvidia-l4"),
        prefix=prefix,
    )


@pytest.mark.parametrize("release", [OLLAMA, VLLM])
def test_a_cached_prefix_costs_no_time_and_the_rest_of_the_prompt_attends_to_it(release: Release) -> None:
    times = planner.timing(release)
    cached = times.with_prefix(Prefix(tokens=900))
    whole, own = times.prefill_seconds(1024, 1), cached.prefill_seconds(1024, 1)
    assert own == pytest.approx(whole - times.prefill_seconds(900, 1))
    assert own > times.prefill_seconds(124, 1)  # 124 tokens alone have 900 fewer to attend to
    assert cached.prefill_seconds(1024, 0) >= times.decode_step_seconds(1, 0)


@pytest.mark.parametrize("release", [OLLAMA, VLLM])
def test_service_gets_faster_with_every_hit_and_is_the_same_without_one(release: Release) -> None:
    plain, none, half, full = (
        predicted(release, prefix)
        for prefix in (None, Prefix(tokens=900, hit_rate=0), Prefix(tokens=900, hit_rate=0.5), Prefix(tokens=900))
    )
    assert none == plain
    assert full.ttft_p95_seconds < half.ttft_p95_seconds < plain.ttft_p95_seconds
    assert full.requests_per_second > half.requests_per_second > plain.requests_per_second


def test_an_engine_that_shares_blocks_holds_more_requests_and_one_that_does_not_holds_as_many() -> None:
    plain, cached = memory(VLLM, None), memory(VLLM, Prefix(tokens=1024))
    assert cached.max_slots > 1.5 * plain.max_slots
    assert cached.used_bytes(1) == pytest.approx(plain.used_bytes(1))
    assert memory(OLLAMA, Prefix(tokens=1024)) == memory(OLLAMA, None)


@given(st.floats(1, 5000), st.floats(0, 1), st.integers(1, 300))
def test_more_slots_never_need_less_memory_and_a_prefix_never_more(tokens: float, hits: float, slots: int) -> None:
    plain, cached = memory(VLLM, None), memory(VLLM, Prefix(tokens=tokens, hit_rate=hits))
    assert cached.used_bytes(slots) < cached.used_bytes(slots + 1)
    assert cached.used_bytes(slots) <= plain.used_bytes(slots) * (1 + 1e-12)
    assert cached.max_slots >= plain.max_slots


def test_slots_that_only_fit_beside_a_shared_prefix_are_refused_without_it() -> None:
    stack = load_stack("local-vllm")
    wide = VLLM.model_copy(
        update={"model": "llama-3.1-8b-instruct", "parallelism": VLLM.parallelism.model_copy(update={"slots": 24})}
    )
    with pytest.raises(InputError, match="slots"):
        planner.check(wide, stack.fleet)
    planner.check(wide, stack.fleet, Prefix(tokens=1000))
    plan = planner.plan_for(release=wide, fleet=stack.fleet, traffic=traffic(Prefix(tokens=1000)))
    assert plan.max_slots >= 24
    assert plan.memory.prefix_bytes > 0
    assert any("prefix cache, kept once for all" in line for line in plan.assumptions)


def test_auto_slots_and_so_the_digest_of_a_release_do_not_depend_on_the_prefix_of_a_stack() -> None:
    stack = load_stack("local-vllm")
    plain, cached = (
        planner.plan_for(release=VLLM, fleet=stack.fleet, traffic=traffic(prefix)).slots
        for prefix in (None, Prefix(tokens=900))
    )
    assert plain == cached


@pytest.mark.parametrize("prefix", [{"tokens": 128}, {"tokens": 0}, {"tokens": 9, "hit_rate": 1.1}, {"token": 9}])
def test_a_prefix_that_cannot_be_is_refused_where_it_is_written(prefix: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="prefix"):
        Traffic.model_validate({"users": 1, "prompt_tokens": 128, "output_tokens": 128, "prefix": prefix})


def test_the_command_line_plans_with_a_prefix_and_says_so() -> None:
    ask = ["plan", "--model", "llama3.1:8b", "--users", "200", "--latency", "8", "--prompt", "1024", "--engine", "vllm"]

    def cost(*more: str) -> tuple[float, str]:
        done = CliRunner().invoke(command_line.app, [*ask, *more, "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        return found["plan"]["cost_per_hour_usd"]["expected"], json.dumps(found)

    plain, _ = cost()
    cached, text = cost("--shared-prefix", "900", "--prefix-hits", "0.9")
    assert cached < plain
    assert "90% of the prompts are found in the prefix cache" in text
    with pytest.raises(InputError, match="shared-prefix"):
        CliRunner().invoke(command_line.app, [*ask, "--shared-prefix", "1024"], catch_exceptions=False)


def test_a_benchmark_asks_with_the_prefix_that_the_plan_counted_on() -> None:
    asked = traffic(Prefix(tokens=900))
    source = Scenario().sources(asked, 1, 2048)(0)
    first, second = (source(serial).content.split() for serial in (1, 2))
    assert first[:900] == second[:900]
    assert first[900:] != second[900:]
    assert len(first) == 1024
    plain = Scenario().sources(traffic(None), 1, 2048)(0)
    assert plain(1).content.split()[:3] != plain(2).content.split()[:3]


def test_evidence_measured_with_another_prefix_is_of_another_traffic() -> None:
    stack = load_stack("local-vllm").model_copy(update={"traffic": traffic(Prefix(tokens=900))})
    for measured, outcome in ((Prefix(tokens=900), "pass"), (None, "mismatch"), (Prefix(tokens=100), "mismatch")):
        case: Any = SimpleNamespace(stack=stack, result=SimpleNamespace(traffic=traffic(measured)))
        (line, *_) = _lines.traffic(case)
        assert line.outcome == outcome
