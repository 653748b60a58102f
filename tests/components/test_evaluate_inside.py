"""The evaluation of programs without an engine, from inside; tests/preview sees it as a process."""

from __future__ import annotations

import json
import logging
import threading
from decimal import Decimal
from pathlib import Path

import pytest

import planner
import stacks
from components import evaluate
from components._light import camel
from components.evaluate import planned

HERE = Path(__file__).resolve().parents[2]


def test_a_day_is_planned_hour_by_hour_and_an_hour_without_anybody_at_the_least() -> None:
    stack = stacks.load_stack("prod", HERE)
    whole, day = planned(stack), planned(stack, [0.0, 1.0])
    assert day["nodes_peak"] == whole["nodes_peak"]
    assert Decimal(day["requests_per_second"]) == Decimal(whole["requests_per_second"]) / 2
    assert Decimal(day["nodes_expected"]) == (stack.fleet.nodes.min + Decimal(whole["nodes_expected"])) / 2


def test_a_day_of_people_is_planned_by_their_number() -> None:
    stack = stacks.load_stack("dev", HERE)
    half = planned(stack, [0.5])
    assert 0 < Decimal(half["output_tokens_per_second"]) < Decimal(planned(stack)["output_tokens_per_second"])


def test_what_the_price_book_lacks_is_unpriced_and_promises_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    book = planner.price_book()
    monkeypatch.setattr(evaluate, "_lacking", set())
    kept = dict(book.prices)
    objectives = stacks.Objectives(cost_per_million_tokens_usd=1e-9)
    fleet = stacks.Fleet(machine_type="g2-standard-8", nodes=stacks.Nodes(min=1, max=1), spot=True)
    stack = stacks.load_stack("dev", HERE).model_copy(update={"fleet": fleet, "objectives": objectives})
    assert "cost_per_million_tokens_usd" in planned(stack)["unmet"]
    try:
        del book.prices[("us-central1", "g2-standard-8")]  # type: ignore[attr-defined]
        evaluate._placeholders(stack)
        assert evaluate._lacking == {("us-central1", "g2-standard-8", False), ("us-central1", "g2-standard-8", True)}
        assert "cost_per_million_tokens_usd" not in planned(stack)["unmet"]
    finally:
        book.prices.clear()  # type: ignore[attr-defined]
        book.prices.update(kept)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys\nsys.exit(3)\n", "the program left with 3"),
        (
            "import stacks\ntry:\n    raise stacks.TollgateError('no')\nexcept stacks.TollgateError:\n    raise SystemExit(32)\n",
            "no",
        ),
    ],
)
def test_a_program_that_leaves_is_asked_why(program: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "__main__.py").write_text(program)
    with pytest.raises(stacks.TollgateError, match=f"^{message}$"):
        evaluate.evaluate("any", tmp_path)


def test_a_program_that_fails_lightly_is_tried_again_with_the_whole_sdks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Pulumi.yaml").write_text("name: p\nruntime: python\n")
    (tmp_path / "stacks").mkdir()
    asked: list[list[str]] = []

    class Done:
        returncode = 2

    monkeypatch.chdir(tmp_path)
    # What a process of its own may change for good is put back for the tests after this one.
    for reader in ("load_pipeline", "load_release", "load_stack"):
        monkeypatch.setattr(stacks, reader, getattr(stacks, reader))
    monkeypatch.setattr(logging.getLogger("asyncio"), "level", logging.getLogger("asyncio").level)
    monkeypatch.setattr(evaluate._light, "install", lambda: None)
    monkeypatch.setattr(evaluate.stacks, "load_stack", lambda *_: (_ for _ in ()).throw(AttributeError("not light")))
    monkeypatch.setattr(evaluate.subprocess, "run", lambda command: asked.append(command) or Done())
    monkeypatch.setattr(evaluate.gc, "disable", lambda: None)
    monkeypatch.setattr(evaluate, "__spec__", type("Spec", (), {"name": "components.evaluate"}), raising=False)
    assert evaluate.main(["one", "two"]) == 2
    assert asked[0][1:] == ["-m", "components.evaluate", "--whole", "one", "two"]
    assert capsys.readouterr().out == ""
    assert evaluate.main(["--whole", "one"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "not light"


def test_googles_names_are_given_and_what_the_user_named_is_kept() -> None:
    assert camel({"machine_type": [{"disk_size_gb": 1}], "labels": {"my_team": "a"}}) == {
        "machineType": [{"diskSizeGb": 1}],
        "labels": {"my_team": "a"},
    }


def test_what_stands_in_for_the_engine_is_asked_in_this_thread_and_its_error_is_the_answers() -> None:
    here = evaluate._Here()
    assert here.submit(threading.get_ident).result() == threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        here.submit(lambda: 1 / 0).result()


def test_files_are_read_anew_in_the_process_of_the_tests() -> None:
    assert not hasattr(stacks.load_pipeline, "cache_info")
