"""What the Job's pod reads of its cluster, for the record that evidence keeps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.job import ConfigMaps

NODE = {
    "metadata": {"labels": {"nvidia.com/cuda.driver-version.full": "570.86.15"}},
    "status": {
        "nodeInfo": {
            "osImage": "Container-Optimized OS from Google",
            "kernelVersion": "6.6.72+",
            "kubeletVersion": "v1.33.1-gke.1000",
        }
    },
}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Path without query -> (status, object) of an API server; asking for anything else fails."""
    found: dict[str, Any] = {"asked": []}

    def send(_: ConfigMaps, method: str, path: str, content: object = None) -> tuple[int, dict[str, Any]]:
        found["asked"].append(path)
        answer = found[path.partition("?")[0]]
        if isinstance(answer, Exception):
            raise answer
        status, body = answer
        return status, json.loads(json.dumps(body))

    monkeypatch.setattr(ConfigMaps, "_send", send)
    return found


def seen() -> dict[str, str]:
    return ConfigMaps({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}).surroundings("nvidia-l4")


def test_version_node_image_and_driver_are_read(answers: dict[str, Any]) -> None:
    answers["/version"] = (200, {"gitVersion": "v1.33.1"})
    other = {**NODE, "metadata": {"labels": {"nvidia.com/cuda.driver-version.full": "570.86.10"}}}
    answers["/api/v1/nodes"] = (200, {"items": [NODE, NODE, other]})
    assert seen() == {
        "cluster_version": "v1.33.1",
        "node_image": "Container-Optimized OS from Google",
        "kernel": "6.6.72+",
        "kubelet": "v1.33.1-gke.1000",
        "driver": "570.86.10, 570.86.15",
    }
    assert answers["asked"][1].endswith("?labelSelector=cloud.google.com/gke-accelerator%3Dnvidia-l4")


def test_what_may_not_be_read_is_left_out(answers: dict[str, Any]) -> None:
    answers["/version"] = (200, {"gitVersion": "v1.33.1"})
    answers["/api/v1/nodes"] = (403, {"message": "forbidden"})
    assert seen() == {"cluster_version": "v1.33.1"}


def test_a_server_that_does_not_answer_keeps_nobody_from_measuring(answers: dict[str, Any]) -> None:
    answers["/version"] = ConnectionRefusedError()
    assert seen() == {}
