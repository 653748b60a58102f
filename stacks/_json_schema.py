"""JSON Schemas of the stack, release and pipeline files, made from the models, so that editors complete and check them.

Run `python -m stacks._json_schema` after a change of a model. A file names its schema in its first line, as
`# yaml-language-server: $schema=schema/stack.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ._models import Pipeline, Release, Stack

# What a stack file does not say itself: its name is the file's.
_DERIVED = ("name",)


def schemas() -> dict[str, dict[str, Any]]:
    """File name -> JSON Schema (draft 2020-12)."""
    return {"stack.json": _stack(), "release.json": _without_name(Release), "pipeline.json": _pipeline()}


def write(folder: Path) -> None:
    """Write the schemas into that folder."""
    folder.mkdir(exist_ok=True)
    for name, schema in schemas().items():
        (folder / name).write_text(text(schema), encoding="utf-8")


def text(schema: dict[str, Any]) -> str:
    """As it is committed."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _stack() -> dict[str, Any]:
    made = _checked(Stack.model_json_schema(by_alias=True), "A stack: one environment")
    own, required = made.pop("properties"), made.pop("required")
    own["release"] = {"type": "string", "description": "The name of a file of releases/, without .yaml"}
    config = {f"tollgate:{key}": value for key, value in own.items() if key not in _DERIVED}
    # The namespace is the stack's name where it is not given.
    wanted = [f"tollgate:{key}" for key in required if key not in (*_DERIVED, "namespace")]
    definitions = {name: form for name, form in made.pop("$defs").items() if name != "Release"}
    return {
        **{key: made[key] for key in ("$schema", "title")},
        "description": (Stack.__doc__ or "").strip(),
        "type": "object",
        "additionalProperties": False,
        "required": ["config"],
        "properties": {
            "config": {
                "type": "object",
                "properties": config,
                "required": wanted,
                # Other namespaces are other programs'; of ours only what is known.
                "patternProperties": {"^(?!tollgate:)": {}},
                "additionalProperties": False,
            },
            "encryptionsalt": {"type": "string"},
            "secretsprovider": {"type": "string"},
            "encryptedkey": {"type": "string"},
        },
        "$defs": definitions,
    }


def _without_name(model: type[Release]) -> dict[str, Any]:
    made = _checked(model.model_json_schema(), "A release: what is promoted, and nothing else")
    made["properties"].pop("name")
    made["required"] = [key for key in made["required"] if key != "name"]
    own = made["properties"]["parallelism"]
    # One word stands for the whole of it.
    made["properties"]["parallelism"] = {"anyOf": [{"const": "auto"}, {"$ref": own["$ref"]}], "default": own["default"]}
    return made


def _pipeline() -> dict[str, Any]:
    made = _checked(Pipeline.model_json_schema(), "The stages in order")
    stack = made["$defs"]["Stage"]["properties"]["stack"]
    # One edge into several stacks.
    made["$defs"]["Stage"]["properties"]["stack"] = {"anyOf": [stack, {"type": "array", "items": stack, "minItems": 1}]}
    return made


def _checked(schema: dict[str, Any], title: str) -> dict[str, Any]:
    for name in ("prompt_tokens", "output_tokens"):
        for form in schema.get("$defs", {}).values():
            field = form.get("properties", {}).get(name)
            if field is not None:
                # A bare number is the mean.
                form["properties"][name] = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, field]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}


if __name__ == "__main__":
    write(Path(__file__).with_name("schema"))
