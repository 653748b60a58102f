"""Baseline and candidate measured in turns: the Job's loop, its words, and what the program tells it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import gate
import stacks
import values
from bench import results
from bench.job import JobConfig
from bench.job._turns import measure_in_turns
from components.evaluate import evaluate
from gate._regression import interleaved

HERE = Path(__file__).resolve().parents[2]
OTHER = "sha256:" + "b2" * 32


def config(**more: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "url": "http://engine.local-dev.svc:80",
            "engine": "ollama",
            "model": "gemma3:4b",
            "traffic": {"users": 50, "prompt_tokens": 128, "output_tokens": 128},
            "runs": 3,
            "release": "sha256:" + "a1" * 32,
            "stack": "local-dev",
            "replicas": 10,
            "result_configmap": "bench-result-1",
            "against": {
                "url": "http://engine.local-beside.svc:80",
                "engine": "ollama",
                "model": "gemma3:4b",
                "release": OTHER,
                "stack": "local-beside",
                "replicas": 10,
            },
            **more,
        }
    )


class Clock:
    """Measures nothing, and notes in what order it was asked to."""

    def __init__(self, world: Any, stop_after: int = 99) -> None:
        self.world, self.asked, self._left = world, list[JobConfig](), stop_after

    def __call__(self, asked: JobConfig) -> results.Result:
        self.asked.append(asked)
        self._left -= 1
        found: results.Result = self.world.result(
            runs=1 if self._left >= 0 else 0,
            stack=asked.stack,
            release=asked.release,
            started=self.world.now + timedelta(minutes=len(self.asked)),
        )
        return found


def test_runs_alternate_and_each_pair_has_the_same_prompts(world: Any) -> None:
    clock = Clock(world)
    pair = measure_in_turns(config(), clock)
    assert [one.stack for one in clock.asked] == ["local-dev", "local-beside"] * 3
    assert [one.runs for one in clock.asked] == [1] * 6
    seeds = [one.seed for one in clock.asked]
    assert seeds[0::2] == seeds[1::2]
    assert len(set(seeds)) == 3
    assert {one.url for one in clock.asked[1::2]} == {"http://engine.local-beside.svc:80"}
    assert pair.against is not None
    assert (len(pair.result.runs), len(pair.against.runs)) == (3, 3)
    assert interleaved(pair.result, pair.against)


def test_what_was_interrupted_is_not_called_in_turns(world: Any) -> None:
    pair = measure_in_turns(config(), Clock(world, stop_after=3))
    assert pair.against is not None
    assert (len(pair.result.runs), len(pair.against.runs)) == (2, 1)
    assert not interleaved(pair.result, pair.against)


def test_a_result_is_read_with_its_baseline_or_without(world: Any) -> None:
    alone = world.result()
    assert results.read_pair(alone.model_dump_json()) == results.Pair(result=alone)
    both = results.Pair(result=alone, against=world.result(release=OTHER))
    assert results.read_pair(both.model_dump_json()) == both


def test_the_program_names_the_service_beside(project: Path) -> None:
    dev = project / "stacks" / "Pulumi.local-dev.yaml"
    staging = dev.with_name("Pulumi.local-staging.yaml")
    dev.write_text(dev.read_text().replace("seconds: 8}", "seconds: 8, against: local-staging}"))
    (told,) = (
        json.loads(resource["inputs"]["data"]["bench.json"])
        for resource in evaluate("local-dev", project)
        if resource["type"].endswith(":ConfigMap") and "bench.json" in (resource["inputs"].get("data") or {})
    )
    beside = JobConfig.model_validate(told).against
    assert beside is not None
    assert beside.url == "http://engine.local-staging.svc:80"
    assert beside.release == values.release_digest(stacks.load_stack("local-staging", project).release)
    assert beside.replicas == 10
    # Of another size it would not be the same load on each of its replicas.
    staging.write_text(staging.read_text().replace("{min: 10, max: 10}", "{min: 5, max: 5}"))
    with pytest.raises(stacks.InputError, match="another stack of the same cluster with 10 replicas"):
        evaluate("local-dev", project)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"traffic": {"users": 40}}, "traffic"),
        ({"replicas": 9}, "replicas"),
        ({"environment": {"machine_type": "g2-standard-4"}}, "environment"),
    ],
)
def test_a_baseline_under_another_load_is_not_compared(world: Any, more: dict[str, Any], said: str) -> None:
    quiet = [world.result(factor=factor) for factor in (0.995, 1.0, 1.005, 1.0, 1.0)]
    gate.record_calibration(world.stack("local-dev"), quiet, root=world.root, now=world.now)
    world.criteria("max_regression: {e2e_p95_seconds: 0.05}")
    world.record()
    world.promote()
    world.record(world.result(release=OTHER, started=world.later(hours=1), **more), world.later(hours=1))
    world.not_promoted(
        rf"regression:e2e_p95_seconds .*inconclusive +the baseline was measured with other {said}",
        world.later(hours=2),
        OTHER,
    )
