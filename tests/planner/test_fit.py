"""Calibration finds the constants that a measurement was made with, and says how well it fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import planner
from planner._fit import Measured
from stacks import InputError, Tokens, Traffic, load_release

RELEASE = load_release("gemma-3-4b-ollama-8")


def measured(users: int, times: planner.Timing) -> Measured:
    traffic = Traffic(users=users, prompt_tokens=Tokens(mean=128), output_tokens=Tokens(mean=128))
    found = planner.predict(times, slots=8, replicas=10, traffic=traffic)
    return Measured(
        traffic=traffic,
        replicas=10,
        slots=8,
        runs=3,
        requests_per_second=found.requests_per_second,
        e2e_mean_seconds=found.e2e_mean_seconds,
        ttft_mean_seconds=None,
    )


def test_two_levels_of_load_give_both_constants_back() -> None:
    base = planner.timing(RELEASE)
    truth = replace(base, overhead=base.overhead * 1.7, sequence=base.sequence * 0.6)
    fitted = planner.calibrate([measured(10, truth), measured(70, truth)], release=RELEASE)
    assert fitted.timing.overhead == pytest.approx(truth.overhead, rel=0.01)
    assert fitted.timing.sequence == pytest.approx(truth.sequence, rel=0.01)
    assert fitted.error_after < 0.001 < fitted.error_before


def test_one_level_of_load_moves_the_overhead_alone() -> None:
    base = planner.timing(RELEASE)
    truth = replace(base, overhead=base.overhead * 2)
    fitted = planner.calibrate([measured(50, truth)], release=RELEASE)
    assert fitted.timing.sequence == base.sequence
    assert fitted.timing.overhead == pytest.approx(truth.overhead, rel=0.01)


def result(valid: bool) -> dict[str, Any]:
    run = {"valid": valid, "metrics": {"e2e_mean_seconds": 2.9, "requests_per_second": 17.2}}
    return {
        "traffic": {"arrival": "closed", "users": 50, "prompt_tokens": {"mean": 128}, "output_tokens": {"mean": 128}},
        "replicas": 10,
        "runs": [run, {"valid": False, "metrics": {"e2e_mean_seconds": 99.0}}],
        "server": {"slots": 8},
    }


def test_invalid_runs_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(result(True)))
    (tmp_path / "b.json").write_text(json.dumps(result(False)))
    found = planner.read_results(tmp_path)
    assert len(found) == 1
    assert found[0].e2e_mean_seconds == 2.9


@pytest.mark.parametrize("content", ["", "{}", "[1]", json.dumps(result(False))])
def test_what_is_no_result_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError):
        planner.read_results(tmp_path)
