"""The same release by our chart and by the engine's upstream chart: what matters must come out the same.

Their charts are not part of this project. With copies of otwld/ollama-helm and production-stack's `helm` folder (without its
dependencies) as `ollama` and `vllm` below the folder named by TOLLGATE_UPSTREAM_CHARTS, both are rendered and compared.
"""

from __future__ import annotations

import json
import os
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
RELEASES = {"ollama": "gemma-3-4b-ollama-8", "vllm": "qwen3-8b-vllm"}


def stack_of(engine: str, chart: str) -> stacks.Stack:
    stack = stacks.load_stack("staging", HERE)
    release = stacks.load_release(RELEASES[engine], HERE).model_copy(update={"chart": chart})
    return stack.model_copy(
        update={"release": release, "gateway": None, "serving": stacks.Serving(api_key=engine == "vllm")}
    )


def values_of(engine: str, chart: str) -> dict[str, Any]:
    stack = stack_of(engine, chart)
    return values.render(stack, planner.plan(stack))


def pod(chart: Path, given: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Deployment's spec and its pod's."""
    file = folder / "values.json"
    file.write_text(json.dumps(given))
    command = [str(tools.path("helm")), "template", "engine", str(chart), "-f", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    (deployment,) = (document for document in documents if document["kind"] == "Deployment")
    return deployment["spec"], deployment["spec"]["template"]["spec"]


def flags(container: dict[str, Any]) -> dict[str, str]:
    """`--a=b` and `--a b` alike."""
    words = [*container.get("command", []), *container.get("args", [])]
    found: dict[str, str] = {}
    for number, word in enumerate(words):
        if word.startswith("--"):
            name, _, value = word.partition("=")
            following = words[number + 1] if number + 1 < len(words) else ""
            found[name] = value or ("" if following.startswith("--") else following)
    return found


@pytest.mark.parametrize("engine", RELEASES)
def test_both_charts_say_the_same_of_what_matters(engine: str, tmp_path: Path) -> None:
    folder = os.environ.get("TOLLGATE_UPSTREAM_CHARTS")
    if not folder:
        pytest.skip("TOLLGATE_UPSTREAM_CHARTS names no folder with the upstream charts")
    ours_spec, ours = pod(values.chart_path("engine"), values_of(engine, "engine"), tmp_path)
    theirs_spec, theirs = pod(Path(folder) / engine, values_of(engine, "upstream"), tmp_path)
    (own,), (other,) = ours["containers"], theirs["containers"]
    assert own["image"] == other["image"]
    assert ours_spec["replicas"] == theirs_spec["replicas"]
    assert ours_spec["strategy"]["rollingUpdate"] == theirs_spec["strategy"]["rollingUpdate"]
    assert own["resources"]["limits"]["nvidia.com/gpu"] == int(other["resources"]["limits"]["nvidia.com/gpu"])
    for name in ("cpu", "memory"):
        assert own["resources"]["requests"][name] == other["resources"]["requests"][name]
    assert flags(own).items() <= {**flags(other), "--port": flags(own).get("--port", "")}.items()
    tuned = {entry["name"]: entry.get("value") for entry in own["env"] if entry["name"].startswith("OLLAMA_")}
    given = {entry["name"]: entry.get("value") for entry in other["env"]}
    assert tuned.items() <= given.items()
    assert len(given) == len(other["env"]), "a name stands twice"
    assert theirs["securityContext"]["runAsNonRoot"] is True
    assert other["securityContext"].get("runAsNonRoot", True) is True
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in theirs["tolerations"]
    if engine == "ollama":
        assert ours["nodeSelector"] == theirs["nodeSelector"]
        assert own["lifecycle"] == other["lifecycle"]
        assert ours["terminationGracePeriodSeconds"] == theirs["terminationGracePeriodSeconds"]
    else:
        terms = theirs["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (term,) = terms["nodeSelectorTerms"]
        assert {one["key"]: one["values"][0] for one in term["matchExpressions"]} == ours["nodeSelector"]
        assert own["startupProbe"]["failureThreshold"] == other["startupProbe"]["failureThreshold"]
        memory = {volume["name"]: volume["emptyDir"] for volume in theirs["volumes"] if "emptyDir" in volume}
        assert memory["shm"] == {"medium": "Memory", "sizeLimit": "2Gi"}
        keys = [entry for entry in other["env"] if entry["name"] == "VLLM_API_KEY"]
        assert keys[0]["valueFrom"]["secretKeyRef"] == {"name": "engine-keys", "key": "api-key"}


def test_the_values_for_an_upstream_chart_ask_for_mig_as_gke_does() -> None:
    release = stacks.load_release("gemma-3-4b-vllm-mig", HERE).model_copy(update={"chart": "upstream"})
    stack = stack_of("vllm", "upstream").model_copy(update={"release": release})
    stack = stack.model_copy(update={"fleet": stack.fleet.model_copy(update={"machine_type": "a2-ultragpu-1g"})})
    (model,) = values.render(stack, planner.plan(stack))["servingEngineSpec"]["modelSpec"]
    assert model["requestGPUType"] == "nvidia.com/gpu"
    selected = {one["key"] for term in model["nodeSelectorTerms"] for one in term["matchExpressions"]}
    assert "cloud.google.com/gke-gpu-partition-size" in selected


def test_an_upstream_chart_is_refused_where_an_autoscaler_owns_the_replicas() -> None:
    stack = stack_of("vllm", "upstream")
    stack = stack.model_copy(update={"fleet": stack.fleet.model_copy(update={"nodes": stacks.Nodes(min=1, max=4)})})
    with pytest.raises(stacks.InputError, match="upstream with an autoscaler"):
        values.render(stack, planner.plan(stack))
