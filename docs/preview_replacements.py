"""Derives `preview/replacements.json`: which change of which field makes another resource, from the providers' own sources.

`python docs/preview_replacements.py GOOGLE KUBERNETES [--google-tag v7.45.0] [--kubernetes-tag v4.32.0]`, with git clones of
hashicorp/terraform-provider-google-beta (what pulumi_gcp bridges) and pulumi/pulumi-kubernetes. The installed SDKs can't tell:
they carry no schema, and their docstrings say it of few fields and not of a node pool's. They do know Pulumi's names, into which
Terraform's are translated; what the installed SDK lacks is left out and said.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
OUT = HERE / "preview" / "replacements.json"
_CONTAINER = ("container/node_config", "container/resource_container_node_pool", "container/resource_container_cluster")
_MEMBER = "tpgiamresource/resource_iam_member"
# Pulumi's type -> the Go files, and the definitions in them whose schemas are the type's.
GOOGLE = {
    "gcp:container/nodePool:NodePool": (_CONTAINER, ("func ResourceContainerNodePool(", "var schemaNodePool =")),
    "gcp:container/cluster:Cluster": (_CONTAINER, ("func ResourceContainerCluster(",)),
    "gcp:compute/address:Address": (("compute/resource_compute_address",), ("func ResourceComputeAddress(",)),
    "gcp:compute/disk:Disk": (("compute/resource_compute_disk",), ("func ResourceComputeDisk(",)),
    "gcp:compute/forwardingRule:ForwardingRule": (
        ("compute/resource_compute_forwarding_rule",), ("func ResourceComputeForwardingRule(",),
    ),
    "gcp:compute/globalAddress:GlobalAddress": (
        ("compute/resource_compute_global_address",), ("func ResourceComputeGlobalAddress(",),
    ),
    "gcp:compute/healthCheck:HealthCheck": (
        ("compute/resource_compute_health_check",), ("func ResourceComputeHealthCheck(",),
    ),
    "gcp:compute/router:Router": (("compute/resource_compute_router",), ("func ResourceComputeRouter(",)),
    "gcp:compute/routerNat:RouterNat": (("compute/resource_compute_router_nat",), ("func ResourceComputeRouterNat(",)),
    "gcp:dns/recordSet:RecordSet": (("dns/resource_dns_record_set",), ("func ResourceDnsRecordSet(",)),
    "gcp:projects/iAMMember:IAMMember": (
        (_MEMBER, "resourcemanager/iam_project"), ("var IamMemberBaseSchema =", "var IamProjectSchema ="),
    ),
    "gcp:serviceaccount/account:Account": (
        ("resourcemanager/resource_google_service_account",), ("func ResourceGoogleServiceAccount(",),
    ),
    "gcp:storage/bucket:Bucket": (("storage/resource_storage_bucket",), ("func ResourceStorageBucket(",)),
    "gcp:storage/bucketIAMMember:BucketIAMMember": (
        (_MEMBER, "storage/iam_storage_bucket"), ("var IamMemberBaseSchema =", "var StorageBucketIamSchema ="),
    ),
}  # fmt: skip
# The provider's own conditions -> what of a change they ask for.
_CONDITIONS = {"IsDiskShrinkage": "less", "isBeenEnabled": "off"}
KUBERNETES = {
    "kubernetes:apps/v1:DaemonSet": ("apps", "DaemonSet"),
    "kubernetes:apps/v1:Deployment": ("apps", "Deployment"),
    "kubernetes:apps/v1:StatefulSet": ("apps", "StatefulSet"),
    "kubernetes:batch/v1:Job": ("batch", "Job"),
    "kubernetes:core/v1:PersistentVolume": ("", "PersistentVolume"),
    "kubernetes:core/v1:PersistentVolumeClaim": ("", "PersistentVolumeClaim"),
    "kubernetes:core/v1:ResourceQuota": ("", "ResourceQuota"),
    "kubernetes:core/v1:Secret": ("", "Secret"),
    "kubernetes:core/v1:Service": ("", "Service"),
    "kubernetes:rbac.authorization.k8s.io/v1:ClusterRoleBinding": ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    "kubernetes:rbac.authorization.k8s.io/v1:RoleBinding": ("rbac.authorization.k8s.io", "RoleBinding"),
    "kubernetes:storage.k8s.io/v1:StorageClass": ("storage.k8s.io", "StorageClass"),
}

_TOKEN = re.compile(
    r"""`[^`]*` | //[^\n]*
    | "(?P<key>\w+)":\s*(?:(?P<open>\{)|(?P<call>\w+)\([^)]*\))
    | Elem:\s*(?P<elem>[A-Za-z]\w*)\(\) | ForceNew:\s*(?P<force>true) | Type:\s*schema\.(?P<type>\w+)
    | "(?:\\.|[^"\\])*" | (?P<brace>[{}])""",
    re.VERBOSE,
)


def block(text: str, start: int) -> str:
    """From the first brace at or after `start` to the one that closes it."""
    first = depth = -1
    for token in _TOKEN.finditer(text, text.index("{", start)):
        if token["open"] or token["brace"] == "{":
            first, depth = (token.end() - 1, 1) if depth < 0 else (first, depth + 1)
        elif token["brace"] == "}":
            depth -= 1
            if depth == 0:
                return text[first : token.end()]
    raise ValueError("a brace is never closed")


def forced(
    text: str, chunk: str, above: tuple[str, ...] = (), seen: tuple[str, ...] = ()
) -> Iterator[tuple[str, bool]]:
    """(path, whether it is a map) of every field that a Go schema calls ForceNew; functions are followed into `text`."""
    stack: list[str | None] = []
    kinds: dict[tuple[str, ...], str] = {}
    for token in _TOKEN.finditer(chunk):
        path = (*above, *(key for key in stack if key))
        if token["key"] and token["open"]:
            stack.append(token["key"])
        elif name := token["call"] or token["elem"]:
            # `(?m)^`: its definition, not one of its uses.
            found = re.search(rf"(?m)^func {name}\([^{{]*", text)
            below = (*path, token["key"]) if token["key"] else path
            if found and name not in seen:
                yield from forced(text, block(text, found.end()), below, (*seen, name))
        elif token["type"]:
            kinds.setdefault(path, token["type"])
        elif token["force"]:
            yield ".".join(path), kinds.get(path) == "TypeMap"
        elif token["brace"] == "{":
            stack.append(None)
        elif token["brace"] == "}" and stack:
            stack.pop()


def google(read: object, kind: str) -> tuple[list[str], dict[str, str]]:
    """The fields of a type, and those that count under a condition, in Pulumi's names."""
    files, definitions = GOOGLE[kind]
    text = "\n".join(read(file) for file in files)  # type: ignore[operator]
    fields, conditions = [], {}
    for definition in definitions:
        # Behind the type of a map, whose own braces are none.
        body = block(text, text.index("{\n", text.index(definition)))
        fields += [named(kind, path, whole=whole) for path, whole in forced(text, body)]
        for path, condition in re.findall(r'ForceNewIfChange\("([a-z_0-9]+)", (\w+)\)', body):
            conditions[str(named(kind, path))] = _CONDITIONS[condition]
    return sorted({field for field in fields if field}), conditions


def named(kind: str, path: str, *, whole: bool = False) -> str | None:
    """Terraform's path in the names of the installed pulumi_gcp; None, with a word, for what that does not have."""
    service, _, name = kind.removeprefix("gcp:").replace("/", ":").split(":")
    parts: list[str] = []
    holder: str | None = f"{name}Args"
    for part in path.split("."):
        known = inputs(service, str(holder)) if holder else {}
        words = part.split("_")
        camel = words[0] + "".join(word.capitalize() for word in words[1:])
        found = next((one for one in (camel, f"{camel}s", f"{camel}es", f"{camel[:-1]}ies") if one in known), None)
        if found is None:
            print(f"left out: {kind} has no {path} in the installed SDK", file=sys.stderr)
            return None
        parts.append(found)
        holder = known[found]
    return ".".join(parts) + (".*" if whole else "")


@functools.cache
def inputs(service: str, holder: str) -> dict[str, str | None]:
    """Pulumi's input names of a class of the installed pulumi_gcp -> the class of what is in them, if it has one.

    Read as text: importing that SDK takes longer than all else.
    """
    import pulumi_gcp

    folder = Path(pulumi_gcp.__file__).parent / service
    own = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", holder.removesuffix("Args")).lower()
    for file in (folder / f"{own}.py", folder / "_inputs.py"):
        text = _text(file) if file.is_file() else ""
        body = re.search(rf"(?m)^class {holder}:\n(.*?)(?=^class |^@pulumi|\Z)", text, re.DOTALL)
        if body:
            found = re.findall(r'@pulumi\.getter(?:\(name="(\w+)"\))?\s+def (\w+)\(self\) -> ([^\n]*)', body.group(1))
            return {
                given or name: (re.search(r"'(\w+Args)'", typed) or [None, None])[1] for given, name, typed in found
            }
    raise LookupError(f"pulumi_gcp.{service} has no class {holder}")


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def kubernetes(text: str, group: str, kind: str) -> list[str]:
    """The fields of a kind of v1, whatever is below them counted in; its name and namespace are every kind's."""
    table = block(text, text.index("var core =" if not group else f'\t"{group}": _versions'))
    version = block(table, table.index('"v1":')) if group else block(table, table.index("_kinds{"))
    where = re.search(rf'"{kind}":\s*', version)
    if where is None:
        raise LookupError(f"no {kind}")
    rest = version[where.end() :]
    # Its own list ends where the next kind begins.
    following = re.search(r'"[A-Z]\w+":', rest)
    expression = rest[: following.start()] if following else rest
    variable = re.match(r"[a-z]\w*(?=[,}\s])", expression)
    if variable and variable.group() not in ("append", "properties"):
        begun = text.index(f"var {variable.group()} =")
        expression = text[begun : text.index("\n}\n" if "append" not in text[begun : begun + 60] else "\n)\n", begun)]
    found = {path.removeprefix(".") for path in re.findall(r'"(\.[\w.]+)"', expression)}
    # What the provider holds for immutable unless it is told otherwise.
    immutable = re.search(rf"clients\.Is{kind}\(obj\).*\{{\s*props = append\(props, properties\{{([^}}]*)\}}", text)
    found |= {path.removeprefix(".") for path in re.findall(r'"(\.\w+)"', immutable.group(1) if immutable else "")}
    return sorted(f"{path}.*" for path in found)


def derive(google_clone: Path, google_tag: str, kubernetes_clone: Path, kubernetes_tag: str) -> dict[str, object]:
    """The whole table."""

    def read(name: str) -> str:
        folder = "" if name.startswith("tpg") else "services/"
        return show(google_clone, google_tag, f"google-beta/{folder}{name}.go")

    diff = show(kubernetes_clone, kubernetes_tag, "provider/pkg/provider/diff.go")
    release = show(kubernetes_clone, kubernetes_tag, "provider/pkg/provider/helm_release.go")
    helm = re.search(r"forceNewFields := \[\]string\{([^}]*)\}", release)
    resources: dict[str, object] = {}
    for kind in GOOGLE:
        fields, conditions = google(read, kind)
        resources[kind] = {"fields": fields, **({"if": conditions} if conditions else {})}
    for kind, (group, name) in KUBERNETES.items():
        resources[kind] = {"fields": kubernetes(diff, group, name)}
    every = re.search(r"func metadataForceNewProperties(.*?)\n}", diff, re.DOTALL)
    if helm is None or every is None:
        raise LookupError("the sources of pulumi-kubernetes are not as they were")
    resources["kubernetes:helm.sh/v3:Release"] = {
        "fields": [one[1:] for one in re.findall(r'"(\.\w+)"', helm.group(1))]
    }
    resources["kubernetes:*"] = {
        "fields": [f"metadata{one}" for one in re.findall(r'prefix \+ "(\.\w+)"', every.group(1))]
    }
    return {
        "sources": {
            "gcp": f"hashicorp/terraform-provider-google-beta {google_tag}, ForceNew",
            "kubernetes": f"pulumi/pulumi-kubernetes {kubernetes_tag}, provider/pkg/provider/diff.go",
        },
        "resources": dict(sorted(resources.items())),
    }


def show(clone: Path, tag: str, path: str) -> str:
    """A file of a tag, without checking it out."""
    return subprocess.run(
        ["git", "show", f"{tag}:{path}"], cwd=clone, check=True, capture_output=True, text=True, timeout=120
    ).stdout


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("google", type=Path)
    parser.add_argument("kubernetes", type=Path)
    parser.add_argument("--google-tag", default="v7.45.0")
    parser.add_argument("--kubernetes-tag", default="v4.32.0")
    given = parser.parse_args()
    found = derive(given.google, given.google_tag, given.kubernetes, given.kubernetes_tag)
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
