"""Budgets, quotas and rules: what they let pass, what they do not, and what a change may not do to its own limits."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import preview as room
import stacks
from preview import Change, Limits
from preview._limits import judge, raised


def shape(stack: str, nodes: int, **given: Any) -> room.Shape:
    pool = {
        "machineType": given.get("machine", "g2-standard-8"),
        "gpu": given.get("gpu", "nvidia-l4"),
        "region": "us-central1",
        "spot": given.get("spot", False),
        "nodesMin": 0,
        "nodesExpected": nodes,
        "nodesMax": given.get("high", nodes),
        "migProfile": given.get("mig"),
    }
    target = {"type": "tollgate:index:Cluster", "name": "cluster", "inputs": {"target": given.get("target", "gke")}}
    one = {"type": "tollgate:index:GpuPool", "name": "gpu-pool", "inputs": pool, "parent": None}
    return room.shape(stack, [target, one], room.prices())


def change(stack: str, before: int, after: int, **given: Any) -> Change:
    return Change(stack=stack, before=shape(stack, before), after=shape(stack, after, **given))


def limits(**given: Any) -> Limits:
    return Limits.model_validate(given)


def messages(changes: list[Change], **given: Any) -> list[tuple[str, str]]:
    return [(finding.level, finding.message) for finding in judge(changes, limits(**given))]


def test_a_budget_warns_first_and_fails_above() -> None:
    budget = {"stacks": ["prod"], "warn": {"usd_per_hour": 8}, "fail": {"usd_per_hour": 10}}
    assert messages([change("prod", 9, 9)], budgets=[budget]) == []
    # 10 × 0.8536 and 12 × 0.8536.
    assert messages([change("prod", 9, 10)], budgets=[budget]) == [
        ("warn", "prod: $8.54/h is above the limit of $8.00/h (expected)")
    ]
    assert messages([change("prod", 9, 12)], budgets=[budget])[0][0] == "fail"
    assert messages([change("dev", 9, 12)], budgets=[budget]) == []


def test_a_budget_at_most_sees_what_an_autoscaler_may_do() -> None:
    budget = {"at": "max", "fail": {"usd_per_hour": 10}}
    assert messages([change("prod", 4, 4, high=12)], budgets=[budget]) == [
        ("fail", "prod: $10.24/h is above the limit of $10.00/h (max)")
    ]


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"increase_percent": 20}, "prod: +50.00 % is above the limit of +20 % (expected)"),
        ({"increase_usd_per_hour": 4}, "prod: +$4.27/h is above the limit of +$4.00/h (expected)"),
    ],
)
def test_growth_has_limits_of_its_own(bounds: dict[str, int], words: str) -> None:
    assert messages([change("prod", 10, 15)], budgets=[{"fail": bounds}]) == [("fail", words)]
    assert messages([change("prod", 15, 10)], budgets=[{"fail": bounds}]) == []


def test_a_pipeline_s_budget_is_on_the_sum_removed_stacks_included() -> None:
    budget = {"together": True, "fail": {"increase_usd_per_hour": 1}}
    moved = [Change(stack="old", before=shape("old", 10)), Change(stack="new", after=shape("new", 10))]
    assert messages(moved, budgets=[budget]) == []
    assert len(messages([change("a", 1, 2), change("b", 1, 2)], budgets=[budget])) == 1
    assert messages([change("a", 1, 2)], budgets=[budget]) == []


def test_a_budget_is_not_kept_by_a_machine_without_a_price() -> None:
    found = messages([change("prod", 10, 10, machine="x9-mega")], budgets=[{"fail": {"usd_per_hour": 1000}}])
    assert found == [("fail", "prod: the budget cannot be judged, unpriced is prod: x9-mega")]


def test_a_quota_counts_gpus_at_most_over_all_stacks_of_the_cloud() -> None:
    quota = {"region": "us-central1", "gpu": "nvidia-l4", "gpus": 16}
    stacks_ = [change("a", 4, 4, high=10), change("b", 4, 6), change("local", 9, 9, target="local")]
    assert messages(stacks_, quotas=[quota]) == []
    assert messages([*stacks_, change("c", 1, 1)], quotas=[quota]) == [
        ("fail", "17 nvidia-l4 at most in us-central1, the quota is 16: a 10, b 6, c 1")
    ]
    spot = {**quota, "gpus": 0, "spot": True}
    assert messages([change("a", 4, 4, spot=True)], quotas=[spot])[0][1].startswith("4 spot nvidia-l4")
    assert messages([change("a", 4, 4)], quotas=[spot]) == []


A100 = {
    "name": "no-on-demand-a100-in-dev",
    "message": "no on-demand A100 in dev",
    "stacks": ["dev*"],
    "gpus": ["*a100*"],
    "spot": False,
}


def test_no_on_demand_a100_in_dev() -> None:
    a100 = {"machine": "a2-highgpu-1g", "gpu": "nvidia-tesla-a100"}
    words = (
        "dev-1: no on-demand A100 in dev (pool gpu-pool: a2-highgpu-1g, 1 × nvidia-tesla-a100, us-central1, on demand)"
    )
    assert messages([change("dev-1", 1, 1, **a100)], rules=[A100]) == [("fail", words)]
    assert messages([change("dev-1", 1, 1, **a100, spot=True)], rules=[A100]) == []
    assert messages([change("prod", 1, 1, **a100)], rules=[A100]) == []
    assert messages([change("dev-1", 1, 1)], rules=[A100]) == []


def test_only_allowed_machine_types_pass() -> None:
    rule = {"name": "machines", "message": "only L4 machines", "only_machine_types": ["g2-*"], "level": "warn"}
    assert messages([change("prod", 1, 1)], rules=[rule]) == []
    assert messages([change("prod", 1, 1, machine="a2-highgpu-1g")], rules=[rule])[0][0] == "warn"


def test_a_limit_that_the_same_change_lifts_is_said() -> None:
    before, now = limits(budgets=[{"fail": {"usd_per_hour": 10}}]), limits(budgets=[{"fail": {"usd_per_hour": 100}}])
    changes = [change("prod", 10, 15)]
    assert judge(changes, now) == []
    (finding,) = raised(changes, now, before)
    assert finding.level == "warn"
    assert "this change lifts the limit" in finding.message
    assert raised(changes, before, before) == []


def test_a_file_that_is_wrong_is_said_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    path = tmp_path / "stacks" / "preview.yaml"
    assert room.load_limits(tmp_path) == Limits()
    path.write_text("budgets:\n- fail: {dollars: 3}\n")
    with pytest.raises(stacks.InputError, match=r"stacks/preview.yaml, budgets.0.fail.dollars"):
        room.load_limits(tmp_path)
    for text in ("budgets: [", "- a", "budgets: [{fail: {}}]", "quotas: [{region: r, gpu: g, gpus: -1}]"):
        path.write_text(text)
        with pytest.raises(stacks.InputError, match=r"stacks/preview.yaml"):
            room.load_limits(tmp_path)
    path.write_text("comment_above_usd_per_hour: 0.5\ndays: {prod: [0.2, 1]}\n")
    found = room.load_limits(tmp_path)
    assert found.comment_above_usd_per_hour == Decimal("0.5")
    assert found.days["prod"] == (0.2, 1)


def test_the_example_in_the_documentation_is_a_limits_file(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "preview.md").read_text(encoding="utf-8")
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "preview.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    found = room.load_limits(tmp_path)
    assert [rule.name for rule in found.rules] == ["no-on-demand-a100-in-dev", "machines"]
    assert found.budgets[1].together
