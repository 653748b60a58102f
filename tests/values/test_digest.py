"""What names a release, and what must not change its name."""

from __future__ import annotations

from pathlib import Path

import pytest

import planner
import stacks
import values

HERE = Path(__file__).resolve().parents[2]


def test_the_same_release_has_the_same_digest_on_every_stack() -> None:
    dev, prod = (stacks.load_stack(name, HERE) for name in ("local-dev", "local-prod"))
    assert dev.namespace != prod.namespace
    assert values.release_digest(dev.release) == values.release_digest(prod.release)


@pytest.mark.parametrize(
    "change",
    [
        {"parallelism": stacks.Parallelism(slots=7)},
        {"image": "ollama/ollama:0.17.5"},
        {"context_tokens": 4096},
        {"kv_cache": "q8_0"},
        {"source": "gemma3:4b-it-qat"},
        {"accelerator": stacks.Accelerator(gpu="nvidia-a100-80gb")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_promoted_field_changes_the_digest(change: dict[str, object]) -> None:
    release = stacks.load_release("gemma-3-4b-ollama-8", HERE)
    assert values.release_digest(release) != values.release_digest(release.model_copy(update=change))


def test_the_name_of_the_file_does_not() -> None:
    release = stacks.load_release("gemma-3-4b-ollama-8", HERE)
    assert values.release_digest(release) == values.release_digest(release.model_copy(update={"name": "other"}))


def test_auto_and_the_number_it_stands_for_are_the_same_release() -> None:
    release = stacks.load_release("gemma-3-4b-vllm", HERE)
    assert release.parallelism.slots == "auto"
    assert values.release_digest(release) == values.release_digest(planner.resolve(release))


def test_a_hostile_model_name_stays_one_value() -> None:
    release = stacks.load_release("gemma-3-4b-ollama-8", HERE).model_copy(
        update={"source": 'a"\nimage: evil #{{ 7*7 }}'}
    )
    given = values.release_values(release)
    assert given["model"] == 'a"\nimage: evil #{{ 7*7 }}'
    assert given["image"] == "ollama/ollama:0.17.4"


def test_an_unknown_chart_is_answered_with_those_that_exist() -> None:
    with pytest.raises(stacks.InputError, match="engine, upstream"):
        values.chart_path("triton")
