"""The plugin's judgements without a cluster: differences, drift, readiness, names, secrets."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from local.provider import BIN
from local.provider._diff import changes, compare, quantity
from local.provider._errors import ApiError, ProviderError, Redactor
from local.provider._helm import checksum
from local.provider._kinds import Discovery, Kind, of
from local.provider._live import imported_inputs, refreshed_inputs
from local.provider._objects import Objects
from local.provider._ready import State, judge_for, service_state, trouble, wait_for
from local.provider._releases import resource_names
from local.provider._session import Session, Settings
from local.provider._values import UNKNOWN, Secret, has_unknown, mark_secrets, plain, secret_paths, show_path
from local.provider._work import mark_of

DEPLOYMENT = Kind(group="apps", version="v1", kind="Deployment")


def kind(group: str, name: str) -> Kind:
    return Kind(group=group, version="v1", kind=name)


# ---- differences


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a": None}, {}),
        ({"labels": {}}, {}),
        ({"args": []}, {}),
        ({"limits": {"cpu": 1}}, {"limits": {"cpu": "1"}}),
        ({"limits": {"cpu": "0.5", "memory": "1Gi"}}, {"limits": {"cpu": "500m", "memory": "1024Mi"}}),
        ({"replicas": 2}, {"replicas": 2.0}),
    ],
)
def test_what_means_the_same_to_the_api_server_is_no_difference(old: Any, new: Any) -> None:
    assert changes(old, new) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"emptyDir": {}}, {}),
        ({"targetPort": 80}, {"targetPort": "80"}),
        ({"data": {"cpu": "1"}}, {"data": {"cpu": "1000m"}}),
        ({"a": True}, {"a": 1}),
        ({"a": "x"}, {"a": UNKNOWN}),
        ({"args": ["a", "b"]}, {"args": ["b", "a"]}),
    ],
)
def test_what_means_something_else_is_a_difference(old: Any, new: Any) -> None:
    assert len(changes(old, new)) >= 1


def test_paths_are_written_as_pulumi_writes_them() -> None:
    found = changes(
        {"metadata": {"labels": {"a.b/c": "1"}}, "spec": {"containers": [{"image": "a"}]}},
        {"metadata": {"labels": {"a.b/c": "2"}}, "spec": {"containers": [{"image": "b"}, {"image": "c"}]}},
    )
    assert [(show_path(change.path), change.op) for change in found] == [
        ('metadata.labels["a.b/c"]', "update"),
        ("spec.containers[0].image", "update"),
        ("spec.containers[1]", "add"),
    ]


def test_quantities_are_read_as_kubernetes_reads_them() -> None:
    assert quantity("1500m") == 1.5
    assert quantity("2Gi") == 2 * 1024**3
    assert quantity("1e3") == 1000
    assert quantity("1E") == 1e18
    assert quantity("ten") is None


@pytest.mark.parametrize(
    ("group", "name", "old", "new", "replaces"),
    [
        ("apps", "Deployment", {"spec": {"selector": {"a": "1"}}}, {"spec": {"selector": {"a": "2"}}}, True),
        ("apps", "Deployment", {"spec": {"replicas": 1}}, {"spec": {"replicas": 2}}, False),
        ("apps", "StatefulSet", {"spec": {"serviceName": "a"}}, {"spec": {"serviceName": "b"}}, True),
        ("batch", "Job", {"spec": {"template": {"x": 1}}}, {"spec": {"template": {"x": 2}}}, True),
        ("batch", "Job", {"spec": {"parallelism": 1}}, {"spec": {"parallelism": 2}}, False),
        ("", "ConfigMap", {"data": {"a": "1"}}, {"data": {"a": "2"}}, False),
        ("", "ConfigMap", {"immutable": True, "data": {"a": "1"}}, {"immutable": True, "data": {"a": "2"}}, True),
        ("", "Service", {"spec": {"clusterIP": "None"}}, {"spec": {"clusterIP": "10.96.0.9"}}, True),
        ("", "Service", {"spec": {}}, {"spec": {"clusterIP": "10.96.0.9"}}, False),
        ("", "Pod", {"spec": {"containers": [{"image": "a"}]}}, {"spec": {"containers": [{"image": "b"}]}}, False),
        ("", "Pod", {"spec": {"containers": [{"args": ["a"]}]}}, {"spec": {"containers": [{"args": ["b"]}]}}, True),
        ("rbac.authorization.k8s.io", "RoleBinding", {"roleRef": {"name": "a"}}, {"roleRef": {"name": "b"}}, True),
        ("storage.k8s.io", "StorageClass", {"provisioner": "a"}, {"provisioner": "b"}, True),
        ("", "ConfigMap", {"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}, True),
        ("apps", "Deployment", {"apiVersion": "apps/v1beta2"}, {"apiVersion": "apps/v1"}, False),
        ("apps", "Deployment", {"apiVersion": "extensions/v1beta1"}, {"apiVersion": "apps/v1"}, True),
    ],
)  # fmt: skip
def test_fields_that_cannot_change_in_place_ask_for_replacement(
    group: str, name: str, old: dict[str, Any], new: dict[str, Any], replaces: bool
) -> None:
    found = compare(kind(group, name), old, new, default_namespace=None)
    assert found
    assert any(change.replace for change in found) is replaces


def test_a_namespace_that_was_only_left_out_is_no_change() -> None:
    old, new = {"metadata": {"name": "a"}}, {"metadata": {"name": "a", "namespace": "default"}}
    assert compare(kind("", "ConfigMap"), old, new, default_namespace="default") == []
    assert compare(kind("", "ConfigMap"), old, new, default_namespace="other") != []


# ---- drift and import


def test_a_refresh_takes_live_values_only_where_the_inputs_set_something() -> None:
    old = {
        "metadata": {"name": "a", "labels": {"x": "1"}},
        "spec": {
            "replicas": 2,
            "template": {"spec": {"containers": [{"name": "web", "image": "a", "resources": {"limits": {"cpu": 1}}}]}},
            "volumes": [],
        },
    }
    live = {
        "metadata": {"name": "a", "uid": "u", "labels": {"x": "1", "theirs": "2"}},
        "spec": {
            "replicas": 5,
            "template": {
                "spec": {
                    "containers": [
                        {"name": "injected", "image": "i"},
                        {
                            "name": "web",
                            "image": "a",
                            "imagePullPolicy": "Always",
                            "resources": {"limits": {"cpu": "1"}},
                        },
                    ]
                }
            },
        },
        "status": {"replicas": 5},
    }
    found = refreshed_inputs(old, live)
    assert [show_path(change.path) for change in changes(old, found)] == ["spec.replicas"]
    assert found["spec"]["replicas"] == 5


def test_a_field_that_somebody_removed_shows_as_removed() -> None:
    old = {"data": {"a": "1", "b": "2"}}
    assert refreshed_inputs(old, {"data": {"a": "1"}}) == {"data": {"a": "1"}}


def test_a_refreshed_secret_compares_its_text_with_the_encoded_data() -> None:
    data = {"a": base64.b64encode(b"one").decode(), "b": base64.b64encode(b"changed").decode()}
    assert refreshed_inputs({"stringData": {"a": "one", "b": "two"}}, {"data": data}) == {
        "stringData": {"a": "one", "b": "changed"}
    }


def test_imported_inputs_leave_out_what_the_server_fills_in() -> None:
    live = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "a",
            "uid": "u",
            "managedFields": [],
            "annotations": {"tollgate.dev/urn": "x", "mine": "y"},
        },
        "status": {},
    }
    assert imported_inputs(live)["metadata"] == {"name": "a", "annotations": {"mine": "y"}}
    assert "status" not in imported_inputs(live)


# ---- readiness


def ready(group: str, name: str, live: dict[str, Any]) -> State:
    judge = judge_for(kind(group, name))
    assert judge is not None
    return judge({"metadata": {"generation": 2, "name": "x"}, **live})


def test_a_deployment_is_ready_only_when_the_new_generation_is_rolled_out() -> None:
    done = {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}
    assert ready("apps", "Deployment", {"spec": {"replicas": 3}, "status": done}).ready
    assert not ready("apps", "Deployment", {"spec": {"replicas": 3}, "status": {**done, "observedGeneration": 1}}).ready
    assert not ready("apps", "Deployment", {"spec": {"replicas": 3}, "status": {**done, "replicas": 4}}).ready
    some = ready("apps", "Deployment", {"spec": {"replicas": 10}, "status": {**done, "availableReplicas": 3}})
    assert some.message.startswith("3/10 pods available")
    assert ready("apps", "Deployment", {"spec": {"replicas": 0}, "status": {"observedGeneration": 2}}).ready


def test_a_job_is_ready_when_complete_and_failed_for_good_when_failed() -> None:
    assert ready("batch", "Job", {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}).ready
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "too often"}
    state = ready("batch", "Job", {"status": {"conditions": [failed]}})
    assert state.failed
    assert "BackoffLimitExceeded: too often" in state.message


@pytest.mark.parametrize(
    ("group", "name", "status", "expected"),
    [
        ("", "Namespace", {"phase": "Active"}, True),
        ("", "Namespace", {"phase": "Terminating"}, False),
        ("", "Node", {"conditions": [{"type": "Ready", "status": "True"}]}, True),
        ("", "Node", {}, False),
        ("", "Pod", {"phase": "Succeeded"}, True),
        ("", "Pod", {"phase": "Running"}, False),
        ("", "PersistentVolumeClaim", {"phase": "Bound"}, True),
        ("", "PersistentVolumeClaim", {"phase": "Pending"}, False),
        ("apps", "StatefulSet", {"observedGeneration": 2, "readyReplicas": 1, "updatedReplicas": 1}, True),
        ("apps", "StatefulSet", {"observedGeneration": 2, "readyReplicas": 0}, False),
        ("apps", "DaemonSet", {"observedGeneration": 2, "desiredNumberScheduled": 2, "numberAvailable": 1}, False),
        (
            "apiextensions.k8s.io",
            "CustomResourceDefinition",
            {"conditions": [{"type": "Established", "status": "True"}]},
            True,
        ),
        ("apiextensions.k8s.io", "CustomResourceDefinition", {}, False),
        ("apiregistration.k8s.io", "APIService", {"conditions": [{"type": "Available", "status": "False"}]}, False),
    ],
)
def test_each_kind_has_its_own_sign_of_being_ready(
    group: str, name: str, status: dict[str, Any], expected: bool
) -> None:
    assert ready(group, name, {"status": status, "spec": {"replicas": 1}}).ready is expected


def test_a_service_waits_for_endpoints_unless_it_is_headless_external_or_selects_nothing() -> None:
    slices = [{"endpoints": [{"conditions": {"ready": True}}]}]
    service: dict[str, Any] = {"spec": {"selector": {"a": "1"}, "clusterIP": "10.96.0.9"}}
    assert not service_state(service, []).ready
    assert not service_state(service, [{"endpoints": [{"conditions": {"ready": False}}]}]).ready
    assert service_state(service, slices).ready
    assert service_state({"spec": {"selector": {"a": "1"}, "clusterIP": "None"}}, []).ready
    assert service_state({"spec": {"type": "ExternalName"}}, []).ready
    assert service_state({"spec": {"clusterIP": "10.96.0.9"}}, []).ready
    assert not service_state({"spec": {**service["spec"], "type": "LoadBalancer"}, "status": {}}, slices).ready


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("condition=Synced", True),
        ("condition=Synced=False", False),
        ("jsonpath={.status.phase}=Running", True),
        ("jsonpath=.status.phase=Stopped", False),
        ("jsonpath={.status.absent}", False),
        ("jsonpath={.status.list[0].port}=80", True),
        ('jsonpath={.status.conditions[?(@.type=="Synced")].status}=True', True),
        ('["condition=Synced", "jsonpath={.status.phase}=Stopped"]', False),
    ],
)
def test_the_wait_for_annotation_is_understood(text: str, expected: bool) -> None:
    live = {
        "status": {"phase": "Running", "list": [{"port": 80}], "conditions": [{"type": "Synced", "status": "True"}]}
    }
    assert wait_for(text)(live).ready is expected


def test_a_wait_for_that_is_not_understood_is_refused() -> None:
    with pytest.raises(ProviderError, match="not understood"):
        wait_for("ready please")


def test_the_trouble_of_a_pod_is_said_in_a_few_words() -> None:
    waiting = {"name": "web", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    assert trouble({"status": {"containerStatuses": [waiting]}}) == "web: ImagePullBackOff: no such image"
    unscheduled = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}
    assert trouble({"status": {"conditions": [unscheduled]}}) == "not scheduled: 0/3 nodes"


# ---- kinds, names, secrets


def test_kinds_are_told_from_tokens_and_inputs() -> None:
    assert of("kubernetes:core/v1:Secret", {}) == kind("", "Secret")
    assert str(of("kubernetes:rbac.authorization.k8s.io/v1:Role", {})) == "rbac.authorization.k8s.io/v1 Role"
    custom = of("kubernetes:keda.sh/v1alpha1:ScaledObject", {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject"})
    assert (custom.group, custom.version, custom.kind) == ("keda.sh", "v1alpha1", "ScaledObject")
    assert of("kubernetes:apps/v1:DeploymentPatch", {}).patch
    assert of("kubernetes:example.com/v1:ShoppingList", {}).kind == "ShoppingList"
    with pytest.raises(ProviderError, match="lists are not served"):
        of("kubernetes:core/v1:ConfigMapList", {})


def test_built_in_scopes_need_no_cluster() -> None:
    offline = Discovery(None)
    assert offline.namespaced(kind("", "Secret"), retry_seconds=0) is True
    assert offline.namespaced(kind("", "Node"), retry_seconds=0) is False
    assert offline.namespaced(kind("example.com", "Widget"), retry_seconds=0) is None


def _objects(tmp_path: Path) -> Objects:
    return Objects(Session(Settings(kubeconfig=str(tmp_path / "none")), lambda *_, **__: None))


def test_names_are_made_up_once_and_kept(tmp_path: Path) -> None:
    objects = _objects(tmp_path)
    token = "kubernetes:core/v1:ConfigMap"
    first, failures = objects.check("urn", token, "conf", {}, {"data": {}}, seed=b"seed", proposed=None)
    assert not failures
    assert first["metadata"]["annotations"] == {"pulumi.com/autonamed": "true"}
    assert first["metadata"]["namespace"] == "default"
    again, _ = objects.check("urn", token, "conf", first, {"data": {}}, seed=b"other", proposed=None)
    assert again["metadata"]["name"] == first["metadata"]["name"]
    given, _ = objects.check("urn", token, "conf", first, {"metadata": {"name": "x"}}, seed=b"", proposed=None)
    assert given["metadata"] == {"name": "x", "namespace": "default"}


def test_a_label_that_is_no_string_is_refused_before_the_cluster_is_asked(tmp_path: Path) -> None:
    news = {"metadata": {"name": "a", "labels": {"port": 80}}}
    _, failures = _objects(tmp_path).check("urn", "kubernetes:core/v1:Node", "a", {}, news, seed=b"", proposed=None)
    assert failures == [("metadata.labels", "port must be a string (in quotes), got 80")]


def test_secrets_stay_marked_in_outputs_and_do_not_show_in_text() -> None:
    inputs = {"data": {"a": Secret("hunter22")}, "spec": {"env": [{"value": Secret("s3cr3t-value")}], "n": 1}}
    paths = list(secret_paths(inputs))
    assert paths == [("data", "a"), ("spec", "env", 0, "value")]
    marked = mark_secrets(plain(inputs), paths)
    assert isinstance(marked["data"]["a"], Secret)
    assert isinstance(marked["spec"]["env"][0]["value"], Secret)
    assert marked["spec"]["n"] == 1
    assert "hunter22" not in repr(marked)
    redact = Redactor(["hunter22"])
    encoded = base64.b64encode(b"hunter22").decode()
    assert redact(f"bad value hunter22 ({encoded})") == "bad value [secret] ([secret])"


def test_unknown_values_are_found_wherever_they_are() -> None:
    assert has_unknown({"a": [{"b": Secret([UNKNOWN])}]})
    assert not has_unknown({"a": [{"b": Secret(["x"])}]})


def test_immutability_and_conflicts_are_read_from_the_servers_answers() -> None:
    immutable = ApiError(422, {"message": "spec.selector: Invalid value: field is immutable"}, action="apply x")
    assert immutable.is_immutable()
    assert not ApiError(422, {"message": "spec.replicas: Invalid value"}, action="apply x").is_immutable()
    cause = {"reason": "FieldManagerConflict", "message": 'conflict with "kubectl" using v1', "field": ".spec.replicas"}
    conflict = ApiError(409, {"details": {"causes": [cause]}}, action="apply x")
    assert conflict.conflicts() == [("kubectl", ".spec.replicas")]


def test_the_mark_of_a_resource_tells_nothing_and_fits_a_label() -> None:
    assert mark_of("urn:pulumi:dev::a::b::c") != mark_of("urn:pulumi:dev::a::b::d")
    assert len(mark_of("urn")) <= 63


def test_a_charts_checksum_changes_with_any_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "Chart.yaml").write_text("name: x\n")
    (tmp_path / "values.yaml").write_text("a: 1\n")
    first = checksum(str(tmp_path))
    assert first == checksum(str(tmp_path))
    (tmp_path / "values.yaml").write_text("a: 2\n")
    assert first != checksum(str(tmp_path))
    assert checksum("ingress-nginx") is None


def test_the_resources_of_a_release_are_named_by_kind_and_place() -> None:
    objects = [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "b"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "other"}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}},
    ]
    assert resource_names(objects, "ns") == {
        "Deployment.apps/apps/v1": ["ns/b"],
        "Namespace/v1": ["n"],
        "Service/v1": ["other/s"],
    }


def test_the_plugin_starts_fast_and_ends_when_it_is_told() -> None:
    environment = {"PATH": "/usr/bin:/bin", "TOLLGATE_PYTHON": sys.executable}
    plugin = subprocess.Popen(
        [str(BIN / "pulumi-resource-kubernetes")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert plugin.stdout is not None
    try:
        port = int(plugin.stdout.readline())
        # What it computed: the clock would tell how busy the machine is.
        spent = sum(psutil.Process(plugin.pid).cpu_times()[:4])
    finally:
        plugin.terminate()
        plugin.wait(60)
        plugin.stdout.close()
    assert port > 0
    assert spent < 3  # 0.3 s on an idle machine
