"""GKE as a recording engine sees it: every option of clusters and pools, and what protects them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import components
import planner
import stacks
from tests.components.recording import Made, Recording, record

HERE = Path(__file__).resolve().parents[2]


def stack_of(name: str = "prod", **changes: Any) -> stacks.Stack:
    """A stack of the project, changed and validated anew."""
    stack = stacks.load_stack(name, HERE)
    given = {**stack.model_dump(by_alias=True), **changes}
    return stacks.Stack.model_validate(given)


def fleet_of(stack: stacks.Stack, **changes: Any) -> dict[str, Any]:
    return {**stack.fleet.model_dump(), **changes}


def made(stack: stacks.Stack, **options: Any) -> Recording:
    def program() -> None:
        components.Platform("platform", components.PlatformArgs(stack=stack, root=HERE, enforce=False))

    return record(program, **options)


def staging(**fleet: Any) -> stacks.Stack:
    """One region; without the benchmark, which would need a gate's files."""
    stack = stack_of("staging")
    return stack_of("staging", benchmark=None, fleet=fleet_of(stack, **fleet))


def pool_of(stack: stacks.Stack) -> Made:
    return made(stack).one("NodePool", "gpu-pool-us-central1")


def gpu_of(pool: Made) -> dict[str, Any]:
    (gpu,) = pool.inputs["nodeConfig"]["guestAccelerators"]
    assert isinstance(gpu, dict)
    return gpu


def test_a_cluster_is_regional_private_and_protected() -> None:
    recording = made(stack_of())
    gke = next(one for one in recording.of("Cluster") if one.type.startswith("gcp:") and one.name == "cluster-us-west1")
    given = gke.inputs
    assert given["location"] == "us-west1"
    assert given["networkingMode"] == "VPC_NATIVE"
    assert given["ipAllocationPolicy"] == {
        "clusterSecondaryRangeName": "pods",
        "servicesSecondaryRangeName": "services",
    }
    assert given["privateClusterConfig"] == {"enablePrivateNodes": True, "enablePrivateEndpoint": False}
    assert given["masterAuthorizedNetworksConfig"] == {"cidrBlocks": [{"cidrBlock": "10.0.0.0/8"}]}
    assert given["workloadIdentityConfig"] == {"workloadPool": "my-project.svc.id.goog"}
    assert given["datapathProvider"] == "ADVANCED_DATAPATH"
    assert given["enableShieldedNodes"] is True
    assert given["releaseChannel"] == {"channel": "STABLE"}
    assert given["nodePoolDefaults"] == {"nodeConfigDefaults": {"gcfsConfig": {"enabled": True}}}
    assert given["maintenancePolicy"] == {
        "recurringWindow": {
            "startTime": "2026-01-01T03:00:00Z",
            "endTime": "2026-01-01T09:00:00Z",
            "recurrence": "FREQ=WEEKLY;BYDAY=TU,WE,TH",
        }
    }
    assert given["addonsConfig"]["gcsFuseCsiDriverConfig"] == {"enabled": True}
    assert given["deletionProtection"] is True
    assert gke.protect
    assert {"initialNodeCount", "nodeConfig"} <= set(gke.ignore)
    assert gke.parent == "cluster-us-west1"


def test_a_window_over_midnight_ends_the_next_day() -> None:
    stack = stack_of("dev", benchmark=None, gke={"maintenance": {"start": "22:30", "hours": 8, "days": ["SA", "SU"]}})
    window = next(
        one.inputs["maintenancePolicy"]["recurringWindow"]
        for one in made(stack).of("Cluster")
        if one.type.startswith("gcp:")
    )
    assert (window["startTime"], window["endTime"]) == ("2026-01-01T22:30:00Z", "2026-01-02T06:30:00Z")


def test_the_key_of_the_cluster_is_a_secret_and_holds_no_credential() -> None:
    provider = made(stack_of()).one("kubernetes", "cluster-us-central1")
    assert "kubeconfig" in provider.secret
    config = json.loads(provider.inputs["kubeconfig"])
    assert config["clusters"][0]["cluster"]["server"] == "https://203.0.113.1"
    assert config["users"][0]["user"]["exec"]["command"] == "gke-gcloud-auth-plugin"
    assert "token" not in json.dumps(config)


