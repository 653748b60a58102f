"""Finding tools: a fitting program on PATH first, else what has been built. Nothing is built here.

Asking a program for its version costs up to 0.3 s, so answers are kept in the cache folder under the program's file
identity (path, size, time of change), and only asked again when that changes.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stacks import InputError

from . import _places
from ._table import DATA, TOOLS, DataFolder, OnPath, Origin, Tool, Version

_SBIN: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_ASK_SECONDS: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class ToolStatus:
    """One line of `tollgate tools`: `version` is what is there, or what would be built when `origin` is "missing"."""

    name: str
    version: str
    origin: Origin
    path: Path | None
    purpose: str
    optional: bool


def tool(name: str) -> Tool:
    """The row of that name; `InputError` where there is none."""
    for row in TOOLS:
        if row.name == name:
            return row
    raise InputError(
        where="tool name",
        got=name,
        allowed=", ".join(row.name for row in TOOLS),
        fix="see `tollgate tools` for the list",
    )


def data_folder(name: str) -> DataFolder:
    """The row of that name; `InputError` where there is none."""
    for row in DATA:
        if row.name == name:
            return row
    raise InputError(
        where="data folder of a tool", got=name, allowed=", ".join(row.name for row in DATA), fix="use one of these"
    )


def parse_version(text: str) -> Version | None:
    """The first `1.2` or `1.2.3` in what a program printed."""
    match = re.search(r"(?<![\d.])v?(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in match.groups() if part is not None) if match else None


def fits(version: Version, want: OnPath) -> bool:
    """Whether a version lies in the accepted range; missing parts count as 0."""
    at_least = want.at_least + (0,) * (3 - len(want.at_least))
    padded = version + (0,) * (3 - len(version))
    return padded >= at_least and (not want.below or padded[: len(want.below)] < want.below)


def locate(tool: Tool) -> ToolStatus:
    """Where the tool is now."""
    found = _on_path(tool)
    if found is not None:
        path, version = found
        return _status(tool, version, "PATH", path)
    built = _places.program(tool)
    if os.access(built, os.X_OK):
        return _status(tool, _built_version(tool, built), "built", built)
    return _status(tool, tool.version, "missing", None)


def locate_all(tools: tuple[Tool, ...] = TOOLS) -> list[ToolStatus]:
    """`locate` of each, in the given order; programs are asked at the same time."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(locate, tools))


def _status(tool: Tool, version: str, origin: Origin, path: Path | None) -> ToolStatus:
    return ToolStatus(
        name=tool.name, version=version, origin=origin, path=path, purpose=tool.purpose, optional=tool.optional
    )


def _built_version(tool: Tool, built: Path) -> str:
    if tool.version:
        return tool.version
    version = _asked(built, ("--version",), b"")
    return ".".join(map(str, version)) if version else "?"


def _on_path(tool: Tool) -> tuple[Path, str] | None:
    """The first program on PATH that fits, with its version as text."""
    want = tool.on_path
    if want is None:
        return None
    if want.beside:
        (partner,) = (row for row in TOOLS if row.name == want.beside)
        found = _on_path(partner)
        if found is None:
            return None
        for folder in (found[0].parent, found[0].resolve().parent):
            if os.access(folder / want.program, os.X_OK):
                return folder / want.program, found[1]
        return None
    return next(candidates(want), None)


def candidates(want: OnPath) -> Iterator[tuple[Path, str]]:
    """The programs on PATH that fit, in PATH's order, with their versions."""
    for folder in _search(want):
        path = folder / want.program
        if not (os.access(path, os.X_OK) and path.is_file()):
            continue
        version = _asked(path, want.ask, want.contains)
        if version and fits(version, want):
            yield path, ".".join(map(str, version))


def _search(want: OnPath) -> list[Path]:
    """PATH's folders without our own: a link of `bin_dir()` is a build, not something the user has."""
    own = os.path.realpath(_places.cache())
    names = [*os.environ.get("PATH", "").split(os.pathsep), *(_SBIN if want.sbin else ())]
    folders = dict.fromkeys(Path(name) for name in names if name and Path(name).is_absolute())
    return [folder for folder in folders if not Path(os.path.realpath(folder)).is_relative_to(own)]


