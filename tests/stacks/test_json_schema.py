"""The JSON Schemas that editors use: made from the models, up to date, and of one mind with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

import stacks
from stacks import _json_schema

HERE = Path(__file__).resolve().parents[2]
FOLDER = HERE / "stacks" / "schema"


def loaded(name: str) -> Any:
    return yaml.safe_load((HERE / "stacks" / name).read_text())


def validator(name: str) -> Any:
    return jsonschema_rs.validator_for(json.loads((FOLDER / name).read_text()))


@pytest.mark.parametrize("name", ["stack.json", "release.json", "pipeline.json"])
def test_the_committed_schema_is_the_one_that_the_models_make(name: str) -> None:
    assert (FOLDER / name).read_text() == _json_schema.text(_json_schema.schemas()[name]), (
        "python -m stacks._json_schema"
    )


def test_every_file_of_the_project_is_valid() -> None:
    for name in stacks.stack_names(HERE):
        validator("stack.json").validate(loaded(f"Pulumi.{name}.yaml"))
    for name in stacks.release_names(HERE):
        validator("release.json").validate(loaded(f"releases/{name}.yaml"))
    validator("pipeline.json").validate(loaded("pipeline.yaml"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tollgate:target", "gcp"),
        ("tollgate:flet", {}),
        ("tollgate:fleet", {"machine_type": "g2-standard-8", "nodes": {"min": -1, "max": 1}}),
        ("tollgate:fleet", {"machine_type": "g2-standard-8"}),
        ("tollgate:serving", {"cache": {"kind": "nfs"}}),
        ("tollgate:traffic", {"arrival": "sometimes", "prompt_tokens": 1, "output_tokens": 1}),
    ],
)
def test_a_wrong_key_or_value_is_found_by_the_schema(key: str, value: Any) -> None:
    given = loaded("Pulumi.prod.yaml")
    given["config"][key] = value
    assert not validator("stack.json").is_valid(given)


def test_other_programs_settings_are_none_of_its_business() -> None:
    given = loaded("Pulumi.prod.yaml")
    given["config"]["gcp:project"] = "my-project"
    given["config"]["secrets:apiKey"] = {"secure": "v1:abc"}
    assert validator("stack.json").is_valid(given)


def test_every_file_names_its_schema_so_that_editors_find_it() -> None:
    for path in (HERE / "stacks").glob("*.yaml"):
        first = path.read_text().splitlines()[0]
        wanted = "pipeline" if path.name == "pipeline.yaml" else "stack"
        assert first == f"# yaml-language-server: $schema=schema/{wanted}.json", path.name
    for path in (HERE / "stacks" / "releases").glob("*.yaml"):
        assert path.read_text().splitlines()[0] == "# yaml-language-server: $schema=../schema/release.json", path.name
