"""What the runner is told at its start."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

KUBELET_PORT = 10250
RUNNER_LABEL = "tollgate.dev/runner=process"
CAPACITY_ANNOTATION = "tollgate.dev/capacity"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`backoff_seconds`: first wait before a crashed container starts again; doubled up to 300 s, as the kubelet does.

    `refresh_seconds`: how often ConfigMaps and Secrets in volumes are read again. `keep_pods`: whether pods live on
    when the runner is asked to stop; when it is killed they do anyway.
    """

    name: str
    kubeconfig: Path
    state_dir: Path
    node_ip: str
    pod_cidr: ipaddress.IPv4Network
    hosts_file: Path | None = None
    kubelet_cert: Path | None = None
    kubelet_key: Path | None = None
    client_ca: Path | None = None
    backoff_seconds: float = 10.0
    refresh_seconds: float = 60.0
    keep_pods: bool = False

    @property
    def pods_dir(self) -> Path:
        """One folder per pod, named by its uid."""
        return self.state_dir / "pods"

    @property
    def shims_dir(self) -> Path:
        """One folder of programs per image, put first on PATH of its containers."""
        return self.state_dir / "shims"

    def pod_addresses(self) -> list[str]:
        """Every address that a pod may take: the /24s after the first of the range, without the control plane's last one."""
        base = int(self.pod_cidr.network_address)
        # kwok's pretended pods and kube-proxy live in the upper half.
        return [
            str(ipaddress.IPv4Address(base + 256 * third + last)) for third in range(1, 7) for last in range(1, 255)
        ]
