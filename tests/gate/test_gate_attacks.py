"""Everything that must not get through, each with words of its own."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import stat
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gate
import stacks


def test_a_swapped_signature_does_not_fit(world: Any) -> None:
    world.record(world.result(world.slow))
    world.record()
    bad, good = world.files()
    envelope, other = json.loads(bad.read_bytes()), json.loads(good.read_bytes())
    world.rewrite(bad, stacks.canonical_json({**envelope, "signatures": other["signatures"]}))
    said = r"evidence 000001\.json: bears the signature of 000002\.json; signatures were swapped or copied"
    world.not_promoted(said)
    # Both ways round, too.
    world.rewrite(good, stacks.canonical_json({**other, "signatures": envelope["signatures"]}))
    world.not_promoted(said)


def test_a_signature_by_a_key_of_ones_own_is_not_trusted(world: Any) -> None:
    statement = dict(world.record().entry.statement)
    key = gate.LocalKey(Ed25519PrivateKey.generate())
    world.rewrite(world.files()[0], gate.seal(statement, key))
    world.not_promoted("which this project does not trust")


def test_an_empty_file_is_named(world: Any) -> None:
    world.record()
    world.rewrite(world.files()[0], b"")
    world.not_promoted("cut short: its 0 bytes")


def test_evidence_taken_out_of_the_middle_is_missed(world: Any) -> None:
    for index in range(3):
        world.record(world.result({**world.good, "e2e_p95_seconds": 3.0 + index / 10}))
    world.files()[1].unlink()
    world.not_promoted(r"evidence 000002\.json is missing")


def test_closing_the_gap_breaks_the_chain(world: Any) -> None:
    for index in range(3):
        world.record(world.result({**world.good, "e2e_p95_seconds": 3.0 + index / 10}))
    one, two, three = world.files()
    two.unlink()
    three.rename(two)
    world.not_promoted("does not follow the one before it; the chain was changed")
    assert one.exists()


def test_a_failure_cut_off_the_end_is_missed_by_the_witness(world: Any) -> None:
    world.record()
    world.promote()
    world.record(world.result(world.slow), world.later(minutes=1))
    world.files()[-1].unlink()
    world.refused(r"(?s)lost statements that this checkout has seen \(3 before, 2 now\)", world.later(minutes=2))


def test_a_whole_store_replaced_is_missed_by_the_witness(world: Any) -> None:
    world.record()
    world.promote()
    for path in world.files():
        path.unlink()
    world.refused("lost statements")


def test_evidence_that_a_promotion_names_has_to_be_in_the_store(world: Any) -> None:
    world.record()
    world.promote()
    record = world.stack("local-prod").promotion
    world.edit("Pulumi.local-prod.yaml", record.evidence, "sha256:" + "e" * 64)
    world.refused("the evidence of the promotion is not in the store")


def test_a_store_that_cannot_be_read_is_closed_not_open(world: Any) -> None:
    world.record()
    world.promote()
    path = world.files()[0]
    path.unlink()
    path.mkdir()
    world.refused(r"evidence 000001\.json: cannot be read")


def test_a_store_that_is_a_file_is_closed(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.record()
    world.promote()
    (world.root / "file").write_text("")
    monkeypatch.setenv("TOLLGATE_EVIDENCE", "file://file")
    world.refused("cannot be read")


def test_a_link_in_the_store_is_refused(world: Any) -> None:
    world.record()
    path = world.files()[0]
    path.rename(world.root / "elsewhere.json")
    path.symlink_to(world.root / "elsewhere.json")
    world.not_promoted("is a link")


def test_a_foreign_file_in_the_store_is_named(world: Any) -> None:
    world.record()
    (world.root / ".tollgate" / "evidence" / "notes.txt").write_text("")
    world.not_promoted(r"notes\.txt does not belong there")


@pytest.mark.parametrize("location", ["ftp://somewhere", "file://", "s3://", "https://bucket"])
def test_a_store_that_is_not_supported_is_wrong_input(
    world: Any, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    monkeypatch.setenv("TOLLGATE_EVIDENCE", location)
    with pytest.raises(stacks.InputError, match="evidence"):
        world.record()


def test_replaying_another_releases_evidence_is_a_mismatch(world: Any) -> None:
    """The record is edited by hand to name evidence that is genuine, passing, and of something else."""
    other = world.record(world.result(release="sha256:" + "c" * 64))
    world.record()
    world.promote()
    world.edit("Pulumi.local-prod.yaml", world.stack("local-prod").promotion.evidence, other.digest)
    said = world.refused(r"subject .*mismatch +the evidence is of sha256:cccc")
    assert "written or edited by hand" in said


def test_a_promotion_record_written_by_hand_is_told_from_a_signed_one(world: Any) -> None:
    evidence = world.record()
    path = stacks.stack_path("local-prod", world.root)
    path.write_text(
        path.read_text() + "  tollgate:promotion:\n"
        f"    from: local-dev\n    release: {world.digest}\n    evidence: {evidence.digest}\n"
        "    at: 2026-11-21T12:00:00Z\n"
    )
    world.refused(r"promotion +signed .*mismatch .*written or edited by hand")


def test_a_promotion_record_from_another_stage_is_refused(world: Any) -> None:
    world.record()
    world.promote()
    world.edit("Pulumi.local-prod.yaml", "from: local-dev", "from: local-other")
    world.refused("its promotion record says local-other")


def test_an_edited_release_after_promotion_is_named(world: Any) -> None:
    world.record()
    world.promote()
    world.refused("a file was edited after the promotion", release="sha256:" + "b" * 64)


def test_a_promise_deleted_after_the_promotion_is_named(world: Any) -> None:
    world.record()
    world.promote()
    world.edit("Pulumi.local-prod.yaml", "    error_rate: 0.01\n", "")
    world.refused(r"policy +as promoted .*mismatch .*error_rate: deleted.*promote again")


def test_a_promise_loosened_after_the_promotion_is_named(world: Any) -> None:
    world.record()
    world.promote()
    world.edit("Pulumi.local-prod.yaml", "e2e_p95_seconds: 5", "e2e_p95_seconds: 50")
    world.refused(r"e2e_p95_seconds: 5\.0 then, 50\.0 now")


def test_a_criterion_loosened_in_the_pipeline_after_the_promotion_is_named(world: Any) -> None:
    world.record()
    world.promote()
    world.criteria("headroom: 0.5")
    world.refused(r"headroom: 1\.0 then, 0\.5 now")


def test_a_criterion_missing_from_the_evidence_is_judged_all_the_same(world: Any) -> None:
    """The stored verdict is not believed: the target's own promise is applied to the stored numbers."""
    world.edit("Pulumi.local-dev.yaml", "    e2e_p95_seconds: 5\n", "")
    world.edit("Pulumi.local-dev.yaml", "requests_per_second: 14", "requests_per_second: 1")
    assert world.record(world.result(world.slow)).verdict == "pass"
    world.not_promoted(r"e2e_p95_seconds .*fail")


