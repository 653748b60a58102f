"""Histograms: how far off a quantile may be, and that merging loses nothing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load import Histogram

durations = st.lists(st.floats(min_value=1e-9, max_value=1e5), min_size=1, max_size=300)


@given(durations, st.floats(min_value=0.0, max_value=1.0))
def test_a_quantile_is_within_one_percent_of_the_value_of_that_rank(values: list[float], share: float) -> None:
    exact = sorted(values)[max(1, math.ceil(share * len(values) - 1e-9)) - 1]
    # Sums and bounds are kept in whole nanoseconds, so that below a microsecond these count too.
    assert Histogram.of(values).quantile(share) == pytest.approx(exact, rel=0.0051, abs=1e-9)


@given(durations, durations, durations)
def test_merging_in_any_order_gives_the_same_bytes_as_one_pass(a: list[float], b: list[float], c: list[float]) -> None:
    whole = Histogram.of(a + b + c)
    merged = Histogram.of(c)
    for part in (a, b):
        merged.merge(Histogram.of(part))
    assert json.dumps(merged.to_dict()) == json.dumps(whole.to_dict())


def test_eight_workers_merged_agree_with_all_raw_records_within_one_percent() -> None:
    values = np.random.default_rng(7).lognormal(-1.0, 1.2, 80_000)
    merged = Histogram()
    for part in np.array_split(values, 8):
        merged.merge(Histogram.from_dict(json.loads(json.dumps(Histogram.of(part).to_dict()))))
    assert merged.count == 80_000
    assert merged.mean == pytest.approx(values.mean(), rel=1e-6)
    for share in (0.5, 0.9, 0.95, 0.99, 0.999):
        assert merged.quantile(share) == pytest.approx(np.quantile(values, share), rel=0.01)


def test_zeros_are_counted_and_come_first() -> None:
    histogram = Histogram.of([0.5], zeros=3)
    assert histogram.count == 4
    assert histogram.quantile(0.75) == 0.0
    assert histogram.quantile(0.76) == 0.5
    assert histogram.rows()[0] == (0.0, 0.0, 3)


def test_an_empty_histogram_has_no_quantile() -> None:
    assert math.isnan(Histogram().quantile(0.5))
    assert math.isnan(Histogram().mean)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_what_is_no_duration_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="durations"):
        Histogram.of([value])


def test_a_histogram_whose_counts_do_not_add_up_is_refused() -> None:
    given_ = Histogram.of([1.0, 2.0]).to_dict()
    given_["count"] = 3
    with pytest.raises(ValueError, match="add up"):
        Histogram.from_dict(given_)
