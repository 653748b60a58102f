"""Everything that reads what strangers write, with some hundred inputs of theirs. Minutes of it: `make fuzz`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

from tests.attack.fuzz import GROUPS, Target

INPUTS = 10
# Each of them goes through everything that is made of a release, or is signed and judged.
SLOW = {"releases": 3, "evidence": 4, "stacks": 5}


@pytest.fixture(params=list(GROUPS))
def group(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_valid_input_is_taken_and_hostile_input_refused_in_words(group: str, tmp_path: Path) -> None:
    for target in GROUPS[group](tmp_path):
        for seed in target.seeds[:3]:
            target.run(seed)
        # The same inputs each time, wherever this runs.
        draw = random.Random(target.name)
        for _ in range(SLOW.get(group, INPUTS)):
            data = target.mutant(draw.choice(target.seeds), draw)
            assert target.attempt(data) == "", f"{target.name}: {data[:2000]!r}"


def test_what_breaks_a_target_is_told(tmp_path: Path) -> None:
    def broken(data: bytes) -> None:
        raise KeyError("x")

    assert "KeyError: 'x'" in Target("t", "text", [b"a"], broken).attempt(b"a")
    assert Target("t", "text", [b"a"], lambda data: b"").attempt(b"a") == ""


def test_no_example_of_hypothesis_is_taken_from_our_own_modules() -> None:
    """Else they would be others in another checkout; see tests/conftest.py."""

    @settings(max_examples=2)
    @given(st.integers())
    def drawn(value: int) -> None:
        assert isinstance(value, int)

    drawn()
    assert settings().derandomize
    assert settings().database is None
    assert list(providers._get_local_constants()) == []
