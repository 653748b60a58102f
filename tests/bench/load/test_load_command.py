"""`tollgate bench` as people type it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import stacks
from bench import results
from tollgate.commands.bench import app

Serve = Callable[..., str]
RUNNER = CliRunner()


def test_a_batch_is_measured_to_its_end_and_written_in_every_form(serve: Serve, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"r.{kind}" for kind in ("json", "html", "csv", "markdown")}
    options = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    url = serve("--ttft", 0.02, "--itl", 0.005)
    done = RUNNER.invoke(
        app,
        [
            "--url",
            url,
            "--engine",
            "ollama",
            "--model",
            "tiny",
            "-c",
            "4",
            "--requests",
            "240",
            "--max-tokens",
            "4",
            "--promise",
            "ttft_p95_seconds=0.0001",
            *options,
        ],
    )
    assert done.exit_code == 0, done.output
    result = results.Result.model_validate_json(files["json"].read_text())
    (run,) = result.runs
    assert (run.ok, run.failed, run.cut) == (240, 0, 0)
    assert run.metrics["sustained_requests_per_second"] == pytest.approx(run.metrics["requests_per_second"], rel=0.6)
    # Nobody keeps a tenth of a millisecond; without a stack the promise comes from the command.
    assert run.metrics["goodput"] == 0.0
    (row,) = csv.DictReader(files["csv"].read_text().splitlines())
    assert row["ok"] == "240"
    assert files["html"].read_text().startswith("<!doctype html>")
    assert "| Requests |" in files["markdown"].read_text() or not run.valid
    again = RUNNER.invoke(app, ["report", str(files["json"]), str(files["json"]), "--html", str(tmp_path / "two.html")])
    assert again.exit_code == 0, again.output
    assert "against" in (tmp_path / "two.html").read_text()


def test_a_matrix_goes_on_where_it_was(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    url = serve("--ttft", 0.02, "--slots", 4)
    asked = ["matrix", "--url", url, "--engine", "ollama", "--model", "tiny", "--batches", "60,90", "--max-tokens", "1"]
    first = RUNNER.invoke(app, [*asked, "--workers", "1,2", "--json", str(file)])
    assert first.exit_code in (0, 1), first.output
    measured = len(json.loads(file.read_text())["cells"])
    more = RUNNER.invoke(app, [*asked, "--workers", "1,2", "--json", str(file)])
    assert f"{measured} of 4 cells are measured already" in more.output
    other = RUNNER.invoke(app, [*asked, "--workers", "1,2", "--json", str(file), "--seed", "2"])
    assert isinstance(other.exception, stacks.InputError)
    assert "another service, model, prompt or setting" in str(other.exception)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--url"),
        (["--url", "http://h"], "--model"),
        (["--url", "http://h", "--service", "a/b", "--model", "m"], "--url and --service"),
        (["--url", "http://h", "--model", "m", "-c", "2", "--rate", "3"], "--concurrency and --rate"),
        (["--url", "http://h", "--model", "m", "--engine", "tgi"], "--engine"),
        (["--url", "http://h", "--model", "m", "--stages", "fast"], "--stages"),
        (["--url", "http://h", "--model", "m", "--turns", "3", "--endpoint", "generate"], "--turns"),
        (["--url", "http://h", "--model", "m", "--pods", "2"], "--pods"),
        (["--url", "http://h", "--model", "m", "--header", "x"], "--header"),
        (["--url", "http://h", "--model", "m", "--trace", "t.csv", "--requests", "3"], "--requests"),
        (["--url", "http://h", "--model", "m", "--machine", "z9"], "z9"),
        (["--url", "http://h", "--model", "m", "--promise", "speed=3"], "--promise"),
        (["--url", "http://h", "--model", "m", "--promise", "goodput=3"], "--promise"),
        (["report", "nothing.json"], "nothing.json"),
        (["matrix", "--url", "http://h", "--model", "m", "--workers", "two"], "--workers"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_the_option(options: list[str], words: str) -> None:
    done = RUNNER.invoke(app, options)
    assert isinstance(done.exception, stacks.InputError), done.output
    assert words in str(done.exception)


def test_help_names_the_other_commands() -> None:
    text = RUNNER.invoke(app, ["--help"]).output
    assert all(word in text for word in ("run", "matrix", "report", "schema"))
    assert json.loads(RUNNER.invoke(app, ["schema"]).output)["$schema"]
