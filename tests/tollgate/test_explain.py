"""Every step of a value names a line that says it, and a pod that says something else is told from one that does not."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

import stacks
from tests.tollgate.conftest import HERE
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
