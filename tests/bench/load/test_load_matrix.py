"""Which number of workers is best: the right scenario, honest intervals, and no cell measured twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stacks
from bench import matrix
from bench.matrix import Plan, Sample, analyse
from bench.results import Result, Run

LEVELS = (2, 4, 8, 16, 32)
BATCHES = (1000, 5000, 10_000)


def samples(
    rate: Callable[[int], float], *, noise: float = 0.02, spread: float = 0.0, seed: int = 1, **more: Any
) -> list[Sample]:
    dice = np.random.default_rng(seed)
    return [
        Sample(
            level=level, batch=batch, rate=rate(level) * math.exp(noise * dice.standard_normal()), spread=spread or noise,
            freedom=15, error_rate=0.0, seconds=500, latency=2.0, **more,
        )
        for level in LEVELS
        for batch in BATCHES
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rate", "scenario", "optimal"),
    [
        (lambda w: 3.0 * w, "workers help", 32),
        (lambda w: min(2.0 * w, 16.0), "workers help", 8),
        (lambda w: 1.3, "workers do not help", 2),
        (lambda w: 10.0 / w**0.3, "workers hurt", 2),
        (lambda w: {2: 2.0, 4: 4.0, 8: 5.0, 16: 3.0, 32: 1.0}[w], "workers help", 8),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_scenario_and_the_fewest_good_workers_are_found(
    rate: Callable[[int], float], scenario: str, optimal: int, seed: int
) -> None:
    found = analyse(samples(rate, seed=seed))
    assert found is not None
    assert found.scenario == scenario
    assert found.confidence > 0.95
    assert found.optimal_workers == optimal
    assert found.optimal_confidence > 0.5


def test_what_noise_hides_is_not_claimed() -> None:
    # 12 % more with 32 workers, and cells that differ by 20 % for no reason.
    sure = [analyse(samples(lambda w: 10 * (w / 2) ** 0.04, noise=0.2, seed=seed)) for seed in range(12)]
    assert np.mean([found.confidence for found in sure if found]) < 0.9


def test_the_forecast_s_interval_holds_another_batch_about_as_often_as_it_says() -> None:
    held = 0
    dice = np.random.default_rng(99)
    for seed in range(120):
        made = samples(lambda w: min(2.0 * w, 16.0), noise=0.05, spread=0.01, seed=seed)
        found = analyse(made, forecasts=(50_000,))
        assert found is not None
        (forecast,) = found.forecasts
        truth = 50_000 / (16.0 * math.exp(0.05 * dice.standard_normal())) + 2.0
        held += forecast.low <= truth <= forecast.high
    assert 0.84 <= held / 120 <= 0.96


def test_a_small_sample_that_flatters_is_called_out() -> None:
    flattered = samples(lambda w: 1.3, first=14.65)
    found = analyse(flattered)
    assert found is not None
    assert any("14.65" in text and "small sample flatters" in text for text in found.warnings)
    honest = analyse(samples(lambda w: 1.3, first=1.31))
    assert honest is not None
    assert honest.warnings == ()


def test_a_rate_that_falls_with_the_size_of_the_batch_is_taken_from_the_largest_and_said() -> None:
    made = [replace(one, rate=one.rate * (one.batch / 1000) ** -0.2) for one in samples(lambda w: 10.0)]
    found = analyse(made)
    assert found is not None
    assert any("from the smallest to the largest batch" in text for text in found.warnings)
    assert found.levels[0].requests_per_second == pytest.approx(10.0 * 10**-0.2, rel=0.05)


def test_a_level_whose_requests_fail_is_never_the_best() -> None:
    made = [one if one.level < 32 else replace(one, error_rate=0.3) for one in samples(lambda w: 3.0 * w)]
    found = analyse(made)
    assert found is not None
    assert found.optimal_workers == 16
    assert "failed" in found.levels[-1].refused


def test_one_level_alone_decides_nothing_but_says_what_it_does() -> None:
    one = analyse([one for one in samples(lambda w: 1.3, first=14.65) if one.level == 2], forecasts=(50_000,))
    assert one is not None
    assert (one.scenario, one.confidence, one.optimal_confidence) == ("unknown", 0.0, 0.0)
    assert one.forecasts[0].seconds == pytest.approx(50_000 / 1.3, rel=0.05)
    assert any("small sample flatters" in text for text in one.warnings)
    assert any("does not say whether more would help" in text for text in one.warnings)
    assert analyse([]) is None


def one_batch(rate: Callable[[int], float], seed: int, noise: float = 0.05) -> list[Sample]:
    return [one for one in samples(rate, noise=noise, spread=0.005, seed=seed) if one.batch == 1000]


def test_single_cells_that_differ_by_chance_are_not_taken_for_sure() -> None:
    # Cells of one service differ by 5 %, each knows itself to half a percent, and 10 % is said to help: five single cells
    # with nothing between them must not be sure that workers help, nor which number is the best.
    found = [analyse(one_batch(lambda w: 10.0, seed)) for seed in range(40)]
    claims = [one for one in found if one is not None and one.scenario == "workers help"]
    assert all(one.confidence < 0.9 for one in claims)
    assert all("one cell for each number of workers" in " ".join(one.warnings) for one in found if one is not None)
    # Where it is plain, single cells are enough.
    plain = analyse(one_batch(lambda w: 3.0 * w, 1))
    assert plain is not None
    assert plain.scenario == "workers help"
    assert plain.confidence > 0.95


def test_the_intervals_of_single_cells_hold_the_truth() -> None:
    held = 0
    for seed in range(100):
        found = analyse(one_batch(lambda w: 10.0, seed))
        assert found is not None
        held += all(level.low <= 10.0 <= level.high for level in found.levels[:1])
    assert held >= 93


def test_the_further_a_forecast_reaches_the_less_it_claims() -> None:
    found = analyse(samples(lambda w: 10.0), forecasts=(10_000, 50_000, 170_000))
    assert found is not None
    spans = [one.high / one.low for one in found.forecasts]
    assert spans == sorted(spans)
    # From one size of batch, whether longer ones are slower is anybody's guess.
    alone = analyse(one_batch(lambda w: 10.0, 1, noise=0.02), forecasts=(170_000,))
    assert alone is not None
    assert alone.forecasts[0].high / alone.forecasts[0].low > 1.5 * spans[-1]


def test_the_forecast_of_a_rate_that_falls_with_the_batch_allows_for_its_falling_on() -> None:
    made = [replace(one, rate=one.rate * (one.batch / 1000) ** -0.2) for one in samples(lambda w: 10.0)]
    found = analyse(made, forecasts=(170_000,))
    assert found is not None
    (forecast,) = found.forecasts
    on = 170_000 / (10.0 * 170**-0.2)
    assert forecast.low < forecast.seconds < on < forecast.high


def test_where_every_level_fails_none_is_recommended() -> None:
    found = analyse([replace(one, error_rate=0.3) for one in samples(lambda w: 3.0 * w)])
    assert found is not None
    assert any("no number of workers can be recommended" in text for text in found.warnings)


# --- measuring


def result(rate: float, *, valid: bool = True) -> Result:
    metrics = {
        "requests_per_second": rate, "error_rate": 0.0, "e2e_mean_seconds": 1.0, "e2e_p95_seconds": 2.0,
        "sustained_requests_per_second": rate, "sustained_requests_per_second_se": rate / 50, "sustained_batches": 20.0,
        "sustained_seconds": 100.0, "first_20_requests_per_second": rate * 11.3,
    }  # fmt: skip
    run = Run(
        started=datetime(2026, 1, 2, tzinfo=UTC), seconds=100.0, warmup_seconds=0.0, sent=100, ok=100, failed=0, cut=0,
        metrics=metrics, valid=valid, invalid_because="" if valid else "client-bound: its event loop was late",
    )  # fmt: skip
    return Result(
        release="sha256:" + "0" * 64, stack="none", url="http://h", replicas=1, runs=(run,), tool_version="0",
        traffic=traffic(), server={"engine": "ollama", "vram_bytes": 4 << 30},
    )  # fmt: skip


def traffic() -> stacks.Traffic:
    return stacks.Traffic(users=1, prompt_tokens=stacks.Tokens(mean=1), output_tokens=stacks.Tokens(mean=1))


def plan(**subject: Any) -> Plan:
    return Plan(
        batches=(100, 200), workers=(1, 2, 4), subject={"url": "http://h", **subject}, forecasts=(50_000, 170_000)
    )


def measure(path: Path, cell: Any, **more: Any) -> Any:
    given = {"stack": "none", "release": "sha256:" + "0" * 64, "traffic": traffic(), "say": lambda _: None, **more}
    return matrix.measure(plan(), path, cell, **given)


def test_a_matrix_that_was_stopped_goes_on_and_no_cell_is_measured_twice(tmp_path: Path) -> None:
    file, asked = tmp_path / "m.json", []

    def cell(batch: int, workers: int) -> Result:
        asked.append((batch, workers))
        return result(1.3)

    first = measure(file, cell, stopped=lambda: len(asked) >= 4)
    assert len(first.cells) == 4
    done = measure(file, cell)
    assert len(asked) == len(set(asked)) == 6
    assert done.analysis.scenario == "workers do not help"
    assert [one.requests for one in done.analysis.forecasts] == [50_000, 170_000]
    assert done.analysis.forecasts[1].seconds == pytest.approx(170_000 / 1.3, rel=0.01)
    assert done.cells[0].vram_bytes == 4 << 30
    assert any("14.69" in text for text in done.analysis.warnings)
    log = (tmp_path / "m.json.log").read_text()
    assert log.count("sustained") == 6
    assert "4 of 6 cells are measured already" in log
    again = measure(file, cell)
    assert len(asked) == 6
    assert again.server["engine"] == "ollama"


def test_a_cell_that_does_not_count_is_said_and_measured_again(tmp_path: Path) -> None:
    file, good = tmp_path / "m.json", [False]

    def cell(batch: int, workers: int) -> Result:
        return result(2.0, valid=good[0] or workers != 4)

    first = measure(file, cell)
    assert {one.workers for one in first.cells} == {1, 2}
    assert any("client-bound" in text for text in first.analysis.warnings)
    good[0] = True
    assert len(measure(file, cell).cells) == 6


def test_a_crash_keeps_what_was_finished_before_it(tmp_path: Path) -> None:
    file, asked = tmp_path / "m.json", []

    def cell(batch: int, workers: int) -> Result:
        asked.append(1)
        if len(asked) == 3:
            raise stacks.TollgateError("the service is gone")
        return result(1.0)

    with pytest.raises(stacks.TollgateError, match="gone"):
        measure(file, cell)
    kept = matrix.load(file, plan())
    assert kept is not None
    assert len(kept.cells) == 2


def test_cells_of_another_service_are_not_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    measure(file, lambda b, w: result(1.0))
    with pytest.raises(stacks.InputError, match="another service"):
        matrix.load(file, plan(model="other"))
    file.write_text("{}")
    with pytest.raises(stacks.InputError, match="a matrix, or no file"):
        matrix.load(file, plan())


@pytest.mark.parametrize("wrong", [(), (0, 1), (2, 2)])
def test_a_matrix_of_nothing_is_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(stacks.InputError, match="--workers"):
        Plan(batches=(1,), workers=wrong, subject={}, forecasts=())
