"""A full disk does not end what keeps a cluster's processes running."""

from __future__ import annotations

import asyncio
import json
import os
import traceback
from pathlib import Path
from typing import Any

import pytest

from local._standard_error import Patient
from local.cluster._layout import Layout
from local.cluster._plan import DATA, PROGRAMS, Plan
from local.cluster._rules import RuleFiles
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


def test_a_log_on_a_full_disk_ends_nobody(tmp_path: Path) -> None:
    handle = os.open("/dev/full", os.O_WRONLY)
    try:
        print("lost", file=Patient(handle), flush=True)
        try:
            raise RuntimeError("lost, too")
        except RuntimeError:
            traceback.print_exc(file=Patient(handle))
    finally:
        os.close(handle)
    path = tmp_path / "log"
    with path.open("wb") as file:
        print("kept \u00e9", file=Patient(file.fileno()))
    assert path.read_text(encoding="utf-8") == "kept \u00e9\n"


def test_rules_that_found_no_room_are_tried_again(tmp_path: Path) -> None:
    api: Any = None
    client: Any = None
    # The folder is missing: as with a full disk, the write fails before Prometheus is asked.
    rules = RuleFiles(tmp_path / "rules", api, "http://127.0.0.1:9", tmp_path / "log")
    assert asyncio.run(rules._put(client, "n_r.yaml", b"{}", None)) is False
