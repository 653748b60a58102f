"""Every manifest that any stack installs, as the real API server sees it: server-side dry run, real pod security admission.

Of resources that others define, the definitions of LeaderWorkerSet and PodGroup are there where those programs have been built;
with the files of others in the folder named by TOLLGATE_UPSTREAM_CRDS, those are held against them, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import components
import planner
import stacks
import values
from local import tools
from tests.components.recording import record

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
HERE = Path(__file__).resolve().parents[2]
Kubectl = Callable[..., str]
# Kinds whose own definitions may not be there: then only their place and their metadata are checked.
_LOOSE = {
    "podmonitors.monitoring.coreos.com": ("v1", "PodMonitor", "Namespaced"),
    "prometheusrules.monitoring.coreos.com": ("v1", "PrometheusRule", "Namespaced"),
    "rayclusters.ray.io": ("v1", "RayCluster", "Namespaced"),
    "httproutes.gateway.networking.k8s.io": ("v1", "HTTPRoute", "Namespaced"),
    "computeclasses.cloud.google.com": ("v1", "ComputeClass", "Cluster"),
    "resourceflavors.kueue.x-k8s.io": ("v1beta1", "ResourceFlavor", "Cluster"),
    "clusterqueues.kueue.x-k8s.io": ("v1beta1", "ClusterQueue", "Cluster"),
    "localqueues.kueue.x-k8s.io": ("v1beta1", "LocalQueue", "Namespaced"),
    "leaderworkersets.leaderworkerset.x-k8s.io": ("v1", "LeaderWorkerSet", "Namespaced"),
    "podgroups.scheduling.x-k8s.io": ("v1alpha1", "PodGroup", "Namespaced"),
}


def loose(name: str, version: str, kind: str, scope: str) -> dict[str, Any]:
    plural, _, group = name.partition(".")
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": name,
            "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes/enhancements/pull/1111"},
        },
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                }
            ],
        },
    }


def real() -> dict[str, dict[str, Any]]:
    """The definitions that are there, by name."""
    folders = [Path(os.environ["TOLLGATE_UPSTREAM_CRDS"])] if "TOLLGATE_UPSTREAM_CRDS" in os.environ else []
    for name in ("lws-crds", "coscheduling-crds"):
        with contextlib.suppress(stacks.TollgateError):
            folders.append(tools.data(name))
    documents = [yaml.safe_load(path.read_text()) for folder in folders for path in sorted(folder.glob("*.yaml"))]
    for document in documents:
        # Who converts between versions is not running here.
        document["spec"].pop("conversion", None)
    return {document["metadata"]["name"]: document for document in documents}


@pytest.fixture(scope="module")
def api(kubectl: Kubectl) -> Iterator[Kubectl]:
    """The cluster with the definitions of what stacks use, and a namespace of each level of pod security."""
    known = kubectl("get", "crd", "-o", "name")
    given, wanted = real(), []
    for name, (version, kind, scope) in _LOOSE.items():
        if name not in known:
            wanted.append(given.get(name) or loose(name, version, kind, scope))
    kubectl("apply", "--server-side", "-f", "-", given=yaml.safe_dump_all(wanted))
    for one in wanted:
        kubectl("wait", "--for=condition=Established", f"crd/{one['metadata']['name']}", "--timeout=30s")
    for level in ("restricted", "baseline", "privileged"):
        kubectl("create", "namespace", f"level-{level}")
        kubectl("label", "namespace", f"level-{level}", f"pod-security.kubernetes.io/enforce={level}")
    yield kubectl
    for level in ("restricted", "baseline", "privileged"):
        kubectl("delete", "namespace", f"level-{level}")
    for one in wanted:
        kubectl("delete", "crd", one["metadata"]["name"])


def rendered(stack: stacks.Stack, folder: Path) -> list[dict[str, Any]]:
    """The chart of that stack as Helm renders it."""
    file = folder / "values.json"
    file.write_text(json.dumps(values.render(stack, planner.plan(stack))))
    chart = str(values.chart_path("engine"))
    lint = [str(tools.path("helm")), "lint", "--strict", chart, "-f", str(file)]
    linted = subprocess.run(lint, capture_output=True, text=True, timeout=240, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    command = [str(tools.path("helm")), "template", "engine", chart, "-f", str(file), "-n", "level"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def templates(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods that a document will have made."""
    spec = document.get("spec", {})
    if document["kind"] in ("Deployment", "Job"):
        return [spec["template"]]
    if document["kind"] == "LeaderWorkerSet":
        group = spec["leaderWorkerTemplate"]
        return [group["leaderTemplate"], group["workerTemplate"]]
    if document["kind"] == "RayCluster":
        return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    return []


def accepted(api: Kubectl, documents: list[dict[str, Any]], level: str) -> None:
    """All documents in a dry run; their pods, too, by the admission of that level, which Deployments alone do not ask."""
    namespace = f"level-{level}"
    for document in documents:
        document["metadata"].pop("namespace", None)
    api("apply", "--server-side", "--dry-run=server", "-n", namespace, "-f", "-", given=yaml.safe_dump_all(documents))
    pods = []
    for document in documents:
        for number, template in enumerate(templates(document)):
            metadata = {**template["metadata"], "name": f"{document['metadata']['name']}-{number}"}
            spec = {key: value for key, value in template["spec"].items() if key != "priorityClassName"}
            # A pod names an account that is there; the stack makes it.
            spec.pop("serviceAccountName", None)
            if document["kind"] != "Job":
                spec.setdefault("restartPolicy", "Always")
            pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    assert pods
    api("create", "--dry-run=server", "-n", namespace, "-f", "-", given=yaml.safe_dump_all(pods))


