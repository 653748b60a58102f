"""`tollgate tools`: the programs that Tollgate finds or builds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from local import tools

from ._saying import Json, machine

app = typer.Typer(
    rich_markup_mode=None, invoke_without_command=True, help="The programs that Tollgate builds or finds."
)

_With = Annotated[
    list[str] | None, typer.Option("--with", metavar="NAME", help="An optional program as well: ollama. Repeatable.")
]


@app.callback()
def list_(context: typer.Context, extra: _With = None, as_json: Json = False) -> None:
    """Without a command: list each program with its version, where it comes from and its path.

    With --with: build what is missing first.
    """
    if context.invoked_subcommand is not None:
        return
    if extra:
        tools.ensure([*tools.names(), *extra])
    _show(as_json=as_json)


@app.command()
def build(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: all but ollama.")] = None,
    extra: _With = None,
    as_json: Json = False,
) -> None:
    """Build what is missing. May be interrupted, and run twice at once: the second waits for the first."""
    tools.ensure([*(names or tools.names()), *(extra or [])])
    if as_json or not names:
        _show(as_json=as_json)


@app.command()
def clean(
    everything: Annotated[bool, typer.Option("--all", help="The programs in use, too: they are built again.")] = False,
    as_json: Json = False,
) -> None:
    """Remove programs of other versions, logs and what interrupted builds have left."""
    removed = tools.clean(everything=everything)
    if as_json:
        machine({"removed": [str(path) for path in removed]})
        return
    for path in removed:
        typer.echo(f"removed {path}")
    if not removed:
        typer.echo("nothing to remove")


def _short(path: Path | None) -> str:
    """The path as a shell understands it, with `~` for the home folder."""
    if path is None:
        return ""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _show(*, as_json: bool) -> None:
    found = tools.status()
    if as_json:
        rows = [
            {
                "name": one.name,
                "version": one.version,
                "origin": one.origin,
                "path": str(one.path) if one.path else None,
                "optional": one.optional,
                "purpose": one.purpose,
            }
            for one in found
        ]
        machine(rows)
        return
    # Lines are not cut for pipes and files; a narrow terminal goes without the column that says what is known anyway.
    console = Console(width=None if sys.stdout.isatty() else 250)
    purposes = console.width >= 170
    table = Table(box=None, header_style="bold")
    for heading in ("program", "version", "origin", *(("for",) if purposes else ())):
        table.add_column(heading, no_wrap=True)
    table.add_column("path", overflow="fold")
    styles = {"built": "green", "PATH": "cyan", "missing": "red"}
    for one in found:
        optional = one.origin == "missing" and one.optional
        origin = "optional" if optional else one.origin
        style = "dim" if optional else styles[one.origin]
        purpose = (one.purpose,) if purposes else ()
        table.add_row(one.name, one.version, f"[{style}]{origin}[/]", *purpose, _short(one.path))
    console.print(table)
    if any(one.origin == "missing" and not one.optional for one in found):
        typer.echo("build what is missing: tollgate tools build")
