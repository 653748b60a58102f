"""`parallelism: auto` from the stack file to the pod: filled by the planner, rendered by values and Helm, read by the engine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

import planner
import stacks
import values
from local import tools

RELEASE = """engine: {engine}
version: {version}
image: {image}
model: {model}
source: {source}
quantization: {quantization}
context_tokens: 2048
parallelism: {parallelism}
accelerator: {{gpu: {gpu}, count: {count}}}
chart: engine
"""
STACK = """config:
  tollgate:target: local
  tollgate:release: {release}
  tollgate:fleet: {{machine_type: {machine}, nodes: {{min: 2, max: 2}}}}
  tollgate:traffic: {{arrival: closed, users: 50, prompt_tokens: 128, output_tokens: 128}}
  tollgate:objectives: {{e2e_p95_seconds: 60}}
"""
OLLAMA = {
    "engine": "ollama", "version": "0.17.4", "image": "ollama/ollama:0.17.4", "model": "gemma-3-4b-it",
    "source": "gemma3:4b", "quantization": "q4-k-m", "gpu": "nvidia-l4", "count": 1,
}  # fmt: skip
VLLM = {
    "engine": "vllm", "version": "0.32.0", "image": "vllm/vllm-openai:v0.32.0", "model": "llama-3.3-70b-instruct",
    "source": "meta-llama/Llama-3.3-70B-Instruct", "quantization": "fp8", "gpu": "nvidia-h100-80gb", "count": 4,
}  # fmt: skip


def project(folder: Path, release: dict[str, Any], machine: str, parallelism: str) -> stacks.Stack:
    (folder / "stacks" / "releases").mkdir(parents=True, exist_ok=True)
    (folder / "Pulumi.yaml").write_text("name: tollgate\nruntime: python\nstackConfigDir: stacks\n")
    (folder / "stacks" / "releases" / "auto.yaml").write_text(RELEASE.format(**release, parallelism=parallelism))
    (folder / "stacks" / "Pulumi.one.yaml").write_text(STACK.format(release="auto", machine=machine))
    return stacks.load_stack("one", folder)


def container(stack: stacks.Stack, folder: Path) -> dict[str, Any]:
    """The engine's container in what Helm renders of the stack."""
    given = folder / "values.json"
    given.write_text(json.dumps(values.render(stack, planner.plan(stack))))
    chart = str(values.chart_path(stack.release.chart))
    command = [str(tools.path("helm")), "template", "engine", chart, "-f", str(given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (deployment,) = [d for d in yaml.safe_load_all(done.stdout) if d and d["kind"] == "Deployment"]
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def test_auto_slots_go_from_the_release_file_through_the_plan_into_ollamas_environment(tmp_path: Path) -> None:
    stack = project(tmp_path, OLLAMA, "g2-standard-8", "auto")
    assert stack.release.parallelism.slots == "auto"
    slots = planner.plan(stack).slots
    env = {entry["name"]: entry.get("value") for entry in container(stack, tmp_path)["env"]}
    assert env["OLLAMA_NUM_PARALLEL"] == str(slots)
    # The same number that the release's own arithmetic gives: 95 % of what 118 slots would decode.
    times = planner.timing(stack.release)
    assert times.slots == 118
    best = times.slots / times.decode_step_seconds(times.slots, 1024)
    assert slots / times.decode_step_seconds(slots, 1024) >= 0.95 * best
    assert (slots - 1) / times.decode_step_seconds(slots - 1, 1024) < 0.95 * best


def test_auto_splits_a_replica_over_the_gpus_it_asks_for_and_reaches_vllms_arguments(tmp_path: Path) -> None:
    stack = project(tmp_path, VLLM, "a3-highgpu-8g", "auto")
    found = planner.plan(stack)
    assert (stack.release.parallelism.tensor, found.replicas_per_node) == (4, 2)
    args = container(stack, tmp_path)["args"]
    assert f"--max-num-seqs={found.slots}" in args
    assert "--tensor-parallel-size=4" in args


@pytest.mark.parametrize(("release", "machine"), [(OLLAMA, "g2-standard-8"), (VLLM, "a3-highgpu-8g")])
def test_auto_is_the_same_release_as_the_numbers_it_stands_for(
    tmp_path: Path, release: dict[str, Any], machine: str
) -> None:
    auto = project(tmp_path / "a", release, machine, "auto")
    written = f"{{slots: {planner.plan(auto).slots}, tensor: {auto.release.parallelism.tensor}}}"
    numbers = project(tmp_path / "b", release, machine, written)
    assert values.release_digest(auto.release) == values.release_digest(numbers.release)
    other = project(tmp_path / "c", release, machine, "{slots: 3, tensor: 4}" if release is VLLM else "{slots: 3}")
    assert values.release_digest(other.release) != values.release_digest(auto.release)


def test_ollama_splits_layers_over_its_gpus(tmp_path: Path) -> None:
    stack = project(tmp_path, {**OLLAMA, "count": 2}, "g2-standard-24", "auto")
    assert (stack.release.parallelism.tensor, stack.release.parallelism.pipeline) == (1, 2)
    assert planner.plan(stack).replicas_per_node == 1


@pytest.mark.parametrize(("parallelism", "valid"), [("auto", True), ({"slots": "auto"}, True), ("all", False)])
def test_editors_know_the_word(parallelism: object, valid: bool) -> None:
    schema = json.loads((Path(stacks.__file__).parent / "schema" / "release.json").read_text())
    given = yaml.safe_load(RELEASE.format(**OLLAMA, parallelism=json.dumps(parallelism)))
    assert jsonschema_rs.validator_for(schema).is_valid(given) is valid
