"""Each account's rights on a real API server: what docs/security.md lists it may do it may, and nothing that would hurt."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import preview

pytestmark = pytest.mark.cluster
Kubectl = Callable[..., str]
HERE = Path(__file__).resolve().parents[2]
_KINDS = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
# Not a stack's own: others of this session deploy stacks on the same cluster.
_NAMESPACE = "attack-rights"
_BENCH = f"system:serviceaccount:{_NAMESPACE}:bench"
_PROMETHEUS = "system:serviceaccount:monitoring:prometheus"
_DEFAULT = f"system:serviceaccount:{_NAMESPACE}:default"


@pytest.fixture(scope="module")
def rules(kubectl: Kubectl) -> Iterator[str]:
    """The program's own accounts and roles, applied as they are; gives the name of the result's ConfigMap."""
    found = preview.evaluate(HERE, ["local-dev"])["local-dev"]
    assert found.error is None
    text = json.dumps([one["inputs"] for one in found.resources if one["type"].rpartition(":")[2] in _KINDS])
    objects = json.loads(text.replace("local-dev", _NAMESPACE))
    assert {one["kind"] for one in objects} == set(_KINDS)
    kubectl("create", "namespace", _NAMESPACE)
    # Roles before what binds them.
    for one in sorted(objects, key=lambda one: one["kind"].endswith("Binding")):
        kubectl("apply", "-f", "-", given=json.dumps(one))
    (result,) = re.findall(r"bench-result-[0-9a-f]{12}", text)
    yield result
    for kind in ("clusterrolebinding", "clusterrole"):
        kubectl("delete", kind, f"tollgate-bench-{_NAMESPACE}")
    kubectl("delete", "namespace", _NAMESPACE, "--wait=false")


@pytest.fixture
def may(kubectl: Kubectl) -> Callable[..., bool]:
    def ask(account: str, verb: str, what: str, namespace: str = _NAMESPACE) -> bool:
        said = kubectl("auth", "can-i", verb, what, "-n", namespace, f"--as={account}", check=False).strip()
        assert said in ("yes", "no"), said
        return said == "yes"

    return ask


def test_the_benchmark_may_write_its_own_result_and_look_at_what_it_measures(
    rules: str, may: Callable[..., bool]
) -> None:
    assert may(_BENCH, "create", "configmaps")
    for verb in ("get", "update", "patch", "delete"):
        assert may(_BENCH, verb, f"configmaps/{rules}")
    assert may(_BENCH, "get", "deployments.apps/engine")
    assert may(_BENCH, "list", "nodes")


@pytest.mark.parametrize(
    ("verb", "what"),
    [
        ("get", "secrets"),
        ("list", "secrets"),
        ("list", "configmaps"),
        ("update", "configmaps/somebody-elses"),
        ("list", "pods"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("patch", "deployments.apps/engine"),
        ("update", "deployments.apps/scale"),
        ("create", "serviceaccounts/token"),
        ("impersonate", "users"),
        ("escalate", "roles.rbac.authorization.k8s.io"),
        ("bind", "clusterroles.rbac.authorization.k8s.io"),
        ("patch", "nodes"),
        ("delete", "nodes"),
        ("create", "jobs.batch"),
    ],
)
def test_the_benchmark_may_do_nothing_else(rules: str, may: Callable[..., bool], verb: str, what: str) -> None:
    assert not may(_BENCH, verb, what)


def test_the_benchmark_may_do_nothing_in_another_namespace(rules: str, may: Callable[..., bool]) -> None:
    for namespace in ("default", "kube-system", "monitoring"):
        assert not may(_BENCH, "create", "configmaps", namespace)
        assert not may(_BENCH, "get", "deployments.apps/engine", namespace)


def test_prometheus_reads_what_it_discovers_and_no_secrets(rules: str, may: Callable[..., bool]) -> None:
    for what in ("pods", "nodes", "services", "endpointslices.discovery.k8s.io"):
        assert may(_PROMETHEUS, "list", what)
        assert not may(_PROMETHEUS, "delete", what)
    for what in ("secrets", "configmaps"):
        assert not may(_PROMETHEUS, "get", what)


def test_what_runs_without_an_account_of_its_own_may_do_nothing(rules: str, may: Callable[..., bool]) -> None:
    # An engine's pods have no token at all; this is what one that was stolen elsewhere would be worth.
    for verb, what in (
        ("get", "secrets"),
        ("list", "pods"),
        ("create", "pods"),
        ("get", "configmaps"),
        ("list", "nodes"),
    ):
        assert not may(_DEFAULT, verb, what)


def test_the_words_of_a_refusal_come_from_the_api_server_itself(rules: str, kubectl: Kubectl) -> None:
    """Not what RBAC says about the account, but what the account is told when it tries."""
    assert kubectl("get", "secrets", "-n", _NAMESPACE, f"--as={_BENCH}", check=False) == ""
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": rules, "namespace": _NAMESPACE}}
    assert "created" in kubectl("create", "-f", "-", f"--as={_BENCH}", given=json.dumps(made))
    assert "deleted" in kubectl("delete", "configmap", rules, "-n", _NAMESPACE, f"--as={_BENCH}")


@pytest.mark.parametrize("stack", ["local-dev", "prod", "grok-1"])
def test_no_pod_of_ours_is_given_a_token_it_does_not_use(stack: str) -> None:
    """Pods that the program itself registers; the chart's are in tests/values."""
    resources = preview.evaluate(HERE, [stack])[stack].resources
    pods = [
        (one["name"], one["inputs"]["spec"]["template"]["spec"])
        for one in resources
        if "template" in (one["inputs"].get("spec") or {})
        and "containers" in one["inputs"]["spec"]["template"].get("spec", {})
    ]
    for name, spec in pods:
        # The benchmark writes its result with one.
        assert spec.get("automountServiceAccountToken") is False or spec.get("serviceAccountName") == "bench", name
