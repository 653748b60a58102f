"""`tollgate explain STACK`: where its parallelism, nodes and cost come from."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import stacks
from tollgate import explain as room

from ._saying import Json, machine

VALUES = ("parallelism", "nodes", "cost")


def explain(
    stack: Annotated[str, typer.Argument(help="Whose values.")],
    value: Annotated[str | None, typer.Option(help=f"Only this one: {', '.join(VALUES)}.")] = None,
    as_json: Json = False,
) -> None:
    """Walk parallelism, nodes and cost from the stack file to the running pod, with every step's source."""
    if value is not None and value not in VALUES:
        raise stacks.InputError(where="--value", got=value, allowed=", ".join(VALUES), fix="name one of these")
    root = stacks.project_root()
    loaded = stacks.load_stack(stack, root)
    steps = [step for step in room.trace(loaded, root, room.live(loaded, root)) if value in (None, step.value)]
    if as_json:
        machine([dataclasses.asdict(step) for step in steps])
        return
    console = Console(width=None if Console().is_terminal else 200)
    for name in VALUES:
        mine = [step for step in steps if step.value == name]
        if not mine:
            continue
        console.print(Text(name, style="bold"))
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, style="dim")
        table.add_column(overflow="fold", ratio=3)
        table.add_column(no_wrap=False, overflow="fold", style="dim", ratio=2)
        for step in mine:
            said = Text(step.found)
            said.append(f"\n{step.how}", style="dim")
            table.add_row(Text(f"  {step.at}"), said, Text(step.source))
        console.print(table)
