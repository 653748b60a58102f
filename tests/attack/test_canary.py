"""A secret planted wherever one may be: no output, file or argument list of ours repeats it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.attack.conftest import CANARY
from tests.ports import free_port
from tests.tollgate.conftest import Command

HERE = Path(__file__).resolve().parents[2]
# What a shell, a laptop or a CI job may hold while Tollgate runs.
_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "CLOUDSDK_AUTH_ACCESS_TOKEN",
    "GITHUB_TOKEN",
    "GITLAB_TOKEN",
    "GOOGLE_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "PULUMI_ACCESS_TOKEN",
    "PULUMI_CONFIG_PASSPHRASE",
    "TOLLGATE_API_KEY",
    "TOLLGATE_SIGNING_KEY",
)


def tollgate(root: Path, *arguments: str, **extra: str) -> str:
    """All that a command says; its exit code does not matter, a traceback does."""
    env = {**os.environ, **dict.fromkeys(_VARIABLES, CANARY), "PYTHONPATH": str(HERE), **extra}
    command = [sys.executable, "-m", "tollgate", *arguments]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=240, check=False)
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    return said


def files_with_canary(folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and CANARY.encode() in path.read_bytes()
    ]


COMMANDS = [
    ["plan", "local-dev", "--json", "--html", "plan.html"],
    ["preview", "prod", "--offline", "--html", "--out", "preview.html"],
    ["preview", "local-dev", "--offline", "--comment", "github"],
    ["gate", "local-prod"],
    ["gate", "local-dev", "--json"],
    ["evidence", "list", "--json"],
    ["evidence", "history", "local-prod"],
    ["promote", "local-dev", "local-staging"],
    ["approve", "local-prod", "--why", "it is an exception", "--by", "A"],
    ["tools", "--json"],
    ["checklist", "prod"],
    ["explain", "prod", "--json"],
    ["init", "elsewhere", "--json"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_repeats_a_secret_of_its_surroundings(
    called: Command, project: Path, command: list[str], tmp_path: Path
) -> None:
    summary = {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    done = called(*command, cwd=project, **dict.fromkeys(_VARIABLES, CANARY), **summary)
    assert CANARY not in done.stdout + done.stderr
    assert files_with_canary(tmp_path) == []


def test_the_canary_would_be_found(project: Path) -> None:
    """The search itself: a file of the project that holds it."""
    (project / "stacks" / "note.txt").write_text(f"x{CANARY}y")
    assert files_with_canary(project) == ["stacks/note.txt"]


@pytest.fixture
def simulator() -> Iterator[str]:
    """An engine that asks for the key, which is told to it by its environment."""
    port = free_port()
    env = {**os.environ, "VLLM_API_KEY": CANARY, "TOLLGATE_SIM_TTFT": "5ms", "TOLLGATE_SIM_ITL": "1ms"}
    words = ["vllm", "serve", "tiny", "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512"]
    command = [sys.executable, "-m", "bench.simulator", *words]
    process = subprocess.Popen(command, cwd=HERE, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=10).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def arguments_of(process: subprocess.Popen[str]) -> list[list[str]]:
    """The argument lists of a process and of all below it, as everybody on the machine can read them."""
    found = []
    try:
        family = psutil.Process(process.pid)
        for one in (family, *family.children(recursive=True)):
            found.append(one.cmdline())
    except psutil.Error:
        pass
    return found


def watched(root: Path, *arguments: str) -> str:
    """Run a command to its end and look at the arguments of its processes meanwhile."""
    env = {**os.environ, "TOLLGATE_API_KEY": CANARY, "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "tollgate", *arguments]
    process = subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seen = 0
    try:
        while process.poll() is None:
            for line in arguments_of(process):
                seen += 1
                assert CANARY not in " ".join(line)
            time.sleep(0.05)
        said, _ = process.communicate(timeout=240)
    finally:
        process.kill()
        process.wait()
    assert seen > 0
    assert process.returncode in (0, 1), said
    return said


def test_a_benchmark_sends_its_key_and_keeps_it(simulator: str, project: Path, tmp_path: Path) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{simulator}/v1/models", timeout=60)
    forms = [word for kind in ("json", "html", "csv", "markdown") for word in (f"--{kind}", f"r.{kind}")]
    said = watched(
        project, "bench", "--url", simulator, "--engine", "vllm", "--model", "tiny", "-c", "2", "--requests", "60",
        "--max-tokens", "4", *forms,
    )  # fmt: skip
    run = json.loads((project / "r.json").read_text())["runs"][0]
    # With the wrong key all of them would have failed.
    assert run["ok"] == 60, said
    assert CANARY not in said
    assert files_with_canary(tmp_path) == []


def test_a_batch_sends_its_key_and_keeps_it(simulator: str, project: Path, tmp_path: Path) -> None:
    (project / "in.csv").write_text("text\n" + "".join(f"word {number}\n" for number in range(40)))
    store = ["--store", str(tmp_path / "batches")]
    tollgate(project, "batch", "submit", "in.csv", "--id", "b", "--template", "{text}", "--model", "tiny", *store)
    said = watched(project, "batch", "run", "b", "--endpoint", simulator, *store, "--output", "out.jsonl")
    answers = [json.loads(line) for line in (project / "out.jsonl").read_text().splitlines()]
    assert len(answers) == 40, said
    assert CANARY not in said
    assert files_with_canary(tmp_path) == []


def test_a_wrong_key_is_not_repeated_when_it_is_refused(simulator: str, project: Path) -> None:
    env = {"TOLLGATE_API_KEY": f"{CANARY}-wrong"}
    said = tollgate(
        project, "bench", "--url", simulator, "--engine", "vllm", "--model", "tiny", "--requests", "20", **env
    )
    assert CANARY not in said


def test_the_secrets_of_a_stack_are_read_by_nothing_that_is_shown(project: Path, tmp_path: Path) -> None:
    path = project / "stacks" / "Pulumi.prod.yaml"
    path.write_text(f"{path.read_text()}  secrets:apiKey: {CANARY}\n  other:token: {CANARY}\n")
    for command in (["plan", "prod"], ["preview", "prod", "--offline", "--json"]):
        assert CANARY not in tollgate(project, *command)
    path.unlink()
    assert files_with_canary(tmp_path) == []


def test_a_preview_gives_the_program_none_of_its_own_secrets(project: Path) -> None:
    """A pull request's program could print what it finds; it finds nothing."""
    (project / "__main__.py").write_text("import os\nraise RuntimeError(' '.join(map('='.join, os.environ.items())))\n")
    said = tollgate(project, "preview", "local-dev", "--offline", "--markdown")
    assert "PATH=" in said
    assert CANARY not in said
    shutil.rmtree(project / ".tollgate", ignore_errors=True)