def test_an_existing_cluster_is_adopted_and_nothing_of_it_is_made() -> None:
    stack = stack_of("staging", benchmark=None, gke={"adopt": True})
    recording = made(stack)
    assert not [one for one in recording.of("Cluster") if one.type.startswith("gcp:")]
    assert [one.name for one in recording.of("NodePool")] == ["gpu-pool-us-central1"]
    assert not recording.of("Router")
    config = json.loads(recording.one("kubernetes").inputs["kubeconfig"])
    assert config["clusters"][0]["cluster"]["server"] == "https://203.0.113.2"
    assert recording.one("NodePool").inputs["cluster"] == "llm-staging"


def test_existing_clusters_of_several_regions_are_adopted_by_name() -> None:
    gke = {"adopt": True, "names": {"us-central1": "ours", "us-west1": "ours"}}
    recording = made(stack_of("prod", gke=gke))
    assert {one.name: one.inputs["cluster"] for one in recording.of("NodePool")} == {
        "gpu-pool-us-central1": "ours",
        "gpu-pool-us-west1": "ours",
    }
    assert not [one for one in recording.of("Cluster") if one.type.startswith("gcp:")]


def test_a_cluster_may_keep_a_name_of_its_own() -> None:
    clusters = made(stack_of("prod", gke={"names": {"us-central1": "old"}})).of("Cluster")
    assert {one.inputs["name"] for one in clusters if one.type.startswith("gcp:")} == {"old", "llm-prod-us-west1"}


def test_nodes_have_an_account_that_cannot_edit_the_project() -> None:
    recording = made(staging())
    roles = {one.inputs["role"] for one in recording.of("IAMMember")}
    assert roles == {"roles/container.defaultNodeServiceAccount", "roles/artifactregistry.reader"}
    for pool in recording.of("NodePool"):
        assert pool.inputs["nodeConfig"]["serviceAccount"] == "nodes@my-project.iam"
        assert pool.inputs["nodeConfig"]["workloadMetadataConfig"] == {"mode": "GKE_METADATA"}


def test_without_nat_there_is_no_router() -> None:
    assert not made(stack_of("staging", benchmark=None, gke={"nat": False})).of("Router")


def test_a_pool_carries_what_engines_select_and_tolerates_losing_its_count() -> None:
    pool = pool_of(staging(nodes={"min": 4, "max": 4}))
    config = pool.inputs["nodeConfig"]
    assert config["labels"] == {"tollgate.dev/pool": "staging"}
    assert config["taints"] == [{"key": "nvidia.com/gpu", "value": "present", "effect": "NO_SCHEDULE"}]
    assert gpu_of(pool) == {
        "type": "nvidia-l4",
        "count": 1,
        "gpuDriverInstallationConfig": {"gpuDriverVersion": "LATEST"},
    }
    assert (config["diskSizeGb"], config["diskType"]) == (300, "pd-ssd")
    assert pool.inputs["autoscaling"] == {
        "totalMinNodeCount": 4,
        "totalMaxNodeCount": 4,
        "locationPolicy": "BALANCED",
    }
    assert "nodeCount" not in pool.inputs
    assert "initialNodeCount" in pool.ignore
    assert pool.timeouts == "60m"


def test_a_pool_may_start_at_no_node_at_all() -> None:
    pool = pool_of(staging(nodes={"min": 0, "max": 3}))
    assert pool.inputs["initialNodeCount"] == 0
    assert pool.inputs["autoscaling"]["totalMinNodeCount"] == 0


@pytest.mark.parametrize(
    ("machine", "gpu", "count"),
    [
        ("g2-standard-24", "nvidia-l4", 2),
        ("a2-highgpu-1g", "nvidia-tesla-a100", 1),
        ("a2-ultragpu-2g", "nvidia-a100-80gb", 2),
        ("a3-highgpu-8g", "nvidia-h100-80gb", 8),
    ],
)
def test_every_machine_brings_its_gpus(machine: str, gpu: str, count: int) -> None:
    stack = staging(machine_type=machine)
    release = stack.release.model_copy(update={"accelerator": stacks.Accelerator(gpu=gpu)})
    found = gpu_of(pool_of(stack.model_copy(update={"release": release})))
    assert (found["type"], found["count"]) == (gpu, count)


def test_a_slice_is_a_property_of_the_pool_and_asked_for_as_gke_does() -> None:
    stack = staging(machine_type="a2-ultragpu-1g", nodes={"min": 1, "max": 1})
    release = stacks.load_release("gemma-3-4b-vllm-mig", HERE)
    recording = made(stack.model_copy(update={"release": release}))
    assert gpu_of(recording.one("NodePool", "gpu-pool-us-central1"))["gpuPartitionSize"] == "1g.10gb"
    given = recording.one("Release", "engine-us-central1").inputs["values"]
    assert given["gpu"] == {"resource": "nvidia.com/gpu", "count": 1}
    assert given["nodeSelector"]["cloud.google.com/gke-gpu-partition-size"] == "1g.10gb"
    # Seven to a card.
    assert given["replicas"] == 7


