"""Instances of a JSON schema, for structured answers and tool calls: the smallest value that fits, seeded where it may vary."""

from __future__ import annotations

from typing import Any

_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "email": "someone@example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "hostname": "example.com",
}
_DEPTH = 24


def instance(schema: Any, draw: int, *, root: Any = None, depth: int = 0) -> Any:
    """A value that `schema` accepts (the subset that guided decoding supports; `pattern` is not looked at).

    Optional properties are left out; a schema that refers to itself without end is cut with None.
    """
    root = schema if root is None else root
    if not isinstance(schema, dict) or depth > _DEPTH:
        return {} if schema is True else None
    if "const" in schema:
        return schema["const"]
    values = schema.get("enum")
    if isinstance(values, list) and values:
        return values[draw % len(values)]
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        return instance(_resolve(root, reference), draw, root=root, depth=depth + 1)
    for word in ("anyOf", "oneOf"):
        options = schema.get(word)
        if isinstance(options, list) and options:
            # The first is the one that ends a recursion in most generated schemas once the depth grows.
            at = draw % len(options) if depth < 4 else len(options) - 1
            return instance(options[at], draw, root=root, depth=depth + 1)
    parts = schema.get("allOf")
    if isinstance(parts, list) and parts:
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        for part in parts:
            found = _resolve(root, part["$ref"]) if isinstance(part, dict) and "$ref" in part else part
            if isinstance(found, dict):
                for key, value in found.items():
                    if key == "properties":
                        merged[key] = {**merged.get(key, {}), **value}
                    elif key == "required":
                        merged[key] = [*merged.get(key, []), *value]
                    else:
                        merged[key] = value
        return instance(merged, draw, root=root, depth=depth + 1)
    return _typed(schema, draw, root, depth)


def _resolve(root: Any, reference: str) -> Any:
    found = root
    for part in reference.lstrip("#").strip("/").split("/"):
        if part:
            found = found.get(part.replace("~1", "/").replace("~0", "~"), {}) if isinstance(found, dict) else {}
    return found


def _typed(schema: dict[str, Any], draw: int, root: Any, depth: int) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "null")
    if kind is None:
        kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
    if kind == "object":
        properties = schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        names = [n for n in required if isinstance(n, str)] if isinstance(required, list) else list(properties)
        return {
            name: instance(properties.get(name, {}), draw // 3 + at, root=root, depth=depth + 1)
            for at, name in enumerate(names)
        }
    if kind == "array":
        least = schema.get("minItems")
        size = max(least if isinstance(least, int) else 0, 1 if depth < 8 else 0)
        most = schema.get("maxItems")
        size = min(size, most if isinstance(most, int) else 64, 64)
        prefix = schema.get("prefixItems")
        prefix = prefix if isinstance(prefix, list) else []
        items = [instance(part, draw, root=root, depth=depth + 1) for part in prefix]
        while len(items) < size:
            items.append(instance(schema.get("items", {}), draw + len(items), root=root, depth=depth + 1))
        return items
    if kind in ("integer", "number"):
        return _number(schema, draw, whole=kind == "integer")
    if kind == "boolean":
        return draw % 2 == 0
    if kind == "null":
        return None
    text = _FORMATS.get(str(schema.get("format")), "text")
    least, most = schema.get("minLength"), schema.get("maxLength")
    if isinstance(least, int) and len(text) < least <= 1 << 16:
        text += "x" * (least - len(text))
    return text[:most] if isinstance(most, int) and most >= 0 else text


def _number(schema: dict[str, Any], draw: int, *, whole: bool) -> float | int:
    def bound(name: str) -> float | None:
        value = schema.get(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    low, high = bound("minimum"), bound("maximum")
    above, below = bound("exclusiveMinimum"), bound("exclusiveMaximum")
    step: float = bound("multipleOf") or 1
    value: float = 1 + draw % 9
    if above is not None:
        low = above + (1 if whole else min(1.0, (below - above) / 2 if below is not None else 1.0))
    if below is not None and (high is None or below <= high):
        high = below - (1 if whole else 1e-3)
    if low is not None:
        value = max(value, low)
    if high is not None:
        value = min(value, high)
    if "multipleOf" in schema:
        value = -(-value // step) * step
        if high is not None and value > high:
            value -= step
    return int(value) if whole else value
