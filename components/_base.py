"""What every component of ours shares: its type token, how its children are tied to it, and names that fit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pulumi


class Component(pulumi.ComponentResource):
    """A component with the type token `tollgate:index:<class name>`.

    `facts` are plain inputs recorded with the component itself, so that previews and policies can read what a pool or a
    release is without knowing which provider's resources stand for it.
    """

    def __init__(self, name: str, facts: Mapping[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(f"tollgate:index:{type(self).__name__}", name, dict(facts), opts)

    def _child(self, **options: Any) -> pulumi.ResourceOptions:
        """Options of a child. Only the parent is passed on: providers are inherited, the rest belongs to each child."""
        return pulumi.ResourceOptions(parent=self, **options)


def fit(name: str, limit: int) -> str:
    """The name in at most `limit` characters: what is too long keeps its beginning and gets a hash of the whole.

    Google and Kubernetes refuse long names one by one, late; a plain cut would make two long names one.
    """
    if len(name) <= limit:
        return name
    return f"{name[: limit - 7].rstrip('-.')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
