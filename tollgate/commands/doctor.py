"""`tollgate doctor`: what would hurt later, looked for now."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import stacks
from tollgate import doctor as room

from ._saying import Json, machine

_STYLES = {"good": "green", "warning": "yellow", "bad": "red", "unknown": "dim"}


def doctor(
    names: Annotated[list[str] | None, typer.Argument(metavar="[STACK]...", help="Default: every local stack.")] = None,
    as_json: Json = False,
    everything: Annotated[bool, typer.Option("--all", help="What is well, too.")] = False,
) -> None:
    """Check machine, project, cluster and cloud for these stacks; exits 1 when something stops one of them.

    Nothing is changed or started. Outside of a project only the machine is looked at.
    """
    findings = examine(names or [])
    grave = room.worst(findings)
    if as_json:
        machine({"worst": grave, "findings": [dataclasses.asdict(one) for one in findings]})
    else:
        show(findings, everything)
    if grave == "bad":
        raise typer.Exit(1)


def examine(names: list[str]) -> list[room.Finding]:
    """All findings, in the order of machine, project, cluster, cloud. Raises InputError for a stack that does not exist."""
    findings = [*room.machine(), room.pulumi()]
    try:
        root = stacks.project_root()
    except stacks.InputError:
        if names:
            raise
        return findings
    wanted, broken = _load(root, names)
    findings += room.project(root, wanted, broken, datetime.now(UTC).date())
    findings += room.clusters(wanted)
    findings += room.cloud(wanted)
    return findings


def _load(root: Path, names: list[str]) -> tuple[list[stacks.Stack], list[room.Finding]]:
    wanted, broken = [], []
    for name in names:
        stacks.stack_path(name, root)
    for name in names or stacks.stack_names(root):
        try:
            stack = stacks.load_stack(name, root)
        except stacks.TollgateError as error:
            broken.append(room.unreadable(name, error))
            continue
        # Somebody without a cloud account is not told about one unless asked.
        if names or stack.target == "local":
            wanted.append(stack)
    return wanted, broken


def show(findings: list[room.Finding], everything: bool) -> None:
    """On a terminal: what is not well, with its fix; how much is well."""
    console = Console(width=None if Console().is_terminal else 240)
    table = Table(box=None, show_header=False, pad_edge=False)
    for column in range(3):
        table.add_column(no_wrap=column < 2, overflow="fold")
    for one in findings:
        if one.level == "good" and not everything:
            continue
        said = Text(one.said)
        if one.fix:
            said.append(f"\nfix: {one.fix}", style="bold")
        table.add_row(Text(one.level, style=_STYLES[one.level]), Text(one.about), said)
    if table.row_count:
        console.print(table)
    good = sum(one.level == "good" for one in findings)
    console.print(Text(f"{good} of {len(findings)} checks are well"))
