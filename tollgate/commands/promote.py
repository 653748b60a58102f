"""`tollgate promote A B`: let A's release into B, on A's evidence."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

import gate
import stacks
import values

from ._saying import Json, machine


def promote(
    source: Annotated[str, typer.Argument(help="The stack that measured the release.")],
    target: Annotated[str, typer.Argument(help="The stack that takes it over.")],
    pr: Annotated[
        bool, typer.Option("--pr", help="Make a branch with the edit and a body for the pull request instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify the source's evidence and write release and promotion record into the target's stack file."""
    root = stacks.project_root()
    release = stacks.load_stack(source, root).release
    digest = values.release_digest(release)
    now = datetime.now(UTC)
    if pr:
        request = gate.propose(source, target, root, release_digest=digest, now=now)
        if as_json:
            machine({"from": source, "to": target, "release": release.name, "digest": digest, **vars(request)})
        else:
            _propose(request)
        return
    admission, changed = gate.promote(source, target, root, release_digest=digest, now=now)
    assert admission.verdict is not None
    path = stacks.stack_path(target, root).relative_to(root)
    if as_json:
        said = {"from": source, "to": target, "release": release.name, "digest": digest, "evidence": admission.evidence}
        machine({**said, "verdict": admission.verdict.plain(), "file": str(path), "changed": changed})
        return
    typer.echo(f"{target} takes release {release.name} ({digest[:19]}…) from {source}: {admission.verdict.outcome}")
    typer.echo(gate.table(admission.verdict))
    typer.echo(f"  evidence {admission.evidence}")
    typer.echo(
        f"  {path} {'changed: review and commit it' if changed else 'says so already'}; next: pulumi up -s {target}"
    )


def _propose(request: gate.PullRequest) -> None:
    if request.commit is None:
        typer.echo(f"nothing to change: {request.title} is in HEAD already")
        return
    # The body alone on standard output, so that it can be piped; what to do with it beside.
    typer.echo(request.body)
    typer.echo(f"branch {request.branch} at {request.commit[:12]}; the working tree is as it was", err=True)
    typer.echo(f"  next: git push origin {request.branch}, and open a pull request with this body", err=True)
