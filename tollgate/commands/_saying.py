"""How commands answer machines: one JSON document on standard output and nothing else there; people's words go elsewhere."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="For machines: one JSON document on standard output.")]


def machine(value: Any) -> None:
    """The document. Numbers that are none (NaN, infinity) are null, for JSON has no word for them."""
    typer.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


@contextmanager
def quiet_in_ci(environment: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """No view that is redrawn and no colour in a job's log, also where CI gives its jobs a terminal (`CI=true`, as all of them
    set it). `FORCE_COLOR` asks for them all the same. The variable is that of the rich library; children get it, too."""
    in_ci = environment.get("CI", "").lower() in ("1", "true", "yes")
    if not in_ci or environment.get("FORCE_COLOR") or "TTY_COMPATIBLE" in environment:
        yield
        return
    environment["TTY_COMPATIBLE"] = "0"
    try:
        yield
    finally:
        del environment["TTY_COMPATIBLE"]
