"""`tollgate approve STACK`: answer for a release with a signature."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

import gate
import stacks
import values

from ._saying import Json, machine


def approve(
    stack: Annotated[str, typer.Argument(help="The gated stack that the release is to enter.")],
    why: Annotated[str, typer.Option(help="For those who read it later.")],
    days: Annotated[float, typer.Option(min=0.01, help="How long it holds, 90 at most.")] = 7.0,
    criterion: Annotated[
        list[str] | None,
        typer.Option(
            help="Let this criterion through although it is not met; may be repeated. None: a plain approval."
        ),
    ] = None,
    release: Annotated[
        str | None, typer.Option(help="Which release; default: the one that could be promoted into the stack.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Your name; default: git's user.name.")] = None,
    as_json: Json = False,
) -> None:
    """Sign who answers for a release, why, for what and until when. Every later report shows it."""
    root = stacks.project_root()
    target = stacks.load_stack(stack, root)
    stage = stacks.load_pipeline(root).stage(stack)
    if stage is None or stage.after is None:
        raise stacks.InputError(
            where="STACK", got=stack, allowed="a stack that takes releases from another", fix="see stacks/pipeline.yaml"
        )
    chosen = stacks.load_release(release, root) if release else stacks.load_stack(stage.after, root).release
    now = datetime.now(UTC)
    signed = gate.approve(
        target,
        release_name=chosen.name,
        release_digest=values.release_digest(chosen),
        who=by or _git_user(root),
        why=why,
        expires=now + timedelta(days=days),
        criteria=criterion or (),
        root=root,
        now=now,
    )
    if as_json:
        said = {"stack": stack, "release": chosen.name, "who": signed.who, "why": signed.why}
        said |= {"expires": signed.expires.isoformat(), "evidence": signed.digest, "key": signed.key}
        machine({**said, "criteria": list(signed.criteria)})
        return
    scope = ", ".join(signed.criteria) or "as one of the required approvals"
    typer.echo(
        f"{signed.who} approves release {chosen.name} for {stack}: {scope}\n"
        f"  until {signed.expires:%Y-%m-%d %H:%M} UTC; signed as {signed.digest[7:19]} by key {signed.key[:12]}…"
    )


def _git_user(root: Path) -> str:
    try:
        done = subprocess.run(
            ["git", "config", "user.name"], cwd=root, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
