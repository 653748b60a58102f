"""Resources into what costs money: the same for a program that was evaluated and for one that Pulumi previewed.

A resource is a mapping with `type`, `name`, `inputs`, `parent` (`type::name` or None). What a component of ours says of itself
(`tollgate:index:*`) comes first; what Google is asked for (`gcp:*`) is read as any program would write it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import planner

from ._model import LEVELS, ZERO, Item, Plan, Quantity, Shape, Unpriced, amount, of_strangers, total
from ._prices import Prices, Rate

Resource = Mapping[str, Any]

_POOL = "tollgate:index:GpuPool"
_NODE_POOL = "gcp:container/nodePool:NodePool"
_RELEASE = "kubernetes:helm.sh/v3:Release"
# They cost nothing of themselves.
_FREE = (
    "gcp:serviceaccount/",
    "gcp:projects/",
    "gcp:organizations/",
    "gcp:storage/bucketIAM",
    "gcp:compute/router:",
    "gcp:compute/network:",
    "gcp:compute/subnetwork:",
    "gcp:compute/firewall:",
)
_BY_USE = {
    "gcp:dns/recordSet:RecordSet": "Cloud DNS bills queries, and their number is not known",
    "gcp:compute/healthCheck:HealthCheck": "billed by checks of addresses outside of Google Cloud",
}
_CLOUDS = ("gcp:", "google-native:", "aws:", "aws-native:", "azure:", "azure-native:")
# Google's default where a pool says nothing.
_DISK_GB, _DISK_TYPE = 100, "pd-balanced"
# Above this many machines a NAT gateway costs no more: 0.044 over 0.0014 USD.
_NAT_MACHINES = Decimal(220) / 7
# One streamed token of vLLM 0.32's chat API is one event of 206 bytes; TLS and TCP add a little.
_BYTES_PER_TOKEN = 210
_PLACES = Decimal("0.000001")


@dataclass
class _Found:
    prices: Prices
    items: list[Item] = field(default_factory=list)
    unpriced: list[Unpriced] = field(default_factory=list)

    def add(self, rate: Rate | None, why: str, **given: Any) -> None:
        """An item; without a rate it is unpriced, by name."""
        item = Item(
            usd_per_hour=rate.usd_per_hour if rate else None,
            source=rate.source if rate else "",
            as_of=rate.as_of if rate else None,
            **given,
        )
        self.items.append(item)
        if rate is None:
            self.unpriced.append(Unpriced(name=item.machine_type or f"{item.kind} {item.name}", why=why))


@of_strangers
def shape(
    stack: str,
    resources: Iterable[Resource],
    prices: Prices,
    *,
    plan: Mapping[str, Any] | None = None,
    release: Mapping[str, Any] | None = None,
) -> Shape:
    """The priced shape of a stack. `plan`: as `components.evaluate` gives it; the order of the resources does not matter."""
    ordered = sorted(resources, key=lambda one: (one["type"], one["name"], str(one.get("parent"))))
    found = _Found(prices=prices)
    target = next((str(one["inputs"].get("target")) for one in ordered if one["type"] == "tollgate:index:Cluster"), "")
    children: dict[str, list[Resource]] = {}
    for one in ordered:
        if one["type"] == _NODE_POOL:
            children.setdefault(str(one.get("parent")), []).append(one)
    owned = set()
    for one in ordered:
        if one["type"] == _POOL:
            key = f"{_POOL}::{one['name']}"
            _gpu_pool(found, one, children.get(key, ()), plan)
            owned.add(key)
    for parent, pools in children.items():
        for one in pools if parent not in owned else ():
            _node_pool(found, one)
    for one in ordered:
        _around(found, one, target)
    _network(found, ordered, target, plan)
    platform = _inputs_of(ordered, "tollgate:index:Platform")
    gate = _inputs_of(ordered, "tollgate:index:PromotionCheck")
    return Shape(
        stack=stack,
        target=target,
        items=tuple(sorted(found.items, key=lambda item: (item.kind, item.name))),
        unpriced=tuple(
            {entry.name + entry.why: entry for entry in sorted(found.unpriced, key=lambda e: e.name)}.values()
        ),
        release=_flat_release(release, platform),
        digest=str(platform.get("digest") or ""),
        gate={**{key: gate.get(key) for key in ("gated", "after")}, "criteria": dict(gate.get("criteria") or {})}
        if gate
        else {},
        plan=_plan(plan),
    )


def _inputs_of(resources: Sequence[Resource], kind: str) -> Mapping[str, Any]:
    return next((one["inputs"] for one in resources if one["type"] == kind), {})


def _plan(given: Mapping[str, Any] | None) -> Plan | None:
    if not given:
        return None
    predicted = given.get("predicted", {})

    def seconds(name: str) -> Decimal | None:
        value = predicted.get(name)
        return None if value is None else Decimal(str(value))

    mean = Decimal(str(given.get("output_tokens_per_second", 0)))
    return Plan(
        e2e_p95_seconds=seconds("e2e_p95_seconds"),
        ttft_p95_seconds=seconds("ttft_p95_seconds"),
        output_tokens_per_second=mean,
        output_tokens_per_second_peak=Decimal(str(given.get("output_tokens_per_second_peak", mean))),
        unmet=tuple(given.get("unmet", ())),
        binds=str(given.get("binds", "")),
    )


def _flat_release(release: Mapping[str, Any] | None, platform: Mapping[str, Any]) -> dict[str, Any]:
    """Release fields under one name each; without the release's file, what the platform says of it."""
    if not release:
        return {key: platform.get(key) for key in ("release", "engine", "model", "slots") if key in platform}
    flat = {key: value for key, value in release.items() if not isinstance(value, Mapping)}
    parallelism, accelerator = release.get("parallelism", {}), release.get("accelerator", {})
    flat |= {key: parallelism.get(key) for key in ("slots", "tensor", "pipeline")}
    flat |= {"gpu": accelerator.get("gpu"), "gpus": accelerator.get("count"), "slice": accelerator.get("mig_profile")}
    flat["release"] = flat.pop("name", None)
    # `auto` is not a number; what it comes to is.
    flat["slots"] = platform.get("slots", flat["slots"])
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value for key, value in flat.items()
    }


