"""What all commands have in common: help that reads, JSON, exit codes, colours only where they are wanted, completion."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import gate
import stacks
from tests.tollgate.conftest import HERE, Command
from tollgate.__main__ import COMMANDS, app

# Commands that only show something, with the least they need.
SHOWS = [
    ["plan", "local-dev"],
    ["prices"],
    ["preview", "local-dev", "--offline"],
    ["explain", "local-dev"],
    ["gate", "local-dev"],
    ["evidence", "list"],
    ["evidence", "history", "local-dev"],
    ["tools"],
    ["local", "status", "--name", "nobody"],
    ["init", "new"],
]


def run(*arguments: str, cwd: Path = HERE, **env: str) -> subprocess.CompletedProcess[str]:
    own = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE")}
    return subprocess.run(
        [sys.executable, "-m", "tollgate", *arguments],
        cwd=cwd,
        env={**own, "PYTHONPATH": str(HERE), "COLUMNS": "100", **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_help_names_every_command_in_a_line_that_fits() -> None:
    said = run("--help").stdout
    for name, words in COMMANDS.items():
        assert any(line.split()[:1] == [name] for line in said.splitlines()), name
        assert words.endswith(".")
        assert len(words) <= 80


def test_options_of_completion_are_offered_once() -> None:
    assert "--install-completion" in run("--help").stdout
    for name in ("plan", "evidence"):
        assert "--install-completion" not in run(name, "--help").stdout


@pytest.mark.parametrize("arguments", SHOWS, ids=" ".join)
def test_what_shows_something_says_it_in_json_too(called: Command, project: Path, arguments: list[str]) -> None:
    done = called(*arguments, "--json", cwd=project)
    if done.returncode == gate.GateRefused.exit_code:
        # A refusal is on standard error, so that what reads JSON reads none.
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        return
    assert done.returncode in (0, 1), done.stderr
    json.loads(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["plan", "nobody"], 2),
        (["preview", "nobody", "--offline"], 2),
        (["explain", "nobody"], 2),
        (["checklist", "nobody"], 2),
        (["doctor", "nobody"], 2),
        (["gate", "nobody"], 2),
        (["evidence", "history", "nobody"], 2),
        (["promote", "local-dev", "nobody"], 2),
        (["explain", "local-dev", "--value", "weather"], 2),
        (["no-such-command"], 2),
        (["plan", "--no-such-option"], 2),
        (["gate", "local-prod"], 3),
        (["promote", "local-dev", "local-staging"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_exit_codes_are_2_for_wrong_input_and_3_for_the_gates_no(
    called: Command, project: Path, arguments: list[str], code: int
) -> None:
    done = called(*arguments, cwd=project)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_outside_of_a_project_every_command_says_so_once(called: Command, tmp_path: Path) -> None:
    for arguments in (["plan", "x"], ["gate", "x"], ["explain", "x"], ["preview", "--offline"]):
        done = called(*arguments, cwd=tmp_path)
        assert done.returncode == stacks.InputError.exit_code
        assert "cd into your Tollgate project" in done.stderr


def test_colours_are_for_terminals_that_want_them(project: Path) -> None:
    """In a pipe there are none; a terminal is pretended by FORCE_COLOR, and NO_COLOR has the last word."""
    arguments = ["plan", "nobody"]
    assert "\x1b[" not in "".join(_said(project, arguments))
    assert "\x1b[3" not in "".join(_said(project, arguments, FORCE_COLOR="1", NO_COLOR="1"))
    assert "\x1b[" in "".join(_said(project, arguments, FORCE_COLOR="1"))


def _said(project: Path, arguments: list[str], **env: str) -> tuple[str, str]:
    done = run(*arguments, cwd=project, **env)
    return done.stdout, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell: str) -> None:
    words = {"bash": {"COMP_WORDS": "tollgate ex", "COMP_CWORD": "1"}, "zsh": {}, "fish": {}}[shell]
    env = {"_TYPER_COMPLETE_ARGS": "tollgate ex", "_TYPER_COMPLETE_FISH_ACTION": "get-args", **words}
    own = {**os.environ, "PYTHONPATH": str(HERE), "_TOLLGATE_COMPLETE": f"complete_{shell}", **env}
    code = "import sys; sys.argv = ['tollgate']; from tollgate.__main__ import app; app(prog_name='tollgate')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=own, capture_output=True, text=True, timeout=240, check=False
    )
    assert "explain" in done.stdout, done
    assert "promote" not in done.stdout


def _options() -> dict[str, set[str]]:
    """Command -> every option of it and of its subcommands."""
    found: dict[str, set[str]] = {}
    group = typer.main.get_command(app)
    for name in COMMANDS:
        command = group.get_command(None, name)  # type: ignore[attr-defined]
        every = [command, *getattr(command, "commands", {}).values()]
        found[name] = {"--help"} | {
            text
            for one in every
            for param in one.params
            for text in (*param.opts, *getattr(param, "secondary_opts", ()))
        }
    return found


def test_every_option_that_a_message_or_a_page_names_exists() -> None:
    """A fix that cannot be typed is worse than none."""
    known, wrong = _options(), []
    pages = [HERE / "README.md", *(HERE / "docs").rglob("*.md")]
    sources = [path for room in ("bench", "components", "gate", "local", "planner", "preview", "stacks", "tollgate", "values")
               for path in (HERE / room).rglob("*.py")]  # fmt: skip
    for path in (*pages, *sources):
        # Up to whatever ends a command: a line, a quote, a comma that is prose, or what stands after `--`.
        for name, rest in re.findall(r"tollgate ([a-z]+)((?: [^\s`\"'|#);]+)*)", path.read_text()):
            if name not in known:
                continue
            for word in rest.split():
                if word == "--" or (word.endswith((",", ".", ":")) and not word.startswith("--")):
                    break
                if re.fullmatch(r"--[a-z-]+[,.:]?", word) and word.rstrip(",.:") not in known[name]:
                    wrong.append(f"{path.relative_to(HERE)}: tollgate {name} {word}")
    assert sorted(set(wrong)) == []