def test_a_clock_set_back_does_not_make_old_evidence_fresh(world: Any) -> None:
    world.record()
    world.promote()
    world.record(world.result({**world.good, "e2e_p95_seconds": 3.2}), world.later(hours=30))
    world.refused(r"age .*stale .*later than this clock says: a clock is wrong", world.later(hours=2))


def test_evidence_signed_in_the_future_is_stale(world: Any) -> None:
    world.record()
    world.not_promoted("a clock is wrong", world.now - timedelta(hours=1))


def test_nothing_is_signed_by_a_clock_that_runs_behind_the_store(world: Any) -> None:
    world.record()
    with pytest.raises(stacks.TollgateError, match=r"(?s)this machine's clock says 2026-11-21 11:00.*set the clock"):
        world.record(world.result(world.slow), world.now - timedelta(hours=1))
    assert len(world.files()) == 1


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("accelerator", "nvidia-tesla-a100", "accelerator was 'nvidia-tesla-a100', here 'nvidia-l4'"),
        ("machine_type", "g2-standard-4", "machine_type was 'g2-standard-4'"),
        ("simulated", False, "simulated was False, here True"),
        ("mig_profile", "1g.5gb", "mig_profile was '1g.5gb'"),
    ],
)
def test_evidence_from_another_environment_is_a_mismatch(world: Any, key: str, value: object, said: str) -> None:
    world.record(world.result(environment={key: value}))
    world.not_promoted(rf"environment .*mismatch .*{said}")


def test_an_environment_that_says_nothing_is_a_mismatch(world: Any) -> None:
    result = world.result()
    world.record(result.model_copy(update={"environment": {}}))
    world.not_promoted(r"accelerator was None")


def test_a_server_that_says_it_is_something_else_is_a_mismatch(world: Any) -> None:
    world.record(world.result(server={"engine": "vllm"}))
    world.not_promoted(r"engine .*mismatch .*engine was 'vllm', the release says 'ollama'")


