"""`tollgate rollback STACK`: back to the release that it ran before."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

import gate
import stacks
import values

from ._saying import Json, machine


def rollback(
    stack: Annotated[str, typer.Argument(help="The gated stack to take back.")],
    why: Annotated[str, typer.Option(help="For the history.")] = "not said",
    as_json: Json = False,
) -> None:
    """Return a stack to its last passing release; its evidence may have expired, the signatures and the promise hold."""
    root = stacks.project_root()
    before = stacks.load_stack(stack, root).release.name
    admission, decision = gate.rollback(stack, root, digest_of=values.release_digest, why=why, now=datetime.now(UTC))
    assert admission.verdict is not None
    path = stacks.stack_path(stack, root).relative_to(root)
    if as_json:
        said = {"stack": stack, "from": before, "release": decision.release_name, "digest": decision.release}
        machine({**said, "evidence": admission.evidence, "verdict": admission.verdict.plain(), "file": str(path)})
        return
    typer.echo(f"{stack} returns from {before} to {decision.release_name} ({decision.release[:19]}…)")
    typer.echo(gate.table(admission.verdict))
    typer.echo(f"  evidence {admission.evidence}, signed {decision.entry.facts['signed_at']}")
    typer.echo(f"  {path} changed: review and commit it; next: pulumi up -s {stack}")
