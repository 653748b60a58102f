"""The workflow files: linted, pinned, with no more rights than they use, and their commands real."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import preview as room
from tollgate.commands import preview as command

HERE = Path(__file__).resolve().parents[2]
FOLDER = HERE / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))


def zizmor(path: Path) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name("zizmor")
    arguments = ["--offline", "--no-progress", "--persona=pedantic", str(path)]
    return subprocess.run([str(tool), *arguments], capture_output=True, text=True, timeout=240, check=False)


def loaded(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{path.name}/{name}", job) for path in FILES for name, job in loaded(path)["jobs"].items()]


def scripts() -> list[tuple[str, str]]:
    return [(where, step["run"]) for where, job in jobs() for step in job.get("steps", ()) if "run" in step]


def test_the_linter_finds_nothing_in_our_workflows_and_something_in_a_careless_one(tmp_path: Path) -> None:
    done = zizmor(FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr
    careless = tmp_path / "careless.yml"
    careless.write_text(
        "on: pull_request_target\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n"
        "      - uses: actions/checkout@v4\n      - run: echo ${{ github.event.pull_request.title }}\n"
    )
    assert zizmor(careless).returncode != 0


def test_every_action_is_pinned_by_its_commit_with_its_version_beside() -> None:
    lines = [line.strip() for path in FILES for line in path.read_text().splitlines() if "uses:" in line]
    assert len(lines) >= 7
    for line in lines:
        assert re.search(r"uses: (\./|[\w./-]+@[0-9a-f]{40} # v\d)", line), line


def test_the_job_that_runs_a_pull_request_s_code_may_read_and_nothing_else() -> None:
    for path in FILES:
        assert loaded(path)["permissions"] == {}
    rights = {where: job["permissions"] for where, job in jobs()}
    assert rights["cost-preview.yml/evaluate"] == {"contents": "read"}
    assert rights["cost-preview.yml/comment"] == {"contents": "read", "pull-requests": "write"}
    for where, job in jobs():
        text = yaml.safe_dump(job)
        if "write" in text:
            # With rights: only the base's code.
            checkouts = [step for step in job.get("steps", ()) if "checkout" in step.get("uses", "")]
            assert all("base.sha" in step["with"]["ref"] for step in checkouts), where
        assert "secrets." not in text
        assert text.count("persist-credentials: false") == text.count("actions/checkout@")


def test_no_script_holds_an_expression_and_all_of_them_parse() -> None:
    for where, script in scripts():
        assert "${{" not in script, where
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_options_in_the_scripts_are_the_command_s() -> None:
    app = typer.Typer()
    app.command()(command.preview)
    known = {name for parameter in typer.main.get_command(app).params for name in parameter.opts}
    lines = [line for _, script in scripts() for line in script.splitlines()]
    lines += (HERE / "docs" / "preview" / "gitlab-ci.yml").read_text().splitlines()
    used = {option for line in lines if "tollgate preview" in line for option in re.findall(r"(?<=\s)--[a-z]+", line)}
    assert {"--base", "--json", "--from", "--comment"} <= used <= known


@pytest.mark.timeout(600)
def test_the_evaluating_job_s_own_script_runs(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("preview_gallery", HERE / "docs" / "preview_gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["preview_gallery"] = module
    spec.loader.exec_module(module)
    root = module.build(tmp_path / "project")
    (script,) = (
        text for where, text in scripts() if where == "cost-preview.yml/evaluate" and "tollgate preview" in text
    )
    env = {**os.environ, "BASE": "HEAD", "STACKS": "unchanged slots-doubled", "PYTHONPATH": str(HERE)}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run(["bash", "-e"], input=script, text=True, cwd=root, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    found = room.from_json((root / "preview.json").read_text())
    assert [one.status for one in found.stacks] == ["changed", "unchanged"]
    assert (root / "preview.html").read_text().startswith("<!doctype html>")
