"""`tollgate checklist STACK`: what is to be done before and after a deployment, ticked by real checks."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import stacks
from tollgate import checklist as room
from tollgate import explain
from tollgate.commands import doctor as doctors
from tollgate.commands import preview as previews

from ._saying import Json, machine

_MARKS = {"done": ("[x]", "green"), "open": ("[ ]", "red"), "unknown": ("[?]", "yellow")}


def checklist(
    stack: Annotated[str, typer.Argument(help="Which is to be deployed, or was.")],
    after: Annotated[bool, typer.Option("--after", help="Only what comes after the deployment.")] = False,
    before: Annotated[bool, typer.Option("--before", help="Only what comes before it.")] = False,
    as_json: Json = False,
) -> None:
    """Tick what is done; exits 1 while something is open."""
    root = stacks.project_root()
    loaded = stacks.load_stack(stack, root)
    items: list[room.Item] = []
    both = before == after
    # First, as it may start this command again inside the network of the cluster.
    now = explain.live(loaded, root) if both or after else None
    if both or before:
        items += room.before(loaded, root, doctors.examine([stack]), previews.collect(root, [stack], None))
    if now is not None:
        items += room.after(loaded, root, now)
    if as_json:
        machine([dataclasses.asdict(item) for item in items])
    else:
        _show(items)
    if any(item.state == "open" for item in items):
        raise typer.Exit(1)


def _show(items: list[room.Item]) -> None:
    console = Console(width=None if Console().is_terminal else 200)
    for when in ("before", "after"):
        mine = [item for item in items if item.when == when]
        if not mine:
            continue
        console.print(Text(f"{when} the deployment", style="bold"))
        table = Table(box=None, show_header=False, pad_edge=False)
        for column in range(3):
            table.add_column(no_wrap=column == 0, overflow="fold")
        for item in mine:
            mark, style = _MARKS[item.state]
            said = Text(item.said)
            if item.fix:
                said.append(f"\nfix: {item.fix}", style="bold")
            table.add_row(Text(mark, style=style), Text(item.what), said)
        console.print(table)
