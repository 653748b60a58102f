"""How much of a release one stack runs, and on what machines: never promoted, different per stack.

Deliberately not here: whether a machine has the GPU or a GPU the profile. That is the planner's, which knows the catalog.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ._base import Model, Name

_ZONE = re.compile(r"^[a-z]+-[a-z]+[0-9]+-[a-z]$")
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$")]
LabelKey = Annotated[
    str, Field(pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")
]
# The keys that GKE itself puts on GPU nodes: a second writer of them replaces the pool (terraform-provider-google#7928).
_RESERVED = ("cloud.google.com/", "nvidia.com/", "node.kubernetes.io/", "topology.kubernetes.io/", "tollgate.dev/")


class Nodes(Model):
    """Autoscaling bounds of the GPU pool, in nodes over all regions; the autoscaler may shrink it to `min`, also to 0."""

    min: Annotated[int, Field(ge=0, le=5000)]
    max: Annotated[int, Field(ge=1, le=5000)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be above max ({self.max})")
        return self


class Sharing(Model):
    """Several replicas on one GPU: in turns (`time-sharing`) or side by side (`mps`); 2 to 48 clients, as GKE allows."""

    strategy: Literal["time-sharing", "mps"]
    clients: Annotated[int, Field(ge=2, le=48)]


class Disk(Model):
    """The boot disk of a node: `gb`, and Google Cloud's name of its type."""

    gb: Annotated[int, Field(ge=50, le=65_536)] = 200
    type: Literal["pd-balanced", "pd-ssd", "pd-standard", "hyperdisk-balanced"] = "pd-balanced"

    @property
    def gb_per_second(self) -> float:
        """Sustained sequential read, GB/s: baseline plus rate per GiB, capped (Compute Engine's disk performance tables).

        Hyperdisk: what 3000 provisioned IOPS give by default, 0.14.
        """
        base, per_gb, top = {
            "pd-balanced": (0.14, 0.00028, 1.2),
            "pd-ssd": (0.24, 0.00048, 1.2),
            "pd-standard": (0.0, 0.00012, 0.4),
            "hyperdisk-balanced": (0.14, 0.0, 0.14),
        }[self.type]
        return min(top, base + per_gb * self.gb)


class Upgrade(Model):
    """How nodes get a new version.

    `surge`: at most `max_surge` extra nodes and `max_unavailable` missing ones at once. `blue-green`: a second pool beside
    the first, drained in batches of `batch_nodes`, `batch_soak_seconds` apart, and kept `soak_seconds` for a way back.
    """

    strategy: Literal["surge", "blue-green"] = "surge"
    max_surge: Annotated[int, Field(ge=0, le=20)] = 0
    max_unavailable: Annotated[int, Field(ge=0, le=20)] = 1
    batch_nodes: Annotated[int, Field(ge=1, le=100)] = 1
    batch_soak_seconds: Annotated[int, Field(ge=0, le=604_800)] = 300
    soak_seconds: Annotated[int, Field(ge=0, le=604_800)] = 3600

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.strategy == "surge" and self.max_surge + self.max_unavailable == 0:
            raise ValueError("max_surge and max_unavailable must not both be 0: no node could ever be upgraded")
        return self


