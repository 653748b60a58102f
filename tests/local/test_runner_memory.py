"""What a runner writes down for its successor, also where there was no room for it at first."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from pathlib import Path
from typing import Any

from local.runner._events import Events
from local.runner._pod import Machine, Pod
from local.runner._settings import Settings


def test_what_found_no_room_is_written_down_as_soon_as_there_is_some(tmp_path: Path) -> None:
    api: Any = None
    settings = Settings(
        name="full",
        kubeconfig=tmp_path / "kubeconfig",
        state_dir=tmp_path,
        node_ip="10.77.0.2",
        pod_cidr=ipaddress.IPv4Network("10.77.0.0/20"),
    )

    async def scene() -> None:
        machine = Machine(api=api, events=Events(api), settings=settings, services=list, node=lambda _: None)
        spec = {"containers": [{"name": "c", "image": "busybox:1"}]}
        pod = Pod(machine, {"metadata": {"uid": "u", "name": "p", "namespace": "n"}, "spec": spec}, "10.77.1.1")
        # The folder is missing: as with a full disk, the write fails and nothing else is wrong.
        pod.remember()
        pod.folder.mkdir(parents=True)
        pod.look_at_logs(0.0)
        assert json.loads((pod.folder / "pod.json").read_text())["ip"] == "10.77.1.1"
        (pod.folder / "pod.json").unlink()
        pod.look_at_logs(0.0)
        assert not (pod.folder / "pod.json").exists()

    asyncio.run(scene())
