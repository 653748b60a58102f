"""The second source: the real engine's preview, held against the offline one, and what it says of replacements."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

import preview as room
import stacks
from tollgate.commands.preview import collect

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
HERE = Path(__file__).resolve().parents[2]

PROGRAM = """
import pulumi
import pulumi_kubernetes as k8s

NODES, NAME = {nodes}, "{name}"


class GpuPool(pulumi.ComponentResource):
    def __init__(self):
        facts = {{"machineType": "g2-standard-8", "gpu": "nvidia-l4", "region": "us-central1", "spot": False}}
        facts |= {{"nodesMin": 0, "nodesExpected": NODES, "nodesMax": 2 * NODES}}
        super().__init__("tollgate:index:GpuPool", "gpu-pool", facts)
        self.register_outputs({{}})


GpuPool()
provider = k8s.Provider("cluster", enable_server_side_apply=True)
k8s.core.v1.Namespace("home", metadata={{"name": NAME}}, opts=pulumi.ResourceOptions(provider=provider))
print("a program may print")
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("state")
    for name in ("Pulumi.yaml", "__main__.py"):
        shutil.copy(HERE / name, root)
    shutil.copytree(HERE / "stacks", root / "stacks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return root


@pytest.fixture(scope="module")
def environment(cluster: Any, checkout: Path) -> dict[str, str]:
    return {**cluster.environment(checkout), "PYTHONPATH": str(HERE)}


def pulumi(root: Path, env: dict[str, str], *arguments: str) -> None:
    command = ["pulumi", *arguments, "--non-interactive", "--color", "never"]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_sources_give_one_answer_for_a_stack_that_is_new(checkout: Path, environment: dict[str, str]) -> None:
    pulumi(checkout, environment, "stack", "init", "local-dev")
    stated = room.from_state(checkout, "local-dev", environment)
    assert stated.error is None
    assert stated.before == ()
    offline = room.evaluate(checkout, ["local-dev"])["local-dev"]
    assert offline.error is None
    prices = room.prices()
    by_state = room.shape("local-dev", stated.after, prices, plan=offline.plan)
    by_program = room.shape("local-dev", offline.resources, prices, plan=offline.plan)
    assert by_state.items == by_program.items
    assert by_state.items
    assert by_state.digest == by_program.digest
    assert by_state.gate == by_program.gate
    assert by_state.usd_per_million_tokens == by_program.usd_per_million_tokens


def test_the_command_without_a_base_asks_the_engine_and_adds_the_plan(
    checkout: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    report = collect(checkout, ["local-dev", "local-vllm"], None, offline=False)
    assert report.source == "state"
    new, missing = report.stacks
    assert new.status == "new"
    assert new.plan_after is not None
    assert new.plan_after.e2e_p95_seconds is not None
    assert new.totals.expected.nodes_after == 10
    assert missing.status == "broken"
    assert "local-vllm" in (missing.error or "")
    assert report.exit_code == 1


def test_what_the_engine_refuses_is_the_answer(checkout: Path, environment: dict[str, str]) -> None:
    missing = room.from_state(checkout, "no-such-stack", environment)
    assert missing.error is not None
    assert "no-such-stack" in missing.error
    pulumi(checkout, environment, "stack", "init", "local-prod")
    closed = room.from_state(checkout, "local-prod", environment)
    assert closed.error is not None
    assert "nothing was promoted into it" in closed.error


@pytest.fixture
def bucket() -> Iterator[dict[str, str]]:
    """A state in a bucket, as a team has it; the other tests here have theirs in files."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    env = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
        aws_access_key_id="test", aws_secret_access_key="test",
    ).create_bucket(Bucket="states")  # fmt: skip
    how = f"?endpoint=127.0.0.1:{port}&disableSSL=true&s3ForcePathStyle=true&region=us-east-1"
    yield {**env, "PULUMI_BACKEND_URL": f"s3://states/one{how}"}
    server.stop()


def test_a_stack_whose_state_is_in_a_bucket_shows_what_would_be_replaced_and_why(
    bucket: dict[str, str], tmp_path: Path, cluster: Any
) -> None:
    (tmp_path / "Pulumi.yaml").write_text("name: tollgate\nruntime: python\n")
    program = tmp_path / "__main__.py"
    program.write_text(PROGRAM.format(nodes=2, name="home-a"))
    env = {**cluster.environment(tmp_path), **bucket, "PYTHONPATH": str(HERE)}
    (tmp_path / "stacks").mkdir()
    pulumi(tmp_path, env, "stack", "init", "one")
    pulumi(tmp_path, env, "up", "-s", "one", "--yes", "--skip-preview")
    try:
        quiet = room.from_state(tmp_path, "one", env)
        assert quiet.error is None
        prices = room.prices()
        before = room.shape("one", quiet.before, prices)
        assert before.nodes("expected") == 2
        same = room.Change(
            stack="one", before=before, after=room.shape("one", quiet.after, prices), events=room.stated(quiet.steps)
        )
        assert same.status == "unchanged"
        program.write_text(PROGRAM.format(nodes=5, name="home-b"))
        moved = room.from_state(tmp_path, "one", env)
        assert moved.error is None
        after = room.shape("one", moved.after, prices)
        assert (after.nodes("expected"), after.nodes("max")) == (5, 10)
        (event,) = room.stated(moved.steps)
        assert (event.op, event.kind, event.stateful) == ("replace", "Namespace", True)
        assert any("home-a → home-b" in field for field in event.fields), event
    finally:
        pulumi(tmp_path, env, "destroy", "-s", "one", "--yes", "--skip-preview")


def test_without_pulumi_the_way_out_is_named(checkout: Path) -> None:
    with pytest.raises(stacks.TollgateError, match=r"--offline"):
        room.from_state(checkout, "local-dev", {"PATH": "/nonexistent"})
