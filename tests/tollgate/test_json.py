"""What machines read: every command has --json, its document is all of standard output, and a job's log is quiet."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer.main

import gate
import stacks
import values
from tests.gate.conftest import make_result
from tests.tollgate.conftest import HERE, Command
from tollgate.__main__ import COMMANDS, app
from tollgate.commands import _saying as saying

# Commands without --json, and why.
WITHOUT = {
    "batch job": "prints the Job, which is JSON",
    "batch serve": "serves until it is ended",
    "bench report": "renders what --json has written",
    "bench schema": "prints the schema, which is JSON",
    "evidence show": "prints the statement, which is JSON",
    "local logs": "the words of another program",
    "local shell": "becomes another program",
    "simulate": "serves until it is ended",
    "ui": "serves until it is ended",
}


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its words; a group that does something without a command is one, too."""
    group: Any = typer.main.get_command(app)
    for name in COMMANDS:
        command = group.get_command(None, name)
        below = getattr(command, "commands", None)
        if below is None or command.invoke_without_command:
            yield name, command
        for inner, one in (below or {}).items():
            yield f"{name} {inner}", one


def test_every_command_has_json_but_those_of_a_short_list() -> None:
    found = dict(commands())
    assert len(found) > 40
    lacking = {name for name, one in found.items() if not any("--json" in param.opts for param in one.params)}
    assert lacking == set(WITHOUT)


def test_every_command_explains_itself_and_each_of_its_options() -> None:
    for name, command in commands():
        assert command.help, name
        for param in command.params:
            # A port or an address that has its own name needs no more words.
            known = getattr(param, "hidden", False) or param.name in ("port", "help")
            assert known or getattr(param, "help", ""), f"{name}: {param.name}"


