"""The gate as a whole: evidence in, promotion, admission; and everything that must not get through."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gate
import stacks
from bench.results import Result, Run

HERE = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
DIGEST = "sha256:" + "a1" * 32
GOOD = {
    "e2e_p95_seconds": 3.1,
    "e2e_mean_seconds": 2.7,
    "requests_per_second": 18.0,
    "output_tokens_per_second": 2300.0,
}
SLOW = {"e2e_p95_seconds": 9.9, "e2e_mean_seconds": 9.7, "requests_per_second": 5.1, "output_tokens_per_second": 650.0}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(HERE / "Pulumi.yaml", tmp_path)
    shutil.copytree(HERE / "stacks", tmp_path / "stacks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return tmp_path


def result(
    metrics: Mapping[str, float] = GOOD,
    *,
    runs: int = 3,
    stack: str = "local-dev",
    release: str = DIGEST,
    **changes: Any,
) -> Result:
    environment = {"accelerator": "nvidia-l4", "mig_profile": "", "machine_type": "g2-standard-8", "simulated": True}
    sent = changes.pop("sent", 270)
    return Result(
        release=release,
        stack=stack,
        url="http://engine",
        traffic=stacks.load_stack("local-dev", HERE).traffic,
        replicas=10,
        runs=tuple(
            Run(
                started=NOW,
                seconds=15,
                warmup_seconds=2,
                sent=sent,
                ok=sent,
                failed=0,
                cut=0,
                # A little spread, as real runs have.
                metrics={name: value * (1 + 0.01 * (index % 3 - 1)) for name, value in metrics.items()},
                valid=changes.get("valid", True),
                invalid_because=changes.get("invalid_because", ""),
            )
            for index in range(runs)
        ),
        environment={**environment, **changes.get("environment", {})},
        tool_version="0.1.0",
    )


def record(project: Path, what: Result, now: datetime = NOW) -> gate.Evidence:
    stack = stacks.load_stack(what.stack, project)
    return gate.record(stack, what, release_digest=what.release, root=project, now=now)


def promote(project: Path, now: datetime = NOW, release: str = DIGEST) -> tuple[gate.Admission, bool]:
    return gate.promote("local-dev", "local-prod", project, release_digest=release, now=now)


def check(project: Path, now: datetime = NOW, release: str = DIGEST) -> gate.Admission:
    return gate.check(stacks.load_stack("local-prod", project), release_digest=release, root=project, now=now)


def files(project: Path) -> list[Path]:
    return sorted((project / ".tollgate" / "evidence").glob("*.json"))


def test_good_evidence_promotes_and_admits(project: Path) -> None:
    evidence = record(project, result())
    assert evidence.verdict == "pass"
    admission, changed = promote(project)
    assert changed
    assert admission.evidence == evidence.digest
    assert check(project).gated


def test_without_any_evidence_the_refusal_says_what_is_missing_and_what_to_do(project: Path) -> None:
    with pytest.raises(
        gate.GateRefused, match=r"(?s)nothing was promoted.*pulumi up -s local-dev, then tollgate promote"
    ):
        check(project)
    with pytest.raises(gate.GateRefused, match="no evidence of release"):
        promote(project)


def test_an_ungated_stack_is_let_in_and_says_so(project: Path) -> None:
    stack = stacks.load_stack("local-dev", project)
    assert not gate.check(stack, release_digest=DIGEST, root=project, now=NOW).gated


def test_a_slow_release_fails_and_is_refused_with_its_numbers(project: Path) -> None:
    assert record(project, result(SLOW)).verdict == "fail"
    with pytest.raises(gate.GateRefused, match=r"(?s)e2e_p95_seconds +≤ 5 s +9\.9.*fail"):
        promote(project)


def test_promotion_changes_only_release_and_record_and_keeps_comments(project: Path) -> None:
    path = project / "stacks" / "Pulumi.local-prod.yaml"
    before = path.read_text()
    record(project, result())
    promote(project)
    after = path.read_text()
    assert before.splitlines()[0].startswith("#")
    removed = [line for line in before.splitlines() if line not in after.splitlines()]
    assert removed == []
    added = [line.strip() for line in after.splitlines() if line not in before.splitlines()]
    assert [line.split(":")[0] for line in added] == ["tollgate", "from", "release", "evidence", "at"]


def test_promoting_twice_changes_nothing_the_second_time(project: Path) -> None:
    record(project, result())
    promote(project)
    text = (project / "stacks" / "Pulumi.local-prod.yaml").read_text()
    assert promote(project, NOW + timedelta(hours=1))[1] is False
    assert (project / "stacks" / "Pulumi.local-prod.yaml").read_text() == text


def test_promotion_out_of_order_is_wrong_input(project: Path) -> None:
    with pytest.raises(stacks.InputError, match="local-prod takes releases from local-dev"):
        gate.promote("local-vllm", "local-prod", project, release_digest=DIGEST, now=NOW)


def test_the_same_result_is_recorded_once(project: Path) -> None:
    first, second = record(project, result()), record(project, result(), NOW + timedelta(hours=1))
    assert first.digest == second.digest
    assert len(files(project)) == 1


def test_evidence_of_another_release_cannot_be_recorded(project: Path) -> None:
    stack = stacks.load_stack("local-dev", project)
    with pytest.raises(stacks.TollgateError, match="measured release"):
        gate.record(stack, result(), release_digest="sha256:" + "b" * 64, root=project, now=NOW)


def test_an_edited_release_after_promotion_is_named(project: Path) -> None:
    record(project, result())
    promote(project)
    with pytest.raises(gate.GateRefused, match="edited after the promotion"):
        check(project, release="sha256:" + "b" * 64)


def test_expired_evidence_is_stale(project: Path) -> None:
    record(project, result())
    promote(project)
    with pytest.raises(gate.GateRefused, match=r"(?s)stale.*25\.0 h old"):
        check(project, NOW + timedelta(hours=25))


def test_evidence_from_the_future_is_stale_because_a_clock_is_wrong(project: Path) -> None:
    record(project, result())
    with pytest.raises(gate.GateRefused, match="a clock is wrong"):
        promote(project, NOW - timedelta(hours=1))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("accelerator", "nvidia-tesla-a100"),
        ("machine_type", "g2-standard-4"),
        ("simulated", False),
        ("mig_profile", "1g.5gb"),
    ],
)
def test_evidence_from_another_environment_is_a_mismatch(project: Path, key: str, value: object) -> None:
    record(project, result(environment={key: value}))
    with pytest.raises(gate.GateRefused, match=rf"(?s)mismatch.*{key}"):
        promote(project)


def test_a_later_failure_of_the_same_release_closes_the_gate_again(project: Path) -> None:
    record(project, result())
    promote(project)
    record(project, result(SLOW), NOW + timedelta(minutes=1))
    with pytest.raises(gate.GateRefused, match="fail"):
        check(project, NOW + timedelta(minutes=2))


def test_a_dropped_run_never_passes(project: Path) -> None:
    assert record(project, result(runs=2)).verdict == "inconclusive"
    with pytest.raises(gate.GateRefused, match=r"1 run\(s\) missing"):
        promote(project)


def test_a_client_bound_run_never_passes(project: Path) -> None:
    assert (
        record(project, result(valid=False, invalid_because="the client was the bottleneck")).verdict == "inconclusive"
    )
    with pytest.raises(gate.GateRefused, match="the client was the bottleneck"):
        promote(project)


def test_three_requests_a_run_do_not_show_an_error_rate(project: Path) -> None:
    assert record(project, result(sent=3)).verdict == "inconclusive"
    with pytest.raises(gate.GateRefused, match=r"(?s)error_rate.*inconclusive"):
        promote(project)


def test_a_metric_that_was_not_measured_never_passes(project: Path) -> None:
    partial = {name: value for name, value in GOOD.items() if name != "e2e_p95_seconds"}
    assert record(project, result(partial)).verdict == "inconclusive"


def test_a_run_without_requests_never_passes(project: Path) -> None:
    assert record(project, result(sent=0)).verdict == "inconclusive"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_a_number_is_no_result(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        result({**GOOD, "e2e_p95_seconds": value})


def test_a_criterion_deleted_from_the_evidence_is_judged_all_the_same(project: Path) -> None:
    """The stored verdict is not believed: the target's own promise is applied to the stored numbers."""
    path = project / "stacks" / "Pulumi.local-dev.yaml"
    text = path.read_text()
    path.write_text(
        text.replace("    e2e_p95_seconds: 5\n", "").replace("requests_per_second: 14", "requests_per_second: 1")
    )
    assert record(project, result(SLOW)).verdict == "pass"
    with pytest.raises(gate.GateRefused, match=r"(?s)e2e_p95_seconds.*fail"):
        promote(project)


