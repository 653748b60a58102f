"""nft where it is not installed: Debian's packages unpacked into the cache, which needs no root."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from stacks import TollgateError

from ._go import last_lines
from ._run import Processes
from ._table import DebianPackages


def unpack(name: str, source: DebianPackages, processes: Processes, into: Path, place: Path, logs: Path) -> None:
    """Make `into/bin/<name>`, a script that runs the program with the libraries beside it, to be moved to `place`."""
    if not all(shutil.which(program) for program in ("apt-get", "dpkg")):
        raise TollgateError(missing(name, source))
    log = logs / f"{name}.log"
    environment = {**os.environ, "LC_ALL": "C"}
    packages = into / "packages"
    packages.mkdir()
    answer = packages / "simulation"

    def run(command: list[str | Path], output: Path | None = None) -> None:
        if processes.run(command, cwd=packages, environment=environment, log=log, output=output) != 0:
            raise TollgateError(f"{missing(name, source)}\n  apt said:\n{last_lines(log, 6)}\n  log: {log}")

    # apt works out which libraries this very machine lacks.
    run(["apt-get", "install", "--simulate", "--reinstall", "--no-install-recommends", source.package], answer)
    wanted = to_install(answer.read_text()) or [source.package]
    run(["apt-get", "download", *wanted])
    for package in sorted(packages.glob("*.deb")):
        run(["dpkg", "-x", package, into / "root"])
    shutil.rmtree(packages)
    if not (into / "root" / source.program).is_file():
        raise TollgateError(missing(name, source))
    libraries = sorted({file.parent for file in (into / "root").rglob("*.so*")})
    (into / "bin").mkdir()
    script = into / "bin" / name
    script.write_text(
        wrapper([place / folder.relative_to(into) for folder in libraries], place / "root" / source.program)
    )
    script.chmod(0o755)


def to_install(simulation: str) -> list[str]:
    """The packages that `apt-get install --simulate` would install."""
    return [line.split()[1] for line in simulation.splitlines() if line.startswith("Inst ")]


def wrapper(libraries: list[Path], program: Path) -> str:
    """A script that runs a program with these library folders first."""
    # None where the system has all libraries already: an empty entry would mean the current folder.
    joined = shlex.quote(":".join(map(str, libraries)))
    search = f"LD_LIBRARY_PATH={joined}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}} " if libraries else ""
    return f'#!/bin/sh\n{search}exec {shlex.quote(str(program))} "$@"\n'


def missing(name: str, source: DebianPackages) -> str:
    """What an administrator can do."""
    return (
        f"{name} is not installed, and its Debian packages cannot be had here\n"
        f"  fix: an administrator installs it: `apt-get update && apt-get install {source.package}` (or your system's package)"
    )
