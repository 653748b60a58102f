"""The gate as a whole: evidence in, promotion, admission, and what each of them says."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import gate
import stacks

HERE = Path(__file__).resolve().parents[2]


def test_good_evidence_promotes_and_admits(world: Any) -> None:
    evidence = world.record()
    assert evidence.verdict == "pass"
    admission, changed = world.promote()
    assert changed
    assert admission.evidence == evidence.digest
    assert world.check().gated
    assert world.check().approvals == ()


def test_without_any_evidence_the_refusal_says_what_is_missing_and_what_to_do(world: Any) -> None:
    world.refused(r"(?s)nothing was promoted.*pulumi up -s local-dev, then tollgate promote")
    world.not_promoted("no evidence of release")


def test_an_ungated_stack_is_let_in_and_says_so(world: Any) -> None:
    assert not gate.check(world.stack("local-dev"), release_digest=world.digest, root=world.root, now=world.now).gated


def test_a_slow_release_fails_and_is_refused_with_its_numbers(world: Any) -> None:
    assert world.record(world.result(world.slow)).verdict == "fail"
    said = world.not_promoted(r"(?s)e2e_p95_seconds +≤ 5 s +9\.9.*fail")
    header = said.splitlines()[1].split()
    assert header == ["criterion", "needed", "measured", "bound", "at", "outcome", "why"]
    assert "of local-dev, signed 2026-11-21T12:00:00+00:00" in said
    assert said.splitlines()[-1].strip() == (
        "fix: improve the release, then pulumi up -s local-dev; or tollgate approve local-prod "
        "--criterion e2e_p95_seconds --criterion requests_per_second --why …"
    )


def test_a_refusal_is_exit_code_3() -> None:
    assert gate.GateRefused.exit_code == 3
    assert gate.EvidenceBroken.exit_code == 3


def test_promotion_changes_only_release_and_record_and_keeps_comments(world: Any) -> None:
    path = stacks.stack_path("local-prod", world.root)
    path.chmod(0o640)
    before = path.read_text()
    world.record()
    world.promote()
    after = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640
    assert [line for line in before.splitlines() if line not in after.splitlines()] == []
    added = [line.strip() for line in after.splitlines() if line not in before.splitlines()]
    assert [line.split(":")[0] for line in added] == ["tollgate", "from", "release", "evidence", "at"]
    assert [item.name for item in path.parent.iterdir() if item.name.startswith(".")] == []


def test_promoting_twice_changes_nothing_the_second_time(world: Any) -> None:
    world.record()
    world.promote()
    text, count = stacks.stack_path("local-prod", world.root).read_text(), len(world.files())
    assert world.promote(world.later(hours=1))[1] is False
    assert stacks.stack_path("local-prod", world.root).read_text() == text
    assert len(world.files()) == count == 2


def test_a_promotion_that_was_signed_but_not_written_is_finished_by_the_next(world: Any) -> None:
    world.record()
    path = stacks.stack_path("local-prod", world.root)
    before = path.read_text()
    world.promote()
    path.write_text(before)
    assert world.promote(world.later(minutes=1))[1] is True
    assert len(world.files()) == 2
    assert world.check(world.later(minutes=2)).gated


def test_promotion_out_of_order_is_wrong_input(world: Any) -> None:
    with pytest.raises(stacks.InputError, match="local-prod takes releases from local-dev"):
        gate.promote("local-other", "local-prod", world.root, release_digest=world.digest, now=world.now)
    with pytest.raises(stacks.InputError, match="local-other is not gated"):
        gate.promote("local-dev", "local-other", world.root, release_digest=world.digest, now=world.now)


def test_the_same_result_is_recorded_once(world: Any) -> None:
    first, second = world.record(), world.record(now=world.later(hours=1))
    assert first.digest == second.digest
    assert len(world.files()) == 1


def test_evidence_of_another_release_or_stack_cannot_be_recorded(world: Any) -> None:
    stack = world.stack("local-dev")
    with pytest.raises(stacks.TollgateError, match="measured release"):
        gate.record(stack, world.result(), release_digest="sha256:" + "b" * 64, root=world.root, now=world.now)
    foreign = world.result(stack="local-other")
    with pytest.raises(stacks.TollgateError, match="measured stack 'local-other'"):
        gate.record(stack, foreign, release_digest=world.digest, root=world.root, now=world.now)
    assert world.files() == []


def test_the_statement_is_a_test_result_that_carries_what_an_auditor_asks_for(world: Any) -> None:
    statement = world.record().entry.statement
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert statement["subject"] == [{"name": "gemma-8", "digest": {"sha256": "a1" * 32}}]
    predicate = statement["predicate"]
    assert predicate["result"] == "PASSED"
    assert "e2e_p95_seconds" in predicate["passedTests"]
    assert predicate["configuration"][0]["name"] == "traffic"
    facts = predicate["tollgate"]
    assert facts["release"]["parallelism"]["slots"] == 8
    assert facts["price_book"]["digest"].startswith("sha256:")
    assert facts["tools"]["bench"] == "0.1.0"
    assert [line["metric"] for line in facts["verdict"]["criteria"]] == [
        "runs",
        "e2e_p95_seconds",
        "error_rate",
        "requests_per_second",
    ]
    assert facts["result"]["environment"]["accelerator"] == "nvidia-l4"


def test_a_failed_measurement_says_so_in_the_words_of_the_format(world: Any) -> None:
    assert world.record(world.result(world.slow)).entry.statement["predicate"]["result"] == "FAILED"
    wide = world.result(spread=(-0.4, 0.0, 0.4))
    assert world.record(wide).entry.statement["predicate"]["result"] == "WARNED"


def test_expired_evidence_is_stale(world: Any) -> None:
    world.record()
    world.promote()
    assert world.check(world.later(hours=23)).gated
    world.refused(r"(?s)stale.*25\.0 h old", world.later(hours=25))


def test_a_later_failure_of_the_same_release_closes_the_gate_again(world: Any) -> None:
    world.record()
    world.promote()
    world.record(world.result(world.slow), world.later(minutes=1))
    world.refused("refuses release gemma-8: fail", world.later(minutes=2))


def test_a_soak_time_counts_from_the_first_pass(world: Any) -> None:
    world.criteria("soak_hours: 2")
    world.record()
    said = world.not_promoted(r"soak +≥ 2 h +inconclusive", world.later(hours=1))
    assert "may enter from 2026-11-21 14:00 UTC" in said.replace("  ", " ")
    assert world.promote(world.later(hours=2))[1]


def test_measuring_again_until_it_passes_is_not_let_through(world: Any) -> None:
    noisy = world.result(spread=(-0.4, 0.0, 0.4))
    assert world.record(noisy).verdict == "inconclusive"
    assert "fix: pulumi up -s local-dev, which adds runs as long as there are looks" in world.not_promoted("noise")
    world.record(world.result(), world.later(minutes=5))
    said = world.not_promoted(r"looks +≤ 1 +2 .*inconclusive", world.later(minutes=6))
    assert "measured again until it passed" in said


def test_a_planned_second_look_settles_a_noisy_first_one_at_stricter_bounds(world: Any) -> None:
    world.criteria("looks: 2")
    world.record(world.result(spread=(-0.4, 0.0, 0.4)))
    world.record(world.result(), world.later(minutes=5))
    admission, _ = world.promote(world.later(minutes=6))
    lines = {line.metric: line for line in admission.verdict.criteria}
    assert lines["looks"].measured == 2
    assert lines["e2e_p95_seconds"].confidence == pytest.approx(0.975)
    assert world.check(world.later(minutes=7)).gated


def test_a_failure_longer_ago_than_evidence_lives_costs_no_look(world: Any) -> None:
    world.record(world.result(spread=(-0.4, 0.0, 0.4)))
    later = world.later(hours=30)
    world.record(world.result(), later)
    assert world.promote(later)[1]


def test_cost_is_judged_at_the_price_of_the_fleet_that_will_pay_it(world: Any) -> None:
    world.edit("Pulumi.local-prod.yaml", "    error_rate: 0.01\n", "    cost_per_million_tokens_usd: 1.5\n")
    world.record()
    admission, _ = world.promote()
    line = next(line for line in admission.verdict.criteria if line.metric == "cost_per_million_tokens_usd")
    # Ten g2-standard-8 per 2,300 tokens a second.
    import planner

    hourly = float(planner.price_book().price("g2-standard-8", region="us-central1").on_demand)
    assert line.measured == pytest.approx(10 * hourly / (2300 * 3600) * 1e6, rel=0.01)
    world.edit("Pulumi.local-prod.yaml", "cost_per_million_tokens_usd: 1.5", "cost_per_million_tokens_usd: 0.5")
    world.not_promoted(r"cost_per_million_tokens_usd +≤ 0\.5 .*fail")


def test_two_stores_are_read_where_two_stacks_name_two(world: Any) -> None:
    for name in ("local-dev", "local-prod"):
        text = stacks.stack_path(name, world.root)
        text.write_text(text.read_text() + f"  tollgate:evidence: file://.tollgate/of-{name}\n")
    world.record()
    world.promote()
    assert world.check().gated
    folder = world.root / ".tollgate"
    assert len(list((folder / "of-local-dev").glob("*.json"))) == 1
    assert len(list((folder / "of-local-prod").glob("*.json"))) == 1


def test_the_history_tells_what_happened_from_the_statements_alone(world: Any) -> None:
    world.record()
    world.promote(world.later(minutes=1))
    dev, prod = gate.history("local-dev", world.root), gate.history("local-prod", world.root)
    assert [(event.kind, event.what) for event in dev] == [("measurement", "measured: pass in 3 runs")]
    assert [event.kind for event in prod] == ["promotion"]
    assert prod[0].what.startswith("entered from local-dev on evidence ")
    assert prod[0].by == "this checkout"
    assert prod[0].at - dev[0].at == timedelta(minutes=1)


def test_importing_the_gate_loads_nothing_heavy() -> None:
    code = (
        "import sys, gate; heavy = {'cryptography', 'scipy', 'numpy', 'ruamel', 'planner', 'stacks', 'pydantic'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_checking_a_stack_that_is_not_gated_loads_no_statistics_and_no_cryptography(world: Any) -> None:
    code = (
        "import sys, datetime, pathlib, stacks, gate\n"
        f"root = pathlib.Path({str(world.root)!r})\n"
        "stack = stacks.load_stack('local-dev', root)\n"
        "now = datetime.datetime.now(datetime.timezone.utc)\n"
        "gate.check(stack, release_digest='sha256:' + '0' * 64, root=root, now=now)\n"
        "print(sorted({'cryptography', 'scipy', 'numpy', 'ruamel'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    assert sorted(gate.__all__, key=str.lower) == sorted(set(gate.__all__), key=str.lower)
    for name in gate.__all__:
        assert getattr(gate, name) is not None
