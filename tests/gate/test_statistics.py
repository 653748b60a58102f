"""The bounds against known values and against simulation."""

from __future__ import annotations

import math
import random

import pytest

from gate._statistics import correlation, count_bounds, factor_bounds, interval, share_bounds


def test_t_bound_equals_the_textbook_value() -> None:
    # mean 0, s = 1, n = 3: t(0.95, 2) = 2.920, half width 2.920 / sqrt(3) = 1.686.
    bounds = factor_bounds([math.exp(-1), 1.0, math.exp(1)], 0.95)
    assert bounds.mean == pytest.approx(1.0)
    assert math.log(bounds.upper) == pytest.approx(1.686, abs=0.001)


def test_zero_failures_are_not_zero_errors() -> None:
    # The rule of three: upper bound about 3 / n.
    assert count_bounds(0, 1000, 0.95).upper == pytest.approx(0.00299, abs=1e-5)


def test_one_failure_in_a_hundred_equals_the_published_bound() -> None:
    assert count_bounds(1, 100, 0.95).upper == pytest.approx(0.0466, abs=2e-4)


def test_identical_runs_still_leave_the_resolution_of_the_histograms() -> None:
    bounds = factor_bounds([2.0, 2.0, 2.0], 0.95)
    assert 1.97 < bounds.lower < 2.0 < bounds.upper < 2.03


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([], "at least two"),
        ([1.0], "at least two"),
        ([0.0, 1.0], "above 0"),
        ([float("inf"), 1.0], "finite"),
        ([float("nan"), 1.0], "finite"),
    ],
)
def test_what_cannot_be_bounded_is_an_error_not_a_pass(samples: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        factor_bounds(samples, 0.95)


@pytest.mark.parametrize("counts", [[], [(0, 10)], [(0, 10), (0, 0)], [(11, 10), (0, 10)]])
def test_shares_of_nothing_are_an_error(counts: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="needs at least"):
        share_bounds(counts, 0.95)


def test_shares_stay_within_zero_and_one() -> None:
    bounds = share_bounds([(99, 100), (100, 100), (90, 100)], 0.95)
    assert 0 <= bounds.lower < 0.963 < bounds.upper == 1.0


def test_errors_in_a_burst_are_bounded_more_widely_than_the_same_errors_spread_out() -> None:
    even, burst = share_bounds([(4, 400)] * 3, 0.95), share_bounds([(0, 400), (0, 400), (12, 400)], 0.95)
    assert even.mean == burst.mean == 0.01
    assert even.upper == count_bounds(12, 1200, 0.95).upper
    assert burst.upper > 1.5 * even.upper


def test_neighbouring_runs_that_are_alike_widen_the_bound() -> None:
    drifting = [float(step) for step in range(10)]
    mixed = [0.0, 7.0, 3.0, 9.0, 1.0, 6.0, 4.0, 8.0, 2.0, 5.0]
    assert correlation(drifting) > 0.6 > 0.3 > correlation(mixed)
    assert interval(drifting, 0.95, 0.0)[1] > 2 * interval(mixed, 0.95, 0.0)[1]


def test_runs_without_any_spread_are_not_called_alike() -> None:
    assert correlation([2.0] * 8) == 0.0
    assert correlation([0.1 + 0.2, 0.3] * 4) == 0.0


def test_the_upper_bound_covers_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(7)
    covered = sum(
        factor_bounds([math.exp(draw.gauss(0, 0.05)) for _ in range(5)], 0.95).upper >= 1.0 for _ in range(2000)
    )
    # 95 % ± 3 standard errors of a proportion over 2,000 draws.
    assert 0.935 <= covered / 2000 <= 0.965


def test_the_bound_still_covers_when_runs_drift() -> None:
    """A slow wave that the whole measurement sees a part of: Student's t alone would cover far less than it says."""
    draw = random.Random(11)

    def one() -> tuple[bool, bool]:
        samples, level = [], draw.gauss(0, 0.05)
        for _ in range(12):
            level = 0.7 * level + draw.gauss(0, 0.05 * math.sqrt(1 - 0.49))
            samples.append(level)
        centre = sum(samples) / 12
        spread = math.sqrt(sum((sample - centre) ** 2 for sample in samples) / 11)
        return centre + interval(samples, 0.95, 0.0)[1] >= 0, centre + 1.796 * spread / math.sqrt(12) >= 0

    ours, plain = zip(*(one() for _ in range(2000)), strict=True)
    assert sum(plain) / 2000 < 0.82
    assert sum(ours) / 2000 > sum(plain) / 2000 + 0.05
