"""The examples of the documentation are run as they stand, its links lead somewhere, and its pages build."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tollgate.conftest import HERE
from tests.tollgate.test_doctor import Google, google  # noqa: F401 - the fixture is shared
from tollgate.__main__ import COMMANDS

DOCS = HERE / "docs"
PAGES = sorted(path for path in (DOCS / "jobs").glob("*.md"))


def examples(page: Path) -> Iterator[tuple[str, list[str], int]]:
    """(command, lines of what it says, exit code) of each `$ …` in the page's ```console blocks."""
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        command, said, code = "", [], 0
        for line in block.splitlines():
            if line.startswith("$ "):
                if command:
                    yield command, said, code
                command, said, code = line[2:], [], 0
            elif found := re.fullmatch(r"\[exit (\d+)\]", line):
                code = int(found.group(1))
            else:
                said.append(line)
        yield command, said, code


def pattern(said: list[str]) -> str:
    """What is shown as a regular expression: `…` stands for anything within a line, and alone for any number of lines."""
    parts = []
    for line in said:
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            # Columns may be wider than on the page.
            words = [r"[^\n]*".join(map(re.escape, word.split("…"))) for word in line.split()]
            parts.append(r"[^\S\n]*" + r"[^\S\n]+".join(words) + r"[^\S\n]*\n")
    return "".join(parts).replace(r"[^\S\n]+[^\n]*", r"[^\n]*")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_example_of_a_job_says_what_the_page_says(page: Path, project: Path) -> None:
    env = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "COLUMNS": "100",
        "TOLLGATE_HOME": str(project / "home"),
        "TOLLGATE_BATCHES": str(project / "batches"),
    }
    follow(page, project, env)


def follow(page: Path, folder: Path, env: dict[str, str]) -> int:
    """Run the page's examples one after the other, from `folder`; how many there were."""
    count = 0
    for command, said, code in examples(page):
        count += 1
        if command.startswith("cd "):
            folder /= command.removeprefix("cd ")
            continue
        # The Tollgate of this checkout, whatever is on PATH.
        text = re.sub(r"^tollgate ", f"{shlex.quote(sys.executable)} -m tollgate ", command)
        done = subprocess.run(
            ["/bin/sh", "-c", text], cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False
        )
        shown = done.stderr + done.stdout
        assert done.returncode == code, (command, shown)
        assert re.fullmatch(pattern(said), shown), (command, shown)
    return count


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_ten_steps_of_the_readme_say_what_they_say_there(tmp_path: Path, google: Google) -> None:  # noqa: F811
    google.enabled -= {"container"}
    google.quotas = {"us-central1": {"NVIDIA_L4_GPUS": 0, "PREEMPTIBLE_NVIDIA_L4_GPUS": 0}}
    names = {f"GIT_{who}_{what}": "a@b.invalid" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = {**os.environ, **names, "PYTHONPATH": str(HERE), "COLUMNS": "160", "TOLLGATE_HOME": str(tmp_path / "home")}
    assert follow(HERE / "README.md", tmp_path, env) == 9


def test_the_comparison_of_examples_tells_a_difference() -> None:
    said = ["a …b", "…", "end"]
    assert re.fullmatch(pattern(said), "a  x b\nmore\nand more\nend\n")
    assert not re.fullmatch(pattern(said), "a x c\nmore\nend\n")
    assert not re.fullmatch(pattern(said), "a b\nmore\n")


def test_there_is_a_page_for_each_job_and_each_has_an_example_or_a_script() -> None:
    names = {page.stem for page in PAGES}
    assert names == {"plan", "deploy", "tune", "scale", "promote", "roll-back", "batch", "simulate"}
    for page in PAGES:
        assert re.search(r"^```(console|sh)$", page.read_text(), re.MULTILINE), page


def test_every_command_in_the_documentation_exists() -> None:
    for page in (HERE / "README.md", *DOCS.rglob("*.md")):
        for name in re.findall(r"`tollgate ([a-z]+)", page.read_text()):
            assert name in COMMANDS, f"{page.name}: tollgate {name}"


def test_every_link_leads_to_a_file() -> None:
    broken = []
    for page in (HERE / "README.md", *DOCS.rglob("*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(HERE)}: {target}")
    assert broken == []


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    """With the reference: a public name whose room cannot be imported, or a page that nothing leads to, is a warning."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "dummy",
        str(DOCS),
        str(tmp_path / "built"),
    ]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
