"""`python -m components.evaluate STACK…`: what a program would make, as JSON, without engine, credentials or cluster.

One line per stack: {"stack", "resources": [{"type", "name", "inputs"}], "error"}. Run it inside a checkout: it
evaluates that checkout's code and files, which is how `preview` compares two commits.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pulumi

import stacks

from .platform import deploy

Resource = dict[str, Any]


class _Recorder(pulumi.runtime.Mocks):
    def __init__(self) -> None:
        self.resources: list[Resource] = []

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        self.resources.append({"type": args.typ, "name": args.name, "inputs": _plain(args.inputs)})
        return f"{args.name}-id", dict(args.inputs)

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        return {}, None


def evaluate(stack: str, root: Path) -> list[Resource]:
    """The resources that the stack's program registers, in a stable order. Raises what the program raises."""
    recorder = _Recorder()
    asyncio.set_event_loop(asyncio.new_event_loop())
    # preview=True: unknown outputs stay unknown, and nothing is recorded as evidence.
    pulumi.runtime.set_mocks(recorder, project="tollgate", stack=stack, preview=True)

    def program() -> None:
        deploy(stack, root, enforce=False)

    # Runs the program and waits until every resource has been registered.
    pulumi.runtime.test(program)()  # type: ignore[no-untyped-call]
    return sorted(recorder.resources, key=lambda resource: (resource["type"], resource["name"]))


def _plain(value: Any) -> Any:
    """What JSON can carry; unknown values become null."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool) or value is None else None


def main(names: list[str]) -> int:
    """Print one JSON line per stack; exit code 2 when one of them could not be evaluated."""
    failed = False
    for name in names:
        line: dict[str, Any] = {"stack": name, "resources": [], "error": None}
        try:
            root = stacks.project_root()
            line["resources"] = evaluate(name, root)
        except Exception as error:  # noqa: BLE001 - whatever a program raises is the answer for its stack
            line["error"] = str(error) or type(error).__name__
            failed = True
        print(json.dumps(line, sort_keys=True), flush=True)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
