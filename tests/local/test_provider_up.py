"""The stand-in Kubernetes plugin under the real Pulumi engine, against the real API server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.local.provider_project import Project

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

PASSWORD = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def node(cluster: Any) -> Iterator[str]:
    """A kwok node: its pods become Ready at once and its Jobs complete."""
    name = f"fake-provider-{os.getpid()}"
    document = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"kubernetes.io/hostname": name, "type": "kwok"},
        },
        "status": {
            "capacity": {"cpu": "8", "memory": "32Gi", "pods": "50"},
            "allocatable": {"cpu": "8", "memory": "32Gi", "pods": "50"},
        },
    }
    environment = cluster.environment(Path.cwd())
    kubectl = ["kubectl", "create", "-f", "-"]
    subprocess.run(kubectl, env=environment, input=json.dumps(document), text=True, check=True, capture_output=True)
    yield name
    subprocess.run(
        ["kubectl", "delete", "node", name, "--wait=false"], env=environment, check=False, capture_output=True
    )


@pytest.fixture
def make(cluster: Any, node: str, fresh_namespace: str, tmp_path: Path) -> Callable[..., Project]:
    """Makes a project that works in a namespace of its own."""

    def build(program: str, **settings: Any) -> Project:
        return Project(
            tmp_path / "project",
            cluster.environment(tmp_path),
            program,
            namespace=fresh_namespace,
            node=node,
            **settings,
        )

    return build


ALL = """
meta = {"namespace": NS}
conf = k8s.core.v1.ConfigMap("conf", metadata=meta, data={"a": SET.get("a", "1")})
word = k8s.core.v1.Secret("word", metadata={"namespace": NS, "name": "word"},
    string_data={"password": pulumi.Output.secret(SET["password"])})
labels = {"app": SET.get("label", "web")}
dep = k8s.apps.v1.Deployment("web", metadata={"namespace": NS, "name": "web"}, spec={
    "replicas": 2, "selector": {"matchLabels": labels}, "template": pods("web", labels)})
svc = k8s.core.v1.Service("web", metadata=meta, spec={"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]})
job = k8s.batch.v1.Job("job", metadata=meta, spec={"template": {**pods("job", {"app": "job"}), "spec": {
    **pods("job", {})["spec"], "restartPolicy": "Never"}}})
crd = k8s.apiextensions.v1.CustomResourceDefinition("crd", metadata={"name": f"widgets.{NS}.example.com"}, spec={
    "group": f"{NS}.example.com", "scope": "Namespaced", "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
    "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
        "type": "object", "x-kubernetes-preserve-unknown-fields": True}}}]})
widget = k8s.apiextensions.CustomResource("widget", api_version=f"{NS}.example.com/v1", kind="Widget",
    metadata=meta, spec={"size": 3}, opts=o(depends_on=[crd]))
pulumi.export("conf", conf.metadata.name)
pulumi.export("ip", svc.spec.cluster_ip)
pulumi.export("ready", dep.status.ready_replicas)
pulumi.export("uid", dep.metadata.uid)
pulumi.export("succeeded", job.status.succeeded)
pulumi.export("widget", widget.id)
pulumi.export("word", word.data)
"""


def test_a_program_goes_up_stays_unchanged_shows_drift_is_replaced_where_it_must_and_goes_away(
    make: Callable[..., Project], kubectl: Callable[..., str], fresh_namespace: str
) -> None:
    project = make(ALL, password=PASSWORD)
    preview = project.must("preview", "--diff")
    assert "8 to create" in preview
    project.up()
    found = project.outputs()
    assert found["ready"] == 2
    assert found["succeeded"] == 1
    assert found["ip"].startswith("10.96.")
    assert found["conf"].startswith("conf-")
    assert len(found["conf"]) == len("conf-") + 8
    assert found["widget"].startswith(f"{fresh_namespace}/widget-")

    project.up("--expect-no-changes")
    project.must("refresh", "--yes", "--skip-preview", "--expect-no-changes")

    kubectl("-n", fresh_namespace, "patch", "configmap", found["conf"], "-p", '{"data":{"a":"drifted","theirs":"x"}}')
    shown = project.must("refresh", "--yes", "--skip-preview", "--diff")
    assert '"1" => "drifted"' in shown
    assert "theirs" not in shown
    code, shown = project.run("preview")
    assert code != 0  # what another manager holds is not taken from it silently
    assert ".data.a is held by 'kubectl-patch'" in shown

    kubectl("-n", fresh_namespace, "delete", "configmap", found["conf"])
    assert "1 deleted" in project.must("refresh", "--yes", "--skip-preview")
    project.set(label="web2")  # the selector of a Deployment cannot change in place
    shown = project.up()
    assert "replaced" in shown
    after = project.outputs()
    assert after["uid"] != found["uid"]
    assert after["ip"] == found["ip"]

    project.must("destroy", "--yes", "--skip-preview")
    left = kubectl("-n", fresh_namespace, "get", "deployment,service,job,secret", "-o", "name")
    assert left.strip() == ""
    assert PASSWORD not in project.printed.replace(json.dumps(found["word"]), "")


def test_a_preview_shows_the_api_servers_own_objections_and_makes_nothing(
    make: Callable[..., Project], kubectl: Callable[..., str], fresh_namespace: str
) -> None:
    project = make("""
