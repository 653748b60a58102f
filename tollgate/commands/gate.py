"""`tollgate gate STACK`: may this stack deploy its release now, or: does what it measured keep its promise."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

import gate as room
import stacks
import values

from ._saying import Json, machine


def gate(
    stack: Annotated[str, typer.Argument(help="The stack whose gate is asked.")],
    as_json: Json = False,
) -> None:
    """Judge a stack; exits 0 only on a pass, 3 otherwise.

    A gated stack is asked what pulumi up would ask: may it deploy its release now. One that is not gated is judged by its
    own newest evidence.
    """
    root = stacks.project_root()
    loaded = stacks.load_stack(stack, root)
    digest = values.release_digest(loaded.release)
    now = datetime.now(UTC)
    admission = room.check(loaded, release_digest=digest, root=root, now=now)
    if admission.gated:
        assert admission.verdict is not None
        _say(admission.verdict, str(admission.evidence), f"{stack} admits release {loaded.release.name}", as_json)
        for approval in admission.approvals:
            if not as_json:
                typer.echo(f"  approval {approval}")
        return
    entry, verdict = room.assess(loaded, release_digest=digest, root=root, now=now)
    _say(verdict, entry.digest, f"{stack} is not gated; release {loaded.release.name} by its own promise", as_json)
    if verdict.outcome != "pass":
        raise typer.Exit(room.GateRefused.exit_code)


def _say(verdict: room.Verdict, evidence: str, words: str, as_json: bool) -> None:
    if as_json:
        machine({"evidence": evidence, **verdict.plain()})
        return
    typer.echo(f"{words}: {verdict.outcome}")
    typer.echo(room.table(verdict))
    typer.echo(f"  evidence {evidence}")
