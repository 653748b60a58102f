"""The charts as Helm renders them: what matters in production is asserted on the rendered objects."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import planner
import stacks
import values
from local import tools

HERE = Path(__file__).resolve().parents[2]


def stack_of(name: str, **changes: Any) -> stacks.Stack:
    return stacks.load_stack(name, HERE).model_copy(update=changes)


def template(given: dict[str, Any], chart: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "values.json"
    file.write_text(json.dumps(given))
    command = [str(tools.path("helm")), "template", "engine", str(values.chart_path(chart)), "-f", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def rendered(stack: stacks.Stack, tmp_path: Path) -> dict[str, Any]:
    result = template(values.render(stack, planner.plan(stack)), stack.release.chart, tmp_path)
    assert result.returncode == 0, result.stderr
    return {document["kind"]: document for document in yaml.safe_load_all(result.stdout) if document}


def container(objects: dict[str, Any]) -> dict[str, Any]:
    (only,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def test_slots_of_the_release_reach_ollama_num_parallel(tmp_path: Path) -> None:
    env = {entry["name"]: entry["value"] for entry in container(rendered(stack_of("local-dev"), tmp_path))["env"]}
    assert env["OLLAMA_NUM_PARALLEL"] == "8"
    assert env["OLLAMA_CONTEXT_LENGTH"] == "2048"
    assert env["OLLAMA_KEEP_ALIVE"] == "-1"


def test_auto_slots_reach_vllm_max_num_seqs_as_the_planner_fills_them(tmp_path: Path) -> None:
    stack = stack_of("local-vllm")
    slots = planner.resolve(stack.release).parallelism.slots
    assert isinstance(slots, int)
    assert f"--max-num-seqs={slots}" in container(rendered(stack, tmp_path))["args"]


def test_replicas_are_rendered_for_a_fixed_fleet(tmp_path: Path) -> None:
    assert rendered(stack_of("local-dev"), tmp_path)["Deployment"]["spec"]["replicas"] == 10


@pytest.mark.parametrize("name", ["local-dev", "local-vllm"])
def test_replicas_are_left_out_where_an_autoscaler_owns_them(name: str, tmp_path: Path) -> None:
    fleet = stacks.Fleet(machine_type="g2-standard-8", nodes=stacks.Nodes(min=1, max=10))
    assert "replicas" not in rendered(stack_of(name, fleet=fleet), tmp_path)["Deployment"]["spec"]


@pytest.mark.parametrize("name", ["local-dev", "local-vllm"])
def test_a_pod_waits_longer_than_its_hook_and_its_drain_together(name: str, tmp_path: Path) -> None:
    objects = rendered(stack_of(name), tmp_path)
    hook = int(container(objects)["lifecycle"]["preStop"]["exec"]["command"][-1].split()[-1])
    drain = stack_of(name).serving.drain_seconds
    assert objects["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > hook + drain


def test_the_pod_asks_for_the_accelerator_as_gke_names_it(tmp_path: Path) -> None:
    accelerator = stacks.Accelerator(gpu="nvidia-a100-80gb", mig_profile="1g.10gb")
    stack = stack_of("local-dev")
    given = values.release_values(stack.release.model_copy(update={"accelerator": accelerator}))
    assert given["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-a100-80gb",
        "cloud.google.com/gke-gpu-partition-size": "1g.10gb",
    }
    assert container(rendered(stack, tmp_path))["resources"]["limits"] == {"nvidia.com/gpu": 1}


def test_a_value_that_the_schema_does_not_know_is_refused_by_helm(tmp_path: Path) -> None:
    stack = stack_of("local-dev")
    result = template({**values.render(stack, planner.plan(stack)), "paralel": 8}, "engine", tmp_path)
    assert result.returncode != 0
    assert "paralel" in result.stderr


@pytest.mark.parametrize("name", stacks.stack_names(HERE))
def test_helm_lint_is_content(name: str, tmp_path: Path) -> None:
    stack = stack_of(name)
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values.render(stack, planner.plan(stack))))
    command = [str(tools.path("helm")), "lint", "--strict", str(values.chart_path("engine")), "-f", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
