"""What is left to measure: nothing where valid evidence lies, more where it is inconclusive, all where it expired."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

import gate
import stacks

WIDE = (-0.4, 0.0, 0.4)
BENCHMARK = "sha256:" + "be" * 32


def ask(world: Any, now: datetime | None = None, benchmark: str = BENCHMARK) -> gate.Measuring:
    return gate.to_measure(world.stack("local-dev"), benchmark, world.root, now or world.now)


def measure(world: Any, now: datetime | None = None, **result: Any) -> gate.Evidence:
    now = now or world.now
    what = ask(world, now)
    assert what.known is None
    return gate.record(
        world.stack("local-dev"),
        world.result(started=now, **result),
        release_digest=world.digest,
        root=world.root,
        now=now,
        measuring=what,
    )


def test_at_first_everything_is_to_be_measured(world: Any) -> None:
    assert ask(world) == gate.Measuring(benchmark=BENCHMARK)


def test_valid_evidence_of_the_same_leaves_nothing_to_measure(world: Any) -> None:
    evidence = measure(world)
    what = ask(world, world.later(hours=23))
    assert (what.known, what.verdict, what.attempt) == (evidence.digest, "pass", 1)


def test_another_benchmark_is_measured_whatever_lies_there(world: Any) -> None:
    measure(world)
    assert ask(world, benchmark="sha256:" + "ce" * 32).known is None


def test_expired_evidence_is_measured_anew_under_another_number(world: Any) -> None:
    measure(world)
    what = ask(world, world.later(hours=25))
    assert (what.known, what.attempt, what.earlier) == (None, 2, ())


def test_a_failure_is_known_too_and_not_measured_until_it_passes(world: Any) -> None:
    evidence = measure(world, metrics=world.slow)
    what = ask(world, world.later(hours=1))
    assert (what.known, what.verdict) == (evidence.digest, "fail")


def test_an_inconclusive_measurement_gets_more_runs_until_the_looks_are_used_up(world: Any) -> None:
    world.criteria("min_runs: 3, looks: 2")
    first = measure(world, spread=WIDE)
    assert first.verdict == "inconclusive"
    what = ask(world, world.later(minutes=1))
    assert (what.known, what.attempt, what.earlier) == (None, 2, (first.digest,))
    second = measure(world, world.later(minutes=2), spread=WIDE)
    assert second.entry.facts["planned_runs"] == 6
    assert len(second.entry.facts["result"]["runs"]) == 6
    assert second.verdict == "inconclusive"
    settled = ask(world, world.later(minutes=3))
    assert (settled.known, settled.verdict) == (second.digest, "inconclusive")


def test_more_runs_settle_what_the_first_ones_left_open(world: Any) -> None:
    world.criteria("min_runs: 3, looks: 3")
    measure(world, spread=(-0.2, 0.0, 0.3), metrics={**world.good, "e2e_p95_seconds": 3.4})
    for minute in (1, 2):
        last = measure(
            world,
            world.later(minutes=minute),
            spread=(-0.02, 0.0, 0.02),
            metrics={**world.good, "e2e_p95_seconds": 3.4},
        )
        if last.verdict != "inconclusive":
            break
    assert last.verdict == "pass"
    assert last.entry.facts["verdict"]["runs"] > 3
    admission, _ = world.promote(world.later(minutes=3))
    lines = {line.metric: line for line in admission.verdict.criteria}
    assert lines["looks"].measured == last.entry.facts["attempt"] > 1


def test_unusable_runs_are_not_added_to_and_cost_a_look(world: Any) -> None:
    world.criteria("min_runs: 3, looks: 2")
    measure(world, valid=False, invalid_because="the client was the bottleneck")
    what = ask(world, world.later(minutes=1))
    assert (what.known, what.attempt, what.earlier) == (None, 2, ())
    last = measure(world, world.later(minutes=2))
    assert (last.verdict, len(last.entry.facts["result"]["runs"])) == ("pass", 3)
    admission, _ = world.promote(world.later(minutes=3))
    assert next(line for line in admission.verdict.criteria if line.metric == "looks").measured == 2


def test_no_run_can_be_left_out_of_a_later_look(world: Any) -> None:
    """The second look is recorded without the first one's runs: it costs a look that is not there."""
    measure(world, spread=WIDE)
    gate.record(
        world.stack("local-dev"),
        world.result(started=world.later(minutes=1)),
        release_digest=world.digest,
        root=world.root,
        now=world.later(minutes=1),
    )
    world.not_promoted(r"looks +≤ 1 +2 .*measured again until it passed", world.later(minutes=2))


def test_results_of_different_things_are_never_pooled(world: Any) -> None:
    with pytest.raises(stacks.TollgateError, match="different replicas cannot be judged as one"):
        gate.pool([world.result(), world.result(replicas=9)])
    with pytest.raises(stacks.TollgateError, match="different environments cannot be judged as one"):
        gate.pool([world.result(), world.result(environment={"accelerator": "nvidia-tesla-t4"})])


def test_pooled_runs_stand_in_the_order_of_their_start(world: Any) -> None:
    whole = gate.pool([world.result(started=world.later(hours=1)), world.result()])
    starts = [run.started for run in whole.runs]
    assert starts == sorted(starts)
    assert len(starts) == 6


