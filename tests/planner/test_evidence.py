"""`tollgate plan STACK --from-evidence`: constants fitted to what the store holds about the release, and how well they fit."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

import gate
import planner
import stacks
import tollgate.__main__ as command_line
import values
from bench.results import Result, Run

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
RELEASE = """engine: ollama
version: 0.17.4
image: ollama/ollama:0.17.4
model: gemma-3-4b-it
source: gemma3:4b
quantization: q4-k-m
context_tokens: 2048
parallelism: {{slots: {slots}}}
accelerator: {{gpu: nvidia-l4}}
chart: engine
"""
STACK = """config:
  tollgate:target: local
  tollgate:release: gemma-{slots}
  tollgate:fleet: {{machine_type: g2-standard-8, nodes: {{min: 10, max: 10}}}}
  tollgate:traffic: {{arrival: closed, users: 50, prompt_tokens: 128, output_tokens: 128}}
  tollgate:objectives: {{e2e_p95_seconds: 20}}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("TOLLGATE_EVIDENCE", "TOLLGATE_SIGNING_KEY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "stacks"
    (folder / "releases").mkdir(parents=True)
    (tmp_path / "Pulumi.yaml").write_text("name: tollgate\nruntime: python\nstackConfigDir: stacks\n")
    (folder / "pipeline.yaml").write_text("stages:\n  - stack: one\n  - stack: eight\n")
    for name, slots in (("one", 1), ("eight", 8)):
        (folder / "releases" / f"gemma-{slots}.yaml").write_text(RELEASE.format(slots=slots))
        (folder / f"Pulumi.{name}.yaml").write_text(STACK.format(slots=slots))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measure(project: Path, name: str, truth: planner.Timing, *, simulated: bool = False) -> None:
    """Record what a benchmark would find on an engine whose steps take as long as `truth` says."""
    stack = stacks.load_stack(name, project)
    slots = int(stack.release.parallelism.slots)
    found = planner.predict(truth, slots=slots, replicas=10, traffic=stack.traffic)
    metrics = {
        "e2e_mean_seconds": found.e2e_mean_seconds,
        "e2e_p95_seconds": found.e2e_p95_seconds,
        "ttft_mean_seconds": found.ttft_mean_seconds,
        "requests_per_second": found.requests_per_second,
    }
    runs = tuple(
        Run(
            started=NOW + timedelta(seconds=60 * index), seconds=60, warmup_seconds=5,
            sent=500, ok=500, failed=0, cut=0, metrics=metrics, valid=True,
        )
        for index in range(3)
    )  # fmt: skip
    digest = values.release_digest(stack.release)
    environment: dict[str, str | int | float | bool] = {
        "accelerator": "nvidia-l4",
        "machine_type": "g2-standard-8",
        "simulated": simulated,
    }
    result = Result(
        release=digest, stack=name, url="http://engine", traffic=stack.traffic, replicas=10, runs=runs,
        server={"engine": "ollama", "slots": slots}, environment=environment, tool_version="0.1.0",
    )  # fmt: skip
    gate.record(stack, result, release_digest=digest, root=project, now=NOW)


def plan(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(command_line.app, ["plan", *arguments], env={"COLUMNS": "160"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def truth(project: Path) -> planner.Timing:
    base = planner.timing(stacks.load_stack("eight", project).release)
    return replace(base, overhead=base.overhead * 1.8, sequence=base.sequence * 1.3)


def test_evidence_of_the_release_and_of_its_other_slots_gives_the_constants_back(project: Path) -> None:
    measure(project, "one", truth(project))
    measure(project, "eight", truth(project))
    before = json.loads(plan("eight", "--json")[1])
    found = json.loads(plan("eight", "--from-evidence", "--json")[1])
    fit = found["calibration"]
    assert fit["step_overhead_seconds"]["after"] == pytest.approx(truth(project).overhead, rel=0.02)
    assert fit["sequence_seconds"]["after"] == pytest.approx(truth(project).sequence, rel=0.02)
    assert fit["error_before"] > 0.05 > 0.01 > fit["error_after"]
    assert fit["simulated"] is False
    measured = planner.predict(truth(project), slots=8, replicas=10, traffic=stacks.load_stack("eight").traffic)
    assert found["plan"]["predicted"]["e2e_mean_seconds"] == pytest.approx(measured.e2e_mean_seconds, rel=0.01)
    assert before["plan"]["predicted"]["e2e_mean_seconds"] < 0.95 * measured.e2e_mean_seconds


def test_the_terminal_says_how_well_it_fits_and_that_a_simulated_engine_proves_nothing(project: Path) -> None:
    measure(project, "eight", truth(project), simulated=True)
    code, text = plan("eight", "--from-evidence")
    assert code == 0
    assert "mean error" in text
    assert "says nothing about a GPU" in text
    assert "says nothing about a GPU" in plan("eight", "--from-evidence", "--markdown")[1]


def test_without_evidence_of_the_release_the_plan_says_how_to_come_by_it(project: Path) -> None:
    with pytest.raises(stacks.InputError, match="pulumi up --stack eight"):
        plan("eight", "--from-evidence")
    measure(project, "eight", truth(project))
    path = project / "stacks" / "releases" / "gemma-8.yaml"
    path.write_text(path.read_text().replace("q4-k-m", "q8-0"))
    with pytest.raises(stacks.InputError, match="no valid measurement of gemma-8"):
        plan("eight", "--from-evidence")


def test_results_in_a_file_serve_as_well_and_two_sources_do_not(project: Path) -> None:
    measure(project, "eight", truth(project))
    (entry,) = gate.open_store("file://.tollgate/evidence", project, gate.load_keys(project)).entries()
    file = project / "result.json"
    file.write_text(json.dumps(entry.facts["result"]))
    from_file = json.loads(plan("eight", "--results", str(file), "--json")[1])
    assert from_file["calibration"] == json.loads(plan("eight", "--from-evidence", "--json")[1])["calibration"]
    for second in ("--from-evidence", "--aiconfigurator"):
        with pytest.raises(stacks.InputError, match="one source of latency"):
            plan("eight", "--results", str(file), second)
    with pytest.raises(stacks.InputError, match="name a stack"):
        plan("--model", "gemma3:4b", "--users", "1", "--from-evidence")
