"""`tollgate gate STACK`: would this stack's gate admit its release now?"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

import gate as room
import stacks
import values


def gate(stack: Annotated[str, typer.Argument(help="The stack whose gate is asked.")]) -> None:
    """Judge a stack; exits 0 only when its gate admits what it would deploy, 3 when not."""
    root = stacks.project_root()
    loaded = stacks.load_stack(stack, root)
    digest = values.release_digest(loaded.release)
    admission = room.check(loaded, release_digest=digest, root=root, now=datetime.now(UTC))
    if not admission.gated:
        typer.echo(f"{stack} is not gated: the pipeline asks for no evidence before it")
        return
    assert admission.verdict is not None
    typer.echo(f"{stack} admits release {loaded.release.name}: pass")
    typer.echo(room.table(admission.verdict))
    typer.echo(f"  evidence {admission.evidence}")
