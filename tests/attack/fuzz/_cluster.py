# ruff: noqa: E501 - inputs are written as they are sent
"""What pods and nodes of a cluster say."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
from pathlib import Path

from bench import load
from bench.job import _together
from components import benchmark
from local.provider._errors import ProviderError
from local.provider._helm import revisions
from local.runner import _environment, _nodes
from tests.gate.conftest import make_result

from ._target import Target

_NODE = {
    "metadata": {"name": "n", "namespace": "ns", "uid": "u", "labels": {"a": "b"}, "annotations": {_nodes.CAPACITY_ANNOTATION: '{"cpu": "4", "nvidia.com/gpu": "1"}'}},
    "spec": {"nodeName": "n", "containers": []},
    "status": {"capacity": {"cpu": "4"}, "conditions": [{"type": "Ready", "status": "True"}]},
}  # fmt: skip


def cluster(folder: Path) -> list[Target]:
    """Logs and ConfigMaps of a benchmark's pods, and annotations for the pod runner."""
    text = make_result(runs=1).model_dump_json()
    progress = dict.fromkeys(load.Progress.__dataclass_fields__, 1) | {
        "errors": {},
        "because": "",
        "phase": "warm-up",
    }
    log = "\n".join([_together.PROGRESS + json.dumps(progress), *_together.pieces(text)]).encode()

    def logs(data: bytes) -> None:
        found = _together.Pieces()
        for line in data.decode(errors="replace").splitlines():
            if line.startswith(_together.RESULT):
                found.take(line)
                found.result()
            elif line.startswith(_together.PROGRESS):
                with contextlib.suppress(ValueError, TypeError, RecursionError):
                    _together.progress_of(line)

    def result(data: bytes) -> None:
        # With a right checksum: whoever writes the log can count.
        found = _together.Pieces()
        for line in _together.pieces(data.decode(errors="replace")):
            found.take(line)
        found.result()

    def config_map(data: bytes) -> None:
        with contextlib.suppress(UnicodeDecodeError):
            benchmark.result_text(None, {"result.json": data.decode()})

    def node(data: bytes) -> None:
        try:
            given = json.loads(data)
        except (ValueError, RecursionError):
            return
        annotations = {"x": str(given), _nodes.CAPACITY_ANNOTATION: data.decode(errors="replace")}
        one = {**_NODE, "metadata": {**_NODE["metadata"], "annotations": annotations}}
        found = _nodes.capacity(one)
        _nodes.is_current({**one, "status": {"conditions": [], "capacity": found}})
        for key in ("metadata.annotations", "metadata.annotations['x']"):
            told = _environment.field(one, key, ip="", node_ip="")
            assert key.endswith("]") or len(told.splitlines()) == 2
        for value in found.values():
            assert _environment.quantity(value) >= 0

    def release(data: bytes) -> None:
        secret = {
            "metadata": {"name": "sh.helm.release.v1.x.v1", "labels": {"status": "deployed"}},
            "data": {"release": data.decode(errors="replace")},
        }

        class Client:
            def request(self, *_: object, **__: object) -> object:
                return {"items": [secret]}

        with contextlib.suppress(ProviderError):
            revisions(Client(), "ns", "x", "mark")  # type: ignore[arg-type]

    helm = base64.b64encode(base64.b64encode(gzip.compress(b'{"version": 1, "info": {"status": "deployed"}}', mtime=0)))
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0))
    return [
        Target("pod-log", "lines", [log], logs),
        Target("pod-result", "json", [text.encode()], result),
        Target("config-map", "bytes", [packed], config_map),
        Target("helm-release", "bytes", [helm], release),
        Target("annotations", "json", [_NODE["metadata"]["annotations"][_nodes.CAPACITY_ANNOTATION].encode()], node),
    ]
