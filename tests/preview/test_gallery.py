"""The gallery's pull request, evaluated for real at base and head, its numbers held against arithmetic by hand."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import preview as room
from preview._evaluate import _touched
from tollgate.commands.preview import collect

pytestmark = pytest.mark.timeout(600)
HERE = Path(__file__).resolve().parents[2]
# us-central1, USD per hour: g2-standard-8 (on demand and spot), a2-highgpu-1g, e2-standard-4; GKE, a NAT by machine and address.
L4, SPOT, A100, E2 = Decimal("0.8536"), Decimal("0.4799"), Decimal("3.6734"), Decimal("0.13402284")
FEE, NAT, ADDRESS = Decimal("0.10"), Decimal("0.0014"), Decimal("0.005")
GIB = (Decimal("0.10") / 730).quantize(Decimal("1e-12"))

IDENTITY = {
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@t",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@t",
}


def gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("preview_gallery", HERE / "docs" / "preview_gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["preview_gallery"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = gallery().build(tmp_path_factory.mktemp("gallery") / "project")
    return found


@pytest.fixture(scope="module")
def report(repository: Path) -> room.Report:
    found: room.Report = collect(repository, [], "HEAD")
    return found


def stack(report: room.Report, name: str) -> room.StackReport:
    return next(one for one in report.stacks if one.stack == name)


def around(gpu_nodes: int, system: int = 3) -> Decimal:
    """What a GKE cluster with so many GPU nodes pays beside their machines and disks, by hand."""
    return system * E2 + system * 100 * GIB + FEE + (gpu_nodes + system) * NAT + ADDRESS


def hourly(report: room.Report, name: str, level: str = "expected") -> tuple[Decimal, Decimal]:
    amounts = getattr(stack(report, name).totals, level)
    return amounts.usd_per_hour_before, amounts.usd_per_hour_after


def test_slots_doubled_cost_nothing_and_answer_sooner(report: room.Report) -> None:
    one = stack(report, "slots-doubled")
    ten = 10 * L4 + 2000 * GIB + around(10)
    assert hourly(report, "slots-doubled") == (ten, ten)
    assert round(ten, 2) == Decimal("9.38")
    assert one.release == ("slots 8 → 16",)
    assert one.plan[0].startswith("p95 latency 4.9 → 4.0 s")
    assert one.events == ()
    before, after = one.usd_per_million_tokens_before, one.usd_per_million_tokens_after
    assert before is not None
    assert after is not None
    assert before > after


def test_four_l4_become_two_a100_in_slices_and_the_pool_is_recreated(report: room.Report) -> None:
    before = 4 * L4 + 800 * GIB + around(4)
    after = 2 * A100 + 400 * GIB + around(2)
    assert hourly(report, "l4-to-mig") == (before, after)
    assert (round(before, 2), round(after, 2)) == (Decimal("4.08"), Decimal("7.96"))
    one = stack(report, "l4-to-mig")
    assert "+2 a2-highgpu-1g at peak, −4 g2-standard-8 at peak, +$3.88/h expected (+95 %), release" in one.headline
    assert "MIG slice none → 3g.20gb" in one.release
    (event,) = one.events
    assert event.words.startswith("node pool gpu-pool-us-central1 is recreated")
    assert any("gpuPartitionSize: nothing → 3g.20gb" in field for field in event.fields)
    pool = next(line.after for line in one.resources if line.item.kind == "gpu-pool" and line.after is not None)
    assert (pool.gpus, pool.slices, pool.quantity.expected) == (1, 2, 2)


def test_a_raised_maximum_costs_at_most_and_not_as_expected(report: room.Report) -> None:
    before = 6 * L4 + 1200 * GIB + around(6, system=6)
    after = 12 * L4 + 2400 * GIB + around(12, system=6)
    assert hourly(report, "max-raised", "max") == (before, after)
    assert (round(before, 2), round(after, 2)) == (Decimal("6.29"), Decimal("11.59"))
    expected = hourly(report, "max-raised")
    assert expected[0] == expected[1] == 2 * L4 + 400 * GIB + around(2)
    # What is shown adds up: 11.59 less 6.29.
    assert stack(report, "max-raised").headline == "max-raised: +6 g2-standard-8 at most, +$5.30/h at most"


def test_a_second_region_costs_a_second_cluster(report: room.Report) -> None:
    one = 4 * L4 + 800 * GIB + around(4)
    assert hourly(report, "region-added") == (one, 2 * one)
    added = stack(report, "region-added")
    assert "+4 g2-standard-8 at peak, +$4.08/h expected (+100 %)" in added.headline
    # The first region's cluster keeps its name, and so itself.
    assert added.events == ()
    assert (added.deleted, added.created > 0) == (0, True)


def test_a_pool_that_becomes_spot_is_cheaper_and_is_recreated_for_that_field(report: room.Report) -> None:
    before, after = hourly(report, "pool-recreated")
    assert before - after == 4 * (L4 - SPOT) == Decimal("1.4948")
    (event,) = stack(report, "pool-recreated").events
    # Resources on GKE are named after their region.
    name = "gpu-pool-us-central1"
    assert event.words == f"node pool {name} is recreated: all of its nodes go (nodeConfig.spot: false → true)"


def test_a_comment_in_a_file_changes_nothing(report: room.Report) -> None:
    one = stack(report, "unchanged")
    assert one.status == "unchanged"
    assert hourly(report, "unchanged")[0] == 10 * L4 + 2000 * GIB + around(10)
    alone = report.model_copy(update={"stacks": (one,), "headline": "no change in 1 stack"})
    assert "|" not in room.markdown(alone)


def test_a_machine_without_a_price_is_unpriced_by_name(report: room.Report) -> None:
    one = stack(report, "h200")
    assert "a3-ultragpu-8g UNPRICED" in one.headline
    assert "a3-ultragpu-8g" in {entry.name for entry in one.unpriced}
    pool = next(line.after for line in one.resources if line.item.kind == "gpu-pool" and line.after is not None)
    assert pool.usd_per_hour is None
    assert one.partial_after
    assert not one.partial_before


def test_the_pictures_of_the_gallery_are_of_these_numbers(report: room.Report) -> None:
    for one in report.stacks:
        shown = (HERE / "docs" / "preview" / f"{one.stack}.md").read_text(encoding="utf-8")
        assert f"### {room._markdown.safe(one.headline)}" in shown  # type: ignore[attr-defined]
        assert (HERE / "docs" / "preview" / f"{one.stack}.png").stat().st_size > 3_000


def run(repository: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tollgate", "preview", *arguments]
    return subprocess.run(
        command,
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(HERE), **env},
    )


def test_the_child_that_runs_a_pull_request_s_code_sees_no_token(repository: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    program = repository / "__main__.py"
    text = program.read_text()
    program.write_text(f"import os, pathlib\npathlib.Path({str(seen)!r}).write_text(repr(dict(os.environ)))\n" + text)
    try:
        before = dict(os.environ)
        os.environ |= {
            "GITHUB_TOKEN": "canary-1",
            "PULUMI_CONFIG_PASSPHRASE": "canary-2",
            "AWS_SECRET_ACCESS_KEY": "canary-3",
        }
        found = room.evaluate(repository, ["unchanged"])
    finally:
        program.write_text(text)
        os.environ.clear()
        os.environ.update(before)
    assert found["unchanged"].error is None
    assert "canary" not in seen.read_text()


def test_a_program_that_raises_is_said_in_the_comment_and_by_exit_code_one(repository: Path) -> None:
    program = repository / "__main__.py"
    text = program.read_text()
    program.write_text("raise RuntimeError('out of ideas')\n")
    try:
        done = run(repository, "unchanged", "--base", "HEAD", "--markdown")
    finally:
        program.write_text(text)
    assert done.returncode == 1
    assert "unchanged: cannot be evaluated: out of ideas" in done.stdout


def test_a_base_that_does_not_exist_is_said_in_the_comment_and_by_exit_code_two(repository: Path) -> None:
    done = run(repository, "--base", "no-such-branch", "--markdown")
    assert done.returncode == 2
    assert done.stdout.startswith(room.MARKER)
    assert "no-such-branch" in done.stdout
    assert "no-such-branch" in done.stderr
    assert json.loads(run(repository, "--base=--upload-pack=x", "--json").stdout)["exit_code"] == 2


def test_a_stack_file_broken_only_at_head_is_said_with_its_line_beside_the_others(repository: Path) -> None:
    path = repository / "stacks" / "Pulumi.max-raised.yaml"
    text = path.read_text()
    path.write_text(text.replace("users: 50", "user: 50"))
    try:
        done = run(repository, "max-raised", "region-added", "--base", "HEAD", "--json")
    finally:
        path.write_text(text)
    found = room.from_json(done.stdout)
    assert done.returncode == found.exit_code == 2
    assert found.worth_a_comment
    broken, whole = found.stacks
    assert broken.status == "broken"
    assert "tollgate:traffic.user" in (broken.error or "")
    assert whole.status == "changed"
    assert whole.totals.expected.usd_per_hour_change > 4


def test_a_stack_broken_only_at_the_base_counts_as_new_and_says_so(repository: Path) -> None:
    path = repository / "stacks" / "Pulumi.unchanged.yaml"
    text = path.read_text()
    path.write_text(text.replace("users: 50", "user: 50"))
    subprocess.run(
        ["git", "commit", "-qm", "broken", "--", path], cwd=repository, check=True, env={**os.environ, **IDENTITY}
    )
    path.write_text(text)
    try:
        found = collect(repository, ["unchanged"], "HEAD")
    finally:
        subprocess.run(["git", "reset", "-q", "--soft", "HEAD~1"], cwd=repository, check=True)
        subprocess.run(["git", "reset", "-q"], cwd=repository, check=True)
    (one,) = found.stacks
    assert one.status == "new"
    assert "tollgate:traffic.user" in (one.base_error or "")
    assert found.exit_code == 0
    assert "cannot be evaluated at the base" in room.alerts(found)[1][-1]


def test_what_others_merged_since_is_not_shown_as_undone(repository: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
        done = subprocess.run(command, cwd=repository, input="", capture_output=True, text=True, check=True)
        return done.stdout.strip()

    branch = git("branch", "--show-current")
    # Somebody's commit on the base, made of trees alone: this checkout is left as it is.
    git("update-ref", "refs/heads/theirs", git("commit-tree", "-p", "HEAD", "-m", "theirs", git("mktree", "--missing")))
    try:
        found = collect(repository, ["unchanged"], "theirs")
    finally:
        git("update-ref", "-d", "refs/heads/theirs")
    assert [one.status for one in found.stacks] == ["unchanged"]
    assert git("branch", "--show-current") == branch


@pytest.mark.parametrize(
    ("path", "touched"),
    [
        ("docs/page.md", set()),
        ("notes.txt", set()),
        ("tests/test_it.py", set()),
        ("stacks/Pulumi.unchanged.yaml", {"unchanged"}),
        ("stacks/releases/ollama-8.yaml", set()),
        # Part of the release's digest.
        ("charts/engine/templates/NOTES.txt", {"unchanged", "max-raised"}),
        ("components/new.py", {"unchanged", "max-raised"}),
        ("stacks/pipeline.yaml", {"unchanged", "max-raised"}),
    ],
)
def test_only_what_a_change_can_reach_is_evaluated_twice(tmp_path: Path, path: str, touched: set[str]) -> None:
    root = gallery().build(tmp_path / "project")
    subprocess.run(["git", "stash", "--quiet"], cwd=root, check=True, env={**os.environ, **IDENTITY})
    shutil.copytree(root, tmp_path / "base")
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    with (root / path).open("a") as file:
        file.write("# more\n")
    assert _touched(root, tmp_path / "base", "HEAD", ["unchanged", "max-raised"]) == touched


def test_limits_of_the_checkout_decide_the_exit_code_and_an_earlier_json_renders_alike(
    repository: Path, tmp_path: Path
) -> None:
    limits = repository / "stacks" / "preview.yaml"
    limits.write_text("budgets:\n- {stacks: [region-*], fail: {increase_percent: 50}}\ndays: {max-raised: [0.1, 1]}\n")
    saved = tmp_path / "preview.json"
    try:
        done = run(repository, "region-added", "max-raised", "--base", "HEAD", "--json", "--out", str(saved))
    finally:
        limits.unlink()
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    found = room.from_json(saved.read_text())
    assert [finding.level for finding in found.findings] == ["fail"]
    again = run(repository, "--from", str(saved), "--markdown")
    assert again.returncode == 4
    assert again.stdout == room.markdown(found)
    assert "<!doctype html>" in run(repository, "--from", str(saved), "--html").stdout


def test_a_stack_that_goes_and_one_that_comes_are_both_in_the_preview(repository: Path) -> None:
    stacks = repository / "stacks"
    pipeline = (stacks / "pipeline.yaml").read_text()
    gone = (stacks / "Pulumi.unchanged.yaml").read_text()
    (stacks / "Pulumi.unchanged.yaml").unlink()
    (stacks / "Pulumi.comes.yaml").write_text(
        gone.replace("unchanged", "comes").replace("max: 10", "max: 3").replace("min: 10", "min: 3")
    )
    (stacks / "pipeline.yaml").write_text(pipeline.replace("unchanged", "comes"))
    try:
        found = collect(repository, [], "HEAD")
    finally:
        (stacks / "Pulumi.comes.yaml").unlink()
        (stacks / "Pulumi.unchanged.yaml").write_text(gone)
        (stacks / "pipeline.yaml").write_text(pipeline)
    assert hourly(found, "comes") == (0, 3 * L4 + 600 * GIB + around(3))
    assert stack(found, "comes").headline.startswith("comes: new, 3 g2-standard-8 at peak, $")
    assert hourly(found, "unchanged") == (10 * L4 + 2000 * GIB + around(10), 0)
    assert stack(found, "unchanged").status == "removed"
    assert any(event.type.endswith(":Cluster") and event.stateful for event in stack(found, "unchanged").events)
    assert found.worth_a_comment


def test_a_worktree_is_left_by_nobody(repository: Path, report: Any) -> None:
    done = subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1


def test_the_published_schemas_are_those_of_the_code() -> None:
    for name, text in sys.modules["preview_gallery"].schemas().items():
        assert (HERE / "docs" / "preview" / name).read_text(encoding="utf-8") == text, (
            f"{name}: run the gallery's script"
        )