def test_a_fleet_that_is_too_small_is_refused_with_the_shortfall(project: Path) -> None:
    path = project / "stacks" / "Pulumi.local-prod.yaml"
    path.write_text(path.read_text().replace("users: 50", "users: 500"))
    record(project, result())
    with pytest.raises(gate.GateRefused, match=r"(?s)scale.*fail.*short by \d+ node\(s\), \$\d"):
        promote(project)


def test_a_tampered_statement_a_swapped_signature_and_a_cut_file_each_have_their_message(project: Path) -> None:
    record(project, result())
    record(project, result(SLOW))
    one, two = files(project)
    original = one.read_bytes()

    def broken(data: bytes, match: str) -> None:
        one.write_bytes(data)
        with pytest.raises(gate.EvidenceBroken, match=match):
            gate.open_store("file://.tollgate/evidence", project, gate.load_keys(project)).entries()
        one.write_bytes(original)

    broken(original[:-20], "it was edited, or one is missing")
    envelope, other = json.loads(original), json.loads(two.read_bytes())
    trusted = gate.load_keys(project).trusted
    swapped = stacks.canonical_json({**envelope, "signatures": other["signatures"]})
    with pytest.raises(gate.EvidenceBroken, match="does not fit the statement"):
        gate.unseal(swapped, trusted, "swapped")
    with pytest.raises(gate.EvidenceBroken, match="cut short or edited"):
        gate.unseal(original[:-20], trusted, "cut")
    with pytest.raises(gate.EvidenceBroken, match="does not trust"):
        gate.unseal(original, {}, "foreign key")


