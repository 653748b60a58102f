"""Structured output: what is made for a schema fits it, by another library's judgement."""

from __future__ import annotations

import re
import time
from typing import Any

import jsonschema_rs
import pytest

from bench.simulator._pattern import matching
from bench.simulator._schema import TooLarge, instance

TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "required": ["value", "children"],
            "properties": {
                "value": {"type": "integer"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
        }
    },
}
CHAIN = {"type": "object", "required": ["next"], "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "exclusiveMinimum": 3, "maximum": 4},
        {"type": "integer", "minimum": -7.5, "exclusiveMaximum": -3},
        {"type": "integer", "multipleOf": 7, "minimum": 100},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.001},
        {"type": "number", "minimum": 2.5, "maximum": 2.5},
        {"type": "number", "multipleOf": 0.25, "minimum": 0.3},
        {"enum": ["x", None, 3]},
        {"const": {"a": [1]}},
        {"type": ["string", "null"], "maxLength": 2},
        {"type": "string", "minLength": 9, "maxLength": 9},
        {"type": "string", "pattern": "^[A-Z]{3}-\\d{4}$"},
        {"type": "string", "pattern": "^(red|green|blue)( light)?$"},
        {"type": "string", "pattern": "^\\+?[1-9]\\d{1,14}$"},
        {"type": "string", "pattern": "[^\\s@]+@[^\\s@]+\\.com", "minLength": 20},
        {"type": "string", "format": "date-time"},
        {"type": "array", "items": {"type": "integer"}, "minItems": 3, "uniqueItems": True},
        {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 3, "maxItems": 3, "uniqueItems": True},
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "boolean"}], "items": False},
        {"type": "object", "properties": {"a": {"type": "string"}}, "minProperties": 2},
        {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 3},
        {"type": "object", "required": ["x"], "properties": {"x": True}, "additionalProperties": False},
        {"allOf": [{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 3}}},
                   {"required": ["b"], "properties": {"b": {"type": "null"}, "a": {"maximum": 3}}}]},
        {"type": "object", "required": ["k"], "properties": {"k": {}}, "oneOf": [
            {"properties": {"k": {"const": "a"}}}, {"properties": {"k": {"const": "b"}}}]},
        TREE,
        CHAIN,
        {"properties": {"n": {"$ref": "#/definitions/p~1q"}}, "required": ["n"],
         "definitions": {"p/q": {"type": "boolean"}}},
        True,
        {},
    ],
)  # fmt: skip
def test_instances_fit_their_schema(schema: Any) -> None:
    validator = jsonschema_rs.validator_for(schema)
    for draw in range(12):
        value = instance(schema, draw * 0x9E3779B97F4A7C15)
        assert validator.is_valid(value), value


def test_draws_vary_what_may_vary() -> None:
    schema = {
        "type": "object",
        "required": ["kind", "n"],
        "properties": {"kind": {"enum": ["a", "b", "c"]}, "n": {"type": "integer"}},
    }
    assert len({str(instance(schema, draw)) for draw in range(60)}) >= 6


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "minItems": 10**9},
        {"type": "string", "minLength": 10**9},
        {"type": "object", "minProperties": 10**9},
        {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}},
        {"$ref": "#"},
        {"minItems": 100, "items": {"minItems": 100, "items": {"type": "array", "minItems": 100}}},
    ],
)  # fmt: skip
def test_schemas_without_a_small_instance_are_refused_in_bounded_time(schema: Any) -> None:
    begun = time.monotonic()
    with pytest.raises(TooLarge):
        instance(schema, 1)
    assert time.monotonic() - begun < 5.0


@pytest.mark.parametrize(
    "pattern", ["a+b{3}[c-e]?", "(?:x|yz)*end", "^\\w{5}\\s\\d$", "[^a-z]{2}", "(ab|cd){2,4}", "^.{7}$", "\\D\\S\\W"]
)
def test_texts_match_their_pattern(pattern: str) -> None:
    for draw in range(8):
        text = matching(pattern, draw)
        assert text is not None
        assert re.search(pattern, text)


@pytest.mark.parametrize("pattern", ["(", "a{1,99999}{1,99999}", "(?=b)a", "^" + "(a{200})" * 200 + "$"])
def test_patterns_that_cannot_be_written_give_nothing_in_bounded_time(pattern: str) -> None:
    begun = time.monotonic()
    assert matching(pattern, 1) is None
    assert time.monotonic() - begun < 5.0
