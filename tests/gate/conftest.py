"""A project with a gate in a folder of the test's own, and results as a benchmark writes them."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import gate
import stacks
from bench.results import Result, Run

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
DIGEST = "sha256:" + "a1" * 32
GOOD = {
    "e2e_p95_seconds": 3.1,
    "e2e_mean_seconds": 2.7,
    "requests_per_second": 18.0,
    "output_tokens_per_second": 2300.0,
}
SLOW = {"e2e_p95_seconds": 9.9, "e2e_mean_seconds": 9.7, "requests_per_second": 5.1, "output_tokens_per_second": 650.0}
SPREAD = (-0.01, 0.0, 0.01)


def make_result(
    metrics: Mapping[str, float] = GOOD,
    *,
    runs: int = 3,
    stack: str = "local-dev",
    release: str = DIGEST,
    sent: int = 400,
    failed: int | Sequence[int] = 0,
    spread: Sequence[float] = SPREAD,
    factor: float = 1.0,
    environment: Mapping[str, Any] | None = None,
    traffic: Mapping[str, Any] | None = None,
    server: Mapping[str, Any] | None = None,
    replicas: int = 10,
    started: datetime = NOW,
    every: float = 20.0,
    valid: bool = True,
    invalid_because: str = "",
) -> Result:
    """`factor` makes everything that slow; `spread`: relative, of one run after the other."""
    failures = [failed] * runs if isinstance(failed, int) else list(failed)
    asked = {"arrival": "closed", "users": 50, "prompt_tokens": 128, "output_tokens": 128, **(traffic or {})}

    def measured(index: int) -> dict[str, float]:
        share = 1 + spread[index % len(spread)]
        return {
            name: value * share * (factor if name.endswith("_seconds") else 1 / factor)
            if name not in ("goodput",)
            else value
            for name, value in metrics.items()
        }

    return Result(
        release=release,
        stack=stack,
        url="http://engine",
        traffic=stacks.Traffic.model_validate(asked),
        replicas=replicas,
        runs=tuple(
            Run(
                started=started + timedelta(seconds=every * index),
                seconds=15,
                warmup_seconds=2,
                sent=sent,
                ok=sent - failures[index],
                failed=failures[index],
                cut=0,
                metrics=measured(index),
                valid=valid,
                invalid_because=invalid_because,
            )
            for index in range(runs)
        ),
        server={"engine": "ollama", "version": "0.17.4", **(server or {})},
        environment={
            "accelerator": "nvidia-l4",
            "mig_profile": "",
            "machine_type": "g2-standard-8",
            "simulated": True,
            "region": "us-central1",
            "target": "local",
            **(environment or {}),
        },
        tool_version="0.1.0",
    )


@dataclass
class World:
    """One project; every call is at `now` unless it says otherwise."""

    root: Path
    now: datetime = NOW
    digest: str = DIGEST
    good = GOOD
    slow = SLOW
    result = staticmethod(make_result)

    def later(self, **time: float) -> datetime:
        return self.now + timedelta(**time)

    def stack(self, name: str) -> stacks.Stack:
        return stacks.load_stack(name, self.root)

    def record(self, what: Result | None = None, now: datetime | None = None) -> gate.Evidence:
        what = what or make_result()
        return gate.record(
            self.stack(what.stack), what, release_digest=what.release, root=self.root, now=now or self.now
        )

    def promote(self, now: datetime | None = None, release: str = DIGEST) -> tuple[gate.Admission, bool]:
        return gate.promote("local-dev", "local-prod", self.root, release_digest=release, now=now or self.now)

    def check(self, now: datetime | None = None, release: str = DIGEST) -> gate.Admission:
        return gate.check(self.stack("local-prod"), release_digest=release, root=self.root, now=now or self.now)

    def refused(self, match: str, now: datetime | None = None, release: str = DIGEST) -> str:
        """The check's refusal, which has to say this."""
        with pytest.raises(gate.GateRefused, match=match) as caught:
            self.check(now, release)
        return str(caught.value)

    def not_promoted(self, match: str, now: datetime | None = None, release: str = DIGEST) -> str:
        """The promotion's refusal, which has to say this; the stack's file stays as it is."""
        path = stacks.stack_path("local-prod", self.root)
        before = path.read_bytes()
        with pytest.raises(gate.GateRefused, match=match) as caught:
            self.promote(now, release)
        assert path.read_bytes() == before
        return str(caught.value)

    def files(self) -> list[Path]:
        return sorted((self.root / ".tollgate" / "evidence").glob("*.json"))

    def entries(self) -> list[gate.Entry]:
        return gate.open_store("file://.tollgate/evidence", self.root, gate.load_keys(self.root)).entries()

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / "stacks" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def rewrite(self, path: Path, data: bytes) -> None:
        """What nobody should be able to: change a file of the store."""
        path.chmod(0o644)
        path.write_bytes(data)

    def resign(self, old: bytes, new: bytes) -> None:
        """Whoever holds the key spells a statement that no program of ours would, and a fresh checkout reads it."""
        shutil.rmtree(self.root / ".tollgate" / "witness")
        signer = gate.load_keys(self.root).signer
        assert signer is not None
        payload = base64.b64decode(json.loads(self.files()[0].read_bytes())["payload"])
        assert old in payload
        payload = payload.replace(old, new)
        kind = b"application/vnd.in-toto+json"
        signature = signer.sign(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
        envelope = {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": kind.decode(),
            "signatures": [{"keyid": signer.key_id, "sig": base64.b64encode(signature).decode()}],
        }
        self.rewrite(self.files()[0], stacks.canonical_json(envelope))

    def criteria(self, text: str) -> None:
        """Give the edge into local-prod these criteria, as in `looks: 2, soak_hours: 1`."""
        lasting = "" if "max_evidence_age_hours" in text else "max_evidence_age_hours: 24, "
        (self.root / "stacks" / "pipeline.yaml").write_text(
            "stages:\n  - stack: local-dev\n  - stack: local-prod\n    after: local-dev\n"
            f"    criteria: {{{lasting}{text}}}\n"
        )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Stack files of the test's own, so that those of the repository may change."""
    monkeypatch.delenv("TOLLGATE_EVIDENCE", raising=False)
    monkeypatch.delenv("TOLLGATE_SIGNING_KEY", raising=False)
    return make_world(tmp_path)


@pytest.fixture
def worlds(world: World) -> Iterator[World]:
    """As many more of them as a test needs."""
    return (make_world(world.root / f"another-{number}") for number in itertools.count())


def make_world(root: Path) -> World:
    """A project in that folder."""
    folder = root / "stacks"
    (folder / "releases").mkdir(parents=True)
    (root / "Pulumi.yaml").write_text("name: tollgate\nruntime: python\nstackConfigDir: stacks\n")
    for slots in (1, 8):
        (folder / "releases" / f"gemma-{slots}.yaml").write_text(_RELEASE.format(slots=slots))
    (folder / "Pulumi.local-dev.yaml").write_text(_STACK + "  tollgate:benchmark: {runs: 3, seconds: 12}\n")
    (folder / "Pulumi.local-prod.yaml").write_text("# What local-dev has proven.\n" + _STACK)
    (folder / "Pulumi.local-other.yaml").write_text(_STACK)
    found = World(root)
    found.criteria("min_runs: 3")
    return found


_RELEASE = """engine: ollama
version: 0.17.4
image: ollama/ollama:0.17.4
model: gemma-3-4b-it
source: gemma3:4b
quantization: q4-k-m
context_tokens: 2048
parallelism: {{slots: {slots}}}
accelerator: {{gpu: nvidia-l4}}
chart: engine
"""
_STACK = """config:
  tollgate:target: local
  tollgate:release: gemma-8   # promoted
  tollgate:fleet:
    machine_type: g2-standard-8
    nodes: {min: 10, max: 10}
  tollgate:traffic:
    arrival: closed
    users: 50
    prompt_tokens: 128
    output_tokens: 128
  tollgate:objectives:
    e2e_p95_seconds: 5
    requests_per_second: 14
    error_rate: 0.01
"""