def _asked(path: Path, ask: tuple[str, ...], contains: bytes) -> Version | None:
    """The version a program says it has, from the kept answers where its file is unchanged; None where it does not fit."""
    real = path.resolve()
    stat = real.stat()
    identity = json.dumps([str(real), stat.st_size, stat.st_mtime_ns, ask, contains.decode()])
    kept = _read_answers()
    if identity not in kept:
        answer = _ask(path, ask) if not contains or _contains(real, contains) else None
        kept = {**_read_answers(), identity: answer}
        _write_answers(kept)
    version = kept[identity]
    return tuple(version) if version else None


def _ask(path: Path, ask: tuple[str, ...]) -> list[int] | None:
    try:
        # In an empty folder: some programs (pulumi) look for project files where they are started.
        with tempfile.TemporaryDirectory() as nowhere:
            answer = subprocess.run(
                [path, *ask],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_ASK_SECONDS,
                stdin=subprocess.DEVNULL,
                cwd=nowhere,
                env={**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "true"},
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = parse_version(answer.stdout) or parse_version(answer.stderr)
    return list(version) if version and answer.returncode == 0 else None


def _contains(path: Path, wanted: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(wanted) >= 0


def _answers() -> Path:
    return _places.cache() / "path-versions.json"


def _read_answers() -> dict[str, list[int] | None]:
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(_answers().read_text())
        if isinstance(kept, dict):
            return kept
    return {}


def _write_answers(kept: dict[str, list[int] | None]) -> None:
    # Only an aid: a folder that can't be written costs time, not function.
    with contextlib.suppress(OSError):
        _answers().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=_answers().parent, prefix=".versions-", delete=False) as file:
            json.dump(kept, file)
        Path(file.name).replace(_answers())


# The language host looks for its executor, and Pulumi for its language host, in the folder that they really lie in: symbolic
# links would lead them astray.
_BY_ITS_OWN_PLACE = frozenset({"pulumi", "pulumi-language-python"})


def _same_file(one: Path, other: Path) -> bool:
    """Whether both are the same file, or one a faithful copy of the other."""
    a, b = one.stat(), other.stat()
    return one.samefile(other) or (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)


def sync_links() -> Path:
    """Make the folder of links agree with what is there now, and return it."""
    folder = _places.cache() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {status.name: status.path for status in locate_all() if status.path is not None}
    for link in folder.iterdir():
        if link.name not in wanted and not link.name.startswith("."):
            link.unlink(missing_ok=True)
    for name, target in wanted.items():
        link = folder / name
        if name in _BY_ITS_OWN_PLACE:
            if link.is_file() and not link.is_symlink() and _same_file(link, target):
                continue
        elif link.is_symlink() and link.readlink() == target:
            continue
        # Made aside and renamed: whoever looks the program up meanwhile finds the old one or the new one.
        aside = folder / f".{name}-{os.getpid()}"
        aside.unlink(missing_ok=True)
        if name in _BY_ITS_OWN_PLACE and target.is_relative_to(_places.cache()):
            try:
                aside.hardlink_to(target)
            except OSError:
                # Another user's file, or another disk.
                shutil.copy2(target, aside)
        else:
            aside.symlink_to(target)
        aside.replace(link)
    return folder


def remove_old(*, everything: bool) -> list[Path]:
    """Remove builds no longer in the table (or `everything`), logs and left-overs; returns what was removed."""
    root = _places.cache()
    keep: set[Path] = set()
    if not everything:
        keep = {_places.folder(row) for row in TOOLS} | {_places.data_folder(row) for row in DATA}
    gone = [root / name for name in ("go-build", "logs", "tmp", "go-mod", "path-versions.json")]
    gone += [build for build in (root / "tools").glob("*/*") if build not in keep]
    if everything:
        # `preview` is what previews have compiled (preview/_evaluate.py).
        gone += [root / "bin", root / "go", root / "preview"]
    removed = [path for path in gone if path.exists()]
    for path in removed:
        remove(path)
    return removed


def remove(path: Path) -> None:
    """Remove a file or folder, also one that Go's module cache has made read-only."""
    if path.is_dir() and not path.is_symlink():
        for parent, names, _ in os.walk(path):
            for name in names:
                folder = Path(parent, name)
                if not folder.is_symlink():
                    folder.chmod(0o755)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
