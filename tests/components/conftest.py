"""A project of the tests' own, and the real engine over it."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import tools
from tests.components.real_engine import HERE, PLUGIN, Engine

_asserted = pytest.StashKey[int]()


def pytest_assertion_pass(item: pytest.Item) -> None:
    item.stash[_asserted] = item.stash.get(_asserted, 0) + 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Every test asserts, or expects an error: an `apply` that never runs would leave one green for nothing."""
    yield
    if not item.stash.get(_asserted, 0) and "pytest.raises" not in inspect.getsource(item.function):  # type: ignore[attr-defined]
        pytest.fail("passed without a single assertion")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project's own files, to be edited; nothing in it is gated."""
    root = tmp_path / "project"
    root.mkdir()
    for name in ("Pulumi.yaml", "__main__.py"):
        shutil.copy(HERE / name, root)
    shutil.copytree(HERE / "stacks", root / "stacks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    names = sorted(path.name.removeprefix("Pulumi.").removesuffix(".yaml") for path in root.glob("stacks/Pulumi.*"))
    text = "stages:\n" + "".join(f"  - stack: {name}\n" for name in names)
    (root / "stacks" / "pipeline.yaml").write_text(text)
    return root


@pytest.fixture
def engine(project: Path, tmp_path: Path) -> Engine:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    for name in ("gcp", "kubernetes"):
        script = plugins / f"pulumi-resource-{name}"
        script.write_text(f'#!/bin/sh\nRECORDED_AS={name} exec {sys.executable} {PLUGIN} "$@"\n')
        script.chmod(0o755)
    tools.path("pulumi")
    state = tmp_path / "state"
    state.mkdir()
    folders = [str(plugins), str(Path(sys.executable).parent), str(tools.bin_dir()), os.environ.get("PATH", "")]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PULUMI_", "KUBE", "TOLLGATE_"))}
    return Engine(
        root=project,
        plugins=plugins,
        environment={
            **kept,
            "PATH": os.pathsep.join(folders),
            "PYTHONPATH": str(HERE),
            "TOLLGATE_CACHE": os.environ.get("TOLLGATE_CACHE", str(tools.bin_dir().parent)),
            "PULUMI_HOME": str(tmp_path / "home"),
            "PULUMI_BACKEND_URL": f"file://{state}",
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "RECORDED": str(tmp_path / "recorded"),
        },
    )
