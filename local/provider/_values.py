"""Pulumi property values as plain Python values.

A secret is a `Secret` around its value, an unknown (an output that does not exist yet, in a preview) is `UNKNOWN`.
The markers on the wire are Pulumi's (its SDKs' `rpc` modules define them).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]

_SIG = "4dabf18193072939515e22adb298388d"
_SECRET = "1b47061264138c4ac30d75fd1eb44270"
_OUTPUT = "d0e6a833031e9bbcd3f4e8bde6ca49a4"
_ASSET = "c44067f5952c0a294b673a41bacd8c17"
_UNKNOWNS = frozenset(
    {
        "04da6b54-80e4-46f7-96ec-b56ff0331ba9",
        "1c4a061d-8072-4f0a-a4cb-0ff528b18fe7",
        "3eeb2bf0-c639-47a8-9e75-3b44932eb421",
        "6a19a0b0-7e62-4c92-b797-7f8e31da9cc2",
        "030794c1-ac77-496b-92df-f27374a8bd58",
        "e48ece36-62e2-4504-bad9-02848725956a",
        "dd056dcd-154b-4c76-9bd3-c8f88648b5ff",
    }
)
_UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"


@dataclass(frozen=True)
class Secret:
    """A value that must not be shown."""

    value: Any

    def __repr__(self) -> str:
        return "Secret([secret])"


@dataclass(frozen=True)
class Asset:
    """A file handed over by the program: its text, or the path to it."""

    text: str | None
    path: str | None
    digest: str


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()


def decode(struct: Any) -> dict[str, Any]:
    """A protobuf Struct as a dict; whole numbers become ints, null members are left out."""
    return {key: _decode(value) for key, value in struct.fields.items() if value.WhichOneof("kind") != "null_value"}


def _decode(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return UNKNOWN if value.string_value in _UNKNOWNS else value.string_value
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    if kind == "bool_value":
        return value.bool_value
    if kind == "list_value":
        return [_decode(item) for item in value.list_value.values]
    if kind == "struct_value":
        fields = value.struct_value.fields
        marker = fields[_SIG].string_value if _SIG in fields else ""
        if marker == _SECRET:
            inner = _decode(fields["value"])
            return inner if inner is UNKNOWN else Secret(inner)
        if marker == _OUTPUT:
            if "value" not in fields:
                return UNKNOWN
            inner = _decode(fields["value"])
            return Secret(inner) if "secret" in fields and fields["secret"].bool_value else inner
        if marker == _ASSET:
            text = fields["text"].string_value if "text" in fields else None
            path = fields["path"].string_value if "path" in fields else None
            return Asset(text=text, path=path, digest=fields["hash"].string_value if "hash" in fields else "")
        return decode(value.struct_value)
    return None


def encode_into(struct: Any, values: dict[str, Any]) -> None:
    """Write `values` into a protobuf Struct."""
    for key, item in values.items():
        _encode(struct.fields[key], item)


def _encode(slot: Any, value: Any) -> None:
    if value is None:
        slot.null_value = 0
    elif value is UNKNOWN:
        slot.string_value = _UNKNOWN
    elif isinstance(value, bool):
        slot.bool_value = value
    elif isinstance(value, (int, float)):
        slot.number_value = value
    elif isinstance(value, str):
        slot.string_value = value
    elif isinstance(value, Secret):
        fields = slot.struct_value.fields
        fields[_SIG].string_value = _SECRET
        _encode(fields["value"], value.value)
    elif isinstance(value, Asset):
        fields = slot.struct_value.fields
        fields[_SIG].string_value = _ASSET
        fields["hash"].string_value = value.digest
        if value.text is not None:
            fields["text"].string_value = value.text
        if value.path is not None:
            fields["path"].string_value = value.path
    elif isinstance(value, dict):
        slot.struct_value.SetInParent()
        encode_into(slot.struct_value, value)
    elif isinstance(value, (list, tuple)):
        slot.list_value.SetInParent()
        for item in value:
            _encode(slot.list_value.values.add(), item)
    else:
        raise TypeError(f"no property value for {type(value).__name__}")


def plain(value: Any) -> Any:
    """The value without secret wrappers and without null members."""
    if isinstance(value, Secret):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def has_unknown(value: Any) -> bool:
    """Whether any part is not known yet."""
    if value is UNKNOWN:
        return True
    if isinstance(value, Secret):
        return has_unknown(value.value)
    if isinstance(value, dict):
        return any(has_unknown(item) for item in value.values())
    if isinstance(value, list):
        return any(has_unknown(item) for item in value)
    return False


def secret_paths(value: Any, at: Path = ()) -> Iterator[Path]:
    """Where the secrets are."""
    if isinstance(value, Secret):
        yield at
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from secret_paths(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from secret_paths(item, (*at, index))


def secret_strings(value: Any, *, inside: bool = False) -> Iterator[str]:
    """Every string that is or lies within a secret."""
    if isinstance(value, Secret):
        yield from secret_strings(value.value, inside=True)
    elif isinstance(value, dict):
        for item in value.values():
            yield from secret_strings(item, inside=inside)
    elif isinstance(value, list):
        for item in value:
            yield from secret_strings(item, inside=inside)
    elif inside and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        yield str(value)


def mark_secrets(value: Any, paths: Iterable[Path]) -> Any:
    """`value` (plain) with secrets at `paths`; where a path ends early, its last existing part becomes secret as a whole."""
    for path in paths:
        value = _mark(value, path)
    return value


def _mark(value: Any, path: Path) -> Any:
    if isinstance(value, Secret):
        return value
    if not path:
        return Secret(value)
    step, rest = path[0], path[1:]
    if isinstance(value, dict) and isinstance(step, str):
        # An absent top-level member has nothing to hide; deeper, the server may have moved the value to a sibling.
        return {**value, step: _mark(value[step], rest)} if step in value else value
    if isinstance(value, list) and isinstance(step, int):
        if step < len(value):
            return [_mark(item, rest) if index == step else item for index, item in enumerate(value)]
        return Secret(value)
    return value


def show_path(path: Path) -> str:
    """A path in Pulumi's notation: `spec.containers[0].env`, `metadata.labels["a.b/c"]`."""
    out = ""
    for step in path:
        if isinstance(step, int):
            out += f"[{step}]"
        elif step.replace("_", "a").replace("-", "a").isalnum():
            out += f".{step}" if out else step
        else:
            escaped = step.replace("\\", "\\\\").replace('"', '\\"')
            out += f'["{escaped}"]'
    return out