def _number(value: Any, other: Any = 0) -> Decimal:
    return (
        Decimal(str(value)) if isinstance(value, int | float) and not isinstance(value, bool) else Decimal(str(other))
    )


def _gpu_pool(found: _Found, one: Resource, pools: Sequence[Resource], plan: Mapping[str, Any] | None) -> None:
    """A pool that the plan sizes: from Google's node pools where there are any, else from what the component says."""
    given = one["inputs"]
    low, peak, high = (_number(given.get(key)) for key in ("nodesMin", "nodesExpected", "nodesMax"))
    mean = peak
    if plan and _number(plan.get("nodes_peak")):
        share = Decimal(str(plan.get("nodes_expected", plan["nodes_peak"]))) / _number(plan["nodes_peak"])
        mean = max(low, min(high, (peak * share).quantize(_PLACES))) if share != 1 else peak
    quantity = Quantity(min=low, expected=mean, max=high, peak=peak)
    spot = bool(given.get("spot"))
    if not pools:
        machine, region = str(given.get("machineType")), str(given.get("region"))
        profile = given.get("migProfile")
        known = planner.catalog().machines.get(machine)
        gpus = known.gpus if known else 0
        _nodes(
            found, name=one["name"], machine=machine, region=region, zones=(), spot=spot, quantity=quantity,
            gpu=str(given.get("gpu")), gpus=gpus, profile=profile,
        )  # fmt: skip
        return
    for pool in pools:
        own = bool((pool["inputs"].get("nodeConfig") or {}).get("spot"))
        fallback = len(pools) > 1 and own != spot
        if fallback:
            # Where no spot machine is to be had, all of them are on demand: the dearest case, and the one at most.
            part = Quantity(min=ZERO, expected=ZERO, max=high, peak=ZERO)
        elif len(pools) > 1:
            part = Quantity(min=low, expected=mean, max=ZERO, peak=peak)
        else:
            part = quantity
        note = "fallback: at most all are on demand" if len(pools) > 1 else ""
        _node_pool(found, pool, part, note=note)


def _node_pool(found: _Found, one: Resource, quantity: Quantity | None = None, *, note: str = "") -> None:
    """Google's node pool, of whoever's program."""
    given = one["inputs"]
    config = given.get("nodeConfig") or {}
    zones = tuple(str(zone) for zone in given.get("nodeLocations") or ())
    location = str(given.get("location") or "unknown region")
    region = location.rpartition("-")[0] if location.count("-") == 2 else location
    # A regional pool stands in three zones unless it names some.
    spread = len(zones) or (1 if region != location else 3)
    if quantity is None:
        quantity = _autoscaled(given, spread)
    accelerators = config.get("guestAccelerators") or []
    first = accelerators[0] if accelerators else {}
    # A pool that is given no type has Google's default one.
    machine = str(config.get("machineType") or "e2-medium")
    _nodes(
        found, name=one["name"], machine=machine, region=region, zones=zones, spot=bool(config.get("spot")),
        quantity=quantity, gpu=first.get("type"), gpus=int(first.get("count") or 0),
        profile=first.get("gpuPartitionSize"), note=note,
    )  # fmt: skip
    size, disk = _number(config.get("diskSizeGb"), _DISK_GB), str(config.get("diskType") or _DISK_TYPE)
    _disk(found, one["name"], disk, region, quantity.times(size), f"boot disks of {size.normalize():f} GiB {disk}")
    for extra in config.get("secondaryBootDisks") or []:
        image = str(extra.get("diskImage", "an image")).rpartition("/")[2]
        found.unpriced.append(
            Unpriced(name=f"secondary boot disk of {one['name']}", why=f"as large as {image}, which is not known here")
        )


