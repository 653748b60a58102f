"""The planner against published measurements it was not fitted to."""

from __future__ import annotations

from planner import _published


def test_the_median_error_on_published_measurements_is_at_most_a_quarter() -> None:
    found = _published.comparisons()
    assert len(found) >= 10
    assert {gpu for item in found for gpu in ("nvidia-l4", "a100", "h100") if gpu in item.what} == {
        "nvidia-l4",
        "a100",
        "h100",
    }
    assert all(item.source.startswith("https://") for item in found)
    assert _published.median_error(found) <= 0.25


def test_the_table_in_the_docs_is_the_one_computed_now() -> None:
    written = (_published.DOCS / "measurements.md").read_text(encoding="utf-8")
    assert written == _published.document(_published.comparisons()), "run: python -m planner._published"
