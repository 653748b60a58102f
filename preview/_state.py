"""What would really change: `pulumi preview --json` of a stack with its state, read as the same resources as an evaluation's."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stacks

from ._model import of_strangers

_LIMIT_SECONDS = 600
# How Pulumi writes a value that only a deployment will know.
_UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
_GONE = ("delete", "delete-replaced", "discard", "discard-replaced")
_NEW = ("create", "create-replacement")
_STACK = "pulumi:pulumi:Stack"


@dataclass(frozen=True, kw_only=True)
class Stated:
    """One stack by its state: resources before and after, and the steps between them; or why there are none."""

    stack: str
    before: tuple[Mapping[str, Any], ...] = ()
    after: tuple[Mapping[str, Any], ...] = ()
    steps: tuple[Mapping[str, Any], ...] = ()
    error: str | None = None


def from_state(root: Path, stack: str, env: Mapping[str, str] | None = None) -> Stated:
    """Run the real engine's preview. What it refuses (the gate, a locked state, no such stack) is the answer's `error`.

    Raises TollgateError where there is no Pulumi at all. `env`: replaces this process' environment.
    """
    path = None if env is None else env.get("PATH")
    if shutil.which("pulumi", path=path) is None:
        raise stacks.TollgateError(
            "pulumi is not on PATH\n  fix: run this in `tollgate local shell`, install Pulumi, or add --offline"
        )
    command = ["pulumi", "preview", "-s", stack, "--json", "--show-sames", "--non-interactive"]
    try:
        done = subprocess.run(
            command, cwd=root, env=env, capture_output=True, text=True, timeout=_LIMIT_SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Stated(stack=stack, error=f"pulumi preview took more than {_LIMIT_SECONDS} s")
    document = _document(done.stdout)
    if done.returncode != 0 or document is None:
        return Stated(stack=stack, error=_why(document, done.stderr))
    return parse(stack, document)


@of_strangers
def parse(stack: str, document: Mapping[str, Any]) -> Stated:
    """The document of `pulumi preview --json --show-sames`."""
    before, after = [], []
    steps = tuple(step for step in document.get("steps") or () if _type(step) != _STACK)
    for step in steps:
        op = str(step.get("op"))
        # A replacement is three steps; the middle one has both sides.
        if op in ("create-replacement", "delete-replaced"):
            continue
        if op not in _NEW and step.get("oldState"):
            before.append(_resource(step["oldState"]))
        if op not in _GONE and (step.get("newState") or op in ("same", "refresh", "read")):
            after.append(_resource(step.get("newState") or step["oldState"]))
    return Stated(stack=stack, before=tuple(before), after=tuple(after), steps=steps)


def _type(step: Mapping[str, Any]) -> str:
    return str((step.get("newState") or step.get("oldState") or {}).get("type"))


def _resource(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": state["type"],
        "name": str(state["urn"]).rpartition("::")[2],
        "inputs": _plain(state.get("inputs") or {}),
        "parent": _named(str(state.get("parent") or "")),
        "protect": bool(state.get("protect")),
        "ignore": [],
    }


def _named(urn: str) -> str | None:
    if not urn:
        return None
    kind, name = urn.split("::", 3)[2:]
    kind = kind.rpartition("$")[2]
    return None if kind == _STACK else f"{kind}::{name}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items() if key not in ("__defaults", "__provider")}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if value == _UNKNOWN else value


def _document(text: str) -> Mapping[str, Any] | None:
    """The one JSON document of the output; a program may print before it."""
    start = text.find("{")
    while start >= 0:
        try:
            found, _ = json.JSONDecoder().raw_decode(text[start:])
        except ValueError:
            start = text.find("\n{", start)
            start = start + 1 if start >= 0 else -1
            continue
        return found if isinstance(found, dict) else None
    return None


def _why(document: Mapping[str, Any] | None, stderr: str) -> str:
    """The engine's own errors, without its bookkeeping."""
    said: Sequence[Mapping[str, Any]] = (document or {}).get("diagnostics") or ()
    lines = [str(entry.get("message", "")).strip() for entry in said if entry.get("severity") in ("error", "info#err")]
    text = "\n".join(dict.fromkeys(line for line in lines if line)) or stderr.strip()
    return text or "pulumi preview failed without a reason"
