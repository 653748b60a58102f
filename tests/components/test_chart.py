"""Where a Helm release finds its chart: the same words in every checkout, and the same contents."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import stacks
import values
from components._chart import chart_at


def test_a_chart_of_the_project_is_named_from_its_root(tmp_path: Path) -> None:
    chart = tmp_path / "charts" / "engine"
    shutil.copytree(values.chart_path("engine"), chart)
    assert chart_at(chart, tmp_path) == "./charts/engine"
    assert not (tmp_path / ".tollgate").exists()


def test_a_chart_from_elsewhere_is_copied_under_a_name_of_its_contents(tmp_path: Path) -> None:
    ours = values.chart_path("engine")
    one, other = tmp_path / "one", tmp_path / "other"
    named = {chart_at(ours, root) for root in (one, other, one)}
    assert len(named) == 1
    place = one / named.pop()
    assert {path.name: path.read_text() for path in place.rglob("*.yaml")} == {
        path.name: path.read_text() for path in ours.rglob("*.yaml")
    }
    # Nothing half-made stays beside it.
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    changed = tmp_path / "changed" / "engine"
    shutil.copytree(ours, changed)
    (changed / "values.yaml").write_text((changed / "values.yaml").read_text() + "# newer\n")
    assert one / chart_at(changed, one) != place


def test_a_project_that_takes_no_copy_says_so(tmp_path: Path) -> None:
    (tmp_path / ".tollgate").write_text("a file")
    with pytest.raises(stacks.TollgateError, match=r"the chart engine cannot be put into .*\.tollgate"):
        chart_at(values.chart_path("engine"), tmp_path)


def test_another_program_is_given_the_chart_where_it_lies() -> None:
    assert chart_at(values.chart_path("engine"), None) == str(values.chart_path("engine"))
