"""Prometheus' configuration: what it scrapes, and the folders whose rules it evaluates.

Pods and Services that ask to be scraped by the usual annotations, every second; KEDA's operator and the state of objects
under the names that GKE's Prometheus has them by, with the same labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ._layout import KEDA_OPERATOR_METRICS_PORT, KUBE_STATE_PORT, Addresses

SCRAPE_INTERVAL = "1s"
# Rules of a stack are some eighty queries: on a laptop's cores not every second. Shorter than --query.lookback-delta, or
# what they record would be gone between two evaluations.
EVALUATION_INTERVAL = "5s"
_SLOW_INTERVAL = "5s"


def configuration(*, kubeconfig: Path, addresses: Addresses, rules: tuple[Path, ...]) -> dict[str, Any]:
    """Scrapes what carries `prometheus.io/scrape: "true"` (with `prometheus.io/port`, `/path`, `/scheme`).

    Every series of these has the labels `namespace`, `pod` and `node`, those of Services `service` too. `rules` are folders:
    files added there count after `POST /-/reload`.
    """
    return {
        "global": {
            "scrape_interval": SCRAPE_INTERVAL,
            "scrape_timeout": "1s",
            "evaluation_interval": EVALUATION_INTERVAL,
        },
        "rule_files": [str(folder / "*.yaml") for folder in rules],
        "scrape_configs": [
            _job("pods", "pod", "pod", kubeconfig, service=False),
            _job("services", "endpointslice", "service", kubeconfig, service=True),
            # As a PodMonitor's target: KEDA's own label `namespace` becomes `exported_namespace`.
            _static("keda-operator", addresses, KEDA_OPERATOR_METRICS_PORT, {"namespace": "keda"}, honor=False),
            # As kube-prometheus-stack scrapes it: `namespace` is that of the object.
            _static("kube-state-metrics", addresses, KUBE_STATE_PORT, {}, honor=True),
        ],
    }


def _static(name: str, addresses: Addresses, port: int, labels: dict[str, str], *, honor: bool) -> dict[str, Any]:
    return {
        "job_name": name,
        "honor_labels": honor,
        "scrape_interval": _SLOW_INTERVAL,
        "static_configs": [{"targets": [f"{addresses.control_plane}:{port}"], "labels": labels}],
    }


def _job(name: str, role: str, annotated: str, kubeconfig: Path, *, service: bool) -> dict[str, Any]:
    annotation = f"__meta_kubernetes_{annotated}_annotation_prometheus_io"
    relabel: list[dict[str, Any]] = [
        {"source_labels": [f"{annotation}_scrape"], "regex": "true", "action": "keep"},
        # A finished pod keeps its address in its status and would be a target that is down for ever.
        {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "Succeeded|Failed", "action": "drop"},
        {"source_labels": [f"{annotation}_scheme"], "regex": "(https?)", "target_label": "__scheme__"},
        {"source_labels": [f"{annotation}_path"], "regex": "(.+)", "target_label": "__metrics_path__"},
        {
            "source_labels": ["__address__", f"{annotation}_port"],
            "regex": r"([^:]+)(?::\d+)?;(\d+)",
            "replacement": "$1:$2",
            "target_label": "__address__",
        },
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
        {"source_labels": ["__meta_kubernetes_pod_node_name"], "target_label": "node"},
    ]
    if service:
        relabel.append({"source_labels": ["__meta_kubernetes_service_name"], "target_label": "service"})
    else:
        # One target per pod: without a port annotation discovery gives one per declared port, or one with none.
        relabel.append({"source_labels": ["__address__"], "regex": r"[^:]+:\d+", "action": "keep"})
    return {
        "job_name": name,
        "honor_labels": False,
        # For exporters that send no Content-Type.
        "fallback_scrape_protocol": "PrometheusText0.0.4",
        "kubernetes_sd_configs": [{"role": role, "kubeconfig_file": str(kubeconfig)}],
        "relabel_configs": relabel,
    }
