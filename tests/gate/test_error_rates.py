"""The gate's own error rates, by whole simulated gates: the table in docs/gate/error-rates.md is of the same code."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parents[2]
ALPHA = 0.05


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gate_error_rates", HERE / "benchmarks" / "gate_error_rates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_ten_thousand_equal_releases_with_three_looks_fail_no_more_often_than_configured(
    simulation: ModuleType,
) -> None:
    found = simulation.rates(simulation.Scene(looks=3), 10_000, seed=1)
    assert found["fail"] <= ALPHA
    # Not because it never decides: nearly all of them pass.
    assert found["pass"] >= 0.95


@pytest.mark.slow
def test_equal_releases_just_at_their_promise_fail_no_more_often_than_configured(simulation: ModuleType) -> None:
    """The hardest equal release there is: every promise is kept exactly, with no room at all."""
    found = simulation.rates(simulation.Scene(looks=3, room=0.0, between=0.0), 3_000, seed=2)
    assert found["fail"] <= ALPHA
    assert found["pass"] <= ALPHA


@pytest.mark.slow
def test_a_release_worse_by_just_the_limit_passes_no_more_often_than_configured(simulation: ModuleType) -> None:
    # 5 % and three standard errors of 1,500 draws.
    for looks in (1, 3):
        found = simulation.rates(simulation.Scene(looks=looks, slower=0.05), 1_500, seed=3)
        assert found["pass"] <= ALPHA + 0.017
        assert found["fail"] <= ALPHA


def test_a_release_ten_percent_slower_is_caught_with_the_stated_power_and_never_passes(simulation: ModuleType) -> None:
    found = simulation.rates(simulation.Scene(slower=0.1), 1_000, seed=4)
    assert found["pass"] == 0.0
    assert found["fail"] >= 0.88


@pytest.mark.slow
def test_looking_again_without_dividing_the_error_would_let_too_many_through(simulation: ModuleType) -> None:
    """Why the bounds are stricter with more looks: the same gates, judged each time as if it were the only look."""
    scene = simulation.Scene(slower=0.05, looks=5, turns=True, runs=3)
    careful = simulation.rates(scene, 800, seed=5)["pass"]
    careless = simulation.rates(replace(scene, confidence=1 - 5 * ALPHA), 800, seed=5)["pass"]
    assert careful <= ALPHA
    assert careless > 0.08


def test_in_turns_a_loud_environment_settles_what_two_times_cannot(simulation: ModuleType) -> None:
    apart = simulation.rates(simulation.Scene(between=0.03), 300, seed=6)
    turns = simulation.rates(simulation.Scene(between=0.03, turns=True), 300, seed=6)
    assert apart["pass"] < 0.3
    assert turns["pass"] > 0.95
    assert simulation.rates(simulation.Scene(between=0.03, turns=True, slower=0.1), 300, seed=7)["fail"] > 0.9


def test_runs_that_are_alike_do_not_make_it_more_sure(simulation: ModuleType) -> None:
    found = simulation.rates(simulation.Scene(within=0.02, runs=10, alike=0.7, slower=0.05), 1_000, seed=8)
    assert found["pass"] <= ALPHA + 0.02
    assert found["fail"] <= ALPHA


def test_the_table_in_the_docs_is_of_these_scenes(simulation: ModuleType) -> None:
    text = (HERE / "docs" / "gate" / "error-rates.md").read_text()
    rows = [
        line for line in text.splitlines() if (line.startswith("| ") and "sessions |" in line) or "in turns |" in line
    ]
    assert len(rows) == len(simulation.SCENES)
    failed = [float(row.split("|")[6].strip().rstrip("%")) / 100 for row in rows]
    assert max(failed) <= ALPHA