def _autoscaled(given: Mapping[str, Any], spread: int) -> Quantity:
    """Nodes of a pool that nothing plans: between its bounds, and expected to stay as it is made."""
    auto = given.get("autoscaling") or {}
    initial = _number(given.get("nodeCount"), _number(given.get("initialNodeCount"), 1)) * spread
    if auto.get("totalMaxNodeCount"):
        low, high = _number(auto.get("totalMinNodeCount")), _number(auto["totalMaxNodeCount"])
    elif auto.get("maxNodeCount"):
        low, high = _number(auto.get("minNodeCount")) * spread, _number(auto["maxNodeCount"]) * spread
    else:
        return Quantity.fixed(initial)
    made = max(low, min(high, initial))
    return Quantity(min=low, expected=made, max=high, peak=made)


def _nodes(
    found: _Found,
    *,
    name: str,
    machine: str,
    region: str,
    zones: tuple[str, ...],
    spot: bool,
    quantity: Quantity,
    gpu: str | None,
    gpus: int,
    profile: str | None,
    note: str = "",
) -> None:
    known = planner.catalog().gpus.get(gpu or "")
    cut = known.mig.get(profile) if known and profile else None
    how = "spot" if spot else "on demand"
    found.add(
        found.prices.machine(machine, region, spot=spot),
        f"no {how} price of {machine} in {region} in {found.prices.book}",
        kind="gpu-pool" if gpu else "cpu-pool",
        name=name,
        region=region,
        zones=zones,
        unit="node",
        quantity=quantity,
        machine_type=machine,
        gpu=gpu,
        gpus=gpus,
        mig_profile=profile,
        slices=gpus * cut.count if cut else 0,
        spot=spot,
        note=note,
    )


def _disk(found: _Found, name: str, kind: str, region: str, quantity: Quantity, note: str) -> None:
    found.add(
        found.prices.rate(f"disk {kind}", region),
        f"no price of {kind} in {region}",
        kind="disk",
        name=name,
        region=region,
        unit="GiB",
        quantity=quantity,
        note=note,
    )


def _around(found: _Found, one: Resource, target: str) -> None:
    """What is neither pool nor traffic."""
    kind, name, given = str(one["type"]), str(one["name"]), one["inputs"]
    region = str(given.get("region") or given.get("location") or "")
    if kind == "gcp:container/cluster:Cluster":
        found.add(
            found.prices.rate("cluster", region), "no cluster fee is known",
            kind="cluster", name=name, region=region, unit="cluster", quantity=Quantity.fixed(1), note="GKE cluster fee",
        )  # fmt: skip
        _own_pools(found, one)
    elif kind == "gcp:compute/address:Address":
        found.items.append(
            Item(
                kind="address", name=name, region=region, unit="address", quantity=Quantity.fixed(1), usd_per_hour=ZERO,
                source="cloud.google.com/vpc/network-pricing", as_of="2026",
                note="free while a forwarding rule uses it",
            )
        )  # fmt: skip
    elif kind == "gcp:compute/disk:Disk":
        size = Quantity.fixed(_number(given.get("size"), 10))
        place = str(given.get("zone") or region)
        where = place.rpartition("-")[0] if place.count("-") == 2 else place
        _disk(found, name, str(given.get("type") or "pd-standard"), where, size, "disk")
    elif kind == _RELEASE and target != "local":
        cache = (given.get("values") or {}).get("cache") or {}
        if cache.get("kind") == "pvc":
            found.unpriced.append(
                Unpriced(
                    name=f"cache of {name}",
                    why=f"{cache.get('gb')} GiB of storage class {cache.get('storageClass') or 'default'}, whose price "
                    "the cluster knows",
                )
            )
    elif kind in _BY_USE:
        found.unpriced.append(Unpriced(name=name, why=_BY_USE[kind]))
    elif kind.startswith(_CLOUDS) and kind not in (_NODE_POOL, _NAT) and not kind.startswith(_FREE):
        found.unpriced.append(Unpriced(name=name, why=f"{kind} is not known here"))


