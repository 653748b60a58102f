"""Everything that is installed is named with its hash, in the lock and in the bill of materials."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

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


def test_a_module_that_go_replaces_is_named_as_what_is_built() -> None:
    versions = {one["version"] for one in bill()["components"] if one["name"] == "k8s.io/api"}
    assert versions
    assert "v0.0.0" not in versions


@cache
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", HERE / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks for its module.
    sys.modules["audit"] = module
    spec.loader.exec_module(module)
    return module


def record(folder: Path, name: str, ecosystem: str = "PyPI", **given: Any) -> None:
    span = {"type": "ECOSYSTEM" if ecosystem == "PyPI" else "SEMVER", "events": [{"introduced": "0"}]}
    package = {"name": name, "ecosystem": ecosystem}
    text = {
        "id": f"X-{name}",
        "summary": "bad",
        "modified": "2026-01-02",
        "affected": [{"package": package, "ranges": [span]}],
    }
    (folder / f"{name.replace('/', '-')}.json").write_text(json.dumps({**text, **given}))


def test_the_audit_finds_what_is_locked_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, "Jinja2")
    record(tmp_path, "k8s.io/kubernetes", "Go")
    record(tmp_path, "stdlib", "Go")
    record(tmp_path, "pydantic", withdrawn="2026-01-01")
    record(tmp_path, "never-heard-of")
    assert audit().main(["--advisories", str(tmp_path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:-1]] == ["jinja2", "k8s.io/kubernetes", "stdlib"]
    assert said[-1].endswith("the newest of 2026-01-02: 3 found in 3 components")


def test_the_audit_of_what_is_mended_finds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    span = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.1.0"}]}
    entry = f"- package: {{name: jinja2, ecosystem: PyPI}}\n  ranges: [{json.dumps(span)}]\n  versions: ['2.0']\n"
    (tmp_path / "x.yaml").write_text(f"id: X\naffected:\n{entry}")
    assert audit().main(["--advisories", str(tmp_path)]) == 0
    assert " 1 records that name one, the newest of no date: 0 found" in capsys.readouterr().out


def test_the_audit_does_not_take_an_empty_folder_for_good_news(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        audit().main(["--advisories", str(tmp_path)])
    assert ended.value.code == 2


def test_the_audit_says_which_programs_hold_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    advisories, programs = tmp_path / "advisories", tmp_path / "programs"
    advisories.mkdir()
    programs.mkdir()

    def program(name: str, version: str, *names: str, changed: str = "") -> None:
        linked = f"\xff Go buildinf:\npath\tx\ndep\tk8s.io/kubernetes\t{version}\th1:x\n{changed}\n"
        (programs / name).write_bytes(f"{linked}\0{chr(0).join(names)}\0".encode("latin-1"))
        (programs / name).chmod(0o755)

    program("method", "v1.36.3", "k8s.io/kubernetes/pkg/a%2eb.(*Kubelet).Run")
    program("plain", "v1.36.3", "other", "k8s.io/kubernetes/pkg/a%2eb.Start")
    program("another", "v1.36.3", "k8s.io/kubernetes/pkg/a%2eb.Starter", "k8s.io/kubernetes/pkg/c.Start")
    program("mended", "v9.0.0", "k8s.io/kubernetes/pkg/a%2eb.Start")
    program("replaced", "v9.0.0", "k8s.io/kubernetes/pkg/a%2eb.Start", changed="=>\tk8s.io/kubernetes\tv1.0.0\th1:y")
    (programs / "no-program").write_text("k8s.io/kubernetes")
    span = {"type": "SEMVER", "events": [{"introduced": "0"}, {"fixed": "2.0.0"}]}

    def places(*found: dict[str, Any]) -> dict[str, Any]:
        package = {"name": "k8s.io/kubernetes", "ecosystem": "Go"}
        return {"affected": [{"package": package, "ranges": [span], "ecosystem_specific": {"imports": list(found)}}]}

    at = {"path": "k8s.io/kubernetes/pkg/a.b"}
    record(advisories, "k8s.io/kubernetes", "Go", **places({**at, "symbols": ["Kubelet.Run", "Start"]}))
    words = ["--advisories", str(advisories), "--programs", str(programs)]
    assert audit().main(words) == 1
    first, _, last = capsys.readouterr().out.splitlines()
    assert first.endswith("(fixed in 2.0.0; held by method, plain, replaced)")
    assert last == "5 programs: 1 of these are held by method, plain, replaced"
    record(advisories, "k8s.io/kubernetes", "Go", **places({**at, "symbols": ["Start"], "goos": ["windows"]}))
    assert audit().main(words) == 1
    assert "; held by no program)" in capsys.readouterr().out
    record(advisories, "k8s.io/kubernetes", "Go", **places({"path": "k8s.io/kubernetes/pkg/c"}))
    assert audit().main(words) == 1
    assert "; held by another)" in capsys.readouterr().out


def test_the_audit_does_not_take_a_folder_without_programs_for_good_news(tmp_path: Path) -> None:
    record(tmp_path, "k8s.io/kubernetes", "Go")
    with pytest.raises(SystemExit) as ended:
        audit().main(["--advisories", str(tmp_path), "--programs", str(tmp_path)])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("events", "inside", "outside"),
    [
        ([{"introduced": "0"}, {"fixed": "1.2"}], ["0.1", "1.1.9", "1.2rc1"], ["1.2", "2"]),
        ([{"introduced": "1"}, {"last_affected": "1.2"}], ["1", "1.2"], ["0.9", "1.2.1"]),
        (
            [{"fixed": "3.1"}, {"introduced": "3"}, {"fixed": "2.1"}, {"introduced": "2"}],
            ["2", "3.0.1"],
            ["1", "2.1", "2.5", "3.1"],
        ),
        ([{"introduced": "2"}], ["2", "99"], ["1.9"]),
    ],
)
def test_the_audit_reads_ranges_of_python_packages(
    events: list[dict[str, str]], inside: list[str], outside: list[str]
) -> None:
    entry = {"ranges": [{"type": "ECOSYSTEM", "events": events}, {"type": "GIT", "events": [{"introduced": "0"}]}]}
    for version in (*inside, *outside):
        assert audit().affected(entry, version, Version, ("ECOSYSTEM",)) == (version in inside), version


def test_the_audit_orders_versions_of_go_modules() -> None:
    semver = audit().semver
    rising = [
        "v0.0.0-20190927203648-9ce6eca90e73",
        "v0.0.0",
        "v0.1.0-alpha",
        "v0.1.0-alpha.1",
        "v0.1.0-rc.2",
        "v0.1.0-rc.11",
        "0.1.0",
        "v1.2.3+x",
        "go1.26.6",
    ]
    assert sorted(rising, key=semver) == rising
    entry = {
        "ranges": [{"type": "SEMVER", "events": [{"introduced": "0"}, {"fixed": "0.0.0-20190927203648-9ce6eca90e73"}]}]
    }
    assert not audit().affected(entry, "v0.36.3", semver, ("SEMVER",))
    assert audit().affected(entry, "v0.0.0-20180101000000-000000000000", semver, ("SEMVER",))
    with pytest.raises(ValueError, match="no version"):
        semver("latest")