def test_a_server_with_other_slots_than_the_release_is_a_mismatch(world: Any) -> None:
    world.record(world.result(server={"slots": 4}))
    world.not_promoted(r"engine .*mismatch .*slots was 4, the release says 8")


def test_evidence_of_other_requests_is_a_mismatch(world: Any) -> None:
    world.record(world.result(traffic={"prompt_tokens": 16}))
    world.not_promoted(r"traffic .*mismatch .*prompt_tokens was 16 \(cv 0\), here 128")


def test_goodput_counted_against_other_limits_is_a_mismatch(world: Any) -> None:
    world.edit("Pulumi.local-dev.yaml", "    error_rate: 0.01\n", "    goodput: 0.9\n")
    world.edit("Pulumi.local-prod.yaml", "    error_rate: 0.01\n", "    goodput: 0.9\n")
    world.edit("Pulumi.local-prod.yaml", "e2e_p95_seconds: 5", "e2e_p95_seconds: 4")
    world.record(world.result({**world.good, "goodput": 1.0}))
    world.not_promoted(r"goodput limits .*mismatch")


def test_a_dropped_run_never_passes(world: Any) -> None:
    assert world.record(world.result(runs=2)).verdict == "inconclusive"
    world.not_promoted(r"1 run\(s\) missing")


def test_a_client_bound_run_never_passes(world: Any) -> None:
    result = world.result(valid=False, invalid_because="the client was the bottleneck")
    assert world.record(result).verdict == "inconclusive"
    world.not_promoted("3 unusable: the client was the bottleneck")


def test_three_requests_a_run_are_too_few(world: Any) -> None:
    assert world.record(world.result(sent=3)).verdict == "inconclusive"
    world.not_promoted(r"run 1 answered 3 requests, 50 are needed")


def test_a_run_without_requests_never_passes(world: Any) -> None:
    assert world.record(world.result(sent=0)).verdict == "inconclusive"
    world.not_promoted("run 1 answered no request")


