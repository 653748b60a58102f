"""Combinations that cannot work are refused with the field, what was given and what would do."""

from __future__ import annotations

from typing import Any

import pytest

import planner
from stacks import Fleet, InputError, Nodes, Release, load_release


def release(**change: Any) -> Release:
    base: dict[str, Any] = load_release("gemma-3-4b-ollama-8").model_dump()
    for key, value in change.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) else value
    return Release.model_validate(base)


def fleet(machine: str = "g2-standard-8", nodes: int = 2) -> Fleet:
    return Fleet(machine_type=machine, nodes=Nodes(min=1, max=nodes))


BIG = {"engine": "vllm", "kv_cache": "bf16"}
CASES: list[tuple[dict[str, Any], str, str, str]] = [
    ({"model": "gemma-9"}, "g2-standard-8", "model", "gemma-3-4b-it"),
    ({"accelerator": {"gpu": "nvidia-b200"}}, "g2-standard-8", "accelerator.gpu", "nvidia-l4"),
    ({"accelerator": {"gpu": "nvidia-l4", "mig_profile": "1g.5gb"}}, "g2-standard-8", "mig_profile", "no MIG"),
    ({"accelerator": {"gpu": "nvidia-a100-80gb", "mig_profile": "1g.5gb"}}, "a2-ultragpu-1g", "mig_profile", "1g.10gb"),
    ({"quantization": "awq-int4"}, "g2-standard-8", "quantization", "q4-k-m"),
    ({"quantization": "q3"}, "g2-standard-8", "quantization", "q4-k-m"),
    ({"kv_cache": "fp8"}, "g2-standard-8", "kv_cache", "q8_0"),
    ({"parallelism": {"slots": 500}}, "g2-standard-8", "parallelism.slots", "1 to 118"),
    ({"parallelism": {"tensor": 2}}, "g2-standard-8", "parallelism.tensor", "1"),
    ({"context_tokens": 200_000}, "g2-standard-8", "context_tokens", "131072"),
    ({}, "a2-highgpu-1g", "fleet.machine_type", "g2-standard-8"),
    ({}, "g2-standard-9", "fleet.machine_type", "g2-standard-8"),
    (
        {**BIG, "quantization": "bf16", "model": "llama-3.1-8b-instruct", "parallelism": {"tensor": 2}},
        "g2-standard-24",
        "tensor",
        "at most 1",
    ),
    (
        {
            **BIG,
            "quantization": "bf16",
            "parallelism": {"tensor": 2},
            "accelerator": {"gpu": "nvidia-a100-80gb", "mig_profile": "2g.20gb"},
        },
        "a2-ultragpu-1g",
        "parallelism",
        "1 each",
    ),
    (
        {**BIG, "quantization": "bf16", "parallelism": {"tensor": 3}, "accelerator": {"count": 3}},
        "g2-standard-48",
        "parallelism.tensor",
        "1, 2, 4, 8",
    ),
    (
        {**BIG, "quantization": "bf16", "parallelism": {"tensor": 4}, "accelerator": {"count": 4}},
        "g2-standard-24",
        "accelerator.count",
        "g2-standard-48",
    ),
    (
        {**BIG, "quantization": "bf16", "accelerator": {"count": 2}},
        "g2-standard-24",
        "accelerator.count",
        "1",
    ),
    (
        {**BIG, "quantization": "bf16", "model": "llama-3.3-70b-instruct"},
        "g2-standard-8",
        "quantization",
        "no quantization",
    ),
]


@pytest.mark.parametrize(("change", "machine", "field", "allowed"), CASES)
def test_what_cannot_work_is_refused(change: dict[str, Any], machine: str, field: str, allowed: str) -> None:
    with pytest.raises(InputError) as caught:
        planner.check(release(**change), fleet(machine))
    assert field in caught.value.where
    assert allowed in caught.value.allowed
    assert caught.value.fix


def test_a_region_that_does_not_offer_the_machine_is_refused_naming_those_that_do() -> None:
    there = Fleet(machine_type="g2-standard-8", nodes=Nodes(min=1, max=2), regions=("us-central1", "africa-south1"))
    with pytest.raises(InputError, match="africa-south1") as caught:
        planner.check(release(), there)
    assert caught.value.where == "fleet.regions"
    assert "europe-west4" in caught.value.allowed


def test_what_works_is_let_through() -> None:
    planner.check(release(), fleet())


def test_fp16_of_8b_does_not_fit_a_seventh_of_an_a100_and_four_bits_do() -> None:
    slice_ = {"gpu": "nvidia-a100-80gb", "mig_profile": "1g.10gb"}
    wide = release(**BIG, model="llama-3.1-8b-instruct", quantization="bf16", accelerator=slice_)
    with pytest.raises(InputError) as caught:
        planner.check(wide, fleet("a2-ultragpu-1g"))
    assert "awq-int4" in caught.value.allowed
    assert "fp8" not in caught.value.allowed
    planner.check(wide.model_copy(update={"quantization": "awq-int4"}), fleet("a2-ultragpu-1g"))


def test_seventy_billion_parameters_span_two_nodes_only_where_one_cannot_hold_them() -> None:
    one = release(
        **BIG,
        model="llama-3.3-70b-instruct",
        quantization="bf16",
        parallelism={"slots": "auto", "tensor": 4},
        accelerator={"gpu": "nvidia-a100-80gb", "count": 4},
    )
    planner.check(one, fleet("a2-ultragpu-4g", 1))
    two = release(
        **BIG,
        model="llama-3.1-405b-instruct",
        quantization="bf16",
        parallelism={"slots": "auto", "tensor": 8, "pipeline": 2},
        accelerator={"gpu": "nvidia-h100-80gb", "count": 8},
    )
    with pytest.raises(InputError, match="spans 2 nodes"):
        planner.check(two, fleet("a3-highgpu-8g", 1))
    planner.check(two, fleet("a3-highgpu-8g", 2))


def test_auto_slots_depend_on_the_release_alone_and_fit() -> None:
    auto = release(parallelism={"slots": "auto"})
    resolved = planner.resolve(auto)
    assert isinstance(resolved.parallelism.slots, int)
    assert resolved == planner.resolve(auto)
    assert planner.resolve(resolved) == resolved
    planner.check(resolved, fleet())
    assert resolved.model_dump(exclude={"parallelism"}) == auto.model_dump(exclude={"parallelism"})
