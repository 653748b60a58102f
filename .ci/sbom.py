"""The bill of materials: every Python package of requirements.lock and every Go module of the tools, as CycloneDX 1.6.

    python .ci/sbom.py [FILE]        default: standard output

The lock's hashes, and Go's own of go.sum, stand beside each component as properties: each names one of the archives that are
accepted for it.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def python_packages(lock: str) -> Iterator[dict[str, Any]]:
    """The components of a lock file with hashes."""
    for block in re.split(r"\n(?=\S)", lock):
        found = re.match(r"([A-Za-z0-9._-]+)==([^ ;\\]+)", block)
        if found:
            name, version = found.groups()
            yield _component(
                f"pkg:pypi/{name.lower()}@{version}", name, version, re.findall(r"--hash=(sha256:[0-9a-f]{64})", block)
            )


def go_modules(folder: Path) -> Iterator[dict[str, Any]]:
    """The components of one tool's module file."""
    sums = {
        (module, version): digest
        for module, version, digest in (line.split() for line in (folder / "go.sum").read_text().splitlines() if line)
    }
    text = (folder / "go.mod").read_text()
    # What is built is what stands on the right.
    instead = {
        old: (new, version)
        for old, new, version in re.findall(r"^\s*(?:replace )?(\S+)(?: v\S+)? => (\S+) (v\S+)", text, re.MULTILINE)
    }
    for module, version in re.findall(r"^\s*(?:require )?([a-z0-9.-]+\.[a-z]+/\S+) (v\S+)", text, re.MULTILINE):
        module, version = instead.get(module, (module, version))
        digest = sums.get((module, version))
        yield _component(f"pkg:golang/{module}@{version}", module, version, [digest] if digest else [])


def _component(purl: str, name: str, version: str, hashes: list[str]) -> dict[str, Any]:
    properties = [{"name": "tollgate:hash", "value": value} for value in sorted(hashes)]
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "properties": properties,
    }


def bill(root: Path) -> dict[str, Any]:
    """The whole document; the same for the same files."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    found = {one["bom-ref"]: one for one in python_packages((root / "requirements.lock").read_text())}
    for path in sorted((root / "local" / "tools").glob("*/go.mod")):
        for one in go_modules(path.parent):
            found.setdefault(one["bom-ref"], one)
    about = {"type": "application", "name": project["name"], "version": project["version"], "bom-ref": "tollgate"}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": about},
        "components": [found[name] for name in sorted(found)],
    }


def main(arguments: list[str]) -> int:
    """See the module."""
    text = json.dumps(bill(ROOT), indent=1) + "\n"
    if arguments:
        Path(arguments[0]).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
