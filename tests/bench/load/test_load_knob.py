"""Tuning: where an engine's slots stand, that they are turned back, and what is written into the release."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

import stacks
from bench import results
from bench.pods import Knob, Kubectl
from bench.pods._knob import find, path, text
from tollgate.commands import tune


@pytest.mark.parametrize(
    ("container", "pointer", "written"),
    [
        ({"env": [{"name": "A"}, {"name": "OLLAMA_NUM_PARALLEL", "value": "4"}]}, "env/1/value", "8"),
        ({"args": ["--model", "m", "--max-num-seqs=4"]}, "args/2", "--max-num-seqs=8"),
        ({"args": ["--max-num-seqs", "4"]}, "args/1", "8"),
    ],
)
def test_the_setting_is_found_where_it_stands(container: dict[str, Any], pointer: str, written: str) -> None:
    what = "OLLAMA_NUM_PARALLEL" if "env" in container else "--max-num-seqs"
    place = find(container, what, "a/engine")
    assert place.value == 4
    assert path(place) == f"/spec/template/spec/containers/0/{pointer}"
    assert text(place, what, 8) == written


def test_a_deployment_that_does_not_set_it_is_refused_by_name() -> None:
    with pytest.raises(stacks.InputError, match="dev/engine"):
        find({"args": ["--max-num-seqs=auto"]}, "--max-num-seqs", "dev/engine")


class Recorded(Kubectl):
    """kubectl that remembers what it was asked; frozen like the real one."""

    def run(self, *arguments: str, given: str = "", seconds: float = 60.0) -> str:
        CALLS.append(arguments)
        return ""

    def get(self, *arguments: str) -> dict[str, Any]:
        env = [{"name": "OLLAMA_NUM_PARALLEL", "value": "4"}]
        return {"spec": {"replicas": 3, "template": {"spec": {"containers": [{"env": env}]}}}}


CALLS: list[tuple[str, ...]] = []


def test_the_deployment_gets_its_value_back_whatever_happens() -> None:
    CALLS.clear()

    def broken_off() -> None:
        with Knob(Recorded(environment={}, namespace="dev"), "engine", "ollama") as knob:
            assert knob.replicas == 3
            knob.turn(8)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    values = [json.loads(call[-1])[0]["value"] for call in CALLS if call[0] == "patch"]
    assert values == ["8", "4"]
    assert [call[0] for call in CALLS] == ["patch", "rollout", "patch", "rollout"]


class Stuck(Recorded):
    """A rollout that ends once and then never again."""

    def run(self, *arguments: str, given: str = "", seconds: float = 60.0) -> str:
        CALLS.append(arguments)
        if arguments[0] == "rollout" and len(CALLS) > 2:
            raise stacks.TollgateError("timed out waiting for the condition")
        return ""


def test_pods_that_do_not_come_back_cost_nothing_that_was_measured() -> None:
    CALLS.clear()
    with Knob(Stuck(environment={}, namespace="dev"), "engine", "ollama") as knob:
        knob.turn(8)
    assert "timed out" in knob.unsettled


def run(rate: float) -> results.Run:
    return results.Run(
        started=datetime(2026, 1, 2, tzinfo=UTC), seconds=10.0, warmup_seconds=1.0, sent=400, ok=400, failed=0, cut=0,
        metrics={"requests_per_second": rate, "error_rate": 0.0, "e2e_mean_seconds": 1.0, "e2e_p95_seconds": 40 / rate},
        valid=True,
    )  # fmt: skip


def tuning(**objectives: float) -> results.Tuning:
    stack = stacks.load_stack("local-real", Path(stacks.__file__).parents[1])
    if objectives:
        stack = stack.model_copy(update={"objectives": stacks.Objectives(**objectives)})
    found = {1: [run(10.0), run(10.2)], 2: [run(19.0), run(19.4)], 4: [run(30.0), run(30.5)], 8: [run(30.2), run(30.3)]}
    return tune._concluded(stack, "OLLAMA_NUM_PARALLEL", "sha256:" + "0" * 64, found, 16)


def test_the_fewest_slots_near_the_best_are_chosen() -> None:
    found = tuning().analysis
    assert found is not None
    assert found.optimal_workers == 4
    assert "with 1 slot, at best" in found.because


def test_a_value_that_breaks_a_promise_is_not() -> None:
    found = tuning(e2e_p95_seconds=2.0, error_rate=0.01).analysis
    assert found is not None
    assert found.levels[0].refused == "e2e_p95_seconds 4, promised at most 2"
    assert found.levels[3].refused == ""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("parallelism: {slots: 1}", {"slots": 4}),
        ("parallelism: {slots: auto, tensor: 2}", {"slots": 4, "tensor": 2}),
        ("parallelism: {tensor: 2}", {"slots": 4, "tensor": 2}),
        ("parallelism: {}", {"slots": 4}),
        ("parallelism: auto", {"slots": 4, "tensor": 2}),
        ("parallelism:\n  slots: auto\n  tensor: 2", {"slots": 4, "tensor": 2}),
        ("parallelism:\n  tensor: 2", {"slots": 4, "tensor": 2}),
        ("kv_cache: f16", {"slots": 4}),
    ],
)
def test_the_release_gets_the_value_and_the_reason_and_keeps_everything_else(before: str, after: Any) -> None:
    given = f"# about it\nengine: vllm\n{before}\nchart: engine\n"
    best = tuning()
    once = tune.tuned(given, best, "r.tuning.json", tensor=2)
    assert yaml.safe_load(once) == {**yaml.safe_load(given), "parallelism": after}
    assert "# about it" in once
    assert "# tuned: 4 of 1, 2, 4, 8 on local-real" in once
    # Tuned again, there is still one reason.
    assert tune.tuned(once, best, "r.tuning.json", tensor=2) == once


def test_where_every_value_breaks_a_promise_or_one_alone_counts_nothing_is_written() -> None:
    with pytest.raises(
        stacks.TollgateError, match=r"no value can be recommended .*e2e_p95_seconds.*nothing was written"
    ):
        tune.best(tuning(e2e_p95_seconds=0.1))
    stack = stacks.load_stack("local-real", Path(stacks.__file__).parents[1])
    spoilt = run(19.0).model_copy(update={"valid": False, "invalid_because": "client-bound"})
    one = tune._concluded(stack, "OLLAMA_NUM_PARALLEL", "sha256:" + "0" * 64, {1: [run(10.0)], 2: [spoilt]}, 16)
    with pytest.raises(stacks.TollgateError, match="only samples with 1 slots count"):
        tune.best(one)


def test_a_file_is_written_whole_or_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, link = tmp_path / "release.yaml", tmp_path / "link.yaml"
    file.write_text("old")
    link.symlink_to(file)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(stacks.InputError, match="No space left"):
            tune.benching.written(link, "new")
    assert file.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.yaml", "release.yaml"]
    tune.benching.written(link, "new")
    assert file.read_text() == "new"
    assert link.is_symlink()
