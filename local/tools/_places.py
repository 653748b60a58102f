"""Where tools lie, and the name under which a build is found again."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
from pathlib import Path

import platformdirs

from ._table import DataFolder, DebianPackages, GoProgram, ModuleFile, Tool

MODULES = Path(__file__).parent

_ARCHITECTURES = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def cache() -> Path:
    """The cache folder: `TOLLGATE_CACHE`, else the user's cache folder for `tollgate` (not made here)."""
    given = os.environ.get("TOLLGATE_CACHE")
    return Path(given).expanduser().absolute() if given else Path(platformdirs.user_cache_dir("tollgate"))


def system() -> str:
    """This machine as Go names it: `linux/amd64`."""
    machine = platform.machine()
    return f"{sys.platform}/{_ARCHITECTURES.get(machine, machine)}"


@functools.cache
def _module_bytes(folder: Path) -> bytes:
    return (folder / "go.mod").read_bytes() + b"\0" + (folder / "go.sum").read_bytes()


def _key(*parts: str | bytes) -> str:
    """12 hex digits over the parts, each with its length, so that no two lists give the same bytes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:12]


def key(tool: Tool) -> str:
    """What a build of this tool depends on, in 12 hex digits.

    The Go toolchain is not in it: every Go that fits (`_go.MINIMUM`) gives a program that is as good, and a build must
    still be found from a shell where another Go, or none, is on PATH. `build.json` beside the program names the Go.
    """
    source = tool.source
    match source:
        case GoProgram():
            flags = "\0".join(source.flags)
            return _key(
                "go", _module_bytes(MODULES / source.module), source.package, flags, str(int(source.cgo)), system()
            )
        case ModuleFile():
            return _key("file", _module_bytes(MODULES / source.module), source.dependency, source.file)
        case DebianPackages():
            return _key("debian", source.package, source.program, _release(), system())


def data_key(data: DataFolder) -> str:
    """What a data folder depends on, in 12 hex digits."""
    return _key("data", _module_bytes(MODULES / data.module), data.dependency, repr(data.copy), repr(data.render))


def _release() -> str:
    """The system release a Debian package belongs to: a library of one release does not serve another."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ""
    return f"{release.get('ID', '')}-{release.get('VERSION_ID', release.get('VERSION_CODENAME', ''))}"


def folder(tool: Tool) -> Path:
    """Where a build of this very tool lies; it exists only when the build is complete."""
    return cache() / "tools" / tool.name / f"{tool.version or 'system'}-{key(tool)}"


def program(tool: Tool) -> Path:
    """The executable of a build."""
    return folder(tool) / "bin" / tool.name


def data_folder(data: DataFolder) -> Path:
    """Where a data folder lies; it exists only when complete."""
    return cache() / "tools" / data.name / f"{data.version}-{data_key(data)}"
