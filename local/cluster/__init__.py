"""The embedded cluster: a real control plane as plain processes, owned by one supervisor.

Deliberately not here: running pods (`local.runner`, a process of its own) and building the programs (`local.tools`).
"""

from ._cluster import (
    Cluster,
    ClusterStatus,
    ComponentStatus,
    down,
    leftovers,
    list_clusters,
    load,
    status,
    up,
)
from ._layout import ports

__all__ = [
    "Cluster",
    "ClusterStatus",
    "ComponentStatus",
    "down",
    "leftovers",
    "list_clusters",
    "load",
    "ports",
    "status",
    "up",
]
