"""A full disk does not end what keeps a cluster's processes running."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from local.cluster._layout import Layout
from local.cluster._plan import DATA, PROGRAMS, Plan
from local.cluster.supervisor import Supervisor


def test_a_state_that_could_not_be_written_is_written_once_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Layout(home=tmp_path, name="full")
    for name in DATA:
        (tmp_path / name).mkdir()
    plan = Plan(
        programs={name: f"/bin/{name}" for name in PROGRAMS},
        data={name: str(tmp_path / name) for name in DATA},
        rootless=True,
    )
    supervisor = Supervisor(place, plan, 0)
    # The folder is missing: as with a full disk, the write fails and nothing else is wrong.
    supervisor.save(phase="ready")
    assert "state.json could not be written" in capsys.readouterr().err
    place.state_dir.mkdir(parents=True)
    supervisor.save_again()
    assert json.loads(place.state.read_text())["phase"] == "ready"
    written = place.state.stat().st_mtime_ns
    supervisor.save_again()
    assert place.state.stat().st_mtime_ns == written
