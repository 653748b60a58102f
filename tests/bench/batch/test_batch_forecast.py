"""Estimates that do not promise what they cannot know, and a pace that finds where more brings nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from bench import batch

TOTAL = 170_000


def fed(
    rate_at: Callable[[float], float], until: int, seed: int = 1, *, start: float = 1000.0
) -> tuple[batch.Forecast, int]:
    draw = np.random.default_rng(seed)
    forecast, done = batch.Forecast(start), 0
    for second in range(1, until + 1):
        done += int(draw.poisson(rate_at(second)))
        forecast.feed(start + second, done)
    return forecast, done


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_slows_down_tenfold_after_its_first_minute_is_estimated_right(seed: int) -> None:
    def rate(second: float) -> float:
        return 50.0 if second <= 60 else 5.0

    # Before: never certain, although 60 s went evenly and would have said an hour instead of ten.
    for second in range(5, 61, 5):
        forecast, done = fed(rate, second, seed)
        assert not forecast.eta(TOTAL - done).certain
    # At 2 % the change has been seen; the estimate is right, and certain soon after.
    forecast, done = fed(rate, 140, seed)
    assert 0.019 < done / TOTAL < 0.021
    eta = forecast.eta(TOTAL - done)
    assert eta.seconds == pytest.approx((TOTAL - done) / 5, rel=0.25)
    for second in (170, 400, 2000):
        forecast, done = fed(rate, second, seed)
        eta = forecast.eta(TOTAL - done)
        assert eta.certain, eta.because
        truth = (TOTAL - done) / 5
        assert eta.seconds == pytest.approx(truth, rel=0.25)
        assert eta.low <= truth <= eta.high
        # Bins are four seconds wide by then.
        assert eta.steady_seconds <= second - 45


def test_the_estimate_of_such_a_run_stays_right_until_its_end() -> None:
    draw = np.random.default_rng(7)
    forecast, done, second, said = batch.Forecast(0.0), 0, 0, []
    while done < TOTAL:
        second += 1
        done = min(TOTAL, done + int(draw.poisson(50.0 if second <= 60 else 5.0)))
        forecast.feed(second, done)
        if second % 10 == 0 and (second < 600 or second % 300 == 0):
            said.append((second, forecast.eta(TOTAL - done)))
    certain = [(at, eta) for at, eta in said if eta.certain and at < 0.98 * second]
    assert 60 + 90 <= certain[0][0] <= 60 + 180
    assert max(abs(eta.seconds / (second - at) - 1) for at, eta in certain) < 0.25
    # Once it is certain it says so from then on.
    assert len(certain) == sum(certain[0][0] <= at < 0.98 * second for at, _ in said)


def test_warm_up_is_excluded() -> None:
    forecast, done = fed(lambda second: 2.0 if second <= 45 else 40.0, 300)
    eta = forecast.eta(TOTAL - done)
    assert eta.certain
    assert eta.sustained == pytest.approx(40, rel=0.05)


def test_an_even_run_is_one_level_and_its_interval_holds_the_truth() -> None:
    inside = 0
    for seed in range(40):
        forecast, done = fed(lambda _: 8.0, 600, seed)
        eta = forecast.eta(TOTAL - done)
        assert eta.certain
        assert eta.steady_seconds > 500
        inside += eta.low <= (TOTAL - done) / 8 <= eta.high
    assert inside >= 36


def test_nothing_answered_is_nothing_known_and_a_standstill_is_said_to_be_one() -> None:
    forecast, done = fed(lambda _: 0.0, 30)
    assert math.isnan(forecast.eta(10).seconds)
    assert not forecast.eta(10).certain
    forecast, done = fed(lambda second: 20.0 if second <= 200 else 0.0, 320)
    eta = forecast.eta(TOTAL - done)
    assert eta.seconds == math.inf
    assert "nothing has been answered for 12" in eta.because
    assert forecast.eta(0).seconds == 0


def test_ten_days_fit_in_bounded_memory_and_stay_right() -> None:
    forecast = batch.Forecast(0.0)
    for minute in range(1, 10 * 24 * 60):
        forecast.feed(60.0 * minute, minute * 12)
    assert len(forecast._bins) <= 960
    eta = forecast.eta(10_000)
    assert eta.seconds == pytest.approx(50_000, rel=0.02)
    assert eta.certain


def test_promises_that_cannot_be_kept_are_said_at_once_with_what_would() -> None:
    eta = batch.Eta(seconds=36_000, low=33_000, high=40_000, sustained=5.0, certain=True, because="")
    prices = batch.Prices(per_hour=10.0)
    given = {"left": 180_000, "cost": 100.0, "prices": prices, "spent": 0.0}
    [late] = batch.warnings(eta, deadline=18_000, budget=None, **given)
    assert "deadline cannot be kept: 10.0 h are needed, 5.0 h are left; 2.0 times the endpoints" in late
    assert "90,000 inputs fewer" in late
    [dear] = batch.warnings(eta, deadline=None, budget=50.0, **given)
    assert "100.00 $ will be spent, 50.00 $ are allowed; it suffices for 90,000 of the 180,000 inputs left" in dear
    assert batch.warnings(eta, deadline=40_000, budget=150.0, **given) == []
    unsure = batch.Eta(seconds=36_000, sustained=5.0, because="the rate has lasted only 9 s")
    assert "as far as can be told" in batch.warnings(unsure, deadline=18_000, budget=None, **given)[0]


class Engine:
    """So many slots, each answering in `latency` seconds; more in flight wait. Time passes in steps."""

    def __init__(self, slots: int, latency: float, seed: int = 0) -> None:
        self.slots, self.latency = slots, latency
        self.draw = np.random.default_rng(seed)

    def run(self, pace: batch.Pace, seconds: float, begun: float = 0.0) -> list[int]:
        limits, now, carry = [], begun, 0.0
        while now < begun + seconds:
            now += 0.25
            carry += min(pace.limit, self.slots) / self.latency * 0.25 * self.draw.normal(1, 0.03)
            for _ in range(int(carry)):
                pace.answered(self.latency * max(1.0, pace.limit / self.slots))
            carry -= int(carry)
            pace.tick(now)
            limits.append(pace.limit)
        return limits


@pytest.mark.parametrize(
    ("slots", "latency", "start"), [(80, 2.7, 8), (300, 0.2, 8), (8, 4.0, 8), (64, 1.0, 64), (32, 0.5, 512)]
)
def test_the_pace_finds_the_slots_of_the_engine_and_stays_near_them(slots: int, latency: float, start: int) -> None:
    pace = batch.Pace(start)
    limits = Engine(slots, latency).run(pace, max(400.0, 400 * latency))
    at_rest = limits[len(limits) // 2 :]
    # Never starving the engine by more than a tenth, and most of the time not far above what it can use.
    assert np.mean([min(1.0, limit / slots) for limit in at_rest]) > 0.9
    assert np.median(at_rest) <= 2.0 * slots


def test_workers_that_do_not_help_are_backed_off() -> None:
    pace = batch.Pace(16)
    limits = Engine(16, 1.0).run(pace, 600)
    assert max(limits) <= 32
    assert np.median(limits[len(limits) // 2 :]) <= 20


def test_refusals_for_load_halve_the_pace_once_per_burst() -> None:
    pace = batch.Pace(64)
    Engine(1000, 0.5).run(pace, 3)
    before = pace.limit
    assert pace.busy(3.1)
    assert not pace.busy(3.2)
    assert not pace.busy(3.3)
    assert pace.limit == before // 2


def test_a_fixed_pace_stays_and_regains_what_was_refused() -> None:
    pace = batch.Pace(40, fixed=True)
    engine = Engine(40, 0.5)
    assert set(engine.run(pace, 60)) == {40}
    pace.busy(60.0)
    assert pace.limit == 20
    assert engine.run(pace, 120, 60.0)[-1] == 40
