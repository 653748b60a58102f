"""How the benchmark speaks to what it measures, what it waits for, and what it takes for a result."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import Any

import pytest

import components.benchmark as room
import stacks

HERE = Path(__file__).resolve().parents[2]


def given(name: str, release: str, **serving: Any) -> stacks.Stack:
    found = {"serving": stacks.Serving.model_validate(serving), "release": stacks.load_release(release, HERE)}
    return stacks.load_stack(name, HERE).model_copy(update=found)


@pytest.mark.parametrize(
    ("release", "simulate", "dialect"),
    [
        ("gemma-3-4b-ollama-8", False, "ollama"),
        ("qwen3-8b-vllm", False, "vllm"),
        ("qwen3-8b-sglang", False, "openai"),
        # The simulator stands in for it in vLLM's dialect.
        ("qwen3-8b-sglang", True, "vllm"),
    ],
)
def test_an_engine_is_spoken_to_in_its_own_words_or_in_openais(release: str, simulate: bool, dialect: str) -> None:
    assert room.dialect(given("staging", release, simulate=simulate)) == dialect


@pytest.mark.parametrize(
    ("group", "workload"),
    [
        ({}, "leaderworkerset.x-k8s.io/v1/leaderworkersets/engine"),
        # One object for each replica: there is no rollout of all to wait for, and nothing to be allowed to see.
        ({"gang": "coscheduling"}, ""),
        ({"controller": "kuberay"}, ""),
    ],
)
def test_a_group_is_waited_for_as_what_it_is(group: dict[str, str], workload: str) -> None:
    found = room._workload(given("grok-1", "grok-1-vllm", group=group))
    assert found == workload
    assert len(room._may_watch(found)) == (1 if workload else 0)


def test_a_result_that_unpacks_to_more_than_any_result_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MOST_BYTES", 1000)
    packed = {"result.json": base64.b64encode(gzip.compress(b" " * 1001)).decode()}
    with pytest.raises(stacks.TollgateError, match="unpacks to more than 1000 bytes"):
        room.result_text(None, packed)
    assert room.result_text(None, {"result.json": base64.b64encode(gzip.compress(b"{}")).decode()}) == "{}"
