"""Every item is open on a project where it is not done, and done on one where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gate
import stacks
import values
from tests.gate.conftest import make_result
from tollgate import checklist, doctor, explain
from tollgate.commands import preview as previews

GOOD = doctor.Finding(area="machine", about="disk", level="good", said="enough")


def before(project: Path, name: str, findings: tuple[doctor.Finding, ...] = (GOOD,)) -> dict[str, checklist.Item]:
    stack = stacks.load_stack(name, project)
    change = previews.collect(project, [name], None)
    return {item.what: item for item in checklist.before(stack, project, findings, change)}


def after(project: Path, name: str, now: explain.Live) -> dict[str, checklist.Item]:
    return {item.what: item for item in checklist.after(stacks.load_stack(name, project), project, now)}


@pytest.fixture(scope="module")
def ready() -> explain.Live:
    pods = {f"engine-{number}": True for number in range(10)}
    return explain.Live(pods=pods, environment={"OLLAMA_NUM_PARALLEL": "8"}, nodes=("n",))


def measure(project: Path, **changed: Any) -> None:
    from datetime import UTC, datetime

    stack = stacks.load_stack("local-dev", project)
    digest, now = values.release_digest(stack.release), datetime.now(UTC)
    gate.record(
        stack, make_result(release=digest, started=now, **changed), release_digest=digest, root=project, now=now
    )


def test_a_first_stage_with_nothing_wrong_is_done(project: Path) -> None:
    assert {item.state for item in before(project, "local-dev").values()} == {"done"}


def test_a_gated_stack_is_open_until_something_was_promoted(project: Path) -> None:
    item = before(project, "local-staging")["evidence lets the release in"]
    assert item.state == "open"
    assert "tollgate promote local-dev local-staging" in item.fix


def test_production_on_gke_is_told_what_is_not_safe(project: Path) -> None:
    path = project / "stacks" / "Pulumi.prod.yaml"
    path.write_text(path.read_text().replace("    api_key: true\n", ""))
    found = before(project, "prod")
    assert found["the image cannot change under its name"].state == "open"
    assert found["nobody unknown can ask it"].state == "open"
    assert found["the cluster cannot be deleted by accident"].state == "done"
    assert before(project, "dev")["the cluster cannot be deleted by accident"].state == "open"


def test_a_limit_of_the_preview_keeps_its_item_open(project: Path) -> None:
    (project / "stacks" / "preview.yaml").write_text("budgets:\n  - {stacks: ['*'], fail: {usd_per_hour: 1}}\n")
    item = before(project, "local-dev")["cost and nodes are within the limits"]
    assert item.state == "open"


def test_what_the_doctor_found_keeps_its_item_open_with_the_same_fix(project: Path) -> None:
    bad = doctor.Finding(area="cloud", about="quota", level="bad", said="0 granted", fix="ask for more")
    item = before(project, "local-dev", (GOOD, bad))["machine, cluster and cloud have what it needs"]
    assert (item.state, item.fix) == ("open", "ask for more")


def test_a_fleet_that_is_too_small_keeps_the_plan_open(project: Path) -> None:
    path = project / "stacks" / "Pulumi.local-dev.yaml"
    path.write_text(path.read_text().replace("{min: 10, max: 10}", "{min: 1, max: 1}"))
    assert before(project, "local-dev")["the plan keeps every promise"].state == "open"


def test_nothing_is_known_of_what_does_not_run_and_nothing_passes_unmeasured(project: Path) -> None:
    found = after(project, "local-dev", explain.Live(why="the cluster is not up"))
    assert found["every pod is ready"].state == "unknown"
    assert found["what was measured passes its own promise"].state == "open"


def test_what_was_measured_as_planned_is_done(project: Path, ready: explain.Live) -> None:
    measure(project, metrics={"e2e_p95_seconds": 2.9, "requests_per_second": 18.0, "output_tokens_per_second": 2300.0})
    assert {what: item.state for what, item in after(project, "local-dev", ready).items() if item.state != "done"} == {}


def test_what_was_measured_otherwise_than_planned_is_open(project: Path, ready: explain.Live) -> None:
    measure(project, metrics={"e2e_p95_seconds": 4.5, "requests_per_second": 15.0, "output_tokens_per_second": 1900.0})
    found = after(project, "local-dev", ready)
    assert found["what was measured passes its own promise"].state == "done"
    assert found["what was measured is what was planned"].fix == "tollgate plan local-dev --from-evidence"


def test_a_pod_that_is_not_ready_and_one_with_other_slots_are_open(project: Path) -> None:
    now = explain.Live(pods={"engine-0": False}, environment={"OLLAMA_NUM_PARALLEL": "1"}, nodes=("n",))
    found = after(project, "local-dev", now)
    assert found["every pod is ready"].said == "not ready: engine-0"
    assert found["the pods run the release's slots"].state == "open"
