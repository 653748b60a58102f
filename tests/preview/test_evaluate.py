"""Evaluation itself: light or with the whole SDK it is the same, a day's shape, and what the price book lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import preview as room
import stacks

HERE = Path(__file__).resolve().parents[2]


def lines(root: Path, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "components.evaluate", *arguments]
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=280, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_the_light_sdk_and_the_whole_one_make_the_same_resources_of_every_stack() -> None:
    names = sorted(
        path.name.removeprefix("Pulumi.").removesuffix(".yaml") for path in (HERE / "stacks").glob("Pulumi.*.yaml")
    )
    light, whole = lines(HERE, *names), lines(HERE, "--whole", *names)
    assert [entry["stack"] for entry in light] == names
    assert [entry["error"] for entry in light] == [None] * len(names)
    assert light == whole


def test_parents_protection_and_what_is_ignored_are_recorded() -> None:
    (found,) = lines(HERE, "dev")
    by_type = {entry["type"]: entry for entry in found["resources"]}
    pool = by_type["gcp:container/nodePool:NodePool"]
    assert pool["parent"].startswith("tollgate:index:")
    assert "initialNodeCount" in pool["ignore"]
    assert pool["inputs"]["nodeConfig"]["machineType"]
    assert by_type["tollgate:index:Platform"]["parent"] is None


def test_the_days_shape_is_planned_hour_by_hour(project: Path) -> None:
    path = project / "stacks" / "Pulumi.local-vllm.yaml"
    path.write_text(path.read_text().replace("{min: 10, max: 10}", "{min: 1, max: 10}"))
    flat = room.evaluate(project, ["local-vllm"])["local-vllm"]
    daily = room.evaluate(project, ["local-vllm"], {"local-vllm": [0.0, 1.0]})["local-vllm"]
    assert flat.error is None
    assert daily.error is None
    assert flat.plan is not None
    assert daily.plan is not None
    peak = flat.plan["nodes_peak"]
    assert daily.plan["nodes_peak"] == peak > 1
    assert float(flat.plan["nodes_expected"]) == peak
    # Half of the day at the minimum, half at the peak.
    assert float(daily.plan["nodes_expected"]) == (1 + peak) / 2


def test_what_the_price_book_lacks_stops_no_evaluation_and_has_no_price(project: Path) -> None:
    path = project / "stacks" / "Pulumi.local-dev.yaml"
    path.write_text(
        path.read_text().replace(
            "machine_type: g2-standard-8", "machine_type: g2-standard-8\n    regions: [europe-west4]"
        )
    )
    found = room.evaluate(project, ["local-dev"])["local-dev"]
    assert found.error is None
    shape = room.shape("local-dev", found.resources, room.prices(), plan=found.plan)
    assert [entry.name for entry in shape.unpriced] == ["g2-standard-8"]
    assert shape.hourly("expected") == 0
    assert shape.usd_per_million_tokens is None


def test_a_program_that_ends_the_process_is_an_error_of_its_stacks(project: Path) -> None:
    (project / "__main__.py").write_text("import os\nos._exit(3)\n")
    found = room.evaluate(project, ["local-dev"])["local-dev"]
    assert found.error is not None
    assert found.error.startswith("the program ended")


def test_what_a_program_prints_is_not_taken_for_its_answer(project: Path) -> None:
    (project / "__main__.py").write_text(
        'print(\'{"stack": "local-dev", "resources": [], "error": null}\' if False else "{not json")\n'
        "from pathlib import Path\nimport pulumi\nfrom components import deploy\n"
        "deploy(pulumi.get_stack(), Path(__file__).resolve().parent)\n"
    )
    found = room.evaluate(project, ["local-dev"])["local-dev"]
    assert found.error is None
    assert found.resources


def test_a_base_without_a_repository_is_said_as_that(project: Path) -> None:
    with pytest.raises(stacks.InputError, match=r"in no git repository(.|\n)*--offline"):
        room.evaluate_both(project, ["local-dev"], "HEAD", lambda _: {})


@pytest.mark.slow
def test_the_table_of_replacements_has_every_type_of_google_s_that_our_own_stacks_make() -> None:
    names = [
        path.name.removeprefix("Pulumi.").removesuffix(".yaml") for path in (HERE / "stacks").glob("Pulumi.*.yaml")
    ]
    table = json.loads((HERE / "preview" / "replacements.json").read_text(encoding="utf-8"))["resources"]
    made = {one["type"] for entry in room.evaluate(HERE, names).values() for one in entry.resources}
    assert {kind for kind in made if kind.startswith("gcp:")} <= set(table)
