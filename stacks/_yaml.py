"""Reading a YAML file that anybody may have written: plain values only, each key once, from inside of the project."""

from __future__ import annotations

import contextlib
import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ._errors import InputError

_MAX_BYTES = 1_000_000
# What holds something that must not be repeated in an error: an error is printed, logged by CI, and put into comments.
_SECRET = re.compile(
    r"(api|access|private|signing)[-_]?key|(?<!_)tokens?$|_token$|secret|passw|credential", re.IGNORECASE
)
HIDDEN = "a value that is not repeated here"


# libyaml recurses in C, where too deep an input ends the process: only what cannot nest deeper than this is given to it.
_MOST_OPENED = 300
# Aliases, and what the two readers do not read alike: tags, block texts, questions, tabs and marks of byte order inside.
_APART = frozenset("*!?|>\t\ufeff")


class _Once:
    """Without a key that stands twice, of which the last would count and a reader sees the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} a second time", key.start_mark)
                seen.add(key.value)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)  # type: ignore[misc]
        return found


class _Plain(_Once, yaml.SafeLoader):
    """Without aliases, so that no small file grows into a large document."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "a YAML alias", mark)
        return super().compose_node(parent, index)


class _Fast(_Once, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """By libyaml, eight times as fast; it says other words of what is wrong."""


def _load(text: str) -> Any:
    """Raises yaml.YAMLError, RecursionError and ValueError, always those of the slow reader."""
    opened = text.count("[") + text.count("{")
    if (
        _APART.isdisjoint(text)
        and opened <= _MOST_OPENED
        and max(map(len, text.splitlines()), default=0) <= _MOST_OPENED
    ):
        with contextlib.suppress(yaml.YAMLError, RecursionError, ValueError):
            return yaml.load(text, Loader=_Fast)
    return yaml.load(text, Loader=_Plain)


def read_mapping(path: Path, root: Path, *, empty: bool = False) -> dict[str, Any]:
    """One YAML file of the project at `root` as a mapping. `empty`: a file without content is one, too.

    Raises InputError, naming file and line, for anything else: also for a link that leads out of the project, whose target
    would be read aloud by the next error, and for what is no regular file, which might never end.
    """
    where = str(path.relative_to(root))
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(root.resolve()):
            raise InputError(
                where=where, got="a link out of the project", allowed="a file of this project", fix="copy the file here"
            )
        about = real.stat()
        if not stat.S_ISREG(about.st_mode):
            raise InputError(where=where, got="no regular file", allowed="a file", fix="replace it")
        if about.st_size > _MAX_BYTES:
            raise InputError(where=where, got=f"{about.st_size} bytes", allowed=f"{_MAX_BYTES} bytes", fix="shorten it")
        loaded = _load(real.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            where=where, got=str(error), allowed="a readable UTF-8 file", fix="create or repair it"
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0][:200]
        raise InputError(
            where=where + line,
            got=problem,
            allowed="plain YAML, each key once",
            fix="correct it, or write the value out",
        ) from error
    if loaded is None and empty:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(
            where=where, got=type(loaded).__name__, allowed="a mapping of keys to values", fix="see the README"
        )
    return loaded


def line_of(path: Path, keys: list[str]) -> int | None:
    """The line, from 1, of the innermost of these nested keys that the YAML file has; None where it has none of them."""
    line = None
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        # The two readers do not agree on every text; what is wrong is told without its line then.
        return None
    for key in keys:
        if isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
            node = node.value[int(key)]
            line = node.start_mark.line + 1
            continue
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((k, v) for k, v in node.value if k.value == key), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def repeatable(keys: list[str], value: object) -> str:
    """What an error says was got, without what looks like a secret by the names of its keys; at most 200 characters."""
    if any(_SECRET.search(key) for key in keys) and not isinstance(value, bool | int | float):
        return HIDDEN
    text = repr(_hidden(value))
    return text if len(text) <= 200 else text[:200] + "…"


def _hidden(value: object) -> object:
    if isinstance(value, dict):
        return {key: HIDDEN if _SECRET.search(str(key)) else _hidden(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_hidden(inner) for inner in value]
    return value
