"""What would be replaced or deleted, and which field causes it: by two evaluations, and by what Pulumi says."""

from __future__ import annotations

from typing import Any

import pytest

import preview as room
from preview._state import parse

POOL = "gcp:container/nodePool:NodePool"


def one(
    kind: str, name: str = "it", protect: bool = False, ignore: tuple[str, ...] = (), **inputs: Any
) -> dict[str, Any]:
    return {"type": kind, "name": name, "inputs": inputs, "parent": None, "protect": protect, "ignore": list(ignore)}


def test_a_pool_with_other_accelerators_is_recreated_and_the_field_is_named() -> None:
    before = one(POOL, "p", nodeConfig={"guestAccelerators": [{"type": "nvidia-l4", "count": 1.0}]})
    after = one(POOL, "p", nodeConfig={"guestAccelerators": [{"type": "nvidia-tesla-a100", "count": 1}]})
    (event,) = room.events([before], [after])
    assert event.words == (
        "node pool p is recreated: all of its nodes go "
        "(nodeConfig.guestAccelerators[0].type: nvidia-l4 → nvidia-tesla-a100)"
    )


def test_what_google_changes_in_place_is_no_warning() -> None:
    before = one(POOL, "p", nodeConfig={"machineType": "g2-standard-8", "diskSizeGb": 100, "labels": {"a": "b"}})
    after = one(POOL, "p", nodeConfig={"machineType": "g2-standard-12", "diskSizeGb": 300, "labels": {}})
    assert room.events([before], [after]) == ()
    assert room.counts([before], [after]) == {"updated": 1}


def test_an_ignored_field_recreates_nothing() -> None:
    before = one(POOL, "p", ignore=("initialNodeCount",), initialNodeCount=1)
    after = one(POOL, "p", ignore=("initialNodeCount",), initialNodeCount=3)
    assert room.events([before], [after]) == ()
    assert room.counts([before], [after]) == {}
    heedless = {**after, "ignore": []}
    assert room.events([before], [heedless])[0].fields == ("initialNodeCount: 1 → 3",)


def test_a_deleted_cluster_is_stateful_and_its_protection_is_said() -> None:
    (event,) = room.events([one("gcp:container/cluster:Cluster", "c", protect=True)], [])
    assert (event.op, event.stateful, event.protected) == ("delete", True, True)
    assert event.words == "Cluster c is deleted, it is protected: pulumi up will refuse"


def test_jobs_named_after_what_they_measure_come_and_go() -> None:
    assert room.events([one("kubernetes:batch/v1:Job", "bench-1")], [one("kubernetes:batch/v1:Job", "bench-2")]) == ()


def test_another_namespace_is_another_object() -> None:
    before = one("kubernetes:core/v1:Service", "s", metadata={"name": "s", "namespace": "a", "labels": {"x": "1"}})
    after = one("kubernetes:core/v1:Service", "s", metadata={"name": "s", "namespace": "b", "labels": {"x": "2"}})
    (event,) = room.events([before], [after])
    assert event.fields == ("metadata.namespace: a → b",)


def state(kind: str, name: str, **inputs: Any) -> dict[str, Any]:
    urn = f"urn:pulumi:prod::tollgate::tollgate:index:Platform${kind}::{name}"
    parent = "urn:pulumi:prod::tollgate::tollgate:index:Platform::platform"
    return {"type": kind, "urn": urn, "parent": parent, "inputs": inputs}


