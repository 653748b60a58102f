"""Prometheus' configuration: pods and Services that ask to be scraped, by the usual annotations, every second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SCRAPE_INTERVAL = "1s"


def configuration(*, kubeconfig: Path, rules: Path) -> dict[str, Any]:
    """Scrapes what carries `prometheus.io/scrape: "true"` (with `prometheus.io/port`, `/path`, `/scheme`).

    Every series has the labels `namespace`, `pod` and `node`, those of Services `service` too. `rules` is a folder:
    files added there count after `POST /-/reload`.
    """
    return {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules / "*.yaml")],
        "scrape_configs": [
            _job("pods", "pod", "pod", kubeconfig, service=False),
            _job("services", "endpointslice", "service", kubeconfig, service=True),
        ],
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
