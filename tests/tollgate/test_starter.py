"""The wheel works away from its checkout, and a starter repository runs with it: plan, preview, gate, program."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import stacks
from tests.tollgate.conftest import HERE, Command
from tollgate import starter


@pytest.fixture
def repository(run_installed: Command, tmp_path: Path) -> Path:
    root = tmp_path / "team-llm"
    done = run_installed("init", str(root), "--project", "acme-llm-1")
    assert done.returncode == 0, done.stderr
    return root


def test_the_wheel_holds_every_file_of_its_rooms_but_this_checkouts_own_stacks(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    rooms = ("bench", "charts", "components", "gate", "local", "planner", "preview", "stacks", "tollgate", "values")
    listed = subprocess.run(
        ["git", "ls-files", *rooms], cwd=HERE, capture_output=True, text=True, check=True, timeout=240
    ).stdout.splitlines()
    missing = {name for name in listed if (HERE / name).exists()} - held
    left_out = {f"stacks/Pulumi.{name}.yaml" for name in ("grok-1", "llama-70b", "local-real", "local-vllm")}
    assert missing == left_out


def test_an_installed_tollgate_uses_its_own_files_and_none_of_the_checkout(
    installed: Path, run_installed: Command, repository: Path
) -> None:
    code = "import stacks, planner, values, components; print(stacks.__file__, values.chart_path('engine'))"
    done = subprocess.run(
        [str(installed / "python"), "-c", code], cwd=repository, capture_output=True, text=True, timeout=240, check=True
    )
    assert str(HERE) not in done.stdout
    assert done.stdout.count(str(installed.parent)) == 2
    found = run_installed("plan", "local-dev", "--json", cwd=repository)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["plan"]["slots"] == 8


def test_every_stack_of_a_starter_is_evaluated_and_priced(run_installed: Command, repository: Path) -> None:
    done = run_installed("preview", "--offline", "--json", cwd=repository)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert [stack["stack"] for stack in report["stacks"]] == sorted([*starter.LOCAL, *starter.GKE])
    assert not [stack["error"] for stack in report["stacks"] if stack["error"]]


def test_a_starters_gate_is_closed_until_something_was_promoted(run_installed: Command, repository: Path) -> None:
    done = run_installed("gate", "local-prod", cwd=repository)
    assert done.returncode == 3
    assert "tollgate promote local-staging local-prod" in done.stderr


def test_a_pull_request_of_a_starter_shows_what_it_costs(run_installed: Command, repository: Path) -> None:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t.invalid", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "start"]):
        subprocess.run([*git, *command], cwd=repository, check=True, capture_output=True, timeout=240)
    path = repository / "stacks" / "Pulumi.local-dev.yaml"
    path.write_text(path.read_text().replace("{min: 10, max: 10}", "{min: 12, max: 12}"))
    done = run_installed("preview", "local-dev", "--base", "HEAD", "--markdown", cwd=repository)
    assert done.returncode == 0, done.stderr
    assert "10 → 12" in done.stdout


def test_init_twice_writes_nothing_the_second_time(run_installed: Command, repository: Path) -> None:
    done = run_installed("init", str(repository), "--project", "acme-llm-1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written"] == []


def test_init_leaves_a_file_that_differs_alone_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(stacks.InputError, match=r"README\.md is there already"):
        starter.write(tmp_path, name="team", project=None, source=starter.source_of("git+https://example.org/t@c0ffee"))
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_init_does_not_follow_a_link_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "stacks").symlink_to(tmp_path / "outside")
    with pytest.raises(stacks.InputError, match="symbolic link"):
        starter.write(tmp_path / "team", name="team", project=None, source=starter.Source(requirement=None))
    assert not list((tmp_path / "outside").iterdir())


def test_the_requirement_is_where_tollgate_came_from_and_never_the_bare_name(wheel: Path, tmp_path: Path) -> None:
    # The name is another project's on the public index.
    with pytest.raises(stacks.InputError, match="another project"):
        starter.source_of("tollgate==0.1.0")
    source = starter.source_of(str(wheel))
    starter.write(tmp_path / "team", name="team", project=None, source=source)
    assert f"./vendor/{wheel.name}" in (tmp_path / "team" / "requirements.txt").read_text().splitlines()
    assert (tmp_path / "team" / "vendor" / wheel.name).read_bytes() == wheel.read_bytes()


def test_without_a_google_project_a_starter_has_the_local_stages_only(tmp_path: Path) -> None:
    starter.write(tmp_path, name="team", project=None, source=starter.Source(requirement=None))
    assert stacks.stack_names(tmp_path) == sorted(starter.LOCAL)
    assert [stage.stack for stage in stacks.load_pipeline(tmp_path).stages] == list(starter.LOCAL)
    for name in starter.LOCAL:
        assert stacks.load_stack(name, tmp_path).release.name in stacks.release_names(tmp_path)


def test_the_starters_program_is_this_projects_own(tmp_path: Path) -> None:
    found = starter.files("team", project=None, source=starter.Source(requirement=None))
    assert found["__main__.py"] == (HERE / "__main__.py").read_text()
    assert "${{ github.event.pull_request.base.sha }}" in found[".github/workflows/pull-request.yml"]


def test_the_starters_workflow_has_no_finding_of_the_security_linter(tmp_path: Path) -> None:
    starter.write(tmp_path, name="team", project=None, source=starter.Source(requirement=None))
    zizmor = shutil.which("zizmor", path=str(Path(sys.executable).parent))
    assert zizmor is not None
    done = subprocess.run(
        [zizmor, "--offline", "--no-progress", "--persona", "regular", str(tmp_path / ".github")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
