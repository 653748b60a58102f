"""`tollgate ui`: the local page."""

from __future__ import annotations

from typing import Annotated

import typer

import stacks
from tollgate.ui import Page


def ui(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
) -> None:
    """Serve a page over pipeline, plan, history, results and batches, for this machine only, until Ctrl-C.

    It reads what is there and changes nothing.
    """
    with Page(stacks.project_root(), port) as page:
        typer.echo(page.url)
        page.wait()
