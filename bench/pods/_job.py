"""The objects of a load from pods: a Secret, a Service in front of pod 0, and an Indexed Job."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import stacks

from ..job import JobConfig

IMAGE = "ghcr.io/tollgate/bench:0.1.0"
PORT = 8765
_FILES = "/etc/tollgate"
# A Secret may have 1 MiB, base64 included.
_MOST_BYTES = 700_000


def labels(name: str) -> dict[str, str]:
    """Of all objects of this load."""
    return {"app.kubernetes.io/name": "bench", "tollgate.dev/load": name}


def service(name: str) -> dict[str, Any]:
    """What the other pods find pod 0 by. It must be there first: its address stands in the config."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {
            "selector": {"batch.kubernetes.io/job-name": name, "batch.kubernetes.io/job-completion-index": "0"},
            "ports": [{"name": "load", "port": PORT, "targetPort": PORT}],
            "publishNotReadyAddresses": True,
        },
    }


def secret(name: str, config: JobConfig, files: Mapping[str, Path]) -> dict[str, Any]:
    """The config, and the files that it names. Raises InputError when they are too large for a Secret."""
    data = {"bench.json": config.model_dump_json(exclude_none=True).encode()}
    data |= {key: path.read_bytes() for key, path in files.items()}
    size = sum(map(len, data.values()))
    if size > _MOST_BYTES:
        raise stacks.InputError(
            where="--trace and --prompts", got=f"{size} bytes", allowed=f"{_MOST_BYTES} bytes with --pods",
            fix="take a shorter part of the file, or measure without --pods",
        )  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": labels(name)},
        "type": "Opaque",
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def job(name: str, pods: int, seconds: float, *, cpu: int) -> dict[str, Any]:
    """One pod per index, on different machines where there are any; `seconds`: after which it is ended."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            # A pod that came back would not know what it had sent before.
            "backoffLimit": 0,
            "activeDeadlineSeconds": int(seconds),
            "ttlSecondsAfterFinished": 600,
            "template": {
                "metadata": {"labels": labels(name)},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 30,
                    "topologySpreadConstraints": [
                        {
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "ScheduleAnyway",
                            "labelSelector": {"matchLabels": labels(name)},
                        }
                    ],
                    "containers": [
                        {
                            "name": "bench",
                            "image": IMAGE,
                            "args": ["job", "--config", f"{_FILES}/bench.json"],
                            "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                            "ports": [{"containerPort": PORT}],
                            "resources": {"requests": {"cpu": str(cpu), "memory": "256Mi"}},
                            "volumeMounts": [{"name": "config", "mountPath": _FILES, "readOnly": True}],
                        }
                    ],
                    "volumes": [{"name": "config", "secret": {"secretName": name}}],
                    # The load may share a GPU machine's spare cores: it asks for no GPU.
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                },
            },
        },
    }


def inside(config: JobConfig) -> tuple[JobConfig, dict[str, Path]]:
    """The config with its files where the pods find them, and those files by their names there."""
    scenario, files = config.scenario, {}
    changes: dict[str, Any] = {}
    for name in ("trace", "prompts"):
        path = getattr(scenario, name)
        if path is not None:
            files[f"{name}{path.suffix}"] = path
            changes[name] = Path(_FILES) / f"{name}{path.suffix}"
    return config.model_copy(update={"scenario": scenario.model_copy(update=changes)}), files
