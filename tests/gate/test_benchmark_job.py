"""The benchmark Job in the program: one per attempt, idle where valid evidence lies, its verdict a stack output."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pulumi
import pytest

import components
import gate
import stacks
import values
from bench.job import main as run_job


class Cluster(pulumi.runtime.Mocks):
    """Every resource becomes what it asked to be; a result lies where the Job would leave it."""

    # Outputs of every other stack.
    deployed: ClassVar[dict[str, Any]] = {}

    def __init__(self, result: str) -> None:
        self.made: list[tuple[str, str, dict[str, Any]]] = []
        self._result = result

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        self.made.append((args.typ.rpartition(":")[2], args.name, dict(args.inputs)))
        state = dict(args.inputs)
        if args.typ.endswith(":ConfigMap") and "-result-" in args.name:
            packed = base64.b64encode(gzip.compress(self._result.encode())).decode()
            state = {"data": {}, "binaryData": {"result.json": packed}}
        if args.typ == "pulumi:pulumi:StackReference":
            state["outputs"] = self.deployed
        return f"{args.name}-id", state

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        return {}, None

    def the(self, kind: str) -> dict[str, Any]:
        (found,) = (inputs for typ, _, inputs in self.made if typ == kind)
        return found


def run(root: Path, result: str = "", preview: bool = False) -> tuple[Cluster, dict[str, Any]]:
    """The program of local-dev, asking the gate; with it the verdict and the evidence it put out."""
    cluster = Cluster(result)
    loop = asyncio.new_event_loop()
    # What a program that stops leaves unawaited is not to be told of at the end of all tests.
    loop.set_exception_handler(lambda *_: None)
    asyncio.set_event_loop(loop)
    pulumi.runtime.set_mocks(cluster, project="tollgate", stack="local-dev", preview=preview)
    put_out: dict[str, Any] = {}

    def program() -> pulumi.Output[Any]:
        platform = components.Platform(
            "platform", components.PlatformArgs(stack=stacks.load_stack("local-dev", root), root=root)
        )
        assert platform.verdict is not None
        assert platform.evidence is not None
        return pulumi.Output.all(verdict=platform.verdict, evidence=platform.evidence).apply(put_out.update)

    pulumi.runtime.test(program)()  # type: ignore[no-untyped-call]
    return cluster, put_out


@pytest.fixture
def root(world: Any) -> Path:
    found: Path = world.root
    return found


def result(world: Any, **more: Any) -> str:
    stack = world.stack("local-dev")
    digest = values.release_digest(stack.release)
    found: str = world.result(release=digest, started=datetime.now(UTC), **more).model_dump_json()
    return found


def test_the_verdict_is_a_stack_output_and_the_next_up_is_the_same_job_told_what_is_known(
    world: Any, root: Path
) -> None:
    first, out = run(root, result(world))
    assert out["verdict"] == "pass"
    (evidence,) = gate.open_store("file://.tollgate/evidence", root, gate.load_keys(root)).entries()
    assert out["evidence"] == evidence.digest
    release = stacks.load_release("gemma-8", root)
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in evidence.statement["subject"]}
    assert list(subjects) == ["gemma-8", "values", "chart engine"]
    assert subjects["values"] == stacks.digest(values.release_values(release)).removeprefix("sha256:")
    pinned = release.model_copy(update={"image": "ollama/ollama:0.17.4@sha256:" + "d4" * 32})
    assert values.artifacts(pinned)["image ollama/ollama:0.17.4"] == "sha256:" + "d4" * 32
    again, same = run(root)
    assert same == out
    assert again.the("Job")["metadata"] == first.the("Job")["metadata"]
    arguments = again.the("Job")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[-2:] == ["--known", evidence.digest]
    assert "--known" not in json.dumps(first.the("Job"))
    # In a preview the verdict of what is known is known, too.
    assert run(root, preview=True)[1] == out


def test_an_inconclusive_verdict_makes_another_job_with_other_prompts(world: Any, root: Path) -> None:
    world.criteria("min_runs: 3, looks: 2")
    first, out = run(root, result(world, spread=(-0.4, 0.0, 0.4)))
    assert out["verdict"] == "inconclusive"
    second, out = run(root, result(world, spread=(-0.3, 0.0, 0.4)))
    assert first.the("Job")["metadata"]["name"] != second.the("Job")["metadata"]["name"]
    entries = gate.open_store("file://.tollgate/evidence", root, gate.load_keys(root)).entries()
    assert [len(entry.facts["result"]["runs"]) for entry in entries] == [3, 6]
    seeds = [
        json.loads(inputs["data"]["bench.json"])["seed"]
        for cluster in (first, second)
        for kind, _, inputs in cluster.made
        if kind == "ConfigMap" and "bench.json" in (inputs.get("data") or {})
    ]
    assert seeds == [1, 2]


def test_a_preview_that_would_measure_records_nothing(world: Any, root: Path) -> None:
    _, out = run(root, result(world), preview=True)
    assert out.get("evidence", "") == ""
    assert not (root / ".tollgate" / "evidence").exists()


def test_a_store_that_cannot_be_read_stops_the_program(world: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").write_text("")
    monkeypatch.setenv("TOLLGATE_EVIDENCE", "file://file")
    with pytest.raises(gate.EvidenceBroken, match="cannot be read"):
        run(root, result(world))


def test_nothing_is_measured_against_what_the_stack_beside_does_not_run(
    world: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that was promoted there and not deployed would be called the baseline of a measurement of another."""
    world.edit("Pulumi.local-dev.yaml", "seconds: 12}", "seconds: 12, against: local-other}")
    with pytest.raises(
        pulumi.RunError, match="against local-other: it is not deployed\n  fix: pulumi up -s local-other"
    ):
        run(root, result(world))
    monkeypatch.setattr(Cluster, "deployed", {"digest": "sha256:" + "c3" * 32})
    with pytest.raises(
        pulumi.RunError, match="local-other: it runs release sha256:c3c3c3c3c3c3…, its file says sha256"
    ):
        run(root, result(world))
    assert not world.files()
    monkeypatch.setattr(Cluster, "deployed", {"digest": values.release_digest(world.stack("local-other").release)})
    assert run(root, result(world))[1]["verdict"] == "pass"


def test_a_job_that_is_told_what_is_known_measures_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = []
    monkeypatch.setattr("bench.job._main.ConfigMaps.__init__", lambda _: None)
    monkeypatch.setattr("bench.job._main.ConfigMaps.store", lambda _, *given: stored.append(given))
    config = {
        "url": "http://127.0.0.1:9",
        "engine": "ollama",
        "model": "m",
        "traffic": {"users": 1, "prompt_tokens": 1, "output_tokens": 1},
        "release": "sha256:" + "a" * 64,
        "stack": "local-dev",
        "result_configmap": "bench-result-1",
    }
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(config))
    assert run_job(path, None, "sha256:" + "b" * 64) == 0
    assert "nothing to measure" in capsys.readouterr().out
    ((namespace, name, text, _),) = stored
    assert (namespace, name, json.loads(text)) == ("default", "bench-result-1", {"known": "sha256:" + "b" * 64})
