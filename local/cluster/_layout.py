"""Where a cluster's addresses, ports and files are: pure functions of its slot, name and home."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from stacks import InputError

SLOTS: Final = 16

API_SERVER_PORT: Final = 6443
ETCD_CLIENT_PORT: Final = 2379
ETCD_PEER_PORT: Final = 2380
CONTROLLER_MANAGER_PORT: Final = 10257
SCHEDULER_PORT: Final = 10259
KUBE_PROXY_METRICS_PORT: Final = 10249
KUBE_PROXY_HEALTH_PORT: Final = 10256
KWOK_PORT: Final = 10247
KUBELET_PORT: Final = 10250
# On the nodes' address, as NodeLocal DNSCache is; not 53, which needs a right and which a machine's own may have.
DNS_PORT: Final = 10053
PROMETHEUS_PORT: Final = 9090
# Not 8080, kube-state-metrics' own: many a program on a laptop has that on all addresses.
KUBE_STATE_PORT: Final = 18082
KEDA_GRPC_PORT: Final = 9666
KEDA_ADAPTER_PORT: Final = 6444
KEDA_OPERATOR_METRICS_PORT: Final = 18080
KEDA_OPERATOR_HEALTH_PORT: Final = 18081
# The adapter's metrics listener has no address flag and binds to every interface, so each slot needs its own port;
# the guard table of `_nft` keeps everyone but this machine away from it.
KEDA_ADAPTER_METRICS_PORT: Final = 18100

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """The addresses that slot `slot` (0..15) owns: `10.77.(16 slot).0/20` and `10.96.(16 slot).0/20`."""

    slot: int

    def _pod(self, third: int, fourth: int) -> str:
        return f"10.77.{16 * self.slot + third}.{fourth}"

    @property
    def pod_cidr(self) -> str:
        """All addresses of nodes, control plane and pods."""
        return f"{self._pod(0, 0)}/20"

    @property
    def service_cidr(self) -> str:
        """All addresses of Services."""
        return f"10.96.{16 * self.slot}.0/20"

    @property
    def control_plane(self) -> str:
        """Where every process of the control plane listens."""
        return self._pod(0, 1)

    @property
    def node(self) -> str:
        """The address of every node, where the pod runner serves the kubelet API."""
        return self._pod(0, 2)

    @property
    def node_cidr(self) -> str:
        """The only addresses on which NodePorts are opened, so that clusters side by side can't take each other's."""
        return f"{self._pod(0, 0)}/24"

    @property
    def fake_pod_cidr(self) -> str:
        """For pods that kwok pretends to run; the pod runner counts up from the lower half."""
        return f"{self._pod(8, 0)}/21"

    @property
    def source(self) -> str:
        """The source address of connections to Services; without it they would leave from the Service's address."""
        return self._pod(15, 254)

    @property
    def kubernetes_service(self) -> str:
        """Of the default `kubernetes` Service: the first address of the range."""
        return f"10.96.{16 * self.slot}.1"

    @property
    def api_url(self) -> str:
        """Of the API server."""
        return f"https://{self.control_plane}:{API_SERVER_PORT}"

    @property
    def prometheus_url(self) -> str:
        """Of Prometheus."""
        return f"http://{self.control_plane}:{PROMETHEUS_PORT}"

    @property
    def nft_table(self) -> str:
        """Of kube-proxy's rules, families `ip` and `ip6`."""
        return f"tollgate-{self.slot}"

    @property
    def guard_table(self) -> str:
        """Of the rules that keep other machines out, family `inet`."""
        return f"tollgate-guard-{self.slot}"

    @property
    def adapter_metrics_port(self) -> int:
        """See `KEDA_ADAPTER_METRICS_PORT`."""
        return KEDA_ADAPTER_METRICS_PORT + self.slot

    @property
    def listeners(self) -> tuple[tuple[str, int, str], ...]:
        """Address, port and component of each listener: what has to be free before a start."""
        here = self.control_plane
        return (
            (here, ETCD_CLIENT_PORT, "etcd"),
            (here, ETCD_PEER_PORT, "etcd"),
            (here, API_SERVER_PORT, "kube-apiserver"),
            (here, CONTROLLER_MANAGER_PORT, "kube-controller-manager"),
            (here, SCHEDULER_PORT, "kube-scheduler"),
            (here, KUBE_PROXY_METRICS_PORT, "kube-proxy"),
            (here, KUBE_PROXY_HEALTH_PORT, "kube-proxy"),
            (here, KWOK_PORT, "kwok"),
            (here, PROMETHEUS_PORT, "prometheus"),
            (here, KUBE_STATE_PORT, "supervisor"),
            (here, KEDA_GRPC_PORT, "keda-operator"),
            (here, KEDA_OPERATOR_METRICS_PORT, "keda-operator"),
            (here, KEDA_OPERATOR_HEALTH_PORT, "keda-operator"),
            (here, KEDA_ADAPTER_PORT, "keda-adapter"),
            ("0.0.0.0", self.adapter_metrics_port, "keda-adapter"),
            (self.node, KUBELET_PORT, "runner"),
        )


def ports() -> dict[int, str]:
    """Port -> component, the same in every slot: what a listener on all of a machine's addresses takes from each of them."""
    return {port: component for address, port, component in Addresses(slot=0).listeners if address != "0.0.0.0"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The files of one cluster below its home (`TOLLGATE_HOME`)."""

    home: Path
    name: str

    @property
    def state_dir(self) -> Path:
        """Everything but the lock; `down` removes it whole."""
        return self.home / "clusters" / self.name

    @property
    def lock(self) -> Path:
        """Held while `up` or `down` works on the cluster; outside of the state folder, which they remove."""
        return self.home / "locks" / f"{self.name}.lock"

    @property
    def state(self) -> Path:
        """`state.json`, replaced as a whole at every change."""
        return self.state_dir / "state.json"

    @property
    def pki(self) -> Path:
        """Keys and certificates, 0700."""
        return self.state_dir / "pki"

    @property
    def logs(self) -> Path:
        """One file per component."""
        return self.state_dir / "logs"

    @property
    def hosts(self) -> Path:
        """What stands for cluster DNS: mounted over `/etc/hosts` for every process of the cluster."""
        return self.state_dir / "hosts"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.state_dir / "kubeconfig"

    def log(self, component: str) -> Path:
        """The log of `component`."""
        return self.logs / f"{component}.log"


def cluster_home() -> Path:
    """`TOLLGATE_HOME`, by default the user's state folder for `tollgate`."""
    given = os.environ.get("TOLLGATE_HOME")
    return Path(given).absolute() if given else Path(platformdirs.user_state_path("tollgate"))


def slots_dir() -> Path:
    """The machine-wide folder of slot locks, shared by all users."""
    return Path(os.environ.get("TOLLGATE_SLOTS") or Path(tempfile.gettempdir()) / "tollgate-slots")


def layout(name: str) -> Layout:
    """The layout of cluster `name`; `InputError` if that can't be a name."""
    if not _NAME.fullmatch(name):
        raise InputError(
            where="cluster name",
            got=repr(name),
            allowed="1 to 40 lower-case letters, digits and hyphens, not at either end",
            fix="choose another name with --name or TOLLGATE_CLUSTER",
        )
    return Layout(home=cluster_home(), name=name)
