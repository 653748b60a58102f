"""Stack, release and pipeline files: what is read, and what a wrong one says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import stacks

HERE = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(HERE / "Pulumi.yaml", tmp_path)
    shutil.copytree(HERE / "stacks", tmp_path / "stacks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return tmp_path


def edit(project: Path, name: str, old: str, new: str) -> None:
    path = project / "stacks" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def refused(project: Path) -> stacks.InputError:
    with pytest.raises(stacks.InputError) as caught:
        stacks.load_stack("local-dev", project)
    assert caught.value.exit_code == 2
    return caught.value


def test_every_stack_of_the_project_loads() -> None:
    names = stacks.stack_names(HERE)
    assert "local-dev" in names
    for name in names:
        assert stacks.load_stack(name, HERE).name == name


def test_every_release_of_the_project_loads() -> None:
    for name in stacks.release_names(HERE):
        assert stacks.load_release(name, HERE).name == name


def test_the_pipeline_names_stacks_that_exist() -> None:
    stage = stacks.load_pipeline(HERE).stage("local-prod")
    assert stage is not None
    assert stage.after == "local-staging"


def test_the_stack_carries_its_release_and_its_own_namespace(project: Path) -> None:
    stack = stacks.load_stack("local-dev", project)
    assert stack.release.parallelism.slots == 8
    assert stack.namespace == "local-dev"


def test_an_unknown_key_is_named_with_line_and_the_allowed_ones(project: Path) -> None:
    edit(project, "Pulumi.local-dev.yaml", "users: 50", "user: 50")
    error = refused(project)
    assert "Pulumi.local-dev.yaml" in error.where
    assert "line " in error.where
    assert "tollgate:traffic.user" in error.where
    assert "users" in error.allowed


def test_a_negative_rate_is_named_with_what_was_got(project: Path) -> None:
    edit(project, "Pulumi.local-dev.yaml", "requests_per_second: 14", "requests_per_second: -1")
    error = refused(project)
    assert error.got == "-1"
    assert "greater than 0" in error.allowed


def test_broken_yaml_is_named_with_its_line(project: Path) -> None:
    edit(project, "Pulumi.local-dev.yaml", "tollgate:target: local", "tollgate:target: [local")
    error = refused(project)
    assert "line " in error.where
    assert error.allowed == "plain YAML, each key once"


def test_a_release_that_does_not_exist_is_answered_with_those_that_do(project: Path) -> None:
    edit(project, "Pulumi.local-dev.yaml", "gemma-3-4b-ollama-8", "gemma-9")
    error = refused(project)
    assert error.got == "gemma-9"
    assert "gemma-3-4b-ollama-1" in error.allowed


def test_a_missing_release_key_lists_the_releases(project: Path) -> None:
    edit(project, "Pulumi.local-dev.yaml", "  tollgate:release: gemma-3-4b-ollama-8\n", "")
    assert "gemma-3-4b-vllm" in refused(project).allowed


def test_min_nodes_above_max_is_refused(project: Path) -> None:
    edit(project, "Pulumi.local-dev.yaml", "{min: 10, max: 10}", "{min: 11, max: 10}")
    assert "min (11) must not be above max (10)" in refused(project).allowed


def test_an_empty_promise_is_refused(project: Path) -> None:
    path = project / "stacks" / "Pulumi.local-dev.yaml"
    text = path.read_text()
    start, end = text.index("  tollgate:objectives:"), text.index("  tollgate:benchmark")
    path.write_text(text[:start] + "  tollgate:objectives: {}\n" + text[end:])
    assert "promise at least one objective" in refused(project).allowed


def test_not_a_number_is_refused(project: Path) -> None:
    edit(project, "Pulumi.local-dev.yaml", "e2e_p95_seconds: 5", "e2e_p95_seconds: .nan")
    assert "finite" in refused(project).allowed


def test_a_yaml_bomb_is_refused_before_it_grows(project: Path) -> None:
    path = project / "stacks" / "Pulumi.local-dev.yaml"
    path.write_text("a: &a [x, x]\nb: &b [*a, *a]\nconfig: [*b, *b]\n")
    assert refused(project).got == "a YAML alias"


def test_a_pipeline_that_turns_in_a_circle_is_refused(project: Path) -> None:
    edit(project, "pipeline.yaml", "  - stack: local-dev\n", "  - stack: local-dev\n    after: local-prod\n")
    with pytest.raises(stacks.InputError, match="does not stand before it"):
        stacks.load_pipeline(project)


def test_a_pipeline_stage_without_a_stack_file_is_refused(project: Path) -> None:
    edit(project, "pipeline.yaml", "stack: local-vllm", "stack: local-moon")
    with pytest.raises(stacks.InputError, match="local-moon"):
        stacks.load_pipeline(project)


def test_outside_of_a_project_the_error_says_where_to_go(tmp_path: Path) -> None:
    with pytest.raises(stacks.InputError, match="Tollgate project"):
        stacks.project_root(tmp_path)


def test_spot_with_a_reservation_is_refused(project: Path) -> None:
    edit(project, "Pulumi.local-dev.yaml", "nodes: {", "spot: true\n    reservation: mine\n    nodes: {")
    assert "spot machines cannot use a reservation" in refused(project).allowed


def test_criteria_have_safe_defaults_and_refuse_what_would_open_the_gate(project: Path) -> None:
    criteria = stacks.Criteria()
    assert (criteria.looks, criteria.approvals, criteria.soak_hours, criteria.min_requests) == (1, 0, 0.0, 50)
    assert criteria.match == ("machine_type",)
    for wrong in ("looks: 0", "min_requests: 3", "match: [colour]", "approvals: -1", "max_regression: {e2e: 0.1}"):
        (project / "stacks" / "pipeline.yaml").write_text(
            f"stages:\n  - stack: local-dev\n    criteria: {{{wrong}}}\n", encoding="utf-8"
        )
        with pytest.raises(stacks.InputError, match=r"pipeline\.yaml"):
            stacks.load_pipeline(project)