k8s.core.v1.ConfigMap("first", metadata={"namespace": NS, "name": "first"}, data={"a": "1"})
k8s.apps.v1.Deployment("bad", metadata={"namespace": NS, "name": "bad"}, spec={
    "replicas": -1, "selector": {"matchLabels": {"app": "x"}}, "template": pods("bad", {"app": "other"})})
""")
    code, text = project.run("preview")
    assert code != 0
    assert "must be greater than or equal to 0" in text
    assert "`selector` does not match template `labels`" in text
    assert kubectl("-n", fresh_namespace, "get", "configmap", "first", "--ignore-not-found").strip() == ""


def test_what_something_else_made_is_refused_and_can_be_imported(
    make: Callable[..., Project], kubectl: Callable[..., str], fresh_namespace: str
) -> None:
    kubectl("-n", fresh_namespace, "create", "configmap", "theirs", "--from-literal=a=1")
    project = make("""
k8s.core.v1.ConfigMap("theirs", metadata={"namespace": NS, "name": "theirs"}, data={"a": "1"})
""")
    for command in (("preview",), ("up", "--yes", "--skip-preview")):
        code, text = project.run(*command)
        assert code != 0
        assert f"pulumi import kubernetes:core/v1:ConfigMap theirs {fresh_namespace}/theirs" in text
    identity = f"{fresh_namespace}/theirs"
    project.must(
        "import",
        "kubernetes:core/v1:ConfigMap",
        "theirs",
        identity,
        "--yes",
        "--protect=false",
        "--generate-code=false",
    )
    project.up("--expect-no-changes")


def test_an_object_that_does_not_get_ready_is_kept_and_the_next_up_carries_on(
    make: Callable[..., Project], kubectl: Callable[..., str], node: str, fresh_namespace: str
) -> None:
    project = make(
        """
dep = k8s.apps.v1.Deployment("slow", metadata={"namespace": NS, "name": "slow"}, spec={"replicas": 1, "selector": {
    "matchLabels": {"app": "slow"}}, "template": pods("slow", {"app": "slow"}, SET["where"])},
    opts=o(custom_timeouts=pulumi.CustomTimeouts(create="8s", update="120s")))
pulumi.export("uid", dep.metadata.uid)
""",
        where="no-such-node",
    )
    code, text = project.run("up", "--yes", "--skip-preview")
    assert code != 0
    assert "not ready after 8 s: 0/1 pods available" in text
    assert "not scheduled" in text
    uid = kubectl("-n", fresh_namespace, "get", "deployment", "slow", "-o", "jsonpath={.metadata.uid}")
    project.set(where=node)
    project.up()
    assert project.outputs()["uid"] == uid


def test_a_job_that_fails_says_why_with_the_end_of_its_log_and_nodes_are_waited_for(
    make: Callable[..., Project], kubectl: Callable[..., str], fresh_namespace: str
) -> None:
    project = make("""
name = f"process-{NS}"
node = k8s.core.v1.Node("node", metadata={"name": name, "labels": {
    "kubernetes.io/hostname": name, "tollgate.dev/runner": "process"}})
spec = pods("job", {}, name, "busybox:1.37")["spec"]
spec["containers"][0]["command"] = ["sh", "-c", "echo the disk is full; exit 3"]
k8s.batch.v1.Job("job", metadata={"namespace": NS, "name": "job"}, spec={
    "backoffLimit": 0, "template": {"spec": {**spec, "restartPolicy": "Never"}}}, opts=o(depends_on=[node]))
""")
    code, text = project.run("up", "--yes", "--skip-preview")
    assert code != 0
    assert "the Job failed: BackoffLimitExceeded" in text
    assert "the disk is full" in text
    conditions = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    assert kubectl("get", "node", f"process-{fresh_namespace}", "-o", conditions) == "True"
    project.must("destroy", "--yes", "--skip-preview")


def test_a_preview_without_a_cluster_shows_what_would_be_made_and_an_up_says_what_is_missing(
    make: Callable[..., Project], tmp_path: Path
) -> None:
    project = make("""k8s.core.v1.Namespace("a", metadata={"name": "never-made"})""")
    project.environment["KUBECONFIG"] = str(tmp_path / "none.yaml")
    text = project.must("preview")
    assert "preview without the API server's own checks: no kubeconfig" in text
    assert "2 to create" in text
    code, text = project.run("up", "--yes", "--skip-preview")
    assert code != 0
    assert "set KUBECONFIG" in text


def test_what_others_own_is_left_to_them_and_patches_are_given_back(
    make: Callable[..., Project], kubectl: Callable[..., str], fresh_namespace: str
) -> None:
    kubectl("-n", fresh_namespace, "create", "configmap", "shared", "--from-literal=theirs=1")
    project = make(
        """
