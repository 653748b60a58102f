"""What the served OpenAPI documents promise, tried with what schemathesis makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    positive_data_acceptance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def targets(serve: Callable[..., Any]) -> dict[str, Any]:
    instant = {"TOLLGATE_SIM_TTFT": "0", "TOLLGATE_SIM_ITL": "0", "TOLLGATE_SIM_SPEED": "1000"}
    return {
        "vllm": serve("vllm", "tiny", "--max-model-len", "4096", **instant),
        "ollama": serve("ollama", OLLAMA_NUM_PARALLEL="4", TOLLGATE_SIM_MODELS="gemma3:4b", **instant),
    }


def explore(operation: Any, mode: GenerationMode, checks: list[Any]) -> int:
    """Send what hypothesis makes for one operation; how many requests it sent."""
    sent = 0

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def attempt(case: Any) -> None:
        nonlocal sent
        sent += 1
        case.call_and_validate(checks=checks, timeout=10)

    attempt()
    return sent


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("dialect", ["vllm", "ollama"])
def test_what_the_document_allows_is_served_and_anything_else_is_no_server_error(
    targets: dict[str, Any], dialect: str, mode: GenerationMode
) -> None:
    target = targets[dialect]
    if dialect == "ollama":
        # The last operation of the document deletes it.
        body = {"model": "gemma3:4b", "stream": False}
        assert httpx2.post(target.url + "/api/pull", json=body, timeout=60).status_code == 200
    schema = schemathesis.openapi.from_url(target.url + "/openapi.json")
    checks = [*CHECKS, positive_data_acceptance] if mode is GenerationMode.POSITIVE else CHECKS
    tried: dict[str, int] = {}
    results: Any = schema.get_all_operations()
    for result in results:
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and operation.method == "get":
            continue

        tried[operation.label] = explore(operation, mode, checks)
    assert len(tried) >= 5
    assert sum(tried.values()) >= 100
    assert httpx2.get(target.url + "/v1/models", timeout=60).status_code == 200
    assert target.process.poll() is None