def test_a_metric_that_was_not_measured_never_passes(world: Any) -> None:
    partial = {name: value for name, value in world.good.items() if name != "e2e_p95_seconds"}
    assert world.record(world.result(partial)).verdict == "inconclusive"
    world.not_promoted(r"e2e_p95_seconds +≤ 5 s +inconclusive +not measured in 3 run\(s\)")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_a_number_is_no_result(world: Any, value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        world.result({**world.good, "e2e_p95_seconds": value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_a_number_that_got_past_the_model_never_passes(world: Any, value: float) -> None:
    run = world.result().runs[0]
    odd = run.model_copy(update={"metrics": {**run.metrics, "e2e_p95_seconds": value}})
    result = world.result().model_copy(update={"runs": (odd, *world.result().runs[1:])})
    verdict = gate.judge(world.stack("local-prod").objectives, stacks.Criteria(), result)
    line = next(line for line in verdict.criteria if line.metric == "e2e_p95_seconds")
    assert (verdict.outcome, line.outcome) == ("inconclusive", "inconclusive")
    assert line.why == "a run holds a value that is not a finite number"
    with pytest.raises(ValueError, match="not JSON compliant"):
        world.record(result)


def test_zero_throughput_in_every_run_is_a_failure(world: Any) -> None:
    verdict = world.record(world.result({**world.good, "requests_per_second": 0.0})).entry.facts["verdict"]
    line = next(line for line in verdict["criteria"] if line["metric"] == "requests_per_second")
    assert (line["outcome"], line["why"]) == ("fail", "0 in every run")


def test_a_checkouts_own_key_is_not_trusted_once_the_project_has_committed_keys(world: Any) -> None:
    world.record()
    keys = world.root / "stacks" / "keys"
    keys.mkdir()
    own = world.root / ".tollgate" / "keys" / "evidence.pub"
    (keys / "ci.pub").write_bytes(own.read_bytes())
    assert world.promote()[1]
    assert gate.history("local-prod", world.root)[0].by == "ci"
    # Somebody makes a key of their own: it signs nothing that this project would read, and says so before it writes.
    (world.root / ".tollgate" / "keys" / "evidence.key").unlink()
    with pytest.raises(stacks.TollgateError, match=r"(?s)not one that this project trusts, so nothing was written"):
        world.record(world.result(world.slow), world.later(minutes=1))
    assert len(world.files()) == 2


def test_without_a_key_nothing_is_promoted(world: Any) -> None:
    world.record()
    (world.root / ".tollgate" / "keys" / "evidence.key").rename(world.root / "away")
    own = world.root / ".tollgate" / "keys" / "evidence.pub"
    (world.root / "stacks" / "keys").mkdir()
    (world.root / "stacks" / "keys" / "ci.pub").write_bytes(own.read_bytes())
    with pytest.raises(stacks.TollgateError, match="not one that this project trusts"):
        world.promote()
    assert world.stack("local-prod").promotion is None


def test_the_private_key_is_for_its_owner_only_and_not_in_any_evidence(world: Any) -> None:
    world.record()
    key = world.root / ".tollgate" / "keys" / "evidence.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    secret = "".join(key.read_text().splitlines()[1:-1])
    assert secret not in world.files()[0].read_text()


def test_a_broken_signing_key_is_refused_without_repeating_it(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_SIGNING_KEY", "canary-secret")
    with pytest.raises(stacks.InputError) as caught:
        world.record()
    assert "canary-secret" not in str(caught.value)


def _write_one(world: Any, index: int) -> None:
    world.record(world.result({**world.good, "e2e_p95_seconds": 3.0 + index / 100}))


def _run(target: Any, *several: tuple[Any, ...]) -> list[int | None]:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=target, args=arguments) for arguments in several]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
    return [worker.exitcode for worker in workers]


def test_six_writers_at_once_lose_nothing(world: Any) -> None:
    assert _run(_write_one, *[(world, index) for index in range(6)]) == [0] * 6
    entries = world.entries()
    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5, 6]
    latencies = {entry.facts["result"]["runs"][1]["metrics"]["e2e_p95_seconds"] for entry in entries}
    assert latencies == {3.0 + index / 100 for index in range(6)}
    assert not list((world.root / ".tollgate" / "evidence").glob(".writing-*"))


def _promote(world: Any) -> None:
    world.promote()


def test_four_promotions_at_once_are_one(world: Any) -> None:
    world.record()
    assert _run(_promote, *[(world,)] * 4) == [0] * 4
    assert [entry.kind for entry in world.entries()] == ["measurement", "promotion"]
    assert world.check().gated


def test_a_read_only_store_cannot_be_written_and_says_so(world: Any) -> None:
    world.record()
    folder = world.root / ".tollgate" / "evidence"
    if os.geteuid() == 0:
        folder.rename(folder.with_name("kept"))
        folder.write_text("in the way")
        match = "cannot be read"
    else:
        folder.chmod(0o500)
        match = "cannot be written"
    with pytest.raises(stacks.TollgateError, match=match):
        world.record(world.result(world.slow))


@settings(
    max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(data=st.data())
def test_no_edit_of_one_byte_of_any_statement_verifies(world: Any, data: st.DataObject) -> None:
    """Of all four kinds: measurement, promotion, approval, calibration."""
    if not world.files():
        world.record()
        world.promote()
        gate.approve(
            world.stack("local-prod"),
            release_name="gemma-8",
            release_digest=world.digest,
            who="Ada",
            why="a known quirk",
            criteria=["scale"],
            expires=world.later(days=1),
            root=world.root,
            now=world.now,
        )
        sessions = [world.result({**world.good, "e2e_p95_seconds": 3.0 + part / 50}) for part in range(3)]
        gate.record_calibration(world.stack("local-dev"), sessions, root=world.root, now=world.now)
        assert {entry.kind for entry in world.entries()} == {"measurement", "promotion", "approval", "calibration"}
    path = data.draw(st.sampled_from(world.files()))
    original = path.read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != original[place]))
    edited = original[:place] + bytes([byte]) + original[place + 1 :]
    with pytest.raises(gate.EvidenceBroken):
        gate.unseal(edited, gate.load_keys(world.root).trusted, "edited")


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(data=st.data())
def test_no_byte_can_be_left_out_or_added(world: Any, data: st.DataObject) -> None:
    if not world.files():
        world.record()
    original = world.files()[0].read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    less, more = original[:place] + original[place + 1 :], original[:place] + b" " + original[place:]
    for edited in (less, more):
        with pytest.raises(gate.EvidenceBroken):
            gate.unseal(edited, gate.load_keys(world.root).trusted, "edited")


def test_a_full_disk_keeps_nothing_of_the_statement_that_did_not_fit(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    world.record()
    folder = world.root / ".tollgate" / "evidence"
    with monkeypatch.context() as patched:
        patched.setattr("gate._backends.os.fsync", full)
        with pytest.raises(stacks.TollgateError, match=r"cannot be written \(No space left on device\)"):
            world.record(world.result(world.slow))
    assert [path.name for path in folder.iterdir()] == ["000001.json"]
    world.record(world.result(world.slow))
    assert len(world.files()) == 2
