# ruff: noqa: E501 - inputs are written as they are sent
"""What a preview reads: all of it is of the making of whoever opened a pull request."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import preview
from preview import _evaluate, _state

from ._target import Target

_NOW = datetime(2026, 11, 21, tzinfo=UTC)


def _resource(kind: str, name: str, parent: str | None = None, **inputs: Any) -> dict[str, Any]:
    return {"type": kind, "name": name, "parent": parent, "inputs": inputs}


_RESOURCES = [
    _resource("tollgate:index:Cluster", "c", target="gke"),
    _resource(
        "tollgate:index:GpuPool", "pool", nodesMin=1, nodesExpected=2, nodesMax=4, spot=True, machineType="g2-standard-8",
        region="us-central1", gpu="nvidia-l4", migProfile=None,
    ),
    _resource("tollgate:index:Platform", "p", release="r", engine="vllm", model="m", slots=8, digest="sha256:" + "1" * 64),
    _resource("tollgate:index:PromotionCheck", "g", gated=True, after="staging", criteria={"min_runs": 3}),
    _resource(
        "gcp:container/cluster:Cluster", "k", location="us-central1", initialNodeCount=1,
        nodePools=[{"name": "n", "nodeConfig": {"machineType": "e2-medium"}, "autoscaling": {"maxNodeCount": 3}}],
    ),
    _resource(
        "gcp:container/nodePool:NodePool", "pool", "tollgate:index:GpuPool::pool", location="us-central1-a", nodeCount=2,
        nodeLocations=["us-central1-a"], autoscaling={"totalMinNodeCount": 1, "totalMaxNodeCount": 4},
        nodeConfig={
            "machineType": "g2-standard-8", "spot": True, "diskSizeGb": 300, "diskType": "pd-ssd",
            "guestAccelerators": [{"type": "nvidia-l4", "count": 1, "gpuPartitionSize": "1g.5gb"}],
            "secondaryBootDisks": [{"diskImage": "global/images/x"}],
        },
    ),
    _resource("gcp:compute/disk:Disk", "d", size=20, type="pd-ssd", zone="us-central1-a"),
    _resource("gcp:compute/routerNat:RouterNat", "nat", region="us-central1"),
    _resource("gcp:dns/recordSet:RecordSet", "dns"),
    _resource("kubernetes:core/v1:Service", "gateway-us-central1", spec={"type": "LoadBalancer"}),
    _resource(
        "kubernetes:helm.sh/v3:Release", "engine",
        values={"cache": {"kind": "pvc", "gb": 50, "storageClass": None}, "engine": {"args": ["--x"], "env": {"A": 1}}},
    ),
]  # fmt: skip
_EVALUATED = {
    "stack": "fuzz", "resources": _RESOURCES, "error": None, "input_error": False,
    "plan": {
        "predicted": {"e2e_p95_seconds": 2.5, "ttft_p95_seconds": None}, "output_tokens_per_second": 100, "nodes_expected": 2,
        "output_tokens_per_second_peak": 300, "nodes_peak": 3, "unmet": [], "binds": "memory",
    },
    "release": {"name": "r", "engine": "vllm", "parallelism": {"slots": "auto", "tensor": 1}, "accelerator": {"gpu": "nvidia-l4", "count": 1}},
}  # fmt: skip


def _step(op: str, one: dict[str, Any]) -> dict[str, Any]:
    urn = f"urn:pulumi:s::p::{one['parent'] or ''}${one['type']}::{one['name']}"
    parent = "urn:pulumi:s::p::pulumi:pulumi:Stack::p-s"
    state = {"urn": urn, "type": one["type"], "inputs": one["inputs"], "parent": parent, "protect": False}
    new = None if op == "delete" else state
    return {
        "op": op,
        "urn": urn,
        "oldState": state,
        "newState": new,
        "detailedDiff": {"location": {"kind": "update-replace"}},
    }


_OPS = ("same", "create", "update", "delete", "replace")
_PULUMI = {
    "steps": [_step(_OPS[number % len(_OPS)], one) for number, one in enumerate(_RESOURCES)],
    "diagnostics": [{"severity": "error", "message": "m"}],
}


def previews(folder: Path) -> list[Target]:
    """Its own document, made without rights and rendered with some; what the program of a pull request registers, Helm values
    of any shape among it; and what Pulumi says."""
    rates = preview.prices()
    root = Path(__file__).resolve().parents[3]

    def shaped(one: preview.Evaluation | None) -> preview.Shape | None:
        if one is None or one.error is not None:
            return None
        return preview.shape(one.stack, one.resources, rates, plan=one.plan, release=one.release)

    def changed(after: preview.Evaluation | None) -> preview.Report:
        old, new = before.resources if before else (), after.resources if after else ()
        change = preview.Change(
            stack="fuzz",
            before=shaped(before),
            after=shaped(after),
            events=preview.events(old, new),
            counts=preview.counts(old, new),
        )
        return preview.report(
            [change],
            source="offline",
            base="main",
            book=rates.book,
            today=_NOW.date(),
            limits=preview.load_limits(root),
        )

    def document(data: bytes) -> None:
        found = preview.from_json(data.decode(errors="replace"))
        preview.markdown(found)
        preview.page(found)
        json.dumps(preview.infracost(found, _NOW))

    def registered(data: bytes) -> None:
        found = _evaluate._read(data.decode(errors="replace"))
        if found is not None:
            preview.markdown(changed(found))

    def stated(data: bytes) -> None:
        try:
            given = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(given, dict):
            found = _state.parse("fuzz", given)
            preview.shape("fuzz", found.after, rates)
            list(preview.stated(found.steps))
            preview.stated_counts(found.steps)

    evaluated = json.dumps(_EVALUATED).encode()
    before = _evaluate._read(evaluated.decode())
    return [
        Target("preview", "json", [preview.as_json(changed(None)).encode()], document),
        Target("resources", "json", [evaluated], registered),
        Target("pulumi", "json", [json.dumps(_PULUMI).encode()], stated),
    ]
