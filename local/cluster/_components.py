"""Every process of the control plane: its arguments, what it waits for, and how to tell that it is ready."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from local import tools

from ._layout import (
    API_SERVER_PORT,
    CONTROLLER_MANAGER_PORT,
    ETCD_CLIENT_PORT,
    ETCD_PEER_PORT,
    KEDA_ADAPTER_PORT,
    KEDA_GRPC_PORT,
    KEDA_OPERATOR_HEALTH_PORT,
    KEDA_OPERATOR_METRICS_PORT,
    KUBE_PROXY_HEALTH_PORT,
    KUBE_PROXY_METRICS_PORT,
    KUBELET_PORT,
    KWOK_PORT,
    PROMETHEUS_PORT,
    SCHEDULER_PORT,
    Addresses,
    Layout,
)
from ._plan import Plan, files

# What every process of a cluster carries in its environment, so that one left behind can be told from a stranger.
MARKER: Final = "TOLLGATE_CLUSTER_STATE"

# Steps that `needs` may name besides components.
STEP_MONITORING: Final = "step:monitoring"
STEP_KEDA: Final = "step:keda"


@dataclass(frozen=True, kw_only=True)
class Component:
    """One process. `ready`: `tcp://address:port`, an http(s) URL that answers 200, or `api:/path` on the API server."""

    name: str
    argv: tuple[str, ...]
    ready: str
    needs: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


def code_root() -> Path:
    """The folder that holds the package `local`."""
    return Path(__file__).resolve().parents[2]


def _flags(**values: object) -> tuple[str, ...]:
    return tuple(
        f"--{key.replace('_', '-')}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in values.items()
    )


def components(layout: Layout, addresses: Addresses, plan: Plan) -> tuple[Component, ...]:
    """All components, in the order in which they are shown."""
    return (
        _etcd(layout, addresses, plan),
        _api_server(layout, addresses, plan),
        _controller_manager(layout, addresses, plan),
        _scheduler(layout, addresses, plan),
        _kube_proxy(layout, addresses, plan),
        _kwok(layout, addresses, plan),
        _prometheus(layout, addresses, plan),
        _keda_operator(layout, addresses, plan),
        _keda_adapter(layout, addresses, plan),
        _runner(layout, addresses),
    )


def _etcd(layout: Layout, addresses: Addresses, plan: Plan) -> Component:
    client = f"https://{addresses.control_plane}:{ETCD_CLIENT_PORT}"
    peer = f"https://{addresses.control_plane}:{ETCD_PEER_PORT}"
    pki = layout.pki
    return Component(
        name="etcd",
        argv=(
            plan.programs["etcd"],
            *_flags(
                name=layout.name,
                data_dir=layout.state_dir / "etcd",
                listen_client_urls=client,
                advertise_client_urls=client,
                listen_peer_urls=peer,
                initial_advertise_peer_urls=peer,
                initial_cluster=f"{layout.name}={peer}",
                cert_file=pki / "etcd.crt",
                key_file=pki / "etcd.key",
                trusted_ca_file=pki / "etcd-ca.crt",
                client_cert_auth=True,
                peer_cert_file=pki / "etcd.crt",
                peer_key_file=pki / "etcd.key",
                peer_trusted_ca_file=pki / "etcd-ca.crt",
                peer_client_cert_auth=True,
                # A cluster that is thrown away need not survive a power failure; a killed process loses nothing.
                unsafe_no_fsync=True,
                # Writes that it keeps in memory for members that lag behind, and those that a start reads again. There is one
                # member: by default 5,000 and 10,000 of them, which takes some 40 MiB after the first minutes of work.
                snapshot_catchup_entries=100,
                snapshot_count=1000,
                log_level="warn",
            ),
        ),
        ready=f"tcp://{addresses.control_plane}:{ETCD_CLIENT_PORT}",
    )


def _api_server(layout: Layout, addresses: Addresses, plan: Plan) -> Component:
    pki = layout.pki
    return Component(
        name="kube-apiserver",
        argv=(
            plan.programs["kube-apiserver"],
            *_flags(
                bind_address=addresses.control_plane,
                advertise_address=addresses.control_plane,
                secure_port=API_SERVER_PORT,
                service_cluster_ip_range=addresses.service_cidr,
                etcd_servers=f"https://{addresses.control_plane}:{ETCD_CLIENT_PORT}",
                etcd_cafile=pki / "etcd-ca.crt",
                etcd_certfile=pki / "etcd-client.crt",
                etcd_keyfile=pki / "etcd-client.key",
                client_ca_file=pki / "ca.crt",
                tls_cert_file=pki / "apiserver.crt",
                tls_private_key_file=pki / "apiserver.key",
                authorization_mode="RBAC",
                allow_privileged=True,
                service_account_issuer="https://kubernetes.default.svc.cluster.local",
                service_account_key_file=pki / "service-account.pub",
                service_account_signing_key_file=pki / "service-account.key",
                requestheader_client_ca_file=pki / "front-proxy-ca.crt",
                requestheader_allowed_names="front-proxy-client",
                requestheader_username_headers="X-Remote-User",
                requestheader_group_headers="X-Remote-Group",
                requestheader_extra_headers_prefix="X-Remote-Extra-",
                proxy_client_cert_file=pki / "front-proxy-client.crt",
                proxy_client_key_file=pki / "front-proxy-client.key",
                kubelet_certificate_authority=pki / "ca.crt",
                kubelet_client_certificate=pki / "kubelet-client.crt",
                kubelet_client_key=pki / "kubelet-client.key",
                # Node names resolve nowhere here.
                kubelet_preferred_address_types="InternalIP",
                enable_priority_and_fairness=False,
                # Counted from its start: one that is killed more often than every five minutes, the default, would never do it,
                # and etcd would keep every version of every object.
                etcd_compaction_interval="1m",
                profiling=False,
                cert_dir=pki,
            ),
        ),
        ready="api:/readyz",
    )


def _controller_manager(layout: Layout, addresses: Addresses, plan: Plan) -> Component:
    kubeconfig = layout.pki / "controller-manager.kubeconfig"
    return Component(
        name="kube-controller-manager",
        argv=(
            plan.programs["kube-controller-manager"],
            *_flags(
                kubeconfig=kubeconfig,
                authentication_kubeconfig=kubeconfig,
                authorization_kubeconfig=kubeconfig,
                bind_address=addresses.control_plane,
                secure_port=CONTROLLER_MANAGER_PORT,
                tls_cert_file=layout.pki / "serving.crt",
                tls_private_key_file=layout.pki / "serving.key",
                service_account_private_key_file=layout.pki / "service-account.key",
                root_ca_file=layout.pki / "ca.crt",
                use_service_account_credentials=True,
                leader_elect=False,
                kube_api_qps=500,
                kube_api_burst=1000,
                # Autoscaling at the pace of a demonstration instead of the pace of production.
                horizontal_pod_autoscaler_sync_period="1s",
                horizontal_pod_autoscaler_downscale_stabilization="5s",
                horizontal_pod_autoscaler_initial_readiness_delay="1s",
                horizontal_pod_autoscaler_cpu_initialization_period="1s",
                profiling=False,
            ),
        ),
        needs=("kube-apiserver",),
        # Made by one of its controllers: they run.
        ready="api:/api/v1/namespaces/default/serviceaccounts/default",
    )


def _scheduler(layout: Layout, addresses: Addresses, plan: Plan) -> Component:
    kubeconfig = layout.pki / "scheduler.kubeconfig"
    return Component(
        name="kube-scheduler",
        argv=(
            plan.programs["kube-scheduler"],
            *_flags(
                kubeconfig=kubeconfig,
                authentication_kubeconfig=kubeconfig,
                authorization_kubeconfig=kubeconfig,
                bind_address=addresses.control_plane,
                secure_port=SCHEDULER_PORT,
                tls_cert_file=layout.pki / "serving.crt",
                tls_private_key_file=layout.pki / "serving.key",
                leader_elect=False,
                kube_api_qps=500,
                kube_api_burst=1000,
                profiling=False,
            ),
        ),
        needs=("kube-apiserver",),
        ready=f"https://{addresses.control_plane}:{SCHEDULER_PORT}/readyz",
    )


def proxy_path(layout: Layout) -> Path:
    """The folder that is kube-proxy's whole PATH."""
    return layout.state_dir / "kube-proxy"