def stack_with(release: str, serving: dict[str, Any], **changes: Any) -> stacks.Stack:
    loaded = stacks.load_release(release, HERE)
    base = "grok-1" if loaded.name.startswith("grok") else "llama-70b" if loaded.name.startswith("llama") else "staging"
    stack = stacks.load_stack(base, HERE)
    machine = next(
        machine.id
        for machine in planner.catalog().machines.values()
        if machine.gpu == loaded.accelerator.gpu and machine.gpus >= loaded.accelerator.count
    )
    fleet = stack.fleet.model_copy(update={"machine_type": machine})
    return stack.model_copy(
        update={"release": loaded, "serving": stacks.Serving.model_validate(serving), "fleet": fleet, **changes}
    )


@pytest.mark.parametrize("release", stacks.release_names(HERE))
def test_every_release_is_accepted_and_its_pods_are_restricted(release: str, api: Kubectl, tmp_path: Path) -> None:
    accepted(api, rendered(stack_with(release, {}), tmp_path), "restricted")


VARIANTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "claim": ("qwen3-8b-vllm", {"cache": {"kind": "pvc", "storage_class": "filestore"}}, "restricted"),
    "claim-without-preload": ("gemma-3-4b-ollama-8", {"cache": {"kind": "pvc", "preload": False}}, "restricted"),
    "folder-of-the-node": (
        "qwen3-8b-vllm",
        {"cache": {"kind": "hostpath"}, "pod_security": "privileged"},
        "privileged",
    ),
    "bucket": ("qwen3-8b-sglang", {"cache": {"kind": "gcs", "bucket": "models"}}, "restricted"),
    "keys": ("qwen3-8b-vllm", {"api_key": True, "hugging_face_token": True}, "restricted"),
    "keys-of-sglang": ("qwen3-8b-sglang", {"api_key": True}, "restricted"),
    "no-policy": ("qwen3-8b-vllm", {"network_policy": False}, "restricted"),
    "baseline": ("gemma-3-4b-ollama-8", {"pod_security": "baseline"}, "baseline"),
    "priority": ("qwen3-8b-vllm", {"priority": 1000}, "restricted"),
    "simulated": ("gemma-3-4b-ollama-8", {"simulate": True}, "restricted"),
    "simulated-sglang": ("qwen3-8b-sglang", {"simulate": True}, "restricted"),
    "group-by-coscheduling": ("grok-1-vllm", {"group": {"gang": "coscheduling"}}, "restricted"),
    "group-by-kueue": ("grok-1-vllm", {"group": {"gang": "kueue", "queue": "q"}}, "restricted"),
    "group-by-ray": ("grok-1-vllm", {"group": {"controller": "kuberay"}}, "restricted"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_of_serving_is_accepted(name: str, api: Kubectl, tmp_path: Path) -> None:
    release, serving, level = VARIANTS[name]
    changes = {"gateway": None} if name != "keys" else {"gateway": stacks.Gateway()}
    accepted(api, rendered(stack_with(release, serving, **changes), tmp_path), level)


def test_a_pod_that_may_do_more_than_its_namespace_allows_is_refused_by_the_server(
    api: Kubectl, tmp_path: Path
) -> None:
    stack = stack_with("gemma-3-4b-ollama-8", {"pod_security": "baseline"})
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        accepted(api, rendered(stack, tmp_path), "restricted")


@pytest.mark.parametrize("name", [*stacks.stack_names(HERE), "candidate"])
def test_what_components_make_beside_the_charts_is_accepted(name: str, api: Kubectl) -> None:
    stack = stacks.load_stack("staging" if name == "candidate" else name, HERE)
    stack = stack.model_copy(update={"benchmark": None})
    if name == "candidate":
        gateway = stacks.Gateway(candidate=stacks.Candidate(release="qwen3-8b-sglang", percent=10))
        stack = stack.model_copy(update={"gateway": gateway})

    def program() -> None:
        components.Platform("platform", components.PlatformArgs(stack=stack, root=HERE, enforce=False))

    made = [
        one.inputs
        for one in record(program).made
        if one.type.startswith("kubernetes:") and not one.type.startswith("kubernetes:helm")
    ]
    assert made
    for document in made:
        if document["kind"] not in (
            "Namespace",
            "Node",
            "PriorityClass",
            "ComputeClass",
            "ResourceFlavor",
            "ClusterQueue",
        ):
            document["metadata"]["namespace"] = "level-restricted"
    text = yaml.safe_dump_all(json.loads(json.dumps(made)))
    api("apply", "--server-side", "--dry-run=server", "-f", "-", given=text)


def test_the_plan_decides_what_a_pod_asks_of_its_node() -> None:
    stack = stack_with("gemma-3-4b-vllm-mig", {})
    plan = planner.plan(stack)
    seven = values.render(stack, plan)["resources"]
    one = values.render(stack, dataclasses.replace(plan, replicas_per_node=1))["resources"]
    assert plan.replicas_per_node == 7
    assert int(seven["cpu"].rstrip("m")) * 7 <= int(one["cpu"].rstrip("m"))
