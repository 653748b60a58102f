"""`tollgate tools`: what it lists, and that it builds what was named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from local import tools
from local.tools import _find
from tollgate.commands.tools import app


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Nothing on PATH, nothing built; what would have been built lands in the returned list."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TOLLGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_find, "_SBIN", ())
    lists: list[list[str]] = []
    monkeypatch.setattr(tools, "ensure", lambda names: lists.append(list(names)) or {})
    return lists


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_list_says_what_is_missing_and_how_to_get_it(asked: list[list[str]]) -> None:
    output = run()
    (line,) = (line for line in output.splitlines() if line.split()[:1] == ["helm"])
    assert line.split()[1:3] == ["3.22.0", "missing"]
    assert "optional" in next(line for line in output.splitlines() if line.split()[:1] == ["ollama"])
    assert "tollgate tools build" in output
    assert asked == []


def test_for_scripts_the_list_is_json_with_whole_paths(asked: list[list[str]], tmp_path: Path) -> None:
    helm = tmp_path / "helm"
    helm.write_text("#!/bin/sh\necho v3.20.1\n")
    helm.chmod(0o755)
    rows = {row["name"]: row for row in json.loads(run("--json"))}
    assert rows["helm"]["origin"] == "PATH"
    assert rows["helm"]["version"] == "3.20.1"
    assert rows["helm"]["path"] == str(helm)
    assert rows["etcd"]["path"] is None


def test_build_takes_all_default_tools_or_those_named_and_optional_ones_only_when_asked(asked: list[list[str]]) -> None:
    run("build")
    run("build", "helm")
    run("build", "--with", "ollama")
    run("--with", "ollama")
    assert asked[0] == tools.names()
    assert "ollama" not in asked[0]
    assert asked[1] == ["helm"]
    assert asked[2] == asked[3] == [*tools.names(), "ollama"]


def test_clean_says_when_there_is_nothing(asked: list[list[str]]) -> None:
    assert "nothing to remove" in run("clean")