def test_the_strictest_consumer_says_how_long_evidence_lives(world: Any) -> None:
    pipeline = world.root / "stacks" / "pipeline.yaml"
    pipeline.write_text(
        "stages:\n  - stack: local-dev\n"
        "  - stack: [local-prod]\n    after: local-dev\n    criteria: {max_evidence_age_hours: 24}\n"
        "  - stack: local-other\n    after: local-dev\n    criteria: {max_evidence_age_hours: 2}\n"
    )
    measure(world)
    assert ask(world, world.later(hours=1)).known is not None
    assert ask(world, world.later(hours=3)).known is None


def test_a_calibration_is_signed_with_the_results_it_is_of(world: Any) -> None:
    results = [world.result(factor=factor) for factor in (0.99, 1.0, 1.01)]
    found, entry = gate.record_calibration(world.stack("local-dev"), results, root=world.root, now=world.now)
    assert entry.facts["noise"] == found.plain()
    assert len(set(entry.facts["results"])) == 3
    assert gate.history("local-dev", world.root)[-1].what == "noise measured in 3 sessions"


def test_a_calibration_of_what_lies_in_the_store_takes_the_newest_release(world: Any) -> None:
    for hour, factor in enumerate((0.99, 1.0, 1.01)):
        world.record(world.result(factor=factor), world.later(hours=hour))
    found, _ = gate.record_calibration(world.stack("local-dev"), [], root=world.root, now=world.later(hours=4))
    assert found.noise["e2e_p95_seconds"].sessions == 3


# What a stage that takes releases from here cannot tell yet.


OTHER = "sha256:" + "b2" * 32


def in_turns(
    world: Any, now: datetime, ours: tuple[float, ...], theirs: tuple[float, ...], **more: Any
) -> gate.Evidence:
    """OTHER measured in turns with what production runs; both vary by these shares from run to run."""
    what = ask(world, now)
    assert what.known is None
    return gate.record(
        world.stack("local-dev"),
        world.result(release=OTHER, started=now, every=40.0, spread=ours, **more),
        release_digest=OTHER,
        root=world.root,
        now=now,
        measuring=what,
        against=world.result(started=now + timedelta(seconds=20), every=40.0, spread=theirs),
    )


def compared(world: Any) -> None:
    """Production runs the world's release; a release that is to enter it may be 5 % slower."""
    world.record()
    world.promote()
    world.criteria("min_runs: 3, looks: 2, max_regression: {e2e_p95_seconds: 0.05}")


APART, TOGETHER = ((-0.04, 0.0, 0.04), (0.04, 0.0, -0.04)), ((-0.01, 0.0, 0.01), (-0.01, 0.0, 0.01))


def test_a_comparison_that_cannot_tell_gets_more_runs_although_the_promise_is_kept(world: Any) -> None:
    compared(world)
    first = in_turns(world, world.later(minutes=1), *APART)
    assert first.verdict == "pass"
    world.not_promoted(r"regression:e2e_p95_seconds .*inconclusive", world.later(minutes=2), OTHER)
    what = ask(world, world.later(minutes=3))
    assert (what.known, what.attempt, what.earlier) == (None, 2, (first.digest,))
    second = in_turns(world, world.later(minutes=4), *APART)
    assert [len(second.entry.facts[part]["runs"]) for part in ("result", "against")] == [6, 6]
    # The looks are used up: what is not settled now stays open.
    assert ask(world, world.later(minutes=10)).known == second.digest


def test_more_pairs_settle_a_comparison(world: Any) -> None:
    compared(world)
    world.criteria("min_runs: 3, looks: 4, max_regression: {e2e_p95_seconds: 0.05}")
    in_turns(world, world.later(minutes=1), (-0.02, 0.0, 0.02), (0.02, 0.0, -0.02))
    for look in range(2, 5):
        last = in_turns(world, world.later(minutes=4 * look), *TOGETHER)
        if not gate_refuses(world, world.later(minutes=4 * look + 3)):
            break
    assert last.entry.facts["attempt"] > 1
    assert ask(world, world.later(minutes=30)).known == last.digest


def gate_refuses(world: Any, now: datetime) -> bool:
    try:
        world.promote(now, OTHER)
    except gate.GateRefused:
        return True
    return False


def test_a_comparison_that_fails_gets_no_more_runs(world: Any) -> None:
    compared(world)
    evidence = in_turns(world, world.later(minutes=1), *TOGETHER, factor=1.15)
    assert evidence.verdict == "pass"
    assert ask(world, world.later(minutes=3)).known == evidence.digest


def test_runs_are_not_added_for_what_they_cannot_bring(world: Any) -> None:
    """Without a calibration two times cannot be compared, however many runs there are."""
    compared(world)
    what = ask(world, world.later(hours=1))
    found = gate.record(
        world.stack("local-dev"),
        world.result(release=OTHER, started=world.later(hours=1)),
        release_digest=OTHER,
        root=world.root,
        now=world.later(hours=1),
        measuring=what,
    )
    assert ask(world, world.later(hours=2)).known == found.digest


def test_a_stage_that_cannot_be_asked_keeps_nobody_from_measuring(world: Any) -> None:
    compared(world)
    found = in_turns(world, world.later(minutes=1), *APART)
    world.edit("Pulumi.local-prod.yaml", "users: 50", "user: 50")
    assert ask(world, world.later(minutes=2)).known == found.digest