def test_what_is_no_number_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    saying.machine({"a": float("nan"), "b": [float("inf"), 1.5], "c": (True, "…")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": [True, "…"]}


class Said:
    """The command line with --json: its document, and nothing else on standard output."""

    def __init__(self, called: Command, project: Path) -> None:
        self._called, self._project = called, project

    def __call__(self, *words: str, code: int = 0, **env: str) -> Any:
        done = self._called(*words, "--json", cwd=self._project, **env)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def said(called: Command, project: Path) -> Said:
    return Said(called, project)


def measure(project: Path, name: str = "local-dev") -> None:
    stack, now = stacks.load_stack(name, project), datetime.now(UTC)
    digest = values.release_digest(stack.release)
    gate.record(
        stack, make_result(release=digest, started=now, stack=name), release_digest=digest, root=project, now=now
    )


def release(project: Path, before: str, after: str) -> None:
    path = project / "stacks" / "Pulumi.local-dev.yaml"
    path.write_text(path.read_text().replace(f"release: {before}", f"release: {after}"))


def test_a_release_goes_through_the_gate_and_back_in_documents(said: Said, called: Command, project: Path) -> None:
    measure(project)
    first = said("promote", "local-dev", "local-staging")
    assert (first["release"], first["verdict"]["outcome"], first["changed"]) == ("gemma-3-4b-ollama-8", "pass", True)
    assert first["file"] == "stacks/Pulumi.local-staging.yaml"
    assert said("promote", "local-dev", "local-staging")["changed"] is False
    release(project, "gemma-3-4b-ollama-8", "gemma-3-4b-ollama-1")
    refused = called("promote", "local-dev", "local-staging", "--json", cwd=project)
    assert (refused.returncode, refused.stdout) == (gate.GateRefused.exit_code, "")
    measure(project)
    assert said("promote", "local-dev", "local-staging")["release"] == "gemma-3-4b-ollama-1"
    back = said("rollback", "local-staging")
    assert (back["from"], back["release"]) == ("gemma-3-4b-ollama-1", "gemma-3-4b-ollama-8")
    signed = said("approve", "local-staging", "--why", "the fair", "--by", "Anna", "--criterion", "e2e_p95_seconds")
    assert (signed["who"], signed["criteria"]) == ("Anna", ["e2e_p95_seconds"])
    kinds = [row["kind"] for row in said("evidence", "list")]
    assert kinds == ["measurement", "promotion", "measurement", "promotion", "promotion", "approval"]
    assert said("evidence", "verify")["statements"] == 6
    assert signed["evidence"] == said("evidence", "verify")["newest"]


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    status = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "yes"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        self.say(answer if self.status == 200 else {"error": {"message": "no"}})

    def do_GET(self) -> None:
        self.say({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    def say(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(params=[200], ids=str)
def answering(request: pytest.FixtureRequest) -> Iterator[str]:
    handler = type("Bound", (_Answers,), {"status": request.param})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def rows(project: Path) -> None:
    (project / "rows.csv").write_text("prompt\nfirst\nsecond\n")


def test_a_batch_is_followed_in_documents_from_submission_to_its_answers(
    said: Said, called: Command, project: Path, answering: str
) -> None:
    rows(project)
    new = said("batch", "submit", "rows.csv", "--model", "tiny", "--id", "b", "-e", answering)
    assert (new["id"], new["total"], new["state"]) == ("b", 2, "running")
    assert said("batch", "pause", "b")["state"] == "paused"
    assert said("batch", "resume", "b", "--retry-failed")["state"] == "running"
    both = called("batch", "run", "b", "--json", "-o", "-", cwd=project)
    assert (both.returncode, both.stdout) == (stacks.InputError.exit_code, "")
    done = said("batch", "run", "b", "--output", "answers.jsonl")
    assert (done["state"], done["ok"], done["failed"]) == ("done", 2, 0)
    assert len((project / "answers.jsonl").read_text().splitlines()) == 2
    # The same keys everywhere: what reads one reads all.
    for word in ("status", "watch"):
        assert set(said("batch", word, "b")) == set(new)
    written = said("batch", "results", "b", "-o", "again.jsonl")
    assert (written["answers"], written["failures"], written["left"]) == (2, 0, 0)
    said("batch", "submit", "rows.csv", "--model", "tiny", "--id", "c")
    assert said("batch", "cancel", "c")["state"] == "cancelled"
    assert {one["id"] for one in said("batch", "status")} == {"b", "c"}


@pytest.mark.parametrize("answering", [400], indirect=True)
def test_a_batch_that_pauses_itself_says_so_in_its_document_and_its_exit_code(
    said: Said, project: Path, answering: str
) -> None:
    # More than are in flight at once: what has been asked already is not taken back.
    (project / "rows.csv").write_text("prompt\n" + "word\n" * 2000)
    said("batch", "submit", "rows.csv", "--model", "tiny", "--id", "b", "-e", answering)
    paused = said("batch", "run", "b", "--stop-after", "1", code=1)
    assert (paused["state"], paused["ok"]) == ("paused", 0)


def test_programs_and_clusters_are_told_of_in_documents(said: Said, tmp_path: Path) -> None:
    cache = {"TOLLGATE_CACHE": str(tmp_path / "cache")}
    assert said("tools", "clean", **cache) == {"removed": []}
    assert said("local", "down", "--name", "nobody") == {"name": "nobody", "was_up": False}
    assert said("local", "status", "--name", "nobody", code=1)["phase"] == "down"


ENVIRONMENT = {"CI": "true", "NO_COLOR": "1", "COLUMNS": "100", "TERM": "xterm-256color"}


def terminal(*words: str, cwd: Path, **env: str) -> tuple[int, str]:
    """Exit code, and what a program says to a terminal that is all of its output."""
    ours, theirs = pty.openpty()
    own = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "NO_COLOR", "CI", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tollgate", *words], cwd=cwd, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
        env={**own, "PYTHONPATH": str(HERE), "TOLLGATE_HOME": str(cwd / "home"), **env},
    )  # fmt: skip
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:
        # Linux ends a terminal with an error where a pipe ends with nothing.
        pass
    os.close(ours)
    return process.wait(60), said.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "nobody"],
        ["explain", "local-dev"],
        ["doctor", "local-dev"],
        ["gate", "local-prod"],
        ["evidence", "list"],
    ],
    ids=" ".join,
)
def test_a_ci_job_with_a_terminal_gets_no_colours_and_nothing_that_is_redrawn(words: list[str], project: Path) -> None:
    code, said = terminal(*words, cwd=project, **ENVIRONMENT)
    assert code in (0, 1, 2, 3), said
    assert said.strip()
    assert "\x1b" not in said
    assert "\r" not in said


def test_a_run_in_ci_is_told_in_lines_and_on_a_persons_terminal_in_place(
    said: Said, project: Path, answering: str
) -> None:
    rows(project)
    for name, env, redrawn in (("quiet", ENVIRONMENT, False), ("person", {"TERM": "xterm-256color"}, True)):
        said("batch", "submit", "rows.csv", "--model", "tiny", "--id", name, "-e", answering)
        code, shown = terminal("batch", "run", name, cwd=project, **env)
        assert code == 0, shown
        assert ("\x1b" in shown) is redrawn, shown
        assert "2 answered" in shown


def test_a_job_that_asks_for_colours_gets_them_and_nobody_outside_of_ci_loses_them() -> None:
    for given in ({"CI": "true", "FORCE_COLOR": "1"}, {"CI": "false"}, {}):
        environment = dict(given)
        with saying.quiet_in_ci(environment):
            assert environment == given
    job = {"CI": "true"}
    with saying.quiet_in_ci(job):
        assert job["TTY_COMPATIBLE"] == "0"
    assert job == {"CI": "true"}


def test_a_benchmark_prints_its_result_alone_where_it_is_asked_to(
    called: Command, project: Path, answering: str
) -> None:
    arguments = ["--url", answering, "--model", "tiny", "--no-stream", "--max-tokens", "1", "--json", "-"]
    done = called("bench", "-c", "2", "--requests", "20", *arguments, cwd=project)
    assert done.returncode in (0, 1), done.stderr
    # How many of the twenty came after the warm-up is the machine's affair.
    assert len(json.loads(done.stdout)["runs"]) == 1
    assert "Succeeded" in done.stderr
    table = called("bench", "matrix", "--batches", "20", "--workers", "1,2", *arguments, cwd=project)
    # On a busy machine a cell does not count, which is no matter of what stands where.
    assert table.returncode in (0, 1), table.stderr
    assert isinstance(json.loads(table.stdout)["cells"], list)
    assert "batch" in table.stderr
    assert not (project / "-").exists()
