"""stacks/Pulumi.local-vllm.yaml as the live tests and `benchmarks/alerts.py` deploy it: few nodes and slots, quick scaling."""

from __future__ import annotations

from typing import Any

import stacks

QUICK = {"polling_seconds": 1, "cold_start_seconds": 4, "cooldown_seconds": 6}


def settings_of(nodes: int, **changed: Any) -> dict[str, Any]:
    """What differs from the stack's file, for Ground."""
    return {
        "fleet": {"machine_type": "g2-standard-8", "nodes": {"min": 1, "max": nodes}},
        "autoscaling": QUICK,
    } | changed


def stack_of(name: str, nodes: int, *, slots: int = 4, **changed: Any) -> stacks.Stack:
    """What Ground makes of those settings, as far as rules and queries read it. `changed`: further fields of the stack."""
    base = stacks.load_stack("local-vllm")
    release = changed.pop("release", base.release)
    parallelism = release.parallelism.model_copy(update={"slots": slots})
    return base.model_copy(
        update={
            "name": name,
            "namespace": name,
            "fleet": base.fleet.model_copy(update={"nodes": stacks.Nodes(min=1, max=nodes)}),
            "release": release.model_copy(update={"parallelism": parallelism}),
            "autoscaling": stacks.Autoscaling.model_validate(QUICK),
            **changed,
        }
    )
