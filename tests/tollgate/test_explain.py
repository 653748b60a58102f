"""Every step of a value names a line that says it, and a pod that says something else is told from one that does not."""

from __future__ import annotations

import dataclasses
import json
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import planner
import stacks
import values
from local import tools
from tests.tollgate.conftest import HERE, Command
from tollgate import explain
from tollgate.__main__ import main

NONE = explain.Live(why="not up")


def steps(project: Path, name: str, now: explain.Live = NONE) -> dict[tuple[str, str], explain.Step]:
    return {(step.value, step.at): step for step in explain.trace(stacks.load_stack(name, project), project, now)}


@pytest.mark.parametrize("name", ["local-dev", "local-vllm", "dev", "prod", "grok-1", "llama-70b"])
def test_every_source_is_a_line_that_exists(project: Path, name: str) -> None:
    for step in steps(project, name).values():
        assert step.source, step
        file, _, rest = step.source.partition(":")
        if not file.endswith((".yaml", ".py", ".j2", ".tpl", ".csv")):
            continue
        path = project / file if file.startswith("stacks/") else HERE / file
        number = int(rest.split()[0])
        assert 0 < number <= len(path.read_text().splitlines()), step


def test_the_lines_say_what_the_steps_say(project: Path) -> None:
    found = steps(project, "local-dev")

    def line(value: str, at: str) -> str:
        file, _, number = found[value, at].source.partition(":")
        path = project / file if file.startswith("stacks/") else HERE / file
        return path.read_text().splitlines()[int(number.split()[0]) - 1]

    assert "tollgate:release: gemma-3-4b-ollama-8" in line("parallelism", "stack")
    assert "slots: 8" in line("parallelism", "release")
    assert "OLLAMA_NUM_PARALLEL" in line("parallelism", "values")
    assert "nodes: {min: 10, max: 10}" in line("nodes", "fleet")
    assert "g2-standard-8" in line("cost", "price")
    assert found["parallelism", "plan"].found == "8 slots"
    assert found["nodes", "plan"].found == "10 nodes"
    assert found["cost", "plan"].found.startswith("$8.54/h")


def test_auto_slots_are_explained_by_the_memory_that_holds_them(project: Path) -> None:
    found = steps(project, "dev")
    assert found["parallelism", "release"].found == "slots: auto"
    assert "GB weights" in found["parallelism", "memory"].how
    assert found["parallelism", "values"].found == "slots: 34; --max-num-seqs=34"
    assert found["parallelism", "chart"].source.startswith("charts/engine/templates/_pod.tpl:")


def test_a_pod_with_other_slots_than_planned_is_told_from_one_with_the_same(project: Path) -> None:
    same = explain.Live(pods={"engine-1": True}, environment={"OLLAMA_NUM_PARALLEL": "8"}, nodes=("n1",))
    found = steps(project, "local-dev", same)
    assert found["parallelism", "pod"].how == "as planned"
    assert found["nodes", "cluster"].found == "1 nodes, 1 of 1 pods ready"
    other = dataclasses.replace(same, environment={"OLLAMA_NUM_PARALLEL": "4"})
    step = steps(project, "local-dev", other)["parallelism", "pod"]
    assert step.found == "OLLAMA_NUM_PARALLEL=4"
    assert "another than planned" in step.how


def test_as_json_it_is_a_list_of_steps(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["tollgate", "explain", "prod", "--json", "--value", "cost"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    # A price for each of two regions.
    assert [step["at"] for step in found] == ["price", "price", "plan", "tokens"]


@pytest.fixture
def kubectl_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a kubectl on PATH that knows these contexts, with the pods of each."""

    def make(**pods: list[dict[str, Any]]) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        for context, items in pods.items():
            (folder / context).write_text(json.dumps({"items": items}))
            node = {"metadata": {"name": f"node-of-{context.split('_')[2]}"}}
            (folder / f"{context}.nodes").write_text(json.dumps({"items": [node]}))
        script = f"""#!/bin/sh
case " $* " in
  *" get-contexts "*) printf '%s\\n' {" ".join(pods)};;
  *" get nodes "*) cat "{folder}/$2.nodes";;
  *) cat "{folder}/$2";;
