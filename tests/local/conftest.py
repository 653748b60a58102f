"""What several files of this room need from the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling import Ground, settings_of
from components.autoscaler_check import Live


@pytest.fixture(scope="module")
def ground(request: pytest.FixtureRequest, cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The small vLLM under the asking file's NAMESPACE, with at most its NODES."""
    environment = cluster.environment(tmp_path_factory.mktemp("ground"))
    asking = request.module
    made = Ground(environment, cluster.prometheus_url, asking.NAMESPACE, settings=settings_of(asking.NODES))
    try:
        made.deploy()
        yield made
    finally:
        made.remove()


@pytest.fixture
def live(ground: Ground, cluster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Live:
    """The check's own way to Prometheus: kubectl and the API server's proxy."""
    for key, value in cluster.environment(tmp_path).items():
        if key in ("PATH", "KUBECONFIG"):
            monkeypatch.setenv(key, value)
    return Live("http://prometheus.monitoring.svc:9090", embedded=True)
