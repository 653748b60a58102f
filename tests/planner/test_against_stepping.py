"""The queueing formulas against an engine stepped token by token with the same timing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import planner
from stacks import Tokens, Traffic

DOCS = Path(__file__).resolve().parents[2] / "docs" / "planner"


def script(name: str) -> ModuleType:
    """A script of the documentation, as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_planner_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stepping = script("stepping")


@pytest.mark.parametrize(
    ("rate", "spread", "mean_within", "late_within"),
    [(0.5, False, 0.02, 0.05), (1.5, False, 0.03, 0.05), (2.0, False, 0.04, 0.08), (1.5, True, 0.04, 0.12)],
)
def test_open_arrivals_come_out_as_in_a_stepped_engine(
    rate: float, spread: bool, mean_within: float, late_within: float
) -> None:
    mean, late = stepping.stepped(rate, spread)
    found = stepping.planned(rate, spread)
    assert found.e2e_mean_seconds == pytest.approx(mean, rel=mean_within)
    assert found.e2e_p95_seconds == pytest.approx(late, rel=late_within)


def test_capacity_is_where_a_stepped_engine_falls_behind() -> None:
    traffic = Traffic(
        arrival="poisson", requests_per_second=1.0, prompt_tokens=Tokens(mean=128), output_tokens=Tokens(mean=128)
    )
    capacity = planner.predict(stepping.TIMING, slots=8, replicas=1, traffic=traffic).capacity
    below, above = stepping.stepped(capacity * 0.8, False)[0], stepping.stepped(capacity * 1.1, False)[0]
    assert below < 5.0
    assert above > 30.0


@pytest.mark.parametrize("name", ["comparison", "questions", "stepping"])
def test_the_pages_of_the_documentation_are_the_ones_computed_now(name: str) -> None:
    written = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert written == script(name).document(), f"run: python docs/planner/{name}.py"
