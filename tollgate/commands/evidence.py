"""`tollgate evidence`: what was measured, signed and by whom."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import gate
import stacks

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show and verify evidence.")

_StackOption = Annotated[
    str | None, typer.Option("--stack", help="Whose store; default: the first stage of the pipeline.")
]
_Json = Annotated[bool, typer.Option("--json", help="For machines.")]


def _entries(stack: str | None) -> list[gate.Entry]:
    root = stacks.project_root()
    name = stack or stacks.load_pipeline(root).stages[0].stack
    return gate.open_store(stacks.load_stack(name, root).evidence, root, gate.load_keys(root)).entries()


@app.command("list")
def list_(stack: _StackOption = None, as_json: _Json = False) -> None:
    """Every piece of evidence, oldest first; each signature and the chain are verified on the way."""
    rows = [
        {
            "number": entry.number,
            "evidence": entry.digest,
            "stack": entry.facts["stack"],
            "release": entry.statement["subject"][0]["name"],
            "digest": "sha256:" + entry.statement["subject"][0]["digest"]["sha256"],
            "verdict": entry.facts["verdict"]["outcome"],
            "signed_at": entry.facts["signed_at"],
        }
        for entry in _entries(stack)
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("#", "evidence", "stack", "release", "digest", "verdict", "signed", box=None)
    for row in rows:
        shown = [str(row["number"]), row["evidence"][7:19], row["stack"], row["release"], row["digest"][7:19]]
        table.add_row(*shown, row["verdict"], row["signed_at"])
    Console().print(table if rows else "no evidence yet: pulumi up on a stack with a benchmark makes it")


@app.command()
def show(
    evidence: Annotated[str, typer.Argument(help="Its digest or the start of it.")], stack: _StackOption = None
) -> None:
    """One statement, whole, as it was signed."""
    typer.echo(json.dumps(_find(evidence, stack).statement, indent=2, sort_keys=True))


@app.command()
def verify(stack: _StackOption = None) -> None:
    """Check every signature and the chain; exits 3 with the first thing that is wrong."""
    entries = _entries(stack)
    last = f", newest {entries[-1].digest[7:19]}" if entries else ""
    typer.echo(f"{len(entries)} pieces of evidence: every signature holds and the chain is whole{last}")


def _find(evidence: str, stack: str | None) -> gate.Entry:
    wanted = evidence.removeprefix("sha256:")
    entries = _entries(stack)
    found = [entry for entry in entries if wanted and entry.digest.removeprefix("sha256:").startswith(wanted)]
    if len(found) != 1:
        raise stacks.InputError(
            where="EVIDENCE",
            got=evidence,
            allowed=", ".join(entry.digest[7:19] for entry in entries[-8:]) or "none: the store is empty",
            fix="give the start of exactly one of them",
        )
    return found[0]
