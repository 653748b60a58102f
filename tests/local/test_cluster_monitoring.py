"""The embedded cluster's stand-ins for Prometheus' operator and kube-state-metrics, without a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest

from local.cluster._api import Api
from local.cluster._rules import RuleFiles
from local.cluster._state import exposition

Answer = Callable[[httpx2.Request], httpx2.Response]
RULES = b'{"groups":[]}'


class Events:
    """In the place of the API server: keeps what is posted."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    async def post(self, path: str, document: dict[str, Any]) -> None:
        assert path == "/api/v1/namespaces/ns/events"
        self.said.append(document)


def put(folder: Path, events: Events, answer: Answer, text: bytes = RULES) -> tuple[bool, RuleFiles]:
    (folder / "rules").mkdir(exist_ok=True)
    files = RuleFiles(folder / "rules", cast(Api, events), "http://prometheus", folder / "log")
    one = {"metadata": {"namespace": "ns", "name": "mine", "uid": "1"}}

    async def do() -> bool:
        async with httpx2.AsyncClient(base_url="http://prometheus", transport=httpx2.MockTransport(answer)) as client:
            return await files._put(client, "ns_mine.yaml", text, one)

    return asyncio.run(do()), files


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "rules").iterdir()}


def test_rules_that_are_taken_stay(tmp_path: Path) -> None:
    events = Events()
    done, _ = put(tmp_path, events, lambda _: httpx2.Response(200))
    assert done
    assert kept(tmp_path) == {"ns_mine.yaml": RULES}
    assert events.said == []


@pytest.mark.parametrize("before", [{}, {"ns_mine.yaml": b"older"}])
def test_refused_rules_are_taken_back_and_the_object_is_told_why(tmp_path: Path, before: dict[str, bytes]) -> None:
    (tmp_path / "rules").mkdir()
    for name, text in before.items():
        (tmp_path / "rules" / name).write_bytes(text)
    (tmp_path / "log").write_text('msg="loading groups failed" err="/a/ns_mine.yaml: 1:5: no such function"\n')

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(500 if RULES in kept(tmp_path).values() else 200)

    events = Events()
    done, _ = put(tmp_path, events, answer)
    assert done
    assert kept(tmp_path) == before
    assert [one["message"] for one in events.said] == [
        "Prometheus refuses these rules, so they do not count: 1:5: no such function"
    ]


def test_where_somebody_elses_file_is_wrong_nobody_is_blamed_and_it_is_tried_again(tmp_path: Path) -> None:
    events = Events()
    done, files = put(tmp_path, events, lambda _: httpx2.Response(500))
    assert not done
    assert files._tried == {}
    assert events.said == []
    assert kept(tmp_path) == {}


def test_while_prometheus_is_away_nothing_that_it_has_not_read_lies_in_its_way(tmp_path: Path) -> None:
    def away(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=request)

    done, files = put(tmp_path, Events(), away)
    assert not done
    assert files._tried == {}
    assert kept(tmp_path) == {}


def test_the_state_of_pods_and_autoscalers_has_kube_state_metrics_names() -> None:
    def pod(name: str, **conditions: str) -> dict[str, Any]:
        found = [{"type": kind, "status": status} for kind, status in conditions.items()]
        metadata = {"namespace": "ns", "name": name, "uid": name}
        return {"metadata": metadata, "status": {"conditions": found}}

    pods = [pod("waits", PodScheduled="False"), pod("runs", PodScheduled="True", Ready="True")]
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "engine"}
    hpa = {"metadata": {"namespace": "ns", "name": "one"}, "spec": {"scaleTargetRef": target}}
    lines = exposition(pods, [hpa]).splitlines()
    own = 'namespace="ns",pod="{}",uid="{}"'
    waits, runs = own.format("waits", "waits"), own.format("runs", "runs")
    assert f'kube_pod_status_scheduled{{{waits},condition="false"}} 1' in lines
    assert f'kube_pod_status_ready{{{runs},condition="true"}} 1' in lines
    assert not [line for line in lines if line.startswith(f"kube_pod_status_ready{{{waits}")]
    assert (
        'kube_horizontalpodautoscaler_info{namespace="ns",horizontalpodautoscaler="one",'
        'scaletargetref_api_version="apps/v1",scaletargetref_kind="Deployment",scaletargetref_name="engine"} 1'
    ) in lines
