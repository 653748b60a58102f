"""Cost and node changes: the arithmetic by hand, the words, and what a hostile name may not do."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preview import MARKER, Change, Shape, as_json, markdown, shape

BOOK = {"source": "test", "as_of": "2026"}
PRICES = {"g2-standard-8": Decimal("0.8536"), "a2-highgpu-1g": Decimal("3.6734")}


def price(machine_type: str, region: str, spot: bool) -> Decimal | None:
    return PRICES.get(machine_type)


def made(nodes: int = 10, machine: str = "g2-standard-8", slots: int = 8, name: str = "dev", **more: Any) -> Shape:
    pool = {
        "pool": name,
        "machineType": machine,
        "gpu": "nvidia-l4",
        "migProfile": None,
        "region": "us-central1",
        "spot": False,
        "nodesMin": more.get("least", nodes),
        "nodesExpected": nodes,
        "nodesMax": more.get("most", nodes),
    }
    platform = {
        "release": "r",
        "digest": f"sha256:{slots}",
        "engine": "ollama",
        "model": "m",
        "slots": slots,
        "replicas": nodes,
    }
    resources = [
        {"type": "tollgate:index:Platform", "name": "platform", "inputs": platform},
        {"type": "tollgate:index:GpuPool", "name": "gpu-pool", "inputs": pool},
    ]
    return shape(name, resources if more.get("forward", True) else reversed(resources), price)


def test_ten_l4_nodes_cost_what_the_book_says() -> None:
    assert made().hourly("expected") == Decimal("8.5360")


def test_a_pool_from_zero_is_counted_at_what_is_expected_and_at_most() -> None:
    found = made(nodes=4, least=0, most=10)
    assert [found.hourly(which) for which in ("min", "expected", "max")] == [
        Decimal(0),
        Decimal("3.4144"),
        Decimal("8.5360"),
    ]


def test_the_headline_says_nodes_dollars_and_share() -> None:
    change = Change(stack="dev", before=made(10), after=made(15))
    assert change.headline == "dev: +5 g2-standard-8, +$4.27/h expected (+50 %), replicas 10 → 15"


def test_a_change_of_the_release_is_said_in_words() -> None:
    assert Change(stack="dev", before=made(slots=8), after=made(slots=16)).headline == "dev: slots 8 → 16"


def test_nothing_changed_is_one_sentence_and_no_table() -> None:
    change = Change(stack="dev", before=made(), after=made())
    assert not change.changed
    assert change.headline == "dev: no change"
    assert "|" not in markdown([change], "main", BOOK)


def test_an_unpriced_machine_is_named_and_not_free_in_silence() -> None:
    change = Change(stack="dev", before=None, after=made(machine="x9-mega"))
    text = markdown([change], None, BOOK)
    assert "Unpriced, not counted above:** x9-mega in us-central1" in text
    assert as_json([change], None, BOOK)["stacks"][0]["unpriced"] == ["x9-mega in us-central1"]


def test_a_broken_program_is_said_where_its_numbers_would_be() -> None:
    change = Change(stack="dev", error="stacks/Pulumi.dev.yaml, line 3\nmore")
    assert "cannot be evaluated: stacks/Pulumi.dev.yaml, line 3" in markdown([change], None, BOOK)


def test_the_comment_begins_with_the_marker_by_which_it_is_found_again() -> None:
    assert markdown([], None, BOOK).startswith(MARKER)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a|b", "`x`", "line\nbreak"])
def test_a_hostile_name_does_not_become_markup(name: str) -> None:
    text = markdown([Change(stack=name, before=None, after=made(name=name))], None, BOOK)
    assert "<script>" not in text
    assert "`x`" not in text
    assert "a|b" not in text.replace("a\\|b", "")
    assert "line\nbreak" not in text


@given(before=st.integers(0, 500), after=st.integers(0, 500))
def test_before_and_change_are_after_to_the_cent(before: int, after: int) -> None:
    change = Change(stack="dev", before=made(before), after=made(after))
    old, new = change.hourly("expected")
    assert old + (new - old) == Decimal("0.8536") * after
    assert change.changed is (before != after)


@given(nodes=st.integers(0, 100))
def test_the_order_of_resources_does_not_matter(nodes: int) -> None:
    assert made(nodes) == made(nodes, forward=False)
