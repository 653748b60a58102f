"""What `up` hands to the supervisor: the programs and data files to use, resolved once, in a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kwok",
    "prometheus",
    "keda-operator",
    "keda-adapter",
)
DATA = ("kwok-stages", "keda-crds", "keda-rbac")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Paths of `PROGRAMS` and `DATA`; `rootless`: the cluster gets namespaces of its own."""

    programs: dict[str, str]
    data: dict[str, str]
    rootless: bool

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Plan:
        """What `write` wrote."""
        return cls(**json.loads(path.read_text()))


def files(path: Path) -> list[Path]:
    """The YAML files at `path`, which may be one file or a folder of them."""
    return sorted(p for p in path.rglob("*.y*ml")) if path.is_dir() else [path]
