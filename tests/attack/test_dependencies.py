"""Everything that is installed is named with its hash, in the lock and in the bill of materials."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tollgate.conftest import HERE


@cache
def bill() -> dict[str, Any]:
    command = [sys.executable, str(HERE / ".ci" / "sbom.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return dict(json.loads(done.stdout))


def test_the_lock_names_a_hash_for_every_package() -> None:
    blocks = re.split(r"\n(?=[A-Za-z])", (HERE / "requirements.lock").read_text())
    packages = [block for block in blocks if "==" in block]
    assert len(packages) > 50
    assert [block.split()[0] for block in packages if "--hash=sha256:" not in block] == []


def test_every_dependency_of_the_project_is_locked() -> None:
    import tomllib

    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text).name for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    locked = {canonicalize_name(one["name"]) for one in bill()["components"] if one["purl"].startswith("pkg:pypi/")}
    assert [name for name in wanted if canonicalize_name(name) not in locked] == []


def test_the_bill_names_python_packages_and_go_modules_once_each() -> None:
    found = bill()
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    references = [one["bom-ref"] for one in found["components"]]
    assert len(references) == len(set(references)) > 300
    names = {one["name"] for one in found["components"]}
    assert {"pulumi", "pydantic", "k8s.io/kubernetes", "github.com/kedacore/keda/v2"} <= names
    assert all(re.fullmatch(r"pkg:(pypi|golang)/\S+@\S+", reference) for reference in references)


def test_nearly_every_component_of_the_bill_has_a_hash() -> None:
    """Go replaces some modules by others, which then have none of their own."""
    found = bill()["components"]
    without = [one["name"] for one in found if not one["properties"]]
    assert not [one for one in found if one["purl"].startswith("pkg:pypi/") and not one["properties"]]
    assert len(without) < len(found) / 10
