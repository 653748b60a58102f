"""`tollgate preview`: cost and node changes of stacks against a base commit, offline."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import planner
import preview as room
import stacks


def preview(
    names: Annotated[list[str] | None, typer.Argument(metavar="[STACK]...", help="Default: every stack.")] = None,
    base: Annotated[str | None, typer.Option(help="Commit to compare with; without it everything is new.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The pull request comment.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Cost and node changes of stacks against a base commit; needs no credentials, no state and no cluster."""
    root = stacks.project_root()
    known = stacks.stack_names(root)
    for name in names or []:
        stacks.stack_path(name, root)
    changes = collect(root, names or known, base)
    about = book()
    if as_json:
        print(json.dumps(room.as_json(changes, base, about), indent=2))
    elif markdown:
        print(room.markdown(changes, base, about), end="")
    else:
        show(changes, base, about, Console())
    if any(change.error for change in changes):
        raise typer.Exit(2)


def book() -> dict[str, str]:
    """Where the prices come from, and when they were read."""
    found = planner.price_book()
    return {"source": str(found.source), "as_of": str(found.as_of)}


def collect(root: Path, names: list[str], base: str | None) -> list[room.Change]:
    """The changes of these stacks from `base` (None: from nothing) to the files as they are."""
    now = room.evaluate(root, names)
    before: dict[str, room.Evaluation] = {}
    if base is not None:
        with room.checkout(root, base) as folder:
            there = [name for name in names if (folder / "stacks" / f"Pulumi.{name}.yaml").is_file()]
            before = room.evaluate(folder, there)
    return [_change(name, before.get(name), now[name]) for name in names]


def _change(name: str, before: room.Evaluation | None, after: room.Evaluation) -> room.Change:
    if after.error is not None:
        return room.Change(stack=name, error=after.error)
    known = before is not None and before.error is None
    return room.Change(
        stack=name,
        before=room.shape(name, before.resources, _price) if known and before is not None else None,
        after=room.shape(name, after.resources, _price),
    )


def _price(machine_type: str, region: str, spot: bool) -> Decimal | None:
    """Dollars per node and hour in the price book, or None."""
    return planner.price_book().hourly(machine_type, region=region, spot=spot)


def show(changes: list[room.Change], base: str | None, book: dict[str, str], console: Console) -> None:
    """The same on a terminal."""
    for change in changes:
        console.print(change.headline, style="red" if change.error else None, highlight=False, markup=False)
    table = Table("stack", "nodes min/exp/max", "$/h expected", "$/month expected", "$/h at most", box=None)
    for change in changes:
        if change.error is None:
            before, after = change.hourly("expected")
            table.add_row(
                change.stack,
                "/".join(str(change.nodes(which)[1]) for which in ("min", "expected", "max")),
                f"{room.money(before)} → {room.money(after)}" if base and before != after else room.money(after),
                room.money(after * room.HOURS_PER_MONTH),
                room.money(change.hourly("max")[1]),
            )
    console.print(table)
    for change in changes:
        for name in change.unpriced:
            console.print(f"unpriced, not counted: {name} ({change.stack})", style="yellow")
    console.print(f"prices: {book['source']}, {book['as_of']}", style="dim")
