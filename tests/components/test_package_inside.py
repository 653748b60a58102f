"""What the package's components register, seen from inside; test_package.py sees them from another program."""

from __future__ import annotations

from typing import Any

import pytest

import stacks
from components.package import COMPONENTS, GkeGpuPool, LlmService
from tests.components.recording import record

RELEASE: dict[str, Any] = {
    "engine": "vllm",
    "version": "0.32.0",
    "image": "vllm/vllm-openai:v0.32.0",
    "model": "qwen3-8b",
    "source": "Qwen/Qwen3-8B",
    "quantization": "fp8",
    "context_tokens": 4096,
    "kv_cache": "fp8",
    "accelerator": {"gpu": "nvidia-l4"},
    "chart": "engine",
}


def service(**changes: Any) -> Any:
    given: dict[str, Any] = {
        "namespace": "chat",
        "release": RELEASE,
        "fleet": {"machine_type": "g2-standard-8", "nodes": {"min": 2, "max": 2}},
        **changes,
    }
    return lambda: LlmService("chat", given)  # type: ignore[arg-type]


def test_a_fixed_service_is_one_helm_release_and_no_autoscaler() -> None:
    recording = record(service(wait_seconds=120))
    helm = recording.one("Release").inputs
    assert (helm["values"]["replicas"], helm["timeout"], helm["namespace"]) == (2, 120, "chat")
    assert not recording.of("ScaledObject")
    # Nobody's provider but the caller's.
    assert {one.provider for one in recording.made if one.type.startswith("kubernetes:")} <= {"", "default"}
    assert recording.outputs["chat"]["replicas"] == 2
    assert recording.outputs["chat"]["url"] == "http://engine.chat.svc:80"


def test_an_autoscaled_service_asks_the_callers_prometheus() -> None:
    fleet = {"machine_type": "g2-standard-8", "nodes": {"min": 1, "max": 3}}
    recording = record(service(fleet=fleet, prometheus_url="http://metrics:9090"))
    trigger = recording.one("ScaledObject").inputs["spec"]["triggers"][0]["metadata"]
    assert trigger["serverAddress"] == "http://metrics:9090"
    assert recording.one("Release").inputs["values"].get("replicas") is None


def test_a_simulated_service_needs_no_gpu() -> None:
    recording = record(service(serving={"simulate": True}))
    assert recording.one("SimulatorService").parent == "chat"


def test_what_the_callers_cluster_lacks_is_refused() -> None:
    fleet = {"machine_type": "g2-standard-8", "nodes": {"min": 1, "max": 3}}
    with pytest.raises(stacks.InputError, match="keda among what the cluster has"):
        record(service(fleet=fleet, has=["lws"]))


def test_a_pool_goes_into_the_callers_cluster() -> None:
    recording = record(
        lambda: GkeGpuPool(
            "l4",
            {
                "project": "theirs",
                "cluster": "their-cluster",
                "pool": "l4",
                "accelerator": {"gpu": "nvidia-l4"},
                "fleet": {"machine_type": "g2-standard-8", "nodes": {"min": 0, "max": 2}, "zones": ["us-central1-a"]},
            },
        )
    )
    pool = recording.one("NodePool").inputs
    assert (pool["cluster"], pool["project"], pool["nodeLocations"]) == ("their-cluster", "theirs", ["us-central1-a"])
    assert recording.outputs["l4"]["nodePools"] == ["l4"]
    assert {LlmService, GkeGpuPool} <= set(COMPONENTS)
