"""What cannot work is refused before any resource exists, by a message that names the field and what would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import components
import stacks
from tests.components.recording import record

HERE = Path(__file__).resolve().parents[2]


def given(name: str, **changes: Any) -> stacks.Stack:
    stack = stacks.load_stack(name, HERE)
    return stacks.Stack.model_validate({**stack.model_dump(by_alias=True), **changes})


def with_fleet(name: str, **changes: Any) -> stacks.Stack:
    stack = stacks.load_stack(name, HERE)
    return given(name, benchmark=None, fleet={**stack.fleet.model_dump(), **changes})


def with_release(stack: stacks.Stack, release: str, **changes: Any) -> stacks.Stack:
    return stack.model_copy(update={"release": stacks.load_release(release, HERE).model_copy(update=changes)})


def told(stack: stacks.Stack) -> stacks.InputError:
    """The refusal; nothing may have been registered by then."""
    with pytest.raises(stacks.InputError) as caught:
        record(lambda: components.Platform("platform", components.PlatformArgs(stack=stack, root=HERE, enforce=False)))
    with pytest.raises(stacks.InputError):
        components.refuse(stack)
    return caught.value


MIG = stacks.Accelerator(gpu="nvidia-l4", mig_profile="1g.10gb")
CASES: dict[str, tuple[stacks.Stack, str, str]] = {
    "an L4 has no MIG": (
        with_release(with_fleet("staging"), "qwen3-8b-vllm", accelerator=MIG),
        "accelerator.mig_profile",
        "none: nvidia-l4 has no MIG",
    ),
    "a profile that the GPU does not have": (
        with_release(
            with_fleet("staging", machine_type="a2-highgpu-1g"),
            "gemma-3-4b-vllm-mig",
            accelerator=stacks.Accelerator(gpu="nvidia-tesla-a100", mig_profile="1g.10gb"),
        ),
        "accelerator.mig_profile",
        "1g.5gb, 2g.10gb, 3g.20gb, 7g.40gb",
    ),
    "tensor parallelism over slices": (
        with_release(
            with_fleet("staging", machine_type="a2-ultragpu-1g"),
            "gemma-3-4b-vllm-mig",
            parallelism=stacks.Parallelism(tensor=2),
        ),
        "parallelism",
        "1 each",
    ),
    "more slots than memory holds": (
        with_release(with_fleet("staging"), "qwen3-8b-vllm", parallelism=stacks.Parallelism(slots=200)),
        "parallelism.slots",
        "all that memory holds",
    ),
    "a machine without the release's GPU": (
        with_fleet("staging", machine_type="a2-highgpu-1g"),
        "fleet.machine_type",
        "g2-standard-4",
    ),
    "a machine that the region does not have": (
        with_release(with_fleet("staging", regions=["us-west2"]), "qwen3-8b-vllm"),
        "fleet.regions",
        "us-central1",
    ),
    "a reservation without its zone": (
        with_fleet("staging", reservation="mine"),
        "tollgate:fleet.zones",
        "the one zone of the reservation mine",
    ),
    "an autoscaled engine without a metric of its queue": (
        with_release(
            with_fleet("staging", nodes={"min": 1, "max": 4}).model_copy(update={"gateway": None}),
            "gemma-3-4b-ollama-8",
        ),
        "tollgate:fleet.nodes",
        "min equal to max",
    ),
    "sharing with an engine that takes the whole card": (
        with_fleet("staging", sharing={"strategy": "mps", "clients": 2}),
        "tollgate:fleet.sharing",
        "no sharing with vllm",
    ),
    "more clients than memory holds": (
        with_release(with_fleet("staging", sharing={"strategy": "time-sharing", "clients": 20}), "gemma-3-4b-ollama-8"),
        "tollgate:fleet.sharing.clients",
        "at most",
    ),
    "a benchmark over two regions": (
        given("prod", benchmark={"runs": 3, "seconds": 10}),
        "tollgate:benchmark",
        "one region",
    ),
    "a name that GKE does not take": (
        given("staging", benchmark=None, cluster="1-cluster"),
        "tollgate:cluster",
        "beginning with a letter",
    ),
    "an image without a digest where digests are asked for": (
        given("staging", benchmark=None, serving={"digests_only": True}),
        "release, image",
        "@sha256:",
    ),
    "an existing cluster without KEDA": (
        with_fleet("staging", nodes={"min": 1, "max": 4}).model_copy(update={"target": "kubernetes"}),
        "tollgate:has",
        "keda among what the cluster has",
    ),
    "a group on a cluster without its controller": (
        given("grok-1").model_copy(update={"target": "kubernetes", "has": ("kueue",)}),
        "tollgate:has",
        "lws among",
    ),
    "a gang on a cluster without its scheduler": (
        given("grok-1", serving={"group": {"gang": "coscheduling"}}),
        "tollgate:has",
        "coscheduling among",
    ),
    "the inference extension where it is not": (
        given("staging", benchmark=None, gateway={"kind": "inference-extension", "gateway": "external"}),
        "tollgate:has",
        "inference-extension among",
    ),
    "a cache on the embedded cluster": (
        given("local-dev", serving={"cache": {"kind": "pvc"}}),
        "tollgate:serving.cache",
        "no volumes that outlive a pod",
    ),
    "one claim for many nodes": (
        given("staging", benchmark=None, serving={"cache": {"kind": "pvc", "access_mode": "ReadWriteOnce"}}),
        "tollgate:serving.cache.access_mode",
        "ReadWriteMany",
    ),
    "autoscaled groups that are objects of their own": (
        given("grok-1", has=["coscheduling"], serving={"group": {"gang": "coscheduling"}}).model_copy(
            update={
                "fleet": stacks.load_stack("grok-1", HERE).fleet.model_copy(
                    update={"nodes": stacks.Nodes(min=2, max=8)}
                )
            }
        ),
        "tollgate:fleet.nodes",
        "min equal to max",
    ),
    "upstream charts for what only ours has": (
        given("staging", benchmark=None).model_copy(
            update={"release": stacks.load_release("qwen3-8b-vllm", HERE).model_copy(update={"chart": "upstream"})}
        ),
        "release, chart",
        "engine, which has all of these",
    ),
    "an upstream chart that does not exist": (
        with_release(given("staging", benchmark=None, gateway=None, serving={}), "qwen3-8b-sglang", chart="upstream"),
        "release, chart",
        "upstream with ollama or vllm",
    ),
    "a second release on one replica": (
        given(
            "staging",
            benchmark=None,
            gateway={"candidate": {"release": "qwen3-8b-sglang", "percent": 10}},
            fleet={**stacks.load_stack("staging", HERE).fleet.model_dump(), "nodes": {"min": 1, "max": 1}},
        ),
        "tollgate:gateway.candidate",
        "at least 2 replicas",
    ),
    "an API key for an engine that asks for none": (
        with_release(given("staging", benchmark=None, serving={"api_key": True}), "gemma-3-4b-ollama-8"),
        "tollgate:serving.api_key",
        "ollama lets everybody in",
    ),
    "slices that nobody cuts": (
        with_release(with_fleet("staging", machine_type="a2-ultragpu-1g", mig="operator"), "gemma-3-4b-vllm-mig"),
        "tollgate:has",
        "gpu-operator among",
    ),
    "a bucket on a cluster that mounts none": (
        given("staging", benchmark=None, has=["prometheus"]).model_copy(update={"target": "kubernetes"}),
        "tollgate:has",
        "gcs-fuse among",
    ),
    "a disk that the machine cannot have": (
        with_fleet("staging", disk={"gb": 300, "type": "hyperdisk-balanced"}),
        "tollgate:fleet.disk.type",
        "pd-balanced or pd-ssd",
    ),
    "weights that the node's disk does not hold": (
        given(
            "llama-70b",
            serving={},
            fleet={**stacks.load_stack("llama-70b", HERE).fleet.model_dump(), "disk": {"gb": 150}},
        ),
        "tollgate:fleet.disk.gb",
        "at least 167",
    ),
    "a model's disk that no pod sees": (
        with_fleet("staging", preload_disk="global/images/qwen3-8b"),
        "tollgate:fleet.preload_disk",
        "of kind hostpath",
    ),
    "a stack's name that GKE does not take": (
        given("staging", benchmark=None).model_copy(update={"name": "2-staging"}),
        "the stack's name",
        "beginning with a letter",
    ),
    "kuberay for another engine": (
        given("grok-1", has=["kuberay"], serving={"group": {"controller": "kuberay"}}).model_copy(
            update={"release": stacks.load_release("grok-1-vllm", HERE).model_copy(update={"engine": "sglang"})}
        ),
        "tollgate:serving.group.controller",
        "kuberay with vllm",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_with_the_field_and_what_would_do(name: str) -> None:
    stack, where, allowed = CASES[name]
    error = told(stack)
    assert error.where == where
    assert allowed in error.allowed
    assert error.fix


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "min above max": ({"nodes": {"min": 3, "max": 2}}, r"min \(3\) must not be above max \(2\)"),
    "spot with a reservation": ({"spot": True, "reservation": "mine"}, "remove one of the two"),
    "a fallback without spot": ({"fallback": "on-demand"}, "set spot to true, or remove fallback"),
    "a label of Google's": ({"labels": {"cloud.google.com/gke-spot": "true"}}, "choose a key of your own"),
    "a taint that GKE writes": ({"taints": [{"key": "nvidia.com/gpu"}]}, "replaces the pool"),
    "the newest driver on Ubuntu": ({"image_type": "UBUNTU_CONTAINERD"}, "driver default"),
    "a region twice": ({"regions": ["us-west1", "us-west1"]}, "name each once"),
    "more regions than nodes": ({"regions": ["us-west1", "us-east1", "us-east4"]}, "less than one node for each"),
    "a zone elsewhere": ({"zones": ["us-west1-a"]}, "in none of the regions"),
    "compact over zones": ({"placement": "compact"}, "name exactly one zone"),
    "an upgrade that cannot move": ({"upgrade": {"max_surge": 0, "max_unavailable": 0}}, "could ever be upgraded"),
    "one client to share with": ({"sharing": {"strategy": "mps", "clients": 1}}, "greater than or equal to 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_fleet_that_is_not_well_formed_says_why(name: str) -> None:
    changes, message = WRONG[name]
    fleet = {"machine_type": "g2-standard-8", "nodes": {"min": 1, "max": 2}, **changes}
    with pytest.raises(ValueError, match=message):
        stacks.Fleet.model_validate(fleet)


GROUND: dict[str, tuple[type[Any], dict[str, Any], str]] = {
    "too little time for upgrades": (stacks.Maintenance, {"hours": 4, "days": ["MO"]}, "GKE needs 48"),
    "everybody may reach the API": (stacks.Gke, {"authorized_networks": ["0.0.0.0/0"]}, "is everybody"),
    "one secondary range": (stacks.Gke, {"pods_range": "pods"}, "or neither"),
    "ranges without their subnetwork": (
        stacks.Gke,
        {"pods_range": "pods", "services_range": "services"},
        "belong to a subnetwork",
    ),
    "two clusters of one name": (
        stacks.Gke,
        {"names": {"us-west1": "a", "us-east1": "a"}},
        "gives two clusters one name",
    ),
    "a bucket without a name": (stacks.Cache, {"kind": "gcs"}, "name of a bucket"),
    "a bucket for a claim": (stacks.Cache, {"kind": "pvc", "bucket": "models"}, "is for cache gcs"),
    "a claim that cannot be filled": (stacks.Cache, {"kind": "pvc", "access_mode": "ReadOnlyMany"}, "set preload to"),
    "a queue for nobody": (stacks.Group, {"queue": "q"}, "only that does"),
    "kueue without a queue": (stacks.Group, {"gang": "kueue"}, "needs the name of a LocalQueue"),
    "a node's folder in a restricted namespace": (
        stacks.Serving,
        {"cache": {"kind": "hostpath"}},
        "only pod_security privileged allows",
    ),
    "a secret that nothing uses": (stacks.Serving, {"secret": "keys"}, "neither api_key nor"),
    "an extension without its Gateway": (stacks.Gateway, {"kind": "inference-extension"}, "name of the cluster's"),
    "sessions by the extension": (
        stacks.Gateway,
        {"kind": "inference-extension", "gateway": "g", "affinity": "session"},
        "is the proxy's",
    ),
    "an external extension": (
        stacks.Gateway,
        {"kind": "inference-extension", "gateway": "g", "external": True},
        "has an address of its own",
    ),
    "weights by place": (
        stacks.Dns,
        {"zone": "z", "name": "a.example.com", "policy": "geographic", "weights": {"us-west1": 1}},
        "goes by place",
    ),
    "nobody gets an answer": (
        stacks.Dns,
        {"zone": "z", "name": "a.example.com", "weights": {"us-west1": 0}},
        "nobody would get an answer",
    ),
    "a move to nobody": (
        stacks.Dns,
        {"zone": "z", "name": "a.example.com", "shift": {"to": {"us-west1": 0}, "percent": 5}},
        "nobody would get an answer",
    ),
}


@pytest.mark.parametrize("name", GROUND)
def test_a_ground_that_is_not_well_formed_says_why(name: str) -> None:
    model, changes, message = GROUND[name]
    with pytest.raises(ValueError, match=message):
        model.model_validate(changes)


def test_dns_asks_for_a_gateway_with_an_address_and_regions_that_exist() -> None:
    with pytest.raises(ValueError, match=r"gateway\.external"):
        given("prod", gateway={"kind": "proxy"})
    with pytest.raises(ValueError, match="none of the fleet's regions"):
        given("prod", dns={"zone": "z", "name": "a.example.com", "weights": {"us-east4": 1}})


def test_clusters_are_named_for_regions_that_the_fleet_has_and_adopted_ones_for_each() -> None:
    with pytest.raises(ValueError, match="us-east4, which is none of the fleet's regions"):
        given("prod", gke={"names": {"us-east4": "there"}})
    with pytest.raises(ValueError, match=r"name the existing cluster of us-west1 in gke\.names"):
        given("prod", gke={"adopt": True, "names": {"us-central1": "here"}})


def test_an_engine_that_nobody_wrote_is_answered_with_those_that_exist() -> None:
    with pytest.raises(stacks.InputError, match="ollama, sglang, vllm"):
        components.service_for("triton")
