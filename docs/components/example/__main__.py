"""Another team's program: Tollgate's components by their type tokens alone, nothing of Tollgate is imported.

`pulumi package add ../../../components` would make classes of these, in the program's own language.
"""

from typing import Any

import pulumi
import pulumi_kubernetes as k8s

ours = k8s.Provider("ours", context="our-cluster", enable_server_side_apply=True)
FLEET: dict[str, Any] = {"machine_type": "g2-standard-8", "nodes": {"min": 1, "max": 4}}


class Remote(pulumi.ComponentResource):
    """A component that another process makes."""

    def __init__(
        self, token: str, name: str, props: dict[str, Any], opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__(token, name, props, opts, remote=True)


pool = Remote(
    "tollgate:index:GkeGpuPool",
    "l4",
    {
        "project": "our-project",
        "cluster": "our-cluster",
        "pool": "l4",
        "accelerator": {"gpu": "nvidia-l4"},
        "fleet": {**FLEET, "spot": True},
        "nodePools": None,
    },
)
service = Remote(
    "tollgate:index:LlmService",
    "chat",
    {
        "namespace": "chat",
        "release": {
            "engine": "vllm",
            "version": "0.32.0",
            "image": "vllm/vllm-openai:v0.32.0",
            "model": "qwen3-8b",
            "source": "Qwen/Qwen3-8B",
            "quantization": "fp8",
            "context_tokens": 4096,
            "kv_cache": "fp8",
            "accelerator": {"gpu": "nvidia-l4"},
            "chart": "engine",
        },
        "fleet": FLEET,
        "url": None,
        "digest": None,
        "slots": None,
        "replicas": None,
    },
    opts=pulumi.ResourceOptions(providers={"kubernetes": ours}, depends_on=[pool]),
)
pulumi.export("slots", service.slots)  # type: ignore[attr-defined]
pulumi.export("replicas", service.replicas)  # type: ignore[attr-defined]
pulumi.export("digest", service.digest)  # type: ignore[attr-defined]