class Taint(Model):
    """A taint of ours on every node of the pool; pods of the stack tolerate it."""

    key: LabelKey
    value: LabelValue = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class Fleet(Model):
    """How much of a release one stack runs.

    `regions`: one cluster each; `zones`: where GPUs are to be had, full names; none: all zones of the region.
    `spot` with `fallback: on-demand`: spot machines first, others where none is to be had, and back again.
    `driver`: which NVIDIA driver GKE installs. `mig`: how a pod asks for a slice, as GKE's (`nvidia.com/gpu` and a label)
    or NVIDIA's operator does it (`nvidia.com/mig-1g.10gb`). `preload_disk`: an image with the model on it, attached as a
    secondary boot disk. `location_policy`: how the autoscaler chooses zones; `any` takes what there is.
    `ignore`: further inputs of the node pool whose changes elsewhere are not to be undone (Pulumi's `ignoreChanges`).
    """

    regions: Annotated[tuple[Name, ...], Field(min_length=1)] = ("us-central1",)
    zones: tuple[Name, ...] = ()
    machine_type: Name
    nodes: Nodes
    spot: bool = False
    fallback: Literal["on-demand"] | None = None
    reservation: Name | None = None
    driver: Literal["default", "latest", "disabled"] = "latest"
    image_type: Literal["COS_CONTAINERD", "UBUNTU_CONTAINERD"] = "COS_CONTAINERD"
    mig: Literal["gke", "operator"] = "gke"
    sharing: Sharing | None = None
    placement: Literal["compact"] | None = None
    location_policy: Literal["any", "balanced"] | None = None
    disk: Disk = Disk()
    preload_disk: Annotated[str, Field(pattern=r"^(projects/[a-z0-9.:-]+/)?global/images/[a-z0-9-]+$")] | None = None
    upgrade: Upgrade = Upgrade()
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    ignore: tuple[str, ...] = ()

    @field_validator("labels")
    @classmethod
    def _free_label(cls, value: dict[str, str]) -> dict[str, str]:
        for key in value:
            if key.startswith(_RESERVED):
                raise ValueError(f"{key} is GKE's or ours to set; choose a key of your own")
        return value

    @field_validator("taints")
    @classmethod
    def _free_taint(cls, value: tuple[Taint, ...]) -> tuple[Taint, ...]:
        for taint in value:
            if taint.key.startswith(_RESERVED):
                raise ValueError(f"{taint.key} is set by GKE itself: a second writer of it replaces the pool")
        return value

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if self.spot and self.reservation:
            raise ValueError("spot machines cannot use a reservation; remove one of the two")
        if self.fallback and not self.spot:
            raise ValueError(
                "fallback names what to take where spot machines are lacking: set spot to true, or remove fallback"
            )
        if self.driver == "latest" and self.image_type != "COS_CONTAINERD":
            raise ValueError("driver latest exists for COS_CONTAINERD only; choose driver default, or that image_type")
        if len(set(self.regions)) != len(self.regions):
            raise ValueError("a region stands twice; name each once")
        if len(self.regions) > self.nodes.max:
            raise ValueError(
                f"nodes.max ({self.nodes.max}) is less than one node for each of {len(self.regions)} regions"
            )
        for zone in self.zones:
            if not _ZONE.fullmatch(zone) or zone.rpartition("-")[0] not in self.regions:
                names = ", ".join(self.regions)
                raise ValueError(f"zone {zone} is in none of the regions {names}; name them as {self.regions[0]}-a")
        bare = [region for region in self.regions if self.zones and not self.zones_in(region)]
        if bare:
            raise ValueError(f"zones are named, but none of {bare[0]}; name some there too, or leave zones out")
        wide = [region for region in self.regions if len(self.zones_in(region)) != 1]
        if self.placement == "compact" and wide:
            raise ValueError(f"compact placement keeps nodes close together: name exactly one zone of {wide[0]}")
        return self

    def zones_in(self, region: str) -> tuple[str, ...]:
        """The named zones of that region."""
        return tuple(zone for zone in self.zones if zone.rpartition("-")[0] == region)

    def split(self) -> tuple[Fleet, ...]:
        """One fleet per region, nodes shared out evenly; the first regions get what is left over."""
        if len(self.regions) == 1:
            return (self,)
        number = len(self.regions)
        return tuple(
            self.model_copy(
                update={
                    "regions": (region,),
                    "zones": self.zones_in(region),
                    "nodes": Nodes(min=_share(self.nodes.min, number, i), max=_share(self.nodes.max, number, i)),
                }
            )
            for i, region in enumerate(self.regions)
        )


def _share(total: int, parts: int, index: int) -> int:
    return total // parts + (1 if index < total % parts else 0)
