"""Every stack, previewed whole and offline by the real engine, against a preview that was read and committed.

After a change that is meant: `GOLDEN=write pytest tests/components/test_previews.py`, and read the difference.
"""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import stacks
from tests.components.real_engine import HERE, UNKNOWN, Engine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
GOLDEN = Path(__file__).with_name("golden")
_PROJECT = Path(__file__).resolve().parents[2]
# The other embedded stacks differ from local-dev in nothing that GKE or a reader would see.
_READ = [name for name in stacks.stack_names(HERE) if name == "local-dev" or not name.startswith("local-")]
_SECRETS = {"prod": {"apiKey": "sk-of-the-test"}}
_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{64}|(?<=-)[0-9a-f]{12}$|^[0-9a-f]{12,16}$")
# The signature by which the engine marks secrets in states; what is in it is encrypted.
_SIGNATURE = "4dabf18193072939515e22adb298388d"


def readable(value: Any) -> Any:
    """Without what says nothing to a reader: digests, keys, empty entries."""
    if isinstance(value, dict):
        if _SIGNATURE in value:
            return "(secret)"
        return {
            key: readable(entry) for key, entry in value.items() if entry not in (None, {}, []) and key != "__defaults"
        }
    if isinstance(value, list):
        return [readable(entry) for entry in value]
    if value == UNKNOWN:
        return "(known after up)"
    # Where this checkout lies is nobody's business.
    return _DIGEST.sub("(digest)", value).replace(str(_PROJECT), "(project)") if isinstance(value, str) else value


def document(states: list[dict[str, Any]]) -> str:
    """One entry per resource: its type and name, who its parent is, its options and inputs."""
    found = {}
    for state in states:
        if state["type"] == "pulumi:pulumi:Stack":
            continue
        urn = state["urn"]
        if any(f"tollgate:index:{kind}" in urn for kind in ("BenchmarkJob", "StackMonitoring")):
            # What measures and what watches have tests of their own, and change with what is measured and shown.
            continue
        entry: dict[str, Any] = {"under": state.get("parent", "").rpartition("::")[2]}
        if state.get("protect"):
            entry["protected"] = True
        entry["inputs"] = readable(state.get("inputs", {}))
        found[f"{state['type']} {_DIGEST.sub('(digest)', urn.rpartition('::')[2])}"] = entry
    return yaml.safe_dump(found, sort_keys=True, width=120, allow_unicode=True)


@pytest.mark.parametrize("stack", _READ)
def test_the_preview_of_a_stack_is_the_one_that_was_read(stack: str, engine: Engine) -> None:
    shown = document(engine.preview(stack, **_SECRETS.get(stack, {})))
    path = GOLDEN / f"{stack}.yaml"
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(shown)
    assert shown == path.read_text()


def test_production_is_previewed_whole_before_any_cluster_exists(engine: Engine) -> None:
    states = engine.preview("prod", **_SECRETS["prod"])
    types = [state["type"] for state in states]
    for kind, number in (
        ("gcp:container/cluster:Cluster", 2),
        ("gcp:container/nodePool:NodePool", 4),
        ("gcp:dns/recordSet:RecordSet", 1),
        ("gcp:compute/healthCheck:HealthCheck", 1),
        ("kubernetes:helm.sh/v3:Release", 6),
        ("kubernetes:keda.sh/v1alpha1:ScaledObject", 2),
        ("tollgate:index:VllmService", 2),
        ("tollgate:index:PromotionCheck", 1),
    ):
        assert types.count(kind) == number, kind
    asked = [entry for entry in engine.recorded() if entry["op"] == "create"]
    assert {entry["preview"] for entry in asked} == {True}
    # Clusters that do not exist yet cannot be asked: the engine then takes a resource's inputs for its outputs.
    assert {entry["type"].split(":")[0] for entry in asked} == {"gcp"}


@pytest.mark.timeout(900)
def test_a_second_region_comes_beside_the_first_and_replaces_nothing_of_it(engine: Engine) -> None:
    engine.run("stack", "init", "prod")
    engine.run("config", "set", "--secret", "secrets:apiKey", "sk-of-the-test", "-s", "prod")
    path = engine.root / "stacks" / "Pulumi.prod.yaml"
    two = yaml.safe_load(path.read_text())
    # Without an autoscaler, whose queries are asked of a Prometheus that is not there.
    two["config"]["tollgate:fleet"]["nodes"] = {"min": 8, "max": 8}
    one = copy.deepcopy(two)
    fleet, dns = one["config"]["tollgate:fleet"], one["config"]["tollgate:dns"]
    fleet["regions"], fleet["nodes"] = ["us-central1"], {"min": 4, "max": 4}
    dns["weights"] = {"us-central1": 1}
    del dns["shift"]
    path.write_text(yaml.safe_dump(one))
    engine.run("up", "-s", "prod", "--yes", "--skip-preview", seconds=500)
    path.write_text(yaml.safe_dump(two))
    steps = json.loads(engine.run("preview", "-s", "prod", "--json", "--show-sames").stdout)["steps"]
    assert {step["op"] for step in steps} == {"same", "update", "create"}
    created = {step["urn"].rpartition("::")[2] for step in steps if step["op"] == "create"}
    assert created
    assert all("us-west1" in name for name in created)
    kept = {step["urn"].rpartition("::")[2] for step in steps if step["op"] == "same"}
    assert {"cluster-us-central1", "gpu-pool-us-central1", "address-us-central1", "engine-us-central1"} <= kept
    updated = {step["urn"].rpartition("::")[2] for step in steps if step["op"] == "update"}
    assert "dns-record" in updated


def test_the_key_of_the_service_is_in_no_preview_and_no_plugin_gets_it_in_the_clear(engine: Engine) -> None:
    engine.run("stack", "init", "prod")
    engine.run("config", "set", "--secret", "secrets:apiKey", "sk-of-the-test", "-s", "prod")
    done = engine.run("preview", "-s", "prod", "--diff")
    assert "sk-of-the-test" not in done.stdout + done.stderr
    assert "[secret]" in done.stdout


def test_without_its_key_production_says_how_to_set_it(engine: Engine) -> None:
    engine.run("stack", "init", "prod")
    done = engine.run("preview", "-s", "prod", fails=True)
    assert "pulumi config set --secret secrets:apiKey -s prod" in done.stdout
    assert "Traceback" not in done.stdout


def test_production_is_refused_by_its_gate_as_long_as_nothing_was_promoted(engine: Engine) -> None:
    (engine.root / "stacks" / "pipeline.yaml").write_bytes((HERE / "stacks" / "pipeline.yaml").read_bytes())
    engine.run("stack", "init", "prod")
    done = engine.run("preview", "-s", "prod", fails=True)
    assert "tollgate promote staging prod" in done.stdout
    assert not [entry for entry in engine.recorded() if entry["op"] == "create"]
