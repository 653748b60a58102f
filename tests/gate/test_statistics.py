"""The bounds against known values and against simulation."""

from __future__ import annotations

import math
import random

import pytest

from gate._statistics import count_bounds, factor_bounds, share_bounds


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


@pytest.mark.parametrize("samples", [[], [1.0], [0.0, 1.0], [float("inf"), 1.0]])
def test_what_cannot_be_bounded_is_an_error_not_a_pass(samples: list[float]) -> None:
    with pytest.raises(ValueError):
        factor_bounds(samples, 0.95)


def test_shares_stay_within_zero_and_one() -> None:
    bounds = share_bounds([0.99, 1.0, 0.98], 0.95)
    assert 0 <= bounds.lower <= bounds.upper <= 1


def test_the_upper_bound_covers_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(7)
    covered = sum(
        factor_bounds([math.exp(draw.gauss(0, 0.05)) for _ in range(5)], 0.95).upper >= 1.0 for _ in range(2000)
    )
    # 95 % ± 3 standard errors of a proportion over 2,000 draws.
    assert 0.935 <= covered / 2000 <= 0.965