def test_with_nvidias_operator_a_slice_is_a_resource_of_its_own() -> None:
    stack = staging(machine_type="a2-ultragpu-1g", nodes={"min": 1, "max": 1}, mig="operator")
    stack = stack.model_copy(update={"has": ("gpu-operator",)})
    release = stacks.load_release("gemma-3-4b-vllm-mig", HERE)
    recording = made(stack.model_copy(update={"release": release}))
    pool = recording.one("NodePool", "gpu-pool-us-central1")
    assert "gpuPartitionSize" not in gpu_of(pool)
    assert gpu_of(pool)["gpuDriverInstallationConfig"] == {"gpuDriverVersion": "INSTALLATION_DISABLED"}
    assert pool.inputs["nodeConfig"]["labels"]["nvidia.com/mig.config"] == "all-1g.10gb"
    given = recording.one("Release", "engine-us-central1").inputs["values"]
    assert given["gpu"] == {"resource": "nvidia.com/mig-1g.10gb", "count": 1}
    assert given["nodeSelector"] == {}


@pytest.mark.parametrize(("strategy", "word"), [("time-sharing", "TIME_SHARING"), ("mps", "MPS")])
def test_gpus_are_shared_by_turns_or_side_by_side(strategy: str, word: str) -> None:
    stack = staging(sharing={"strategy": strategy, "clients": 2})
    release = stacks.load_release("gemma-3-4b-ollama-8", HERE)
    found = gpu_of(pool_of(stack.model_copy(update={"release": release})))
    assert found["gpuSharingConfig"] == {"gpuSharingStrategy": word, "maxSharedClientsPerGpu": 2}


def test_spot_comes_first_on_demand_after_it_and_spot_again() -> None:
    recording = made(stack_of("dev", benchmark=None))
    spot = recording.one("NodePool", "gpu-pool-us-central1")
    other = recording.one("NodePool", "gpu-pool-us-central1-on-demand")
    assert (spot.inputs["nodeConfig"]["spot"], other.inputs["nodeConfig"]["spot"]) == (True, False)
    assert spot.inputs["autoscaling"]["locationPolicy"] == "ANY"
    # Nothing is paid on demand as long as there is spot.
    assert (other.inputs["initialNodeCount"], other.inputs["autoscaling"]["totalMinNodeCount"]) == (0, 0)
    order = recording.one("ComputeClass").inputs["spec"]
    assert order["priorities"] == [{"nodepools": ["dev"]}, {"nodepools": ["dev-on-demand"]}]
    assert order["activeMigration"] == {"optimizeRulePriority": True}
    for pool in (spot, other):
        assert pool.inputs["nodeConfig"]["labels"]["cloud.google.com/compute-class"] == "dev"
    given = recording.one("Release", "engine-us-central1").inputs["values"]
    assert given["fleetSelector"]["cloud.google.com/compute-class"] == "dev"
    assert {
        "key": "cloud.google.com/compute-class",
        "operator": "Equal",
        "value": "dev",
        "effect": "NoSchedule",
    } in given["tolerations"]


def test_a_reservation_is_used_by_name_in_its_zone_from_wherever_it_has_room() -> None:
    pool = made(stack_of("llama-70b")).one("NodePool", "gpu-pool-us-central1")
    assert pool.inputs["nodeConfig"]["reservationAffinity"] == {
        "consumeReservationType": "SPECIFIC_RESERVATION",
        "key": "compute.googleapis.com/reservation-name",
        "values": ["llama-70b"],
    }
    assert pool.inputs["nodeLocations"] == ["us-central1-a"]
    assert pool.inputs["autoscaling"]["locationPolicy"] == "ANY"


def test_nodes_of_one_replica_stand_close_together() -> None:
    assert made(stack_of("grok-1")).one("NodePool", "gpu-pool-us-central1").inputs["placementPolicy"] == {
        "type": "COMPACT"
    }


