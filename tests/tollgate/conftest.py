"""A Tollgate that is installed from its wheel, away from this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=HERE, check=True, capture_output=True, timeout=240)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a virtual environment with the wheel in it; what Tollgate depends on comes from this one."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=240)
    (packages,) = folder.glob("lib/python3*/site-packages")
    # Paths in this file are searched, but no .pth files there: the editable install stays out of sight.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "bin"


@pytest.fixture
def run_installed(installed: Path, tmp_path: Path) -> Command:
    """The installed `tollgate`, run in a folder away from this checkout."""

    def run(*arguments: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        env["PATH"] = f"{installed}{os.pathsep}{env['PATH']}"
        return subprocess.run(
            [str(installed / "tollgate"), *arguments],
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """The command line within this process, for it is called often: in `cwd`, with these variables besides."""
    from tollgate.__main__ import main

    def call(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["tollgate", *words])
        monkeypatch.chdir(cwd)
        # No cluster of whoever runs the tests: without root a command would go on inside of its network, and not come back.
        monkeypatch.setenv("TOLLGATE_HOME", str(cwd / "home"))
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        ended: object = 0
        try:
            main()
        except SystemExit as exit:
            ended = exit.code or 0
        out, err = capfd.readouterr()
        assert isinstance(ended, int)
        return subprocess.CompletedProcess(words, ended, out, err)

    return call
