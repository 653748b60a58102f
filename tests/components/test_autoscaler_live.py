"""What the autoscaler asks of a live cluster: kubectl with the user's credentials, and nothing of them left behind."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import stacks
from components.autoscaler_check import Live, WrongQuery

# Writes its arguments and its kubeconfig down, and says what the test wants it to.
KUBECTL = """#!/bin/sh
echo "$@" >> "{folder}/asked"
if [ -n "$KUBECONFIG" ]; then cat "$KUBECONFIG" >> "{folder}/seen"; echo "$KUBECONFIG" > "{folder}/where"; fi
cat "{folder}/answer"
"""
VECTOR = {"data": {"resultType": "vector", "result": [{"metric": {}, "value": [0, "3"]}]}}


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    (tmp_path / "answer").write_text(json.dumps(VECTOR))
    return tmp_path


def test_prometheus_is_asked_through_the_api_server_of_that_context(kubectl: Path) -> None:
    live = Live("http://prometheus.monitoring.svc:9091", context="theirs")
    assert live.ask("sum(a b)") == VECTOR["data"]["result"]
    asked = (kubectl / "asked").read_text()
    assert "--context theirs" in asked
    path = "/api/v1/namespaces/monitoring/services/prometheus:9091/proxy/api/v1/query?query=sum%28a%20b%29"
    assert f"get --raw {path}" in asked


def test_a_kubeconfig_lies_in_a_file_of_its_own_only_while_it_is_asked(kubectl: Path) -> None:
    assert Live("http://prometheus.monitoring.svc:9090", kubeconfig="of this test").get("/version") == VECTOR
    assert (kubectl / "seen").read_text() == "of this test"
    assert not Path((kubectl / "where").read_text().strip()).exists()


@pytest.mark.parametrize("answer", [{"data": {"resultType": "scalar", "result": [0, "1"]}}, {}, []])
def test_what_is_no_vector_is_no_series(answer: Any, kubectl: Path) -> None:
    (kubectl / "answer").write_text(json.dumps(answer))
    assert Live("http://prometheus.monitoring.svc:9090").ask("1") == []


@contextlib.contextmanager
def prometheus(status: int, answer: Any) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def embedded(kubectl: Path, port: int) -> Live:
    (kubectl / "answer").write_text(json.dumps({"spec": {"clusterIP": "127.0.0.1"}}))
    return Live(f"http://prometheus.monitoring.svc:{port}", embedded=True)


def test_on_the_embedded_cluster_its_service_is_asked_itself(kubectl: Path) -> None:
    with prometheus(200, VECTOR) as port:
        assert embedded(kubectl, port).ask("up") == VECTOR["data"]["result"]
    assert "get --raw /api/v1/namespaces/monitoring/services/prometheus" in (kubectl / "asked").read_text()


def test_a_query_that_prometheus_cannot_read_is_told_apart_from_one_that_nobody_answers(kubectl: Path) -> None:
    with (
        prometheus(400, {"status": "error", "errorType": "bad_data"}) as port,
        pytest.raises(WrongQuery, match="cannot read the query sum"),
    ):
        embedded(kubectl, port).ask("sum(")
    with pytest.raises(stacks.TollgateError, match="no query can be checked"):
        embedded(kubectl, port).ask("up")