def test_upgrades_are_surge_or_blue_green() -> None:
    surge = pool_of(staging(upgrade={"strategy": "surge", "max_surge": 2, "max_unavailable": 0}))
    assert surge.inputs["upgradeSettings"] == {"strategy": "SURGE", "maxSurge": 2, "maxUnavailable": 0}
    assert made(stack_of()).one("NodePool", "gpu-pool-us-west1").inputs["upgradeSettings"] == {
        "strategy": "BLUE_GREEN",
        "blueGreenSettings": {
            "nodePoolSoakDuration": "1800s",
            "standardRolloutPolicy": {"batchNodeCount": 1, "batchSoakDuration": "300s"},
        },
    }


def test_the_rest_of_a_pool_is_as_the_fleet_says() -> None:
    pool = pool_of(
        staging(
            driver="default",
            image_type="UBUNTU_CONTAINERD",
            location_policy="any",
            zones=["us-central1-a", "us-central1-b"],
            labels={"team": "search"},
            taints=[{"key": "team", "value": "search"}],
            ignore=["nodeConfig.labels"],
        )
    )
    config = pool.inputs["nodeConfig"]
    assert config["imageType"] == "UBUNTU_CONTAINERD"
    assert gpu_of(pool)["gpuDriverInstallationConfig"] == {"gpuDriverVersion": "DEFAULT"}
    assert pool.inputs["autoscaling"]["locationPolicy"] == "ANY"
    assert pool.inputs["nodeLocations"] == ["us-central1-a", "us-central1-b"]
    assert config["labels"]["team"] == "search"
    assert {"key": "team", "value": "search", "effect": "NO_SCHEDULE"} in config["taints"]
    assert "nodeConfig.labels" in pool.ignore


def test_a_model_on_a_secondary_disk_is_seen_by_the_pods() -> None:
    image, path = "projects/my-project/global/images/qwen3-8b", "/mnt/disks/gke-secondary-disks/gke-qwen3-8b-disk"
    stack = staging(preload_disk=image)
    serving = {"cache": {"kind": "hostpath", "path": path}, "pod_security": "privileged"}
    recording = made(stack.model_copy(update={"serving": stacks.Serving.model_validate(serving)}))
    pool = recording.one("NodePool", "gpu-pool-us-central1").inputs["nodeConfig"]
    assert pool["secondaryBootDisks"] == [{"diskImage": image}]
    assert recording.one("Release", "engine-us-central1").inputs["values"]["cache"]["path"] == path


def test_what_an_adopted_cluster_has_is_not_installed_again() -> None:
    stack = stack_of("staging", benchmark=None, gke={"adopt": True}, has=["keda", "prometheus"])
    recording = made(stack)
    assert [one.name for one in recording.of("Release")] == ["engine-us-central1"]
    half = made(stack.model_copy(update={"has": ("prometheus",)}))
    assert [one.name for one in half.of("Release") if "monitoring" in one.name] == ["monitoring-us-central1-keda"]


def test_names_fit_into_googles_limits_and_stay_different() -> None:
    long = ["a" * 60 + "-one", "a" * 60 + "-two"]
    short = [stacks.fit(name, 40) for name in long]
    assert all(len(name) <= 40 for name in short)
    assert len(set(short)) == 2
    assert stacks.fit("short", 40) == "short"
    stack = staging().model_copy(
        update={"name": "a-stack-with-a-name-that-is-longer-than-gke-likes-them", "cluster": "c" * 40}
    )
    recording = made(stack)
    assert len(recording.one("NodePool", "gpu-pool-us-central1").inputs["name"]) <= 40
    assert len(recording.one("Account").inputs["accountId"]) <= 30
    clusters = [one.inputs["name"] for one in recording.of("Cluster") if one.type.startswith("gcp:")]
    assert clusters == [stacks.cluster_name(stack, "us-central1")]
    assert len(clusters[0]) <= 40


def test_every_region_has_all_of_its_own_and_half_of_the_nodes() -> None:
    recording = made(stack_of())
    for region in ("us-central1", "us-west1"):
        pool = recording.one("NodePool", f"gpu-pool-{region}")
        assert pool.inputs["location"] == region
        assert pool.inputs["autoscaling"]["totalMaxNodeCount"] == 6
        engine = recording.one("Release", f"engine-{region}")
        assert engine.provider == f"cluster-{region}"
        facts = recording.one("GpuPool", f"gpu-pool-{region}").inputs
        assert (facts["nodesMin"], facts["nodesMax"], facts["region"]) == (2, 6, region)
    engines = [recording.one("Release", f"engine-{region}").inputs["values"] for region in ("us-central1", "us-west1")]
    assert engines[0] == engines[1]


