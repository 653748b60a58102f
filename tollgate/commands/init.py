"""`tollgate init`: a starter repository for a team's own stacks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

import stacks
from tollgate import starter

from ._saying import Json, machine

_NAME = re.compile(r"[a-z][a-z0-9-]{0,60}")
# Google's rule for project ids, with the domain-scoped form.
_PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")


def init(
    folder: Annotated[Path, typer.Argument(help="Where; made if it is not there.")] = Path(),
    name: Annotated[str | None, typer.Option(help="Of the Pulumi project; by default the folder's.")] = None,
    project: Annotated[
        str | None, typer.Option(help="Google Cloud project: adds the stages dev, staging and prod.")
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="WHEEL|ADDRESS", help="Where CI installs Tollgate from; default: as this one was."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a starter repository: stacks, releases, pipeline, CI workflow. Existing files are never changed."""
    called = name or re.sub(r"[^a-z0-9-]+", "-", folder.absolute().name.lower()).strip("-") or "llm"
    if not _NAME.fullmatch(called):
        raise stacks.InputError(
            where="--name" if name else "folder",
            got=called,
            allowed="a-z, 0-9 and -, beginning with a letter, at most 61",
            fix="give one with --name",
        )
    if project is not None and not _PROJECT.fullmatch(project):
        raise stacks.InputError(
            where="--project",
            got=project,
            allowed="an id of a Google Cloud project: 6 to 30 of a-z, 0-9 and -",
            fix="gcloud projects list shows yours",
        )
    source = starter.source_of(origin)
    written = starter.write(folder, name=called, project=project, source=source)
    if as_json:
        machine({"folder": str(folder.absolute()), "written": written, "requirement": source.requirement})
        return
    for path in written:
        typer.echo(f"written: {path}")
    if not written:
        typer.echo("nothing to write: all of it is there")
    if source.requirement is None:
        typer.echo("requirements.txt names no Tollgate yet: write where yours comes from, or use --from", err=True)
    where = "" if folder.absolute() == Path.cwd() else f"cd {folder} && "
    typer.echo(f"next: {where}tollgate doctor, then tollgate plan local-dev; README.md has the first hour")
