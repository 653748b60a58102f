"""Where warm-up ends, on series whose end of warm-up is known."""

from __future__ import annotations

import numpy as np
import pytest

from bench.load._steady import Series, change_point, trend

BIN = 0.1


def series(means: np.ndarray, per_bin: float = 5.0) -> Series:
    made = Series(BIN)
    ok = np.full(len(means), per_bin)
    made.take(ok.tolist(), (means * ok).tolist(), np.zeros(len(means)).tolist())
    return made


def noisy(level: np.ndarray, cv: float, seed: int = 3) -> np.ndarray:
    return level * (1 + cv * np.random.default_rng(seed).standard_normal(len(level)))


@pytest.mark.parametrize(("cv", "early"), [(0.0, 1.0), (0.02, 1.5), (0.1, 2.5)])
def test_the_end_of_a_ramp_is_found_the_nearer_the_less_noise_there_is(cv: float, early: float) -> None:
    level = np.concatenate([np.linspace(2.0, 9.7, 100), np.full(300, 9.7)])
    found = change_point(np.full(400, 5.0), noisy(level, cv), 390) * BIN
    assert 10.0 - early <= found <= 11.0


@pytest.mark.parametrize("seed", range(10))
def test_a_level_series_has_hardly_any_warm_up(seed: int) -> None:
    found = change_point(np.full(300, 5.0), noisy(np.ones(300), 0.1, seed), 200) * BIN
    assert found <= 3.0


def test_a_slow_start_that_ends_suddenly_is_cut_off_exactly() -> None:
    level = np.concatenate([np.full(40, 5.0), np.full(200, 1.0)])
    assert change_point(np.full(240, 5.0), level, 200) == 40


def test_the_window_waits_until_the_level_part_has_lasted_as_long_as_asked() -> None:
    level = np.concatenate([np.linspace(1.0, 5.0, 50), np.full(150, 5.0)])
    assert series(level[:140]).warm_up(14.0, 10.0, 1.0) is None
    found = series(level[:160]).warm_up(16.0, 10.0, 1.0)
    assert found == pytest.approx(5.0, abs=0.6)


def test_nothing_is_steady_before_every_user_was_answered() -> None:
    level = np.full(200, 1.0)
    assert series(level).warm_up(20.0, 15.0, 6.0) is None
    assert series(level).warm_up(20.0, 15.0, 5.0) == pytest.approx(5.0)


def test_latency_that_rises_all_the_time_is_a_trend_and_noise_is_none() -> None:
    counts = np.full(150, 5.0)
    rising = trend(counts, noisy(np.linspace(1.0, 2.0, 150), 0.05))
    assert rising.significant
    assert rising.change == pytest.approx(0.66, abs=0.1)
    assert not any(trend(counts, noisy(np.ones(150), 0.2, seed)).significant for seed in range(20))


def test_a_window_is_stretched_until_enough_has_ended_and_an_answer_fits_into_it() -> None:
    # 50 requests a second that take 1 s each, then five in two seconds that take 4 s each.
    quick, slow = series(np.full(100, 1.0)), series(np.full(100, 4.0), per_bin=0.25)
    assert quick.window(10.0, 2.0, 20) == pytest.approx(2.0)
    assert quick.window(10.0, 2.0, 200) == pytest.approx(4.0)
    assert slow.window(10.0, 2.0, 5) == pytest.approx(4.4)
    assert slow.window(10.0, 2.0, 20) == pytest.approx(8.0)
    assert slow.window(10.0, 2.0, 26) == np.inf
    assert Series(BIN).window(0.0, 2.0, 1) == np.inf