esac
"""
        (folder / "kubectl").write_text(script)
        (folder / "kubectl").chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return make


def vllm(name: str, slots: int) -> dict[str, Any]:
    container = {"name": "engine", "args": [f"--max-num-seqs={slots}"]}
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {"name": name}, "spec": {"containers": [container]}, "status": ready}


def test_on_gke_the_cluster_of_every_region_is_asked_by_its_context(
    project: Path, kubectl_of: Callable[..., None]
) -> None:
    stack = stacks.load_stack("prod", project)
    slots = planner.plan(stack).slots
    kubectl_of(**{f"gke_my-project_{region}_{stack.cluster}-{region}": [vllm(f"engine-{region}", slots)]
                  for region in stack.fleet.regions})  # fmt: skip
    now = explain.live(stack, project)
    assert len(stack.fleet.regions) == 2
    assert now.pods == {f"engine-{region}": True for region in stack.fleet.regions}
    assert now.nodes == tuple(sorted(f"node-of-{region}" for region in stack.fleet.regions))
    step = steps(project, "prod", now)["parallelism", "pod"]
    assert (step.found, step.how) == (f"--max-num-seqs={slots}", "as planned")
    assert step.source.startswith("kubectl --context gke_my-project_")


def test_a_region_without_a_context_is_named_with_the_command_that_makes_one(
    project: Path, kubectl_of: Callable[..., None]
) -> None:
    stack = stacks.load_stack("prod", project)
    there, missing = stack.fleet.regions
    kubectl_of(**{f"gke_my-project_{there}_{stack.cluster}-{there}": [vllm("engine-1", 8)]})
    now = explain.live(stack, project)
    assert (now.why, list(now.pods)) == ("", ["engine-1"])
    fix = f"gcloud container clusters get-credentials {stack.cluster}-{missing} --region {missing} --project my-project"
    assert fix in now.unseen
    assert fix in steps(project, "prod", now)["nodes", "cluster"].how
    none = stack.model_copy(update={"project": "another-project"})
    assert "no context gke_another-project" in explain.live(none, project).why


def test_a_cluster_whose_name_had_to_be_shortened_is_found(project: Path, kubectl_of: Callable[..., None]) -> None:
    stack = stacks.load_stack("dev", project)
    long = stack.model_copy(update={"cluster": "a-cluster-with-a-name-of-many-words"})
    (region,) = stack.fleet.regions
    name = stacks.cluster_name(long, region)
    assert (len(name), name[:33]) == (40, "a-cluster-with-a-name-of-many-wor")
    kubectl_of(**{f"gke_my-project_{region}_{name}": [vllm("engine-1", 8)]})
    assert explain.live(long, project).pods == {"engine-1": True}


@pytest.fixture
def pool(kubectl: Any) -> Iterator[None]:
    """A node of a GPU pool of local-dev."""
    labels = {values.POOL_LABEL: "local-dev", "tollgate.dev/runner": "process"}
    labels |= {"cloud.google.com/gke-accelerator": "nvidia-l4", "kubernetes.io/hostname": "explained"}
    capacity = json.dumps({"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"})
    meta = {"name": "explained", "labels": labels, "annotations": {"tollgate.dev/capacity": capacity}}
    kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": meta}))
    yield
    kubectl("delete", "node", "explained", "--wait=false")


@pytest.mark.cluster
@pytest.mark.usefixtures("pool")
def test_on_an_existing_cluster_a_value_is_walked_to_the_running_pod(
    project: Path, cluster: Any, kubectl: Any, fresh_namespace: str, called: Command
) -> None:
    """The embedded cluster stands for anybody's: all that is known of it is its context."""
    path = project / "stacks" / "Pulumi.local-dev.yaml"
    text = path.read_text().replace("{min: 10, max: 10}", "{min: 1, max: 1}")
    text = text.replace("users: 50", "users: 5").replace("requests_per_second: 14", "requests_per_second: 1")
    ground = f"kubernetes\n  tollgate:cluster: {cluster.name}\n  tollgate:namespace: {fresh_namespace}"
    path.write_text(text.replace("tollgate:target: local", f"tollgate:target: {ground}"))
    stack = stacks.load_stack("local-dev", project)
    file = project / "values.json"
    file.write_text(json.dumps(values.render(stack, planner.plan(stack))))
    chart = [str(tools.path("helm")), "template", "engine", str(values.chart_path("engine")), "-f", str(file)]
    made = subprocess.run([*chart, "-n", fresh_namespace], capture_output=True, text=True, timeout=120, check=True)
    (deployment,) = [one for one in yaml.safe_load_all(made.stdout) if one and one["kind"] == "Deployment"]
    kubectl("apply", "-n", fresh_namespace, "-f", "-", given=json.dumps(deployment))
    environment = cluster.environment(project)
    own = {key: environment[key] for key in ("KUBECONFIG", "PATH")}
    end = time.monotonic() + 120
    while True:
        done = called("explain", "local-dev", "--json", cwd=project, **own)
        assert done.returncode == 0, done.stderr
        found = {(step["value"], step["at"]): step for step in json.loads(done.stdout)}
        if "1 of 1 pods ready" in found["nodes", "cluster"]["found"]:
            break
        assert time.monotonic() < end, found["nodes", "cluster"]
    pod = found["parallelism", "pod"]
    assert (pod["found"], pod["how"]) == ("OLLAMA_NUM_PARALLEL=8", "as planned")
    assert pod["source"].startswith(f"kubectl --context {cluster.name} get pod engine-")
    assert found["nodes", "cluster"]["found"] == "1 nodes, 1 of 1 pods ready"
    listed = called("checklist", "local-dev", "--after", "--json", cwd=project, **own)
    items = {item["what"]: item["state"] for item in json.loads(listed.stdout)}
    assert items["every pod is ready"] == items["the pods run the release's slots"] == "done"