template = pods("web", {"app": "web"})
template["metadata"]["annotations"] = {"round": SET["round"]}
k8s.apps.v1.Deployment("web", metadata={"namespace": NS, "name": "web"}, spec={"replicas": 1, "selector": {
    "matchLabels": {"app": "web"}}, "template": template}, opts=o(ignore_changes=["spec.replicas"]))
k8s.core.v1.ConfigMapPatch("shared", metadata={"namespace": NS, "name": "shared"}, data={"ours": SET["round"]})
""",
        round="1",
    )
    project.up()
    kubectl("-n", fresh_namespace, "scale", "deployment", "web", "--replicas=2")  # as an autoscaler does
    project.set(round="2")
    project.up()
    replicas = kubectl("-n", fresh_namespace, "get", "deployment", "web", "-o", "jsonpath={.spec.replicas}")
    assert replicas == "2"
    data = "jsonpath={.data}"
    assert json.loads(kubectl("-n", fresh_namespace, "get", "configmap", "shared", "-o", data)) == {
        "theirs": "1",
        "ours": "2",
    }
    project.must("destroy", "--yes", "--skip-preview")
    assert json.loads(kubectl("-n", fresh_namespace, "get", "configmap", "shared", "-o", data)) == {"theirs": "1"}


def test_a_killed_up_is_taken_up_again_without_complaint_about_what_it_had_made(
    make: Callable[..., Project], kubectl: Callable[..., str], node: str, fresh_namespace: str
) -> None:
    project = make(
        """
dep = k8s.apps.v1.Deployment("slow", metadata={"namespace": NS, "name": "slow"}, spec={"replicas": 1, "selector": {
    "matchLabels": {"app": "slow"}}, "template": pods("slow", {"app": "slow"}, SET["where"])})
k8s.core.v1.ConfigMap("after", metadata={"namespace": NS, "name": "after"}, data={"a": "1"}, opts=o(depends_on=[dep]))
""",
        where="no-such-node",
    )
    running = project.start("up", "--yes", "--skip-preview")
    project.wait_for_text("pods available")  # so the object exists and its creation is not in the state
    project.kill(running)
    uid = kubectl("-n", fresh_namespace, "get", "deployment", "slow", "-o", "jsonpath={.metadata.uid}")
    project.reset()
    project.set(where=node)
    text = project.up()
    assert "carried on with it" in text
    assert kubectl("-n", fresh_namespace, "get", "deployment", "slow", "-o", "jsonpath={.metadata.uid}") == uid
    project.up("--expect-no-changes")


def test_an_api_server_that_dies_in_the_middle_is_waited_for(
    make: Callable[..., Project], cluster: Any, fresh_namespace: str
) -> None:
    from local import cluster as room

    project = make(
        """
last = None
for i in range(12):
    last = k8s.core.v1.ConfigMap(f"c{i}", metadata={"namespace": NS, "name": f"c{i}"}, data={"a": "1"},
        opts=o(depends_on=[last] if last else []))
"""
    )
    running = project.start("up", "--yes", "--skip-preview")
    project.wait_for_text("ConfigMap c3 creat")
    pid = next(item.pid for item in room.status(cluster.name).components if item.name == "kube-apiserver")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert running.wait(300) == 0, (project.folder / "background.log").read_text()
    project.up("--expect-no-changes")


CHART = """
rel = k8s.helm.v3.Release("rel", name="rel", namespace=NS, chart="./chart",
    timeout=SET.get("timeout", 120), atomic=SET.get("atomic", False),
    values={"node": SET["node"], "password": pulumi.Output.secret(SET["password"]), **SET.get("values", {})})
pulumi.export("status", rel.status)
pulumi.export("names", rel.resource_names)
"""
TEMPLATE = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      nodeSelector: {kubernetes.io/hostname: {{ .Values.node }}}
      tolerations: [{operator: Exists}]
      containers: [{name: web, image: "registry.k8s.io/pause:3.10"}]
---
apiVersion: v1
kind: Secret
metadata: {name: web}
stringData: {password: {{ .Values.password | quote }}}
{{ if .Values.broken }}{{ fail (printf "broken on purpose: %s" .Values.password) }}{{ end }}
"""


