"""Kinds: from Pulumi's type tokens to API paths.

Built-in kinds are known without asking, so that Check works before any cluster exists; the rest is asked for by discovery
and cached, except for misses, because definitions appear in the middle of a run.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from ._client import Client, segment
from ._errors import ApiError, NoSuchKind, ProviderError

_CLUSTER_SCOPED = frozenset(
    [
        "Namespace",
        "Node",
        "PersistentVolume",
        "ComponentStatus",
        "ClusterRole",
        "ClusterRoleBinding",
        "StorageClass",
        "VolumeAttachment",
        "CSIDriver",
        "CSINode",
        "VolumeAttributesClass",
        "PriorityClass",
        "RuntimeClass",
        "IngressClass",
        "IPAddress",
        "ServiceCIDR",
        "CustomResourceDefinition",
        "APIService",
        "MutatingWebhookConfiguration",
        "ValidatingWebhookConfiguration",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyBinding",
        "FlowSchema",
        "PriorityLevelConfiguration",
        "CertificateSigningRequest",
        "ClusterTrustBundle",
        "DeviceClass",
        "ResourceSlice",
        "StorageVersionMigration",
        "StorageVersion",
        "SelfSubjectReview",
        "TokenReview",
        "SubjectAccessReview",
        "SelfSubjectAccessReview",
        "SelfSubjectRulesReview",
    ]
)
_BUILT_IN = frozenset(
    [
        "admissionregistration.k8s.io",
        "apiextensions.k8s.io",
        "apiregistration.k8s.io",
        "apps",
        "authentication.k8s.io",
        "authorization.k8s.io",
        "autoscaling",
        "batch",
        "certificates.k8s.io",
        "coordination.k8s.io",
        "discovery.k8s.io",
        "events.k8s.io",
        "extensions",
        "flowcontrol.apiserver.k8s.io",
        "internal.apiserver.k8s.io",
        "networking.k8s.io",
        "node.k8s.io",
        "policy",
        "rbac.authorization.k8s.io",
        "resource.k8s.io",
        "scheduling.k8s.io",
        "storage.k8s.io",
        "storagemigration.k8s.io",
    ]
)
# Pulumi's modules that are not the API group's own name.
_MODULES = {"core": "", "meta": ""}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """An API kind and what Pulumi asks of it."""

    group: str
    version: str
    kind: str
    patch: bool = False
    """A `...Patch` type: shares an object that something else made."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def __str__(self) -> str:
        return f"{self.api_version} {self.kind}"


def of(token: str, inputs: dict[str, Any]) -> Kind:
    """The kind of a resource: from its inputs where they say it, else from its token `kubernetes:<group>/<version>:<Kind>`."""
    pieces = token.split(":")
    if len(pieces) != 3 or "/" not in pieces[1]:
        raise ProviderError(f"{token} is not a Kubernetes resource type")
    module, _, version = pieces[1].rpartition("/")
    name = pieces[2]
    api_version, kind = inputs.get("apiVersion"), inputs.get("kind")
    built_in = module in _MODULES or module in _BUILT_IN
    patch = built_in and name.endswith("Patch") and name != "Patch"
    if not isinstance(kind, str):
        kind = name[: -len("Patch")] if patch else name
    if isinstance(api_version, str):
        group, _, version = api_version.rpartition("/")
    else:
        group = _MODULES.get(module, module)
    if built_in and name.endswith("List") and name != "List":
        raise ProviderError(
            f"{token}: lists are not served by this stand-in plugin; declare the items as resources of their own"
        )
    return Kind(group=group, version=version, kind=kind, patch=patch)


class Discovery:
    """Which paths serve which kinds."""

    def __init__(self, client: Client | None) -> None:
        self._client = client
        self._known: dict[tuple[str, str], dict[str, tuple[str, bool]]] = {}
        self._lock = threading.Lock()

    def namespaced(self, kind: Kind, *, retry_seconds: float) -> bool | None:
        """Whether objects of this kind live in a namespace; None where nobody knows yet."""
        if kind.group == "" or kind.group in _BUILT_IN:
            return kind.kind not in _CLUSTER_SCOPED
        try:
            return self._look_up(kind, retry_seconds)[1]
        except ProviderError:
            return None

    def path(self, kind: Kind, namespace: str | None, name: str | None, *, retry_seconds: float) -> str:
        """The URL path of an object (or of the collection, without a name). Raises NoSuchKind."""
        plural, namespaced = self._look_up(kind, retry_seconds)
        root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
        middle = f"/namespaces/{segment(namespace or 'default')}" if namespaced else ""
        return f"{root}{middle}/{plural}" + (f"/{segment(name)}" if name else "")

    def _look_up(self, kind: Kind, retry_seconds: float) -> tuple[str, bool]:
        key = (kind.group, kind.version)
        with self._lock:
            found = self._known.get(key, {}).get(kind.kind)
        if found:
            return found
        if self._client is None:
            raise ProviderError("no cluster")
        root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
        try:
            answer = self._client.request(
                "GET", root, retry_seconds=retry_seconds, action=f"discovery of {kind.api_version}"
            )
        except ApiError as error:
            if error.status != 404:
                raise
            answer = {}
        kinds = {
            item["kind"]: (item["name"], bool(item.get("namespaced")))
            for item in answer.get("resources") or []
            if "/" not in item["name"]
        }
        with self._lock:
            self._known[key] = kinds
        if kind.kind not in kinds:
            raise NoSuchKind(
                f"the API server does not serve {kind}; if a CustomResourceDefinition or chart in this program defines it, "
                "add that to `depends_on`"
            )
        return kinds[kind.kind]
