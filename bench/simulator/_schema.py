"""Instances of a JSON schema, for structured answers and tool calls: a small value that fits, seeded where it may vary."""

from __future__ import annotations

import math
from typing import Any

FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "PT1S",
    "email": "someone@example.com",
    "idn-email": "someone@example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/",
    "uri-reference": "/path",
    "iri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "hostname": "example.com",
    "idn-hostname": "example.com",
    "json-pointer": "/a",
    "regex": "a",
}
MOST_NODES = 20_000
MOST_TEXT = 1 << 16
_DEPTH = 24
_STEPS = ("items", "prefixItems", "properties", "required", "minItems", "minProperties", "additionalProperties")


class TooLarge(ValueError):
    """The smallest instance of a schema has more than `MOST_NODES` values, or the schema none that ends."""


def instance(schema: Any, draw: int) -> Any:
    """A value that `schema` accepts, of the subset that guided decoding supports (no `not`, `if`, `dependentSchemas`).

    Optional properties are left out, recursion ends as soon as a schema lets it. Raises `TooLarge`.
    """
    return _Maker(schema).make(schema, draw, 0)


class _Maker:
    def __init__(self, root: Any) -> None:
        self.root = root
        self.nodes = 0
        self.text = 0

    def make(self, schema: Any, draw: int, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > MOST_NODES or depth > 4 * _DEPTH:
            raise TooLarge
        if not isinstance(schema, dict):
            return {} if schema is True else None
        if "const" in schema:
            return schema["const"]
        values = schema.get("enum")
        if isinstance(values, list) and values:
            return values[draw % len(values)]
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            rest = {key: value for key, value in schema.items() if key not in ("$ref", "$defs", "definitions")}
            found = self._resolve(reference)
            return self.make(_merged(found, rest) if rest and isinstance(found, dict) else found, draw, depth + 1)
        parts = schema.get("allOf")
        if isinstance(parts, list) and parts:
            merged = {key: value for key, value in schema.items() if key != "allOf"}
            for part in parts:
                merged = _merged(merged, self._flat(part))
            return self.make(merged, draw, depth + 1)
        for word in ("anyOf", "oneOf"):
            options = schema.get(word)
            if isinstance(options, list) and options:
                rest = {key: value for key, value in schema.items() if key != word}
                chosen = self._chosen(options, draw, depth)
                return self.make(_merged(rest, self._flat(chosen)) if rest else chosen, draw, depth + 1)
        return self._typed(schema, draw, depth)

    def _chosen(self, options: list[Any], draw: int, depth: int) -> Any:
        """One of the options by the draw; deep down one that needs no further step."""
        if depth < 4:
            return options[draw % len(options)]
        for option in options:
            flat = self._flat(option)
            if isinstance(flat, dict) and not any(word in flat for word in (*_STEPS, "anyOf", "oneOf", "allOf")):
                return option
        return options[-1]

    def _flat(self, part: Any, hops: int = 0) -> Any:
        """`part` with its own reference followed."""
        if isinstance(part, dict) and isinstance(part.get("$ref"), str) and hops < _DEPTH:
            rest = {key: value for key, value in part.items() if key != "$ref"}
            return _merged(self._flat(self._resolve(part["$ref"]), hops + 1), rest)
        return part

    def _resolve(self, reference: str) -> Any:
        found = self.root
        for part in reference.lstrip("#").strip("/").split("/"):
            if part:
                key = part.replace("~1", "/").replace("~0", "~")
                found = found.get(key, {}) if isinstance(found, dict) else {}
        return found

    def _typed(self, schema: dict[str, Any], draw: int, depth: int) -> Any:
        kind = schema.get("type")
        if isinstance(kind, list):
            # Null ends a recursion; before that it would be a dull answer.
            kinds = [k for k in kind if k != "null"] if depth < _DEPTH else sorted(kind, key=lambda k: k != "null")
            kind = kinds[draw % len(kinds)] if kinds and depth < _DEPTH else kinds[0] if kinds else "null"
        if kind is None:
            kind = _implied(schema)
        if kind == "object":
            return self._object(schema, draw, depth)
        if kind == "array":
            return self._array(schema, draw, depth)
        if kind in ("integer", "number"):
            return _number(schema, draw, whole=kind == "integer")
        if kind == "boolean":
            return draw % 2 == 0
        if kind == "null":
            return None
        return self._string(schema, draw)

    def _object(self, schema: dict[str, Any], draw: int, depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        names = [n for n in required if isinstance(n, str)] if isinstance(required, list) else []
        if required is None and depth < 4:
            most = schema.get("maxProperties")
            names = list(properties)[: most if isinstance(most, int) else None]
        least = schema.get("minProperties")
        least = least if isinstance(least, int) else 0
        if least > MOST_NODES:
            raise TooLarge
        names += [name for name in properties if name not in names][: max(0, least - len(names))]
        other = schema.get("additionalProperties", True)
        at = 0
        while len(names) < least:
            names.append(f"key{at}")
            at += 1
        made = {}
        for at, name in enumerate(names):
            part = properties.get(name, other if isinstance(other, dict) else {"type": "string"})
            made[name] = self.make(part, draw // 3 + at, depth + 1)
        return made

    def _array(self, schema: dict[str, Any], draw: int, depth: int) -> list[Any]:
        prefix = schema.get("prefixItems")
        prefix = prefix if isinstance(prefix, list) else []
        least, most = schema.get("minItems"), schema.get("maxItems")
        size = max(least if isinstance(least, int) else 0, 1 if depth < 4 else 0, len(prefix) if depth < 4 else 0)
        if isinstance(most, int):
            size = min(size, most)
        rest = schema.get("items", {})
        if rest is False:
            size = min(size, len(prefix))
        if size > MOST_NODES:
            raise TooLarge
        unique = schema.get("uniqueItems") is True
        made: list[Any] = []
        seen: set[str] = set()
        turn = 0
        while len(made) < size:
            part = prefix[len(made)] if len(made) < len(prefix) else rest
            value = self.make(part, draw + len(made) + turn, depth + 1)
            if unique:
                key = repr(value)
                if key in seen:
                    if turn > 64:
                        value = _varied(value, len(made))
                        key = repr(value)
                        if key in seen:
                            break
                    else:
                        turn += 1
                        continue
                seen.add(key)
            made.append(value)
        return made

    def _string(self, schema: dict[str, Any], draw: int) -> str:
        least, most = schema.get("minLength"), schema.get("maxLength")
        low = least if isinstance(least, int) and least > 0 else 0
        if self.text + low > MOST_TEXT:
            raise TooLarge
        text = ""
        pattern = schema.get("pattern")
        if isinstance(pattern, str):
            from ._pattern import matching

            text = matching(pattern, draw, least=low) or ""
        if not text:
            text = FORMATS.get(str(schema.get("format")), "text")
            text += "x" * (low - len(text))
            if isinstance(most, int) and most >= 0:
                text = text[:most]
        self.text += len(text)
        return text


def _implied(schema: dict[str, Any]) -> str:
    """The type of a schema that names none, by its keywords."""
    for words, kind in (
        (("properties", "required", "additionalProperties", "minProperties"), "object"),
        (("items", "prefixItems", "minItems", "uniqueItems"), "array"),
        (("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
    ):
        if any(word in schema for word in words):
            return kind
    return "string"


def _merged(one: Any, other: Any) -> Any:
    """Both schemas at once: properties and required together, the stricter bound, else the second's word."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return other if isinstance(other, dict) else one
    merged = dict(one)
    for key, value in other.items():
        mine = merged.get(key)
        if key == "properties" and isinstance(mine, dict) and isinstance(value, dict):
            merged[key] = {
                name: _merged(mine[name], value[name]) if name in mine and name in value else {**mine, **value}[name]
                for name in {**mine, **value}
            }
        elif key == "required" and isinstance(mine, list) and isinstance(value, list):
            merged[key] = [*mine, *(name for name in value if name not in mine)]
        elif key == "enum" and isinstance(mine, list) and isinstance(value, list):
            merged[key] = [v for v in mine if v in value] or value
        elif key in ("minimum", "exclusiveMinimum", "minLength", "minItems") and _both(mine, value):
            merged[key] = max(mine, value)
        elif key in ("maximum", "exclusiveMaximum", "maxLength", "maxItems") and _both(mine, value):
            merged[key] = min(mine, value)
        elif key in ("anyOf", "oneOf") and isinstance(mine, list):
            merged.setdefault("allOf", [])
            merged["allOf"] = [*merged["allOf"], {key: value}]
        else:
            merged[key] = value
    return merged


def _both(one: Any, other: Any) -> bool:
    return _is_number(one) and _is_number(other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _varied(value: Any, at: int) -> Any:
    """A value of the same type that is not like the others, where the draws brought none."""
    if isinstance(value, str):
        return f"{value}{at}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value + at
    return value


def _number(schema: dict[str, Any], draw: int, *, whole: bool) -> float | int:
    def bound(name: str) -> float | None:
        value = schema.get(name)
        return value if _is_number(value) else None

    low, high = bound("minimum"), bound("maximum")
    above, below = bound("exclusiveMinimum"), bound("exclusiveMaximum")
    step = bound("multipleOf")
    # A whole number: bounds move inwards to the next one; else half-way into an open interval.
    if whole:
        low = max(-math.inf if low is None else math.ceil(low), -math.inf if above is None else math.floor(above) + 1)
        high = min(math.inf if high is None else math.floor(high), math.inf if below is None else math.ceil(below) - 1)
    else:
        reach = 1.0 if above is None or below is None or below - above > 2 else (below - above) / 2
        low = max(-math.inf if low is None else low, -math.inf if above is None else above + reach)
        high = min(math.inf if high is None else high, math.inf if below is None else below - min(reach, 1e-3))
    value: float = min(max(1 + draw % 9, low), high)
    if step is not None and step > 0:
        value = round(value / step) * step
        if value < low:
            value = math.ceil(low / step) * step
        if value > high:
            value = math.floor(high / step) * step
    return int(value) if whole and math.isfinite(value) else value
