"""`tollgate tools`: what the embedded cluster is made of."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from local import tools

app = typer.Typer(
    rich_markup_mode=None, invoke_without_command=True, help="The programs that Tollgate builds or finds."
)


@app.callback()
def list_(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False
) -> None:
    """Without a command: list every program with its version, where it comes from and what it is for."""
    if context.invoked_subcommand is not None:
        return
    found = tools.status()
    if as_json:
        rows = [
            {"name": one.name, "version": one.version, "origin": one.origin, "path": str(one.path or "")}
            for one in found
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("program", "version", "origin", "for", box=None)
    for one in found:
        origin = "not built (optional)" if one.optional and one.path is None else one.origin
        table.add_row(one.name, one.version, origin, one.purpose)
    Console().print(table)
    if any(one.path is None and not one.optional for one in found):
        typer.echo("build what is missing: tollgate tools build")


@app.command()
def build(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: all but optional ones.")
    ] = None,
    extra: Annotated[
        list[str] | None, typer.Option("--with", help="An optional one as well, for example ollama.")
    ] = None,
) -> None:
    """Build what is missing; safe to interrupt and to run twice at once."""
    for name in [*(names or []), *(extra or [])]:
        if name not in [one.name for one in tools.status()]:
            tools.path(name)
    wanted = list(names or [])
    if extra and not names:
        wanted = [one.name for one in tools.status() if not one.optional]
    progress = _Lines() if not sys.stderr.isatty() else _Shown()
    with progress:
        tools.ensure([*wanted, *(extra or [])] or None, progress=progress)


@app.command()
def clean() -> None:
    """Remove everything that was built; it is built again when it is needed."""
    shutil.rmtree(tools.cache_dir(), ignore_errors=True)
    typer.echo(f"removed {tools.cache_dir()}")


class _Lines:
    """Plain lines, for logs: each tool at its start, at its end, and every 20 s between."""

    def __init__(self) -> None:
        self._weights: dict[str, int] = {}
        self._done: set[str] = set()
        self._last: dict[str, float] = {}
        self._now: dict[str, tuple[int, int]] = {}
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None: ...

    def plan(self, weights: dict[str, int]) -> None:
        self._weights, self._began = weights, time.monotonic()
        if weights:
            self.say(f"building {len(weights)} programs: {', '.join(weights)}")

    def say(self, text: str) -> None:
        print(f"tools: {text}", file=sys.stderr, flush=True)

    def building(self, tool: str, compiled: int, packages: int) -> None:
        with self._lock:
            self._now[tool] = (compiled, packages)
            if time.monotonic() - self._last.get(tool, 0) > 20:
                self._last[tool] = time.monotonic()
                self.say(f"{tool}: {self._words(compiled, packages)}; all: {self._share():.0%}, {self._left()}")

    def built(self, tool: str, seconds: float) -> None:
        with self._lock:
            self._done.add(tool)
            self._now.pop(tool, None)
            self.say(f"{tool}: built in {seconds:.0f} s; all: {self._share():.0%}, {self._left()}")

    def _words(self, compiled: int, packages: int) -> str:
        if not packages:
            return "reading its modules"
        return "linking" if compiled >= packages else f"compiled {compiled} of at most {packages} packages"

    def _share(self) -> float:
        total = sum(self._weights.values()) or 1
        parts = sum(self._weights.get(tool, 0) for tool in self._done)
        running = {tool: done / most for tool, (done, most) in self._now.items() if most}
        return (parts + sum(self._weights.get(tool, 0) * min(1.0, share) for tool, share in running.items())) / total

    def _left(self) -> str:
        share, passed = self._share(), time.monotonic() - self._began
        return f"about {passed / share * (1 - share) / 60:.0f} min left" if share > 0.03 else "estimating"


class _Shown(_Lines):
    """The same as a table that moves."""

    def __init__(self) -> None:
        super().__init__()
        self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)

    def __enter__(self) -> _Shown:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def say(self, text: str) -> None:
        self._live.console.print(text, highlight=False)

    def building(self, tool: str, compiled: int, packages: int) -> None:
        with self._lock:
            self._now[tool] = (compiled, packages)
            table = Table("building", "", box=None)
            for name, (done, most) in self._now.items():
                table.add_row(name, self._words(done, most))
            table.add_row("all", f"{self._share():.0%}, {self._left()}")
            self._live.update(table)