def _own_pools(found: _Found, cluster: Resource) -> None:
    """The nodes that a cluster of another program has of its own, beside its node pools."""
    name, given = cluster["name"], cluster["inputs"]
    place = {key: given.get(key) for key in ("location", "nodeLocations")}
    if given.get("enableAutopilot"):
        why = "GKE Autopilot bills what pods ask for, which is not counted here"
        found.unpriced.append(Unpriced(name=f"pods of {name}", why=why))
    elif given.get("nodePools"):
        for number, pool in enumerate(given["nodePools"]):
            _node_pool(found, {"name": f"{name}/{pool.get('name') or number}", "inputs": {**place, **pool}})
    elif not given.get("removeDefaultNodePool"):
        own = {key: given.get(key) for key in ("nodeConfig", "initialNodeCount")}
        _node_pool(found, {"name": f"{name}/default-pool", "inputs": {**place, **own}})


_NAT = "gcp:compute/routerNat:RouterNat"


def _network(found: _Found, resources: Sequence[Resource], target: str, plan: Mapping[str, Any] | None) -> None:
    """NAT gateways by the machines behind them, load balancers, and what leaves through them."""
    for one in resources:
        if one["type"] != _NAT:
            continue
        region = str(one["inputs"].get("region") or "")
        machines = [item.quantity for item in found.items if item.unit == "node" and item.region == region]
        billed = {level: min(_NAT_MACHINES, total(amount(each, level) for each in machines)) for level in LEVELS}
        peak = min(_NAT_MACHINES, total(each.peak for each in machines))
        for what, unit, quantity in (
            ("NAT per machine", "machine", Quantity(**billed, peak=peak)),
            ("address of a NAT gateway", "address", Quantity.fixed(1)),
        ):
            found.add(
                found.prices.rate(what, region), "no price of Cloud NAT is known", kind="nat", region=region, unit=unit,
                name=one["name"] if unit == "machine" else f"{one['name']} (address)", quantity=quantity, note=what,
            )  # fmt: skip
        found.unpriced.append(
            Unpriced(name=f"data through {one['name']}", why="0.045 USD per GiB; how much is pulled is not known")
        )
    services = [
        one
        for one in resources
        if one["type"] == "kubernetes:core/v1:Service"
        and (one["inputs"].get("spec") or {}).get("type") == "LoadBalancer"
    ]
    if target == "local":
        return
    for one in services:
        if target != "gke":
            found.unpriced.append(Unpriced(name=str(one["name"]), why="a load balancer of the cluster's own cloud"))
            continue
        region = _region_of(str(one["name"]), resources)
        found.add(
            found.prices.rate("forwarding rule", region), "no price of a forwarding rule is known",
            kind="load-balancer", name=one["name"], region=region, unit="rule", quantity=Quantity.fixed(1),
            note="forwarding rule of the gateway",
        )  # fmt: skip
        found.add(
            found.prices.rate("egress", region), "no price of egress is known",
            kind="egress", name=one["name"], region=region, unit="GiB/h", quantity=_egress(plan, len(services)),
            note=f"replies to the internet, {_BYTES_PER_TOKEN} bytes per streamed token",
        )  # fmt: skip
        found.unpriced.append(
            Unpriced(name=f"data into {one['name']}", why="0.008 USD per GiB; how many bytes are asked is not known")
        )


def _region_of(service: str, resources: Sequence[Resource]) -> str:
    """The region of a gateway: its name ends in it where there are several."""
    regions = [str(one["inputs"].get("region")) for one in resources if one["type"] == _POOL]
    return next((region for region in regions if region in service), regions[0] if regions else "")


def _egress(plan: Mapping[str, Any] | None, gateways: int) -> Quantity:
    """GiB per hour: nothing where nobody asks, the mean of the day, and the peak."""

    def gib(tokens: Any) -> Decimal:
        return (Decimal(str(tokens)) * 3600 * _BYTES_PER_TOKEN / 2**30 / gateways).quantize(_PLACES)

    if not plan:
        return Quantity.fixed(0)
    mean = gib(plan.get("output_tokens_per_second", 0))
    peak = gib(plan.get("output_tokens_per_second_peak", plan.get("output_tokens_per_second", 0)))
    return Quantity(min=ZERO, expected=mean, max=peak, peak=peak)