def test_evidence_taken_out_of_the_middle_breaks_the_chain(project: Path) -> None:
    for index in range(3):
        record(project, result({**GOOD, "e2e_p95_seconds": 3.0 + index / 10}))
    files(project)[1].unlink()
    with pytest.raises(gate.EvidenceBroken, match="one is missing"):
        promote(project)


def test_the_newest_evidence_taken_away_is_missed_by_the_promotion_record(project: Path) -> None:
    record(project, result())
    promote(project)
    files(project)[0].unlink()
    with pytest.raises(gate.GateRefused, match="not in the store"):
        check(project)


def test_a_store_that_cannot_be_read_is_closed_not_open(project: Path) -> None:
    record(project, result())
    promote(project)
    files(project)[0].unlink()
    (project / ".tollgate" / "evidence" / "000001-aaaaaaaaaaaa.json").mkdir()
    with pytest.raises(gate.EvidenceBroken, match="cannot be read"):
        check(project)


def test_a_store_that_is_not_supported_is_wrong_input(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_EVIDENCE", "ftp://somewhere")
    with pytest.raises(stacks.InputError, match="ftp://somewhere"):
        record(project, result())


def test_replaying_another_releases_evidence_is_refused(project: Path) -> None:
    """The record is edited by hand to name evidence that is genuine, passing, and of something else."""
    other = record(project, result(release="sha256:" + "c" * 64))
    record(project, result())
    promote(project)
    path = project / "stacks" / "Pulumi.local-prod.yaml"
    genuine = stacks.load_stack("local-prod", project).promotion
    assert genuine is not None
    path.write_text(path.read_text().replace(genuine.evidence, other.digest))
    with pytest.raises(gate.GateRefused, match=r"(?s)mismatch.*subject"):
        check(project)


def _write_one(project: Path, index: int) -> None:
    record(project, result({**GOOD, "e2e_p95_seconds": 3.0 + index / 100}))


def test_two_writers_at_once_lose_nothing(project: Path) -> None:
    gate.load_keys(project, create=True)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_one, args=(project, index)) for index in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert [writer.exitcode for writer in writers] == [0] * 6
    entries = gate.open_store("file://.tollgate/evidence", project, gate.load_keys(project)).entries()
    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5, 6]


def test_the_private_key_is_for_its_owner_only_and_not_in_any_evidence(project: Path) -> None:
    record(project, result())
    key = project / ".tollgate" / "keys" / "evidence.key"
    assert key.stat().st_mode & 0o777 == 0o600
    secret = "".join(key.read_text().splitlines()[1:-1])
    assert secret not in files(project)[0].read_text()


def test_a_broken_signing_key_is_refused_without_repeating_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_SIGNING_KEY", "canary-secret")
    with pytest.raises(stacks.InputError) as caught:
        record(project, result())
    assert "canary-secret" not in str(caught.value)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_edit_of_one_byte_of_evidence_verifies(project: Path, data: st.DataObject) -> None:
    if not files(project):
        record(project, result())
    original = files(project)[0].read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != original[place]))
    edited = original[:place] + bytes([byte]) + original[place + 1 :]
    with pytest.raises(gate.EvidenceBroken):
        gate.unseal(edited, gate.load_keys(project).trusted, "edited")
