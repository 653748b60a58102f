"""`tollgate tools`: the programs that Tollgate finds or builds."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from local import tools

app = typer.Typer(
    rich_markup_mode=None, invoke_without_command=True, help="The programs that Tollgate builds or finds."
)

_With = Annotated[
    list[str] | None, typer.Option("--with", metavar="NAME", help="An optional program as well: ollama. Repeatable.")
]
_Json = Annotated[bool, typer.Option("--json", help="One JSON list, for scripts.")]


@app.callback()
def list_(context: typer.Context, extra: _With = None, as_json: _Json = False) -> None:
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
) -> None:
    """Build what is missing. May be interrupted, and run twice at once: the second waits for the first."""
    tools.ensure([*(names or tools.names()), *(extra or [])])
    if not names:
        _show(as_json=False)


@app.command()
def clean(
    everything: Annotated[bool, typer.Option("--all", help="The programs in use, too: they are built again.")] = False,
) -> None:
    """Remove programs of other versions, logs and what interrupted builds have left."""
    removed = tools.clean(everything=everything)
    for path in removed:
        typer.echo(f"removed {path}")
    if not removed:
        typer.echo("nothing to remove")


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
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("program", "version", "origin", "for", "path", box=None, header_style="bold")
    # Paths are for copying: never shortened to fit.
    table.columns[-1].overflow = "fold"
    styles = {"built": "green", "PATH": "cyan", "missing": "red"}
    for one in found:
        optional = one.origin == "missing" and one.optional
        origin = "optional" if optional else one.origin
        style = "dim" if optional else styles[one.origin]
        table.add_row(one.name, one.version, f"[{style}]{origin}[/]", one.purpose, str(one.path or ""))
    Console().print(table)
    if any(one.origin == "missing" and not one.optional for one in found):
        typer.echo("build what is missing: tollgate tools build")
