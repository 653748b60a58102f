"""Names of what is made, as short as Google and Kubernetes want them."""

from __future__ import annotations

import hashlib

from ._models import Stack

# Of a GKE cluster's name (its API reference, `Cluster.name`).
CLUSTER_NAME_CHARS = 40


def fit(name: str, limit: int) -> str:
    """The name in at most `limit` characters: what is too long keeps its beginning and gets a hash of the whole.

    Google and Kubernetes refuse long names one by one, late; a plain cut would make two long names one.
    """
    if len(name) <= limit:
        return name
    return f"{name[: limit - 7].rstrip('-.')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def cluster_name(stack: Stack, region: str) -> str:
    """What the stack's cluster of that region is called; on GKE a new one is called after its region, too."""
    if stack.target != "gke":
        return stack.cluster
    own = stack.cluster if stack.gke.adopt else fit(f"{stack.cluster}-{region}", CLUSTER_NAME_CHARS)
    return stack.gke.names.get(region, own)