def step(op: str, old: dict[str, Any] | None, new: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {"op": op, "urn": (new or old or {})["urn"], "oldState": old, "newState": new, **more}


def test_what_pulumi_says_is_read_as_before_after_and_why() -> None:
    old, new = state(POOL, "p", nodeConfig={"spot": False}), state(POOL, "p", nodeConfig={"spot": True})
    same = state(
        "gcp:container/cluster:Cluster", "c", location="us-central1", endpoint="04da6b54-80e4-46f7-96ec-b56ff0331ba9"
    )
    gone = state("gcp:compute/address:Address", "a", region="us-central1")
    document = {
        "steps": [
            step("same", same, same),
            step("create-replacement", old, new),
            step(
                "replace",
                old,
                new,
                replaceReasons=["nodeConfig"],
                detailedDiff={"nodeConfig.spot": {"kind": "update-replace"}},
            ),
            step("delete-replaced", old, None),
            step("delete", gone, None),
        ]
    }
    found = parse("prod", document)
    assert [entry["name"] for entry in found.before] == ["c", "p", "a"]
    assert [entry["name"] for entry in found.after] == ["c", "p"]
    assert found.before[0]["inputs"]["endpoint"] is None
    assert found.before[1]["parent"] == "tollgate:index:Platform::platform"
    delete, replace = room.stated(found.steps)
    assert (delete.op, delete.name, delete.stateful) == ("delete", "a", True)
    assert replace.fields == ("nodeConfig.spot: false → true",)
    assert room.stated_counts(found.steps) == {"updated": 1, "deleted": 1}


def test_a_block_replaces_where_it_comes_or_goes_and_not_for_all_that_is_in_it() -> None:
    def cluster(**config: Any) -> dict[str, Any]:
        return one("gcp:container/cluster:Cluster", "c", nodeConfig={"spot": False, **config})

    # Labels of a cluster's nodes are updated in place, and so is a maintenance window: spot machines are not.
    assert room.events([cluster()], [cluster(labels={"a": "b"})]) == ()
    (event,) = room.events([cluster()], [cluster(spot=True)])
    assert event.fields == ("nodeConfig.spot: false → true",)
    pool = {"networkConfig": {"podRange": "pods"}}
    assert [event.op for event in room.events([one(POOL, "p")], [one(POOL, "p", **pool)])] == ["replace"]
    quiet = {"networkConfig": {"enablePrivateNodes": True}}
    assert room.events([one(POOL, "p")], [one(POOL, "p", **quiet)]) == ()


def test_a_map_replaces_with_any_of_its_keys() -> None:
    before = one(POOL, "p", nodeConfig={"metadata": {"a": "1"}, "labels": {"a": "1"}})
    after = one(POOL, "p", nodeConfig={"metadata": {"a": "2"}, "labels": {"a": "2"}})
    assert room.events([before], [after])[0].fields == ("nodeConfig.metadata.a: 1 → 2",)


def test_a_disk_may_grow_and_not_shrink() -> None:
    small, large = one("gcp:compute/disk:Disk", "d", size=100.0), one("gcp:compute/disk:Disk", "d", size=200)
    assert room.events([small], [large]) == ()
    (event,) = room.events([large], [small])
    assert (event.op, event.stateful, event.fields) == ("replace", True, ("size: 200 → 100",))


@pytest.mark.parametrize(
    ("kind", "before", "after", "replaced"),
    [
        ("apps/v1:Deployment", {"spec": {"selector": {"a": "b"}}}, {"spec": {"selector": {"a": "c"}}}, True),
        ("apps/v1:Deployment", {"spec": {"replicas": 1}}, {"spec": {"replicas": 2}}, False),
        ("core/v1:Service", {"spec": {"clusterIP": "None"}}, {"spec": {"clusterIP": "10.0.0.1"}}, True),
        ("core/v1:Service", {"spec": {"type": "ClusterIP"}}, {"spec": {"type": "LoadBalancer"}}, False),
        ("core/v1:Secret", {"stringData": {"k": "1"}}, {"stringData": {"k": "2"}}, True),
        ("rbac.authorization.k8s.io/v1:RoleBinding", {"roleRef": {"name": "a"}}, {"roleRef": {"name": "b"}}, True),
        ("helm.sh/v3:Release", {"namespace": "a"}, {"namespace": "b"}, True),
        ("helm.sh/v3:Release", {"values": {"a": 1}}, {"values": {"a": 2}}, False),
        ("keda.sh/v1alpha1:ScaledObject", {"spec": {"a": 1}}, {"spec": {"a": 2}}, False),
    ],
)
def test_kubernetes_fields_replace_as_its_provider_says(
    kind: str, before: dict[str, Any], after: dict[str, Any], replaced: bool
) -> None:
    found = room.events([one(f"kubernetes:{kind}", "o", **before)], [one(f"kubernetes:{kind}", "o", **after)])
    assert [event.op for event in found] == (["replace"] if replaced else [])
