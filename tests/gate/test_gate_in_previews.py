"""A pull request that takes the gate away, or asks less of the evidence, is told so by its preview."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).resolve().parents[2]
PIPELINE = """stages:
  - stack: local-dev
  - stack: local-prod
    after: local-dev
    criteria: {min_runs: 3, headroom: 1.2}
"""


@pytest.fixture
def repository(project: Path) -> Path:
    (project / "stacks" / "pipeline.yaml").write_text(PIPELINE)
    (project / "__main__.py").write_text((HERE / "__main__.py").read_text())
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=Ada", "-c", "user.email=ada@example.com", "commit", "-qm", "all"],
    ):
        subprocess.run(["git", *command], cwd=project, check=True)
    return project


def preview(root: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tollgate", "preview", "local-prod", "--base", "HEAD", "--json"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode in (0, 2, 3), done.stdout + done.stderr
    (stack,) = json.loads(done.stdout)["stacks"]
    assert isinstance(stack, dict)
    return stack


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    after: local-dev\n", "", "THE GATE IS TAKEN AWAY: it would deploy without evidence"),
        ("headroom: 1.2", "headroom: 1.1", "headroom 1.2 → 1.1"),
        ("min_runs: 3", "min_runs: 2", "min_runs 3 → 2"),
    ],
)
def test_what_changes_at_the_gate_stands_first_in_the_headline(repository: Path, old: str, new: str, said: str) -> None:
    path = repository / "stacks" / "pipeline.yaml"
    assert old in PIPELINE
    path.write_text(PIPELINE.replace(old, new))
    headline = preview(repository)["headline"]
    assert said in headline
    assert headline.index(said) <= len("local-prod: gate: ")


def test_a_program_without_the_check_is_called_one_whose_gate_is_taken_away(repository: Path) -> None:
    """The program itself is edited: it makes a namespace, and asks nobody."""
    (repository / "__main__.py").write_text(
        "import pulumi\nimport pulumi_kubernetes as k8s\nk8s.core.v1.Namespace('namespace')\n"
    )
    assert "THE GATE IS TAKEN AWAY" in preview(repository)["headline"]


def test_where_the_gate_stays_as_it_is_nothing_is_said_of_it(repository: Path) -> None:
    assert preview(repository)["headline"] == "local-prod: no change"