def _kube_proxy(layout: Layout, addresses: Addresses, plan: Plan) -> Component:
    from ._bootstrap import PROXY_NODE

    here = addresses.control_plane
    return Component(
        name="kube-proxy",
        argv=(
            plan.programs["kube-proxy"],
            *_flags(
                kubeconfig=layout.pki / "kube-proxy.kubeconfig",
                proxy_mode="nftables",
                hostname_override=PROXY_NODE,
                bind_address=here,
                healthz_bind_address=f"{here}:{KUBE_PROXY_HEALTH_PORT}",
                metrics_bind_address=f"{here}:{KUBE_PROXY_METRICS_PORT}",
                cluster_cidr=addresses.pod_cidr,
                nodeport_addresses=addresses.node_cidr,
                # The machine's own settings stay as they are.
                conntrack_max_per_core=0,
                conntrack_min=0,
                conntrack_tcp_timeout_established=0,
                conntrack_tcp_timeout_close_wait=0,
                oom_score_adj=0,
            ),
        ),
        needs=("kube-apiserver",),
        env={"PATH": str(proxy_path(layout))},
        ready=f"http://{here}:{KUBE_PROXY_HEALTH_PORT}/livez",
    )


def _kwok(layout: Layout, addresses: Addresses, plan: Plan) -> Component:
    stages = [f"--config={file}" for file in files(Path(plan.data["kwok-stages"]))]
    return Component(
        name="kwok",
        argv=(
            plan.programs["kwok"],
            *_flags(
                kubeconfig=layout.pki / "kwok.kubeconfig",
                manage_all_nodes=False,
                manage_nodes_with_annotation_selector="kwok.x-k8s.io/node=fake",
                cidr=addresses.fake_pod_cidr,
                node_ip=addresses.node,
                node_port=KUBELET_PORT,
                server_address=f"{addresses.control_plane}:{KWOK_PORT}",
                node_lease_duration_seconds=120,
            ),
            *stages,
        ),
        needs=("kube-apiserver",),
        ready=f"tcp://{addresses.control_plane}:{KWOK_PORT}",
    )


