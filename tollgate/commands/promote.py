"""`tollgate promote A B`: let A's release into B, on A's evidence."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

import gate
import stacks
import values


def promote(
    source: Annotated[str, typer.Argument(help="The stack that measured the release.")],
    target: Annotated[str, typer.Argument(help="The stack that takes it over.")],
) -> None:
    """Verify the source's evidence and write release and promotion record into the target's stack file."""
    root = stacks.project_root()
    release = stacks.load_stack(source, root).release
    digest = values.release_digest(release)
    admission, changed = gate.promote(source, target, root, release_digest=digest, now=datetime.now(UTC))
    assert admission.verdict is not None
    typer.echo(f"{target} takes release {release.name} ({digest[:19]}…) from {source}: {admission.verdict.outcome}")
    typer.echo(gate.table(admission.verdict))
    typer.echo(f"  evidence {admission.evidence}")
    path = stacks.stack_path(target, root).relative_to(root)
    typer.echo(
        f"  {path} {'changed: review and commit it' if changed else 'says so already'}; next: pulumi up -s {target}"
    )
