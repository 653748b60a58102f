"""One name over all regions: Cloud DNS by weight or by place, to regions whose health check passes.

Deliberately not here: the managed zone and certificates. They outlive every stack and belong to whoever owns the domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi

import stacks

from ._base import Component

# Google checks public endpoints from exactly three regions, at most every 30 s.
_CHECKED_FROM = ("us-central1", "europe-west1", "asia-southeast1")
_SHORTEST_CHECK_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class FleetDnsArgs:
    """`addresses`: the public address of each region, in the fleet's order. `health_path` answers 200 on port 80."""

    dns: stacks.Dns
    project: str | None
    addresses: Mapping[str, pulumi.Input[str]]
    health_path: str


class FleetDns(Component):
    """Attributes: `name`, the name without the final dot; `shares`, of each region (weighted), their sum 1."""

    name: str
    shares: dict[str, float]

    def __init__(self, name: str, args: FleetDnsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        # Imported here: loading the Google Cloud SDK takes half a second that other stacks need not pay.
        from pulumi_gcp import compute, dns

        wanted, regions = args.dns, tuple(args.addresses)
        shares = wanted.weights_of(regions) if wanted.policy == "weighted" else {}
        domain = wanted.name.rstrip(".")
        super().__init__(name, {"domain": domain, "policy": wanted.policy, "weights": shares}, opts)
        self.name, self.shares = domain, shares
        check = compute.HealthCheck(
            f"{name}-check",
            name=stacks.fit(self.name.replace(".", "-"), 63),
            project=args.project,
            source_regions=list(_CHECKED_FROM),
            check_interval_sec=max(_SHORTEST_CHECK_SECONDS, round(wanted.check_seconds)),
            timeout_sec=5,
            healthy_threshold=2,
            # Three failed ones take a region out.
            unhealthy_threshold=3,
            http_health_check={"port": 80, "request_path": args.health_path},
            opts=self._child(),
        )
        policy: dict[str, Any] = {"health_check": check.self_link}
        if wanted.policy == "weighted":
            policy["wrrs"] = [
                {"weight": round(self.shares[region], 6), **_target(address)}
                for region, address in args.addresses.items()
            ]
        else:
            policy["geos"] = [{"location": region, **_target(address)} for region, address in args.addresses.items()]
        dns.RecordSet(
            f"{name}-record",
            managed_zone=wanted.zone,
            project=args.project,
            name=f"{self.name}.",
            type="A",
            ttl=wanted.ttl_seconds,
            routing_policy=policy,
            opts=self._child(),
        )
        self.register_outputs({"name": self.name})


def _target(address: pulumi.Input[str]) -> dict[str, Any]:
    endpoints: Sequence[pulumi.Input[str]] = [address]
    return {"health_checked_targets": {"external_endpoints": endpoints}}
