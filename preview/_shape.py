"""What of a program costs money or changes a promise: its GPU pools, its release and its gate, priced from the price book."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

# Google and AWS both bill by the second and quote 730 hours as a month.
HOURS_PER_MONTH = Decimal(730)

Price = Callable[[str, str, bool], Decimal | None]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A GPU pool. `hourly`: dollars per node and hour, or None when the price book does not know the machine there."""

    name: str
    machine_type: str
    gpu: str
    mig_profile: str | None
    region: str
    spot: bool
    nodes_min: int
    nodes_expected: int
    nodes_max: int
    hourly: Decimal | None

    def cost(self, nodes: int) -> Decimal:
        """Dollars per hour for that many nodes; 0 for an unpriced machine, which `Shape.unpriced` names."""
        return (self.hourly or Decimal(0)) * nodes


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One stack at one commit. `gate`: what its promotion check asks; empty for a program that has none."""

    stack: str
    pools: tuple[Pool, ...]
    release: Mapping[str, Any]
    gate: Mapping[str, Any]

    @property
    def unpriced(self) -> tuple[str, ...]:
        """The machine types whose cost is unknown: they are named, never counted as free without saying so."""
        return tuple(sorted({f"{pool.machine_type} in {pool.region}" for pool in self.pools if pool.hourly is None}))

    def nodes(self, which: str) -> int:
        """Nodes at `min`, `expected` or `max`."""
        return sum(int(getattr(pool, f"nodes_{which}")) for pool in self.pools)

    def hourly(self, which: str) -> Decimal:
        """Dollars per hour at `min`, `expected` or `max`."""
        return sum((pool.cost(getattr(pool, f"nodes_{which}")) for pool in self.pools), Decimal(0))


def shape(stack: str, resources: Iterable[Mapping[str, Any]], price: Price) -> Shape:
    """Read the pools and the release out of evaluated resources; the order of the resources does not matter."""
    pools: list[Pool] = []
    release: Mapping[str, Any] = {}
    gate: Mapping[str, Any] = {}
    for resource in resources:
        given = resource["inputs"]
        if resource["type"] == "tollgate:index:GpuPool":
            pools.append(
                Pool(
                    name=str(given["pool"]),
                    machine_type=str(given["machineType"]),
                    gpu=str(given["gpu"]),
                    mig_profile=given.get("migProfile"),
                    region=str(given["region"]),
                    spot=bool(given["spot"]),
                    nodes_min=int(given["nodesMin"]),
                    nodes_expected=int(given["nodesExpected"]),
                    nodes_max=int(given["nodesMax"]),
                    hourly=price(str(given["machineType"]), str(given["region"]), bool(given["spot"])),
                )
            )
        elif resource["type"] == "tollgate:index:Platform":
            release = {key: given.get(key) for key in ("release", "digest", "engine", "model", "slots", "replicas")}
        elif resource["type"] == "tollgate:index:PromotionCheck":
            gate = {key: given.get(key) for key in ("gated", "after", "criteria")}
    return Shape(stack=stack, pools=tuple(sorted(pools, key=lambda pool: pool.name)), release=release, gate=gate)