@pytest.fixture
def charted(make: Callable[..., Project]) -> Project:
    project = make(CHART, password=PASSWORD)
    templates = project.folder / "chart" / "templates"
    templates.mkdir(parents=True)
    (project.folder / "chart" / "Chart.yaml").write_text(
        "apiVersion: v2\nname: tiny\nversion: 0.1.0\nappVersion: '1.2'\n"
    )
    (project.folder / "chart" / "values.yaml").write_text("replicas: 1\n")
    (templates / "all.yaml").write_text(TEMPLATE)
    return project


def test_a_chart_is_installed_checked_in_previews_upgraded_when_its_files_change_and_recovered_when_stuck(
    charted: Project, kubectl: Callable[..., str], fresh_namespace: str
) -> None:
    charted.set(values={"broken": True})
    code, text = charted.run("preview")
    assert code != 0
    assert "broken on purpose: [secret]" in text
    charted.set(values={"replicas": -2})
    code, text = charted.run("preview")
    assert code != 0
    assert "spec.replicas: Invalid value" in text

    charted.set(values={})
    charted.up()
    found = charted.outputs()
    assert found["status"]["status"] == "deployed"
    assert found["status"]["revision"] == 1
    assert found["names"]["Deployment.apps/apps/v1"] == [f"{fresh_namespace}/web"]
    charted.up("--expect-no-changes")
    charted.must("refresh", "--yes", "--skip-preview", "--expect-no-changes")

    (charted.folder / "chart" / "values.yaml").write_text("replicas: 2\n")
    assert "checksum" in charted.up()
    assert charted.outputs()["status"]["revision"] == 2

    # A Helm that was killed in the middle of an upgrade leaves this behind.
    secret = "sh.helm.release.v1.rel.v2"
    kubectl("-n", fresh_namespace, "label", "secret", secret, "status=pending-upgrade", "--overwrite")
    _rewrite_status(kubectl, fresh_namespace, secret, "pending-upgrade")
    charted.set(values={"replicas": 1})
    assert "was left pending-upgrade; rolled back to revision 1" in charted.up()
    assert charted.outputs()["status"]["status"] == "deployed"

    charted.must("destroy", "--yes", "--skip-preview")
    assert kubectl("-n", fresh_namespace, "get", "deployment,secret", "-o", "name").strip() == ""
    assert PASSWORD not in charted.printed


def _rewrite_status(kubectl: Callable[..., str], namespace: str, secret: str, status: str) -> None:
    import base64
    import gzip

    raw = kubectl("-n", namespace, "get", "secret", secret, "-o", "jsonpath={.data.release}")
    document = json.loads(gzip.decompress(base64.b64decode(base64.b64decode(raw))))
    document["info"]["status"] = status
    packed = base64.b64encode(base64.b64encode(gzip.compress(json.dumps(document).encode()))).decode()
    kubectl("-n", namespace, "patch", "secret", secret, "-p", json.dumps({"data": {"release": packed}}))


def test_a_failed_atomic_release_leaves_nothing_and_says_what_it_waited_for(
    charted: Project, kubectl: Callable[..., str], fresh_namespace: str
) -> None:
    charted.set(node="no-such-node", atomic=True, timeout=8)
    code, text = charted.run("up", "--yes", "--skip-preview")
    assert code != 0
    assert "last seen: Deployment web: 0/1 pods available" in text
    assert kubectl("-n", fresh_namespace, "get", "deployment,secret", "-o", "name").strip() == ""
    assert PASSWORD not in text


def test_an_up_that_is_killed_while_helm_is_at_work_is_taken_up_again(
    charted: Project, kubectl: Callable[..., str], node: str, fresh_namespace: str
) -> None:
    charted.set(node="no-such-node", timeout=180)
    running = charted.start("up", "--yes", "--skip-preview")
    charted.wait_for_text("Deployment web: 0/1 pods available")
    charted.kill(running)
    charted.reset()
    charted.set(node=node)
    assert "carried on with it" in charted.up()
    assert charted.outputs()["status"]["status"] == "deployed"
    charted.up("--expect-no-changes")


def test_a_stop_request_ends_a_wait_at_once(make: Callable[..., Project]) -> None:
    project = make("""
k8s.core.v1.Pod("never", metadata={"namespace": NS, "name": "never"}, spec=pods("never", {}, "no-such-node")["spec"])
""")
    running = project.start("up", "--yes", "--skip-preview")
    project.wait_for_text("not scheduled")
    started = time.monotonic()
    running.send_signal(signal.SIGINT)
    watchdog = threading.Timer(90, running.kill)
    watchdog.start()
    assert running.wait(120) != 0
    watchdog.cancel()
    # It would have waited for ten minutes.
    assert time.monotonic() - started < 60
    assert "never" in project.must("stack", "--show-urns")