def _prometheus(layout: Layout, addresses: Addresses, plan: Plan) -> Component:
    folder = layout.state_dir / "prometheus"
    return Component(
        name="prometheus",
        argv=(
            plan.programs["prometheus"],
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--storage.tsdb.retention.time=1d",
            f"--web.listen-address={addresses.control_plane}:{PROMETHEUS_PORT}",
            "--web.enable-lifecycle",
            # A series that ended must not go on counting in queries: scale-down would wait for it.
            "--query.lookback-delta=10s",
            "--log.level=warn",
        ),
        needs=("kube-apiserver", STEP_MONITORING),
        ready=f"{addresses.prometheus_url}/-/ready",
    )


def _keda_environment() -> dict[str, str]:
    return {
        "POD_NAMESPACE": "keda",
        "KEDA_CLUSTER_OBJECT_NAMESPACE": "keda",
        "WATCH_NAMESPACE": "",
        "KEDA_HTTP_DEFAULT_TIMEOUT": "3000",
    }


def _keda_operator(layout: Layout, addresses: Addresses, plan: Plan) -> Component:
    here = addresses.control_plane
    return Component(
        name="keda-operator",
        argv=(
            plan.programs["keda-operator"],
            *_flags(
                kubeconfig=layout.pki / "keda.kubeconfig",
                leader_elect=False,
                zap_log_level="info",
                zap_encoder="console",
                metrics_bind_address=f"{here}:{KEDA_OPERATOR_METRICS_PORT}",
                health_probe_bind_address=f"{here}:{KEDA_OPERATOR_HEALTH_PORT}",
                metrics_service_bind_address=f"{here}:{KEDA_GRPC_PORT}",
                cert_dir=layout.pki / "keda",
                enable_cert_rotation=False,
                # A folder without certificates: the default one does not exist.
                ca_dir=layout.state_dir / "empty",
                kube_api_qps=200,
                kube_api_burst=400,
            ),
        ),
        needs=("kube-apiserver", STEP_KEDA),
        env=_keda_environment(),
        ready=f"http://{here}:{KEDA_OPERATOR_HEALTH_PORT}/readyz",
    )


def _keda_adapter(layout: Layout, addresses: Addresses, plan: Plan) -> Component:
    here, kubeconfig = addresses.control_plane, layout.pki / "keda.kubeconfig"
    return Component(
        name="keda-adapter",
        argv=(
            plan.programs["keda-adapter"],
            *_flags(
                bind_address=here,
                secure_port=KEDA_ADAPTER_PORT,
                port=addresses.adapter_metrics_port,
                metrics_service_address=f"{here}:{KEDA_GRPC_PORT}",
                client_ca_file=layout.pki / "ca.crt",
                tls_cert_file=layout.pki / "keda" / "tls.crt",
                tls_private_key_file=layout.pki / "keda" / "tls.key",
                cert_dir=layout.pki / "keda",
                authentication_kubeconfig=kubeconfig,
                authorization_kubeconfig=kubeconfig,
                lister_kubeconfig=kubeconfig,
                zap_log_level="info",
                kube_api_qps=200,
                kube_api_burst=400,
            ),
        ),
        needs=("kube-apiserver", STEP_KEDA),
        env={**_keda_environment(), "KUBECONFIG": str(kubeconfig)},
        # Through the API server, so through the Service too: kube-proxy works.
        ready="api:/apis/external.metrics.k8s.io/v1beta1",
    )


def _runner(layout: Layout, addresses: Addresses) -> Component:
    pki = layout.pki
    path = os.pathsep.join(filter(None, (str(code_root()), os.environ.get("PYTHONPATH"))))
    return Component(
        name="runner",
        argv=(
            sys.executable,
            "-m",
            "local.runner",
            *("--name", layout.name),
            *("--kubeconfig", str(pki / "runner.kubeconfig")),
            *("--state-dir", str(layout.state_dir / "runner")),
            *("--node-ip", addresses.node),
            *("--pod-cidr", addresses.pod_cidr),
            *("--hosts-file", str(layout.hosts)),
            *("--kubelet-cert", str(pki / "kubelet-serving.crt")),
            *("--kubelet-key", str(pki / "kubelet-serving.key")),
            *("--client-ca", str(pki / "ca.crt")),
        ),
        needs=("kube-apiserver",),
        # Components have a home of their own; the real Ollama is found where this process would look for it.
        env={"PYTHONPATH": path, "TOLLGATE_CACHE": str(tools.cache_dir())},
        ready=f"tcp://{addresses.node}:{KUBELET_PORT}",
    )
