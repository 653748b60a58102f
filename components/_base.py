"""What every component of ours shares: its type token, and how its children are tied to it."""

from __future__ import annotations

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