def test_every_child_inside_a_cluster_uses_that_clusters_provider() -> None:
    recording = made(stack_of())
    inside = [one for one in recording.made if one.type.startswith("kubernetes:")]
    assert len(inside) > 20
    assert all(one.provider.startswith("cluster-us-") for one in inside)
    for one in inside:
        assert one.parent != "tollgate-test"


def test_names_are_answered_by_weight_from_regions_that_are_healthy() -> None:
    recording = made(stack_of())
    record_set = recording.one("RecordSet").inputs
    assert (record_set["name"], record_set["type"], record_set["managedZone"]) == (
        "llm.example.com.",
        "A",
        "example-com",
    )
    routing = record_set["routingPolicy"]
    assert [entry["weight"] for entry in routing["wrrs"]] == [0.5, 0.5]
    assert routing["wrrs"][0]["healthCheckedTargets"] == {"externalEndpoints": ["203.0.113.9"]}
    assert routing["healthCheck"] == "https://compute/check"
    check = recording.one("HealthCheck").inputs
    assert check["httpHealthCheck"] == {"port": 80, "requestPath": "/gateway/health"}
    assert check["unhealthyThreshold"] == 3
    assert len(check["sourceRegions"]) == 3
    assert check["checkIntervalSec"] >= 30
    assert recording.outputs["platform"]["url"] == "http://llm.example.com"
    assert all(one.protect for one in recording.of("Address"))


@pytest.mark.parametrize(("percent", "weights"), [(0, [0.5, 0.5]), (25, [0.375, 0.625]), (100, [0.0, 1.0])])
def test_traffic_is_shifted_step_by_step(percent: float, weights: list[float]) -> None:
    stack = stack_of()
    assert stack.dns is not None
    dns = stack.dns.model_dump()
    dns["shift"] = {"to": {"us-west1": 1}, "percent": percent}
    found = made(stack_of(dns=dns)).one("RecordSet").inputs["routingPolicy"]["wrrs"]
    assert [entry["weight"] for entry in found] == weights


def test_names_are_answered_by_place() -> None:
    dns = {"zone": "example-com", "name": "llm.example.com", "policy": "geographic"}
    routing = made(stack_of(dns=dns)).one("RecordSet").inputs["routingPolicy"]
    assert [entry["location"] for entry in routing["geos"]] == ["us-central1", "us-west1"]
    assert "wrrs" not in routing


def test_operators_are_pinned_and_only_those_that_are_needed() -> None:
    few = {one.name: one.inputs["version"] for one in made(staging()).of("Release") if "monitoring" in one.name}
    assert few == {"monitoring-us-central1-keda": "2.21.0", "monitoring-us-central1-prometheus": "79.5.0"}
    many = {one.name for one in made(stack_of("grok-1")).of("Release")}
    assert {"monitoring-us-central1-lws", "monitoring-us-central1-kueue"} <= many


def test_kueue_gets_a_queue_that_leads_to_the_whole_pool() -> None:
    recording = made(stack_of("grok-1"))
    local, whole = recording.one("LocalQueue").inputs, recording.one("ClusterQueue").inputs
    assert (local["metadata"]["name"], local["spec"]["clusterQueue"]) == ("grok", "grok-1")
    (group,) = whole["spec"]["resourceGroups"]
    quotas = {one["name"]: one["nominalQuota"] for one in group["flavors"][0]["resources"]}
    # Two machines of eight.
    assert quotas["nvidia.com/gpu"] == "16"
    assert recording.one("ResourceFlavor").inputs["spec"]["nodeLabels"] == {"tollgate.dev/pool": "grok-1"}
    needed = recording.one("Release", "engine-us-central1").depends_on
    assert {"queue-us-central1-localqueue", "monitoring-us-central1-kueue"} <= set(needed)


def test_a_preview_with_unknown_values_does_not_crash() -> None:
    for name in ("prod", "dev", "grok-1", "llama-70b"):
        recording = made(stack_of(name, benchmark=None), preview=True)
        assert recording.of("Platform")
        assert recording.of("Release")


def test_the_plan_of_the_parts_is_the_plan_of_the_whole() -> None:
    stack = stack_of()
    plan = planner.plan(stack)
    pools = made(stack).of("GpuPool")
    assert sum(pool.inputs["nodesMax"] for pool in pools) == plan.nodes_max == 12
    assert sum(pool.inputs["nodesExpected"] for pool in pools) >= plan.nodes_expected
