"""Every way to serve a model: which GPU, engine, quantization and split keeps the promise, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from stacks import OBJECTIVES, InputError, Objectives, Traffic

from ._catalog import Machine, catalog
from ._check import check_lengths
from ._plan import HOURS_PER_MONTH, MOST_NODES, fewest, keeper, metrics_of, unmet_of
from ._prices import PriceBook, price_book
from ._queueing import Station
from ._ways import Way, ways_of

_DEAREST = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One way to serve a model, with the fewest nodes that keep the promise (or as many as are allowed).

    `slots`: per replica, as `parallelism.slots: auto` would choose. Costs in USD on demand; `spot_per_hour` None where
    the book has no spot offer. `predicted`: by the names of `stacks.OBJECTIVES`; `unmet`: promises not kept.
    """

    engine: str
    quantization: str
    gpu: str
    mig_profile: str | None
    tensor: int
    pipeline: int
    machine_type: str
    replicas_per_node: int
    slots: int
    replicas: int
    nodes: int
    cost_per_hour: float
    spot_per_hour: float | None
    predicted: Mapping[str, float]
    unmet: tuple[str, ...]

    @property
    def cost_per_month(self) -> float:
        """USD for 730 hours on demand."""
        return self.cost_per_hour * HOURS_PER_MONTH

    @property
    def summary(self) -> str:
        """The choice in a few words."""
        split = "".join(f", {word} {n}" for word, n in (("tensor", self.tensor), ("pipeline", self.pipeline)) if n > 1)
        slice_ = f" {self.mig_profile}" if self.mig_profile else ""
        return (
            f"{self.nodes} × {self.machine_type}{slice_}, {self.engine} {self.quantization}, {self.slots} slots{split}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What to look through; None: everything in the catalog. `max_nodes`: the quota. `budget`: USD per hour."""

    model: str
    traffic: Traffic
    objectives: Objectives | None = None
    context_tokens: int = 2048
    engines: Sequence[str] | None = None
    quantizations: Sequence[str] | None = None
    gpus: Sequence[str] | None = None
    machines: Sequence[str] | None = None
    mig: bool = True
    spot: bool = False
    region: str = "us-central1"
    max_nodes: int = 5000
    budget: float | None = None
    kv_cache: str = "f16"


def choices(search: Search, *, prices: PriceBook | None = None) -> tuple[Choice, ...]:
    """All choices within quota and budget: those that keep the promise by cost, then those nearest to it.

    Raises InputError for names.
    """
    found: list[Choice] = []
    for way, offers in _placed(search, prices):
        station = Station(way.timing, way.slots, search.traffic)
        found += _on_each(way, offers, search, station, _needed(station, search, _mosts(way, offers, search)))
    return tuple(sorted(found, key=_rank(search)))


def cheapest(search: Search, *, prices: PriceBook | None = None) -> Choice | None:
    """The first of `choices` without working out the others; None where there is none.

    Ways are tried by the least they can cost: as many replicas as have the capacity for the requests that the promised
    latency implies (Little's law). The search ends where that is dearer than a way that keeps the promise.
    """
    starts: list[tuple[float, int, Way, list[_Offer]]] = []
    least = _least_rate(search)
    for way, offers in _placed(search, prices):
        # No number of slots has more capacity than all that memory holds.
        replicas = max(1.0, least / Station(way.timing, way.timing.slots, search.traffic).capacity)
        bound = min(replicas / _per_node(way, offer.machine) * offer.price(search) for offer in offers) * way.pipeline
        starts.append((bound, len(starts), way, offers))
    kept, rank = keeper(search.traffic, search.objectives), _rank(search)
    best: Choice | None = None
    for bound, _, way, offers in sorted(starts, key=lambda start: start[:2]):
        station, most = Station(way.timing, way.slots, search.traffic), _mosts(way, offers, search)
        if best is not None and not rank(best)[0]:
            if bound > _cost(best, search):
                break
            most = min(most, _mosts(way, offers, replace(search, budget=_cost(best, search))))
            if most < 1 or not kept(station.predict(most, search.traffic)):
                continue
        best = min(
            _on_each(way, offers, search, station, _needed(station, search, most)) + ([best] if best else []), key=rank
        )
    return best


def frontier(search: Search, *, prices: PriceBook | None = None, found: Sequence[Choice] = ()) -> tuple[Choice, ...]:
    """The Pareto front of cost against end-to-end latency (p95): nobody in it is beaten on both, and each is at least a
    tenth faster than the cheaper one before it.

    Each way is tried from the fewest nodes that carry the traffic up to one replica per user, doubling, and no further
    than 20 times the cheapest way; `found` (the choices that keep the promise) are tried beside them.
    """
    bare = replace(search, objectives=None)
    starts: list[tuple[float, Way, _Offer, int, int, Station]] = []
    for way, offers in _placed(bare, prices):
        station = Station(way.timing, way.slots, search.traffic)
        replicas = _needed(station, bare, _mosts(way, offers, bare))
        for offer in offers:
            most = _most(way, offer, bare) // _per_node(way, offer.machine)
            spans = math.ceil(replicas / _per_node(way, offer.machine))
            if spans <= most:
                starts.append((spans * way.pipeline * offer.price(search), way, offer, spans, most, station))
    dearest = _DEAREST * min((start[0] for start in starts), default=0.0)
    # (cost, latency, the choice when it is asked for): nearly all points are beaten, and only the others are worked out.
    points: list[tuple[float, float, Callable[[], Choice]]] = [
        (_cost(choice, search), choice.predicted["e2e_p95_seconds"], partial(_same, choice)) for choice in found
    ]
    for cost, way, offer, first, most, station in starts:
        spans = first
        while spans <= most and cost * spans / first <= dearest:
            prediction = station.predict(spans * _per_node(way, offer.machine), search.traffic)
            make = partial(_at, way, offer, search, spans * way.pipeline, station)
            points.append((cost * spans / first, prediction.e2e_p95_seconds, make))
            if prediction.running <= 1.0:
                break
            spans *= 2
    front: list[Choice] = []
    best = math.inf
    for _, latency, chosen in sorted(points, key=lambda point: point[:2]):
        if latency < best * 0.9:
            best = latency
            front.append(chosen())
    return tuple(front)


def _same(choice: Choice) -> Choice:
    return choice


def limits(search: Search, *, prices: PriceBook | None = None) -> dict[str, float]:
    """The best that any choice in the catalog can do for each promised metric alone, without quota or budget.

    Latencies and a closed loop's rate: one user per replica; cost: one node with all the traffic it can take. Beyond its
    limit a promise cannot be kept. Metrics that every choice can keep (errors, goodput) are left out.
    """
    if search.objectives is None:
        return {}
    traffic = search.traffic
    lonely = traffic.model_copy(update={"arrival": "closed", "users": 1, "requests_per_second": None})
    best: dict[str, float] = {}

    def seen(name: str, value: float) -> None:
        better = min if OBJECTIVES[name][0] == "at most" else max
        best[name] = better(best.get(name, value), value)

    promised = [name for name, _ in search.objectives.items()]
    for way, offers in _placed(replace(search, budget=None, max_nodes=MOST_NODES), prices):
        alone = Station(way.timing, way.slots, lonely).predict(1, lonely)
        values = metrics_of(alone, lonely, 0.0)
        for name in promised:
            if name.endswith("_seconds"):
                seen(name, values[name])
        if "requests_per_second" in promised:
            seen(
                "requests_per_second",
                (traffic.users or 0) * alone.requests_per_second or traffic.requests_per_second or 0.0,
            )
        if "cost_per_million_tokens_usd" in promised:
            station = Station(way.timing, way.slots, traffic)
            for offer in offers:
                found = station.predict(_per_node(way, offer.machine), traffic)
                hourly = way.pipeline * offer.price(search)
                seen("cost_per_million_tokens_usd", metrics_of(found, traffic, hourly)["cost_per_million_tokens_usd"])
    return best


def _rank(search: Search) -> Callable[[Choice], tuple[int, float, float, float]]:
    """Order of choices: fewer broken promises, broken by less, then less cost, then less latency.

    Without a promise, that nobody waits for a slot counts as one.
    """
    promised = dict(search.objectives.items()) if search.objectives else {}

    def broken(choice: Choice) -> tuple[int, float]:
        """How many, and how far beyond their limits as shares of these (without a promise: the latency)."""
        if not promised:
            waits = choice.predicted["queue_depth"] >= 0.5
            return int(waits), choice.predicted["e2e_p95_seconds"] if waits else 0.0
        missed = [abs(choice.predicted[name] - promised[name]) / (promised[name] or 1.0) for name in choice.unmet]
        return len(missed), sum(missed)

    return lambda choice: (*broken(choice), _cost(choice, search), choice.predicted["e2e_p95_seconds"])


def _least_rate(search: Search) -> float:
    """Requests per second that any fleet must answer to keep the promise; 0 where that cannot be told."""
    traffic, promised = search.traffic, search.objectives
    if traffic.arrival != "closed":
        return traffic.requests_per_second or 0.0
    if promised is None or promised.e2e_p95_seconds is None:
        return 0.0
    # Of a log-normal as wide as replies are, the mean lies below the 95th percentile.
    return (traffic.users or 1) / (promised.e2e_p95_seconds + traffic.think_seconds)


def _cost(choice: Choice, search: Search) -> float:
    if search.spot:
        return choice.spot_per_hour if choice.spot_per_hour is not None else math.inf
    return choice.cost_per_hour


@dataclass(frozen=True, kw_only=True, slots=True)
class _Offer:
    machine: Machine
    on_demand: float
    spot: float | None

    def price(self, search: Search) -> float:
        return self.spot if search.spot and self.spot is not None else self.on_demand


def _offers(search: Search, book: PriceBook) -> list[_Offer]:
    """The machines with a price, of those alike in GPUs only the cheapest unless the search names machines."""
    cheapest: dict[object, _Offer] = {}
    for machine in catalog().machines.values():
        price = book.prices.get((search.region, machine.id))
        if machine.gpu is None or price is None or (search.spot and price.spot is None):
            continue
        if search.machines is not None and machine.id not in search.machines:
            continue
        offer = _Offer(
            machine=machine,
            on_demand=float(price.on_demand),
            spot=float(price.spot) if price.spot is not None else None,
        )
        kind: object = machine.id if search.machines is not None else (machine.gpu, machine.gpus)
        if kind not in cheapest or offer.price(search) < cheapest[kind].price(search):
            cheapest[kind] = offer
    return list(cheapest.values())


def _placed(search: Search, prices: PriceBook | None) -> Iterator[tuple[Way, list[_Offer]]]:
    """Each way with the machines that hold it and of which quota and budget allow one replica's worth."""
    offers: dict[str | None, list[_Offer]] = {}
    for offer in _offers(search, prices or price_book()):
        offers.setdefault(offer.machine.gpu, []).append(offer)
    for way in _ways(search):
        here = offers.get(way.gpu.id, ())
        fitting = [offer for offer in here if _fits_machine(way, offer.machine) and _most(way, offer, search)]
        if fitting:
            yield way, fitting


def _on_each(way: Way, offers: Sequence[_Offer], search: Search, station: Station, needed: int) -> list[Choice]:
    """The choice on each machine, with the needed replicas or as many as are allowed."""
    return [
        _at(
            way,
            offer,
            search,
            math.ceil(min(needed, _most(way, offer, search)) / _per_node(way, offer.machine)) * way.pipeline,
            station,
        )
        for offer in offers
    ]


def _mosts(way: Way, offers: Sequence[_Offer], search: Search) -> int:
    """The most replicas that quota and budget allow on one of the machines."""
    return max(_most(way, offer, search) for offer in offers)


def _fits_machine(way: Way, machine: Machine) -> bool:
    """Ranks of one stage fill one machine where a replica spans several; else the machine holds whole replicas."""
    return way.tensor == machine.gpus if way.pipeline > 1 else way.tensor <= machine.gpus


def _most(way: Way, offer: _Offer, search: Search) -> int:
    """Replicas that quota and budget allow."""
    nodes = search.max_nodes
    if search.budget is not None:
        # A budget of exactly so many nodes pays for them, whatever the division rounds to.
        nodes = min(nodes, int(search.budget / offer.price(search) + 1e-9))
    return nodes // way.pipeline * _per_node(way, offer.machine)


def _needed(station: Station, search: Search, most: int) -> int:
    """The fewest replicas that keep the promise; without one, the fewest at which nobody waits for a slot.

    Where `most` do not keep it, the fewest that come within a twentieth of what `most` give.
    """
    kept = keeper(search.traffic, search.objectives)

    def fits(replicas: int) -> bool:
        return kept(station.predict(replicas, search.traffic))

    if most < 1:
        return 1
    # Doubling first, from what the promised rate needs at least: the answer is mostly far below the quota.
    top = min(most, search.traffic.users) if search.traffic.users else most
    least = math.floor(_least_rate(search) / station.capacity)
    if search.objectives is None and search.traffic.arrival == "closed" and not search.traffic.think_seconds:
        # All users ask at once: with fewer replicas, one waits on each.
        least = (search.traffic.users or 1) // (station.slots + 1)
    low = high = max(1, min(top, least))
    while high < top and not fits(high):
        low, high = high + 1, high * 2
    if high >= top:
        if not fits(top):
            return fewest(_near(station, search, top), 1, top)
        high = top
    return fewest(fits, low, high)


def _near(station: Station, search: Search, top: int) -> Callable[[int], bool]:
    """Whether so many replicas do nearly what `top` do: more of them would be wasted on a promise that cannot be kept."""
    best = station.predict(top, search.traffic)

    def near(replicas: int) -> bool:
        found = station.predict(replicas, search.traffic)
        return (
            found.e2e_p95_seconds <= best.e2e_p95_seconds * 1.05
            and found.ttft_p95_seconds <= best.ttft_p95_seconds * 1.05
            and found.requests_per_second >= best.requests_per_second / 1.05
        )

    return near


def _ways(search: Search) -> tuple[Way, ...]:
    model = catalog().model(search.model)
    if search.context_tokens > model.max_context:
        raise InputError(
            where="context_tokens",
            got=str(search.context_tokens),
            allowed=f"at most {model.max_context} for {model.id}",
            fix="lower it",
        )
    check_lengths(search.traffic, search.context_tokens)
    names = (None if given is None else tuple(given) for given in (search.engines, search.quantizations, search.gpus))
    return ways_of(model.id, *names, search.mig, search.kv_cache, search.context_tokens)


def _per_node(way: Way, machine: Machine) -> int:
    """Replicas per machine; 1 where a replica spans several."""
    if way.pipeline > 1:
        return 1
    devices = machine.gpus * (way.gpu.mig[way.mig_profile].count if way.mig_profile else 1)
    return max(1, devices // way.tensor)


def _at(way: Way, offer: _Offer, search: Search, nodes: int, station: Station) -> Choice:
    replicas = nodes // way.pipeline * _per_node(way, offer.machine)
    prediction = station.predict(replicas, search.traffic)
    predicted = metrics_of(prediction, search.traffic, nodes * offer.price(search), search.objectives)
    return Choice(
        engine=way.engine.id,
        quantization=way.quantization.id,
        gpu=way.gpu.id,
        mig_profile=way.mig_profile,
        tensor=way.tensor,
        pipeline=way.pipeline,
        machine_type=offer.machine.id,
        replicas_per_node=_per_node(way, offer.machine),
        slots=way.slots,
        replicas=replicas,
        nodes=nodes,
        cost_per_hour=nodes * offer.on_demand,
        spot_per_hour=nodes * offer.spot if offer.spot is not None else None,
        predicted=predicted,
        unmet=unmet_of(predicted, search.objectives),
    )
