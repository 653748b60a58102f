"""The components as a recording engine sees them: every resource of a stack, its options, its refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import stacks
import values
from components.benchmark import result_text
from components.evaluate import evaluate

HERE = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(HERE / "Pulumi.yaml", tmp_path)
    shutil.copytree(HERE / "stacks", tmp_path / "stacks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return tmp_path


def resources(stack: str, root: Path = HERE) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for resource in evaluate(stack, root):
        found.setdefault(resource["type"].rpartition(":")[2], []).append(resource["inputs"])
    return found


def edit(project: Path, stack: str, old: str, new: str) -> None:
    path = project / "stacks" / f"Pulumi.{stack}.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_stack_is_gate_ground_pool_engine_and_benchmark() -> None:
    found = resources("local-dev")
    for kind in (
        "PromotionCheck",
        "Cluster",
        "GpuPool",
        "Monitoring",
        "OllamaService",
        "BenchmarkJob",
        "Release",
        "Job",
    ):
        assert len(found[kind]) == 1, kind
    assert len(found["Node"]) == 10


def test_gpu_nodes_carry_what_gke_would_give_them() -> None:
    node = resources("local-dev")["Node"][0]
    labels = node["metadata"]["labels"]
    assert labels["cloud.google.com/gke-accelerator"] == "nvidia-l4"
    assert labels["node.kubernetes.io/instance-type"] == "g2-standard-8"
    assert node["spec"]["taints"] == [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
    capacity = json.loads(node["metadata"]["annotations"]["tollgate.dev/capacity"])
    assert (capacity["cpu"], capacity["nvidia.com/gpu"]) == ("8", "1")


def test_the_engine_gets_the_slots_of_the_release_and_its_own_pool() -> None:
    given = resources("local-dev")["Release"][0]
    assert given["values"]["slots"] == 8
    assert given["values"]["fleetSelector"] == {"tollgate.dev/pool": "local-dev"}
    assert given["atomic"] is True


def test_two_stacks_never_share_a_node_name() -> None:
    names = [node["metadata"]["name"] for stack in ("local-dev", "local-prod") for node in resources(stack)["Node"]]
    assert len(names) == len(set(names)) == 20


def test_the_benchmark_measures_this_release_with_this_traffic() -> None:
    found = resources("local-dev")
    (config,) = (
        entry for entry in found["ConfigMap"] if entry.get("metadata", {}).get("name", "").startswith("bench-")
    )
    told = json.loads(config["data"]["bench.json"])
    stack = stacks.load_stack("local-dev", HERE)
    assert told["release"] == values.release_digest(stack.release)
    assert told["traffic"]["users"] == 50
    assert told["url"] == "http://engine.local-dev.svc:80"
    assert told["replicas"] == 10
    assert told["environment"]["simulated"] is True


def test_the_benchmark_pod_may_write_its_own_result_and_see_the_rollout_only() -> None:
    found = resources("local-dev")
    rules = found["Role"][0]["rules"]
    named = [rule for rule in rules if "resourceNames" in rule]
    assert [rule["verbs"] for rule in rules if "resourceNames" not in rule] == [["create"]]
    assert named[0]["resourceNames"][0].startswith("bench-result-")
    assert {rule["resources"][0] for rule in rules} == {"configmaps", "deployments"}
    assert named[1] == {
        "apiGroups": ["apps"],
        "resources": ["deployments"],
        "resourceNames": ["engine"],
        "verbs": ["get"],
    }
    (config,) = (one for one in found["ConfigMap"] if "bench.json" in one.get("data", {}))
    assert json.loads(config["data"]["bench.json"])["workload"] == "apps/v1/deployments/engine"


def test_a_changed_release_is_measured_anew_under_another_name(project: Path) -> None:
    before = resources("local-dev", project)["Job"][0]["metadata"]["name"]
    edit(project, "local-dev", "gemma-3-4b-ollama-8", "gemma-3-4b-ollama-1")
    assert resources("local-dev", project)["Job"][0]["metadata"]["name"] != before


def test_an_autoscaled_vllm_stack_gets_one_scaled_object_and_no_replicas(project: Path) -> None:
    edit(project, "local-vllm", "{min: 10, max: 10}", "{min: 1, max: 10}")
    found = resources("local-vllm", project)
    spec = found["ScaledObject"][0]["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 10)
    assert "sum(vllm:num_requests_waiting" in spec["triggers"][0]["metadata"]["query"]
    assert found["Release"][0]["values"].get("replicas") is None


def test_an_autoscaled_ollama_stack_is_refused_with_the_way_out(project: Path) -> None:
    edit(project, "local-dev", "{min: 10, max: 10}", "{min: 1, max: 10}")
    with pytest.raises(stacks.InputError, match=r"(?s)engine ollama.*set nodes.min to nodes.max"):
        resources("local-dev", project)


def test_on_gke_the_same_stack_owns_a_cluster_a_pool_and_its_operators(project: Path) -> None:
    edit(project, "local-dev", "tollgate:target: local", "tollgate:target: gke\n  tollgate:project: my-project")
    found = resources("local-dev", project)
    (pool,) = (entry for entry in found["NodePool"] if entry["name"] != "system")
    assert pool["autoscaling"] == {"totalMinNodeCount": 10, "totalMaxNodeCount": 10, "locationPolicy": "BALANCED"}
    assert "nodeCount" not in pool
    assert pool["nodeConfig"]["guestAccelerators"][0]["type"] == "nvidia-l4"
    assert "Node" not in found
    assert {release["chart"] for release in found["Release"] if "repositoryOpts" in release} == {
        "keda",
        "kube-prometheus-stack",
    }


def test_a_release_that_does_not_fit_is_refused_before_any_resource(project: Path) -> None:
    path = project / "stacks" / "releases" / "gemma-3-4b-ollama-8.yaml"
    path.write_text(path.read_text().replace("{gpu: nvidia-l4}", "{gpu: nvidia-l4, mig_profile: 1g.10gb}"))
    with pytest.raises(stacks.InputError):
        resources("local-dev", project)


def test_evaluating_in_a_child_process_says_which_stack_is_broken(project: Path) -> None:
    edit(project, "local-dev", "users: 50", "user: 50")
    command = [sys.executable, "-m", "components.evaluate", "local-dev", "local-prod"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=240, check=False)
    lines = {entry["stack"]: entry for entry in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 2
    assert "tollgate:traffic.user" in lines["local-dev"]["error"]
    assert lines["local-prod"]["error"] is None
    assert lines["local-prod"]["resources"]


def test_a_large_result_comes_gzipped() -> None:
    import base64
    import gzip

    packed = base64.b64encode(gzip.compress(b'{"a": 1}')).decode()
    assert result_text(None, {"result.json": packed}) == '{"a": 1}'
    assert result_text({"result.json": "{}"}, None) == "{}"
    with pytest.raises(stacks.TollgateError, match="holds no result"):
        result_text({}, {})


def test_embedded_nodes_carry_slices_shares_and_spot_as_gke_would() -> None:
    from components import Cluster, ClusterArgs, GpuPool, GpuPoolArgs
    from tests.components.recording import record

    def nodes(accelerator: stacks.Accelerator, **fleet: Any) -> dict[str, Any]:
        def program() -> None:
            cluster = Cluster("cluster", ClusterArgs(target="local", name="c", region="us-central1"))
            args = GpuPoolArgs(
                target="local",
                pool="pool",
                accelerator=accelerator,
                fleet=stacks.Fleet.model_validate({"nodes": {"min": 1, "max": 1}, **fleet}),
                expected_nodes=1,
            )
            GpuPool("pool", args, cluster)

        metadata = record(program).one("Node").inputs["metadata"]
        return {**metadata["labels"], **json.loads(metadata["annotations"]["tollgate.dev/capacity"])}

    slices = stacks.Accelerator(gpu="nvidia-a100-80gb", mig_profile="1g.10gb")
    gke = nodes(slices, machine_type="a2-ultragpu-1g")
    assert (gke["nvidia.com/gpu"], gke["cloud.google.com/gke-gpu-partition-size"]) == ("7", "1g.10gb")
    operator = nodes(slices, machine_type="a2-ultragpu-1g", mig="operator")
    assert operator["nvidia.com/mig-1g.10gb"] == "7"
    assert "cloud.google.com/gke-gpu-partition-size" not in operator
    shared = nodes(
        stacks.Accelerator(gpu="nvidia-l4"),
        machine_type="g2-standard-8",
        sharing={"strategy": "time-sharing", "clients": 4},
        spot=True,
        fallback="on-demand",
    )
    assert shared["nvidia.com/gpu"] == "4"
    assert shared["cloud.google.com/gke-max-shared-clients-per-gpu"] == "4"
    assert shared["cloud.google.com/gke-spot"] == "true"
    assert shared["cloud.google.com/compute-class"] == "pool"
