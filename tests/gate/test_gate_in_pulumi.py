"""The check inside a program that the real pulumi runs, its state in the same bucket as the evidence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

import gate
import stacks
from local import tools

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
HERE = Path(__file__).resolve().parents[2]

# The check and one resource after it: of the built-in kind, so that no plugin is needed.
PROGRAM = """
import pathlib, pulumi, stacks
from components.promotion import PromotionCheck, PromotionCheckArgs

class Service(pulumi.ComponentResource):
    def __init__(self, opts):
        super().__init__("test:index:Service", "service", {}, opts)

root = pathlib.Path(__file__).resolve().parent
stack = stacks.load_stack(pulumi.get_stack(), root)
try:
    check = PromotionCheck("check", PromotionCheckArgs(stack=stack, release_digest=DIGEST, root=root))
except stacks.TollgateError as error:
    raise pulumi.RunError(str(error)) from None
Service(pulumi.ResourceOptions(depends_on=[check]))
pulumi.export("evidence", check.evidence)
"""


def test_up_and_preview_are_refused_until_there_is_evidence_and_state_and_evidence_share_a_bucket(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="tollgate")
        how = f"?endpoint=127.0.0.1:{port}&disableSSL=true&s3ForcePathStyle=true&region=us-east-1"
        monkeypatch.setenv("TOLLGATE_EVIDENCE", f"s3://tollgate/evidence{how}")
        gate.load_keys(world.root, create=True)
        (world.root / "__main__.py").write_text(PROGRAM.replace("DIGEST", repr(world.digest)))
        pulumi = _Pulumi(world.root, f"s3://tollgate/state{how}")
        pulumi("stack", "init", "local-prod")

        for command in (["preview"], ["up", "--yes", "--skip-preview"]):
            said = pulumi(*command, "-s", "local-prod", fails=True)
            assert "local-prod is gated and nothing was promoted into it" in said
            assert "Traceback" not in said
            assert "test:index:Service" not in said

        now = datetime.now(UTC)
        slow = world.record(world.result(world.slow, started=now), now)
        world.not_promoted("e2e_p95_seconds .*fail", datetime.now(UTC))
        other = "sha256:" + "b2" * 32
        good = world.record(world.result(started=now, release=other), datetime.now(UTC))
        world.promote(datetime.now(UTC), other)
        # What is promoted is not what the program would deploy.
        assert "a file was edited after the promotion" in pulumi("preview", "-s", "local-prod", fails=True)
        (world.root / "__main__.py").write_text(PROGRAM.replace("DIGEST", repr(other)))
        assert "test:index:Service" in pulumi("up", "-s", "local-prod", "--yes", "--skip-preview")
        assert json.loads(pulumi("stack", "output", "-s", "local-prod", "--json")) == {"evidence": good.digest}

        # Asking less of the evidence is a change of the check's own inputs, which every preview shows.
        world.criteria("headroom: 0.5")
        assert "headroom: 1.0 then, 0.5 now" in pulumi("preview", "-s", "local-prod", fails=True)
        world.promote(datetime.now(UTC), other)
        assert "headroom" in pulumi("preview", "-s", "local-prod", "--diff")
        # So is taking the gate away.
        pipeline = world.root / "stacks" / "pipeline.yaml"
        pipeline.write_text("stages: [{stack: local-dev}, {stack: local-prod}]\n")
        shown = pulumi("preview", "-s", "local-prod", "--diff")
        assert "gated" in shown
        assert "true => false" in shown

        keys = [item["Key"] for item in client.list_objects_v2(Bucket="tollgate")["Contents"]]
        assert {key.partition("/")[0] for key in keys} == {"evidence", "state"}
        entries = gate.open_store("", world.root, gate.load_keys(world.root)).entries()
        assert [entry.digest for entry in entries][:2] == [slow.digest, good.digest]
        # A store that is gone closes the gate; Pulumi's own state is still there.
        world.criteria("headroom: 0.5")
        for key in keys:
            if key.startswith("evidence/"):
                client.delete_object(Bucket="tollgate", Key=key)
        assert "lost statements that this checkout has seen" in pulumi("preview", "-s", "local-prod", fails=True)
    finally:
        server.stop()


class _Pulumi:
    def __init__(self, root: Path, state: str) -> None:
        self._root = root
        self._env = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), str(tools.bin_dir()), os.environ["PATH"]]),
            "PULUMI_BACKEND_URL": state,
            "PULUMI_HOME": str(root / ".tollgate" / "pulumi-home"),
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "PYTHONPATH": str(HERE),
        }
        tools.path("pulumi")

    def __call__(self, *arguments: str, fails: bool = False) -> str:
        command = ["pulumi", *arguments, "--non-interactive", "--color", "never"]
        done = subprocess.run(
            command, cwd=self._root, env=self._env, capture_output=True, text=True, timeout=240, check=False
        )
        assert (done.returncode != 0) is fails, f"{arguments}:\n{done.stdout}\n{done.stderr}"
        return done.stdout if not fails else done.stdout + done.stderr


def test_the_stack_file_that_pulumi_wrote_to_is_still_one_of_ours(world: Any) -> None:
    """`pulumi stack init` adds a salt; promotion and loading take no notice of it."""
    path = stacks.stack_path("local-prod", world.root)
    path.write_text(path.read_text() + "encryptionsalt: v1:abc\n")
    world.record()
    world.promote()
    assert "encryptionsalt: v1:abc" in path.read_text()
    assert world.check().gated
