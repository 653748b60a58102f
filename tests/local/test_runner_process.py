"""Containers' processes by themselves: what belongs to one is told by its mount namespace, whose number is used again."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.runner._mounts import View
from local.runner._process import KILLED, Shim, start
from tests.waiting import until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="who makes mount namespaces is root"),
]
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


class Containers:
    """Starts containers of one shell command each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: list[Shim] = []

    def __call__(self, script: str) -> Shim:
        folder = self._folder / str(len(self.started))
        for name in ("base", "shim"):
            (folder / name).mkdir(parents=True)
        view = View(base=folder / "base")
        shim = start(["/bin/sh", "-c", script], ENVIRONMENT, folder=folder / "shim", log=folder / "log", view=view)
        self.started.append(shim)
        return shim


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Containers]:
    containers = Containers(tmp_path)
    yield containers
    for shim in containers.started:
        shim.kill()


def test_the_end_of_one_container_is_no_end_of_another_that_is_started_just_then(run: Containers) -> None:
    async def both() -> tuple[Shim, Shim]:
        first = run("sleep 0.3")
        ended = asyncio.ensure_future(first.wait())
        await asyncio.sleep(0.05)
        # The runner is late: the first one has ended, and before that is seen the second one is started.
        time.sleep(1.0)
        assert not first.alive
        second = run("sleep 60")
        assert await ended == 0
        return first, second

    first, second = asyncio.run(both())
    assert second.namespace != first.namespace
    assert second.alive
    second.kill()
    assert asyncio.run(second.wait()) == KILLED


def test_what_a_container_leaves_running_ends_with_it(run: Containers, tmp_path: Path) -> None:
    shim = run("trap '' TERM HUP; setsid sleep 61 & echo $!; sleep 0.2; exit 3")
    assert asyncio.run(shim.wait()) == 3
    child = int((tmp_path / "0" / "log").read_text())
    until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text(), "it is gone")
