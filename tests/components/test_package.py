"""The components over Pulumi's package protocol: their schema, and another program that uses them without importing anything."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.components.real_engine import HERE, Engine

PACKAGE = HERE / "components" / "pulumi-resource-tollgate"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def example(engine: Engine) -> Engine:
    """The example of the documentation, beside a plugin folder that is this checkout's."""
    shutil.rmtree(engine.root)
    shutil.copytree(HERE / "docs" / "components" / "example", engine.root)
    text = (engine.root / "Pulumi.yaml").read_text()
    (engine.root / "Pulumi.yaml").write_text(text.replace("../../../components", str(HERE / "components")))
    # Nothing of Tollgate is on the other program's path.
    engine.environment.pop("PYTHONPATH")
    engine.environment["TOLLGATE_PYTHON"] = sys.executable
    return engine


def schema() -> dict[str, Any]:
    env = {**os.environ, "TOLLGATE_PYTHON": sys.executable, "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true"}
    from local import tools

    command = [str(tools.path("pulumi")), "package", "get-schema", str(PACKAGE)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_schema_names_what_a_caller_must_give_and_gets() -> None:
    found = schema()
    assert (found["name"], found["version"]) == ("tollgate", "0.1.0")
    service = found["resources"]["tollgate:index:LlmService"]
    assert service["isComponent"] is True
    assert service["requiredInputs"] == ["fleet", "namespace", "release"]
    assert set(service["properties"]) == {"digest", "replicas", "slots", "url"}
    pool = found["resources"]["tollgate:index:GkeGpuPool"]
    assert "cluster" in pool["requiredInputs"]
    # An output of another resource may be given for it: it is no plain value.
    assert pool["inputProperties"]["cluster"] == {"type": "string"}


@pytest.mark.slow
def test_another_program_makes_a_pool_and_a_service_through_the_protocol(example: Engine) -> None:
    example.run("stack", "init", "theirs")
    example.run("up", "-s", "theirs", "--yes", "--skip-preview")
    made = {entry["type"]: entry["inputs"] for entry in example.recorded() if entry["op"] == "create"}
    pool = made["gcp:container/nodePool:NodePool"]
    assert (pool["cluster"], pool["nodeConfig"]["spot"]) == ("our-cluster", True)
    helm = made["kubernetes:helm.sh/v3:Release"]
    assert Path(helm["chart"]) == HERE / "charts" / "engine"
    assert "--max-num-seqs=34" in helm["values"]["server"]["args"]
    assert helm["values"]["replicas"] is None
    assert made["kubernetes:keda.sh/v1alpha1:ScaledObject"]["spec"]["maxReplicaCount"] == 4
    outputs = json.loads(example.run("stack", "output", "-s", "theirs", "--json").stdout)
    assert (outputs["slots"], outputs["replicas"]) == (34, 4)
    assert outputs["digest"].startswith("sha256:")
    state = json.loads(example.run("stack", "export", "-s", "theirs").stdout)["deployment"]["resources"]
    helm_state = next(one for one in state if one["type"] == "kubernetes:helm.sh/v3:Release")
    assert helm_state["provider"].split("::")[-2] == "ours"


@pytest.mark.slow
def test_a_mistake_of_the_other_program_is_told_with_the_field(example: Engine) -> None:
    program = example.root / "__main__.py"
    program.write_text(program.read_text().replace('"quantization": "fp8"', '"quantization": "q4-k-m"'))
    example.run("stack", "init", "theirs")
    done = example.run("preview", "-s", "theirs", fails=True)
    assert "q4-k-m with vllm" in done.stdout + done.stderr
