"""The comparison with the release before: noise floors, interleaved runs, and limits that cannot be resolved."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

import gate
import stacks
from gate._regression import Noise, check_thresholds, compared_factors, interleaved, regression
from gate._statistics import quantile

PROMISE = stacks.Objectives(e2e_p95_seconds=5)
OTHER = "sha256:" + "b2" * 32


def sessions(world: Any, *factors: float, **more: Any) -> list[Any]:
    return [world.result(factor=factor, **more) for factor in factors]


def line(world: Any, ours: Any, theirs: Any, limit: float, calibration: Any, **criteria: Any) -> gate.Criterion:
    asked = stacks.Criteria(max_regression={"e2e_p95_seconds": limit}, **criteria)
    return regression("e2e_p95_seconds", limit, asked, PROMISE, ours, theirs, calibration)


def test_the_noise_of_sessions_is_what_was_put_in(world: Any) -> None:
    found = gate.calibrate(sessions(world, 0.98, 1.0, 1.02, spread=(-0.01, 0.0, 0.01))).noise["e2e_p95_seconds"]
    # Runs at -1, 0, +1 % have a standard deviation of 1 %; sessions at -2, 0, +2 % one of 2 %.
    assert found.within == pytest.approx(0.01, rel=0.01)
    assert found.apart == pytest.approx(0.02, rel=0.01)
    assert found.between == pytest.approx(math.sqrt(0.02**2 - 0.01**2 / 3), rel=0.01)
    assert (found.sessions, found.runs) == (3, 3)


def test_the_noise_floor_is_that_of_the_formula(world: Any) -> None:
    found = gate.calibrate(sessions(world, 0.98, 1.0, 1.02)).noise["e2e_p95_seconds"]
    reach = (quantile(2, 0.95) + quantile(2, 0.8)) * math.sqrt(2) * found.apart
    assert found.floor(3, 0.95) == pytest.approx(math.expm1(reach))
    assert found.floor(1, 0.95) == math.inf
    # Fewer runs than the calibration had are noisier than it saw.
    assert found.floor(2, 0.95) > found.floor(3, 0.95)


def test_sessions_that_differ_by_luck_alone_have_no_difference_between(world: Any) -> None:
    found = gate.calibrate(sessions(world, 1.0, 1.0, 1.0)).noise["e2e_p95_seconds"]
    assert found.between == 0.0
    assert found.naive_alarms == 0.0
    apart = gate.calibrate(sessions(world, 0.9, 1.0, 1.1)).noise["e2e_p95_seconds"]
    assert apart.naive_alarms == 0.5, "of each pair one is 'significantly' slower when only runs are looked at"


@pytest.mark.parametrize("factors", [(), (1.0,), (1.0, 1.01)])
def test_a_calibration_needs_three_sessions(world: Any, factors: tuple[float, ...]) -> None:
    with pytest.raises(stacks.InputError, match="3 or more sessions"):
        gate.calibrate(sessions(world, *factors)) if factors else gate.calibrate(sessions(world, 1.0)[:0])


def test_a_calibration_is_of_one_release_only(world: Any) -> None:
    mixed = [*sessions(world, 1.0, 1.0), world.result(release=OTHER)]
    with pytest.raises(stacks.InputError, match="of 2 kind"):
        gate.calibrate(mixed)


def test_a_release_that_is_ten_percent_slower_fails_a_limit_of_five(world: Any) -> None:
    calibration = gate.calibrate(sessions(world, 0.995, 1.0, 1.005, 1.0, 1.0))
    found = line(world, world.result(factor=1.1), world.result(), 0.05, calibration)
    assert (found.outcome, found.metric) == ("fail", "regression:e2e_p95_seconds")
    assert found.measured == pytest.approx(0.1)
    assert found.bound is not None
    assert 0.05 < found.bound < 0.1


def test_an_equal_release_passes_and_a_noisy_environment_is_inconclusive(world: Any) -> None:
    quiet = gate.calibrate(sessions(world, 0.995, 1.0, 1.005, 1.0, 1.0))
    loud = gate.calibrate(sessions(world, 0.9, 1.0, 1.1, 1.0, 0.95))
    ours = world.result(started=world.later(hours=1))
    assert line(world, ours, world.result(), 0.05, quiet).outcome == "pass"
    found = line(world, ours, world.result(), 0.05, loud)
    assert found.outcome == "inconclusive"
    assert "the limit lies within the noise; measure more runs" in found.why


def test_throughput_gets_worse_downwards(world: Any) -> None:
    calibration = gate.calibrate(sessions(world, 0.995, 1.0, 1.005, 1.0, 1.0))
    asked = stacks.Criteria(max_regression={"requests_per_second": 0.05})
    for factor, outcome in ((1.2, "fail"), (0.8, "pass")):
        ours = world.result(factor=factor)
        found = regression("requests_per_second", 0.05, asked, PROMISE, ours, world.result(), calibration)
        assert found.outcome == outcome
    assert found.measured == pytest.approx(-0.25)


def test_errors_are_compared_in_points_not_in_ratios(world: Any) -> None:
    calibration = gate.calibrate([world.result() for _ in range(4)] + [world.result(failed=(0, 1, 0))])
    asked = stacks.Criteria(max_regression={"error_rate": 0.01})
    more = world.result(failed=20)
    found = regression("error_rate", 0.01, asked, PROMISE, more, world.result(), calibration)
    assert (found.needed, found.outcome) == ("≤ 1 points worse", "fail")
    assert found.measured == pytest.approx(0.05)
    assert regression("error_rate", 0.01, asked, PROMISE, world.result(), world.result(), calibration).outcome == "pass"


def test_without_a_calibration_nothing_is_compared_between_two_times(world: Any) -> None:
    found = line(world, world.result(started=world.later(hours=1)), world.result(), 0.05, None)
    assert found.outcome == "inconclusive"
    assert "run tollgate evidence calibrate" in found.why


def test_without_a_baseline_there_is_nothing_to_be_worse_than(world: Any) -> None:
    assert line(world, world.result(factor=3.0), None, 0.05, None).outcome == "pass"


def test_interleaved_runs_need_no_calibration_and_see_through_a_drift(world: Any) -> None:
    """Both slow down by 5 % a pair; in turns, one is always 10 % slower than the other, and apart it would drown."""
    drift = tuple(0.05 * step for step in range(6))
    theirs = world.result(runs=6, spread=drift, every=40.0)
    ours = world.result(
        runs=6, spread=drift, every=40.0, factor=1.1, started=world.now + timedelta(seconds=20), release=OTHER
    )
    assert interleaved(ours, theirs)
    found = line(world, ours, theirs, 0.05, None)
    assert found.outcome == "fail"
    assert "pairs of interleaved runs" in found.why
    later = world.result(
        runs=6, spread=drift, every=40.0, factor=1.1, started=world.now + timedelta(hours=1), release=OTHER
    )
    assert not interleaved(later, theirs)
    loud = gate.calibrate(sessions(world, 0.9, 1.0, 1.1))
    assert line(world, later, theirs, 0.05, loud).outcome == "inconclusive"


def test_a_pair_of_which_one_is_unusable_is_left_out_and_two_pairs_are_the_fewest(world: Any) -> None:
    theirs = world.result(runs=4, every=40.0)
    ours = world.result(runs=4, every=40.0, started=world.now + timedelta(seconds=20))

    def spoilt(result: Any, *numbers: int) -> Any:
        unfit = {"valid": False, "invalid_because": "the client was the bottleneck", "metrics": {}}
        runs = [run.model_copy(update=unfit if index in numbers else {}) for index, run in enumerate(result.runs)]
        return result.model_copy(update={"runs": tuple(runs)})

    # Each with another run spoilt: of four pairs two are left, and they are those of the same times.
    whole = line(world, ours, theirs, 0.5, None)
    partly = line(world, spoilt(ours, 1), spoilt(theirs, 2), 0.5, None)
    assert (whole.outcome, partly.outcome) == ("pass", "pass")
    assert partly.measured == pytest.approx(0.0)
    assert partly.bound is not None
    assert whole.bound is not None
    assert partly.bound > 2 * whole.bound
    found = line(world, spoilt(ours, 0, 1), spoilt(theirs, 2), 0.5, None)
    assert (found.outcome, found.why) == ("inconclusive", "needs at least two runs with values above 0")


def test_runs_that_drift_widen_the_comparison_by_blocks() -> None:
    noise = Noise(within=0.01, apart=0.001, between=0.0, sessions=20, runs=12, naive_alarms=0.0)
    base = [0.01, -0.01] * 6
    mixed = [0.02, -0.02, 0.01, -0.03, 0.03, -0.01, 0.02, -0.02, 0.0, 0.01, -0.03, 0.02]
    drifting = sorted(mixed)
    free = compared_factors(mixed, base, noise, 0.95, 0.95)
    drifted = compared_factors(drifting, base, noise, 0.95, 0.95)
    assert drifted.estimate == pytest.approx(free.estimate)
    assert drifted.keeps - drifted.estimate > 2 * (free.keeps - free.estimate)


def stage(limit: float, **criteria: Any) -> stacks.Stage:
    asked = stacks.Criteria(max_regression={"e2e_p95_seconds": limit}, **criteria)
    return stacks.Stage(stack="local-prod", after="local-dev", criteria=asked)


def test_a_limit_below_the_noise_floor_is_refused_with_the_runs_that_would_do() -> None:
    noise = Noise(within=0.03, apart=0.03 / math.sqrt(3), between=0.0, sessions=8, runs=3, naive_alarms=0.1)
    calibration = gate.Calibration(noise={"e2e_p95_seconds": noise})
    with pytest.raises(stacks.InputError, match=r"(?s)max_regression.e2e_p95_seconds.*got: +3 %.*noise floor") as said:
        check_thresholds(stage(0.03), calibration, 3)
    enough = noise.runs_for(0.03, 0.95)
    assert enough is not None
    assert f"set benchmark.runs of local-dev to {enough} and calibrate anew" in said.value.fix
    # As many runs as it says, calibrated anew, do resolve it; one fewer does not.
    for runs, resolved in ((enough, True), (enough - 1, False)):
        anew = Noise(within=0.03, apart=0.03 / math.sqrt(runs), between=0.0, sessions=8, runs=runs, naive_alarms=0.1)
        assert (anew.floor(runs, 0.95) <= 0.03) is resolved
    check_thresholds(stage(noise.floor(3, 0.95)), calibration, 3)


def test_a_limit_that_no_number_of_runs_resolves_says_so() -> None:
    noise = Noise(within=0.01, apart=0.05, between=0.05, sessions=4, runs=5, naive_alarms=0.5)
    with pytest.raises(stacks.InputError, match="sessions differ by 5 % whatever the number of runs"):
        check_thresholds(stage(0.05), gate.Calibration(noise={"e2e_p95_seconds": noise}), 5)


def test_the_limit_is_refused_where_the_program_starts_before_anything_is_judged(world: Any) -> None:
    for factor, hours in ((0.95, 0), (1.0, 1), (1.05, 2)):
        world.record(world.result(factor=factor), world.later(hours=hours))
    gate.record_calibration(world.stack("local-dev"), [], root=world.root, now=world.later(hours=3))
    world.criteria("max_regression: {e2e_p95_seconds: 0.02}")
    with pytest.raises(stacks.InputError, match="the A/A noise floor of local-dev with 3 runs"):
        world.promote(world.later(hours=4))
    with pytest.raises(stacks.InputError, match="the A/A noise floor of local-dev with 3 runs"):
        world.check(world.later(hours=4))


def test_a_calibration_of_another_environment_does_not_count(world: Any) -> None:
    here = [world.result(factor=factor, environment={"machine_type": "g2-standard-4"}) for factor in (0.9, 1.0, 1.1)]
    gate.record_calibration(world.stack("local-dev"), here, root=world.root, now=world.now)
    world.criteria("max_regression: {e2e_p95_seconds: 0.02}")
    world.record()
    assert world.promote()[1]


def test_a_calibration_of_two_environments_is_refused(world: Any) -> None:
    mixed = [world.result(), world.result(), world.result(environment={"machine_type": "g2-standard-4"})]
    with pytest.raises(stacks.InputError, match="sessions in 2 environments"):
        gate.record_calibration(world.stack("local-dev"), mixed, root=world.root, now=world.now)


def calibrated(world: Any) -> None:
    quiet = [world.result(factor=factor) for factor in (0.995, 1.0, 1.005, 1.0, 1.0)]
    gate.record_calibration(world.stack("local-dev"), quiet, root=world.root, now=world.now)
    world.criteria("max_regression: {e2e_p95_seconds: 0.05}")


def test_the_baseline_is_the_evidence_of_what_the_stack_runs(world: Any) -> None:
    calibrated(world)
    world.record()
    world.promote()
    world.record(world.result(factor=1.1, release=OTHER), world.later(minutes=1))
    said = world.not_promoted(
        r"regression:e2e_p95_seconds +≤ 5 % worse .*fail +\+10\.0%", world.later(minutes=2), OTHER
    )
    assert "local-prod refuses release gemma-8: fail" in said
    world.record(world.result(factor=1.001, release=OTHER, started=world.later(minutes=3)), world.later(minutes=3))
    # The failure was a look; only one is planned.
    world.not_promoted(r"looks +≤ 1", world.later(minutes=4), OTHER)
    third = "sha256:" + "c3" * 32
    world.record(world.result(factor=1.001, release=third), world.later(minutes=5))
    assert world.promote(world.later(minutes=6), third)[1]
    assert world.check(world.later(minutes=7), third).gated


def test_a_baseline_that_was_measured_in_turns_is_taken_before_the_stored_one(world: Any) -> None:
    calibrated(world)
    world.record()
    world.promote()
    hour = world.later(hours=2)
    beside = world.result(runs=3, factor=1.2, every=40.0, started=hour)
    ours = world.result(runs=3, factor=1.2, every=40.0, started=hour + timedelta(seconds=20), release=OTHER)
    # By the stored baseline it would be 20 % slower; in turns with it, it is just the same: the whole hour was slow.
    gate.record(
        world.stack("local-dev"), ours, release_digest=OTHER, root=world.root, now=world.later(hours=3), against=beside
    )
    admission, _ = world.promote(world.later(hours=3), OTHER)
    lines = {line.metric: line for line in admission.verdict.criteria}
    assert "pairs of interleaved runs" in lines["regression:e2e_p95_seconds"].why
