"""The plan of a stack: slots, replicas, nodes, dollars and predicted metrics, with what was assumed on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stacks import OBJECTIVES, Fleet, InputError, Objectives, Release, Stack, Traffic

from ._catalog import Catalog, Machine, catalog
from ._check import check, check_lengths, memory_of, nodes_per_replica, resolve
from ._memory import Memory
from ._prices import PriceBook, price_book
from ._queueing import Prediction, Spread, predict
from ._timing import Timing, timing


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The planner's answer for one release, fleet, traffic and promise.

    `slots`: per replica. `replicas_per_node`: 1 where a replica spans nodes. `nodes_expected`: the fewest between min
    and max that keep the promise (max where none does). `predicted`: at `nodes_expected`, by the names of
    `stacks.OBJECTIVES` and a few more, seconds unless the name says otherwise; `inf` where arrivals exceed capacity.
    `unmet`: promises that `nodes_expected` does not keep. `binds`: what stops the service from doing more.
    Costs are on demand or spot, as the fleet says, over all its nodes.
    """

    slots: int
    max_slots: int
    replicas_min: int
    replicas_max: int
    replicas_expected: int
    replicas_per_node: int
    nodes_per_replica: int
    nodes_min: int
    nodes_max: int
    nodes_expected: int
    machine_type: str
    gpu: str
    region: str
    spot: bool
    cost_per_hour_min_usd: float
    cost_per_hour_expected_usd: float
    cost_per_hour_max_usd: float
    cost_per_month_usd: float
    cost_per_million_tokens_usd: float
    cost_per_million_requests_usd: float
    predicted: Mapping[str, float]
    unmet: tuple[str, ...]
    binds: str
    memory: Memory
    assumptions: tuple[str, ...]
    price_source: str
    price_as_of: str

    @property
    def feasible(self) -> bool:
        """Whether every promise is predicted to be kept."""
        return not self.unmet


COSTS = frozenset({"cost_per_million_tokens_usd"})
MOST_NODES = 100_000  # beyond any quota; what this many do not keep, no number does
HOURS_PER_MONTH = 730.0  # 365 × 24 / 12, as Google Cloud bills


def plan(stack: Stack, *, prices: PriceBook | None = None) -> Plan:
    """The plan of a stack. Raises InputError for a release that cannot run on its fleet, or a machine without a price."""
    return plan_for(
        release=stack.release,
        fleet=stack.fleet,
        traffic=stack.traffic,
        objectives=stack.objectives,
        prices=prices,
    )


def plan_for(
    *,
    release: Release,
    fleet: Fleet,
    traffic: Traffic,
    objectives: Objectives | None = None,
    prices: PriceBook | None = None,
    step_times: Timing | None = None,
    spread: Spread = "even",
    cap: str = "quota (fleet.nodes.max)",
) -> Plan:
    """The same by parts. `step_times` replaces the roofline, for example by a calibrated one.

    Replicas that share a GPU (`fleet.sharing`) take turns on it. `cap`: words for what keeps the fleet from growing, where
    that is what breaks a promise.
    """
    check(release, fleet, traffic.prefix)
    check_lengths(traffic, release.context_tokens)
    release = resolve(release)
    slots = int(release.parallelism.slots)
    known = catalog()
    machine = known.machine(fleet.machine_type)
    memory = memory_of(release, traffic.prefix)
    clients = fleet.sharing.clients if fleet.sharing else 1
    times = (step_times or timing(release)).shared(clients)
    book = prices or price_book()
    hourly = _hourly(book, fleet)
    per_node = replicas_per_node(release, machine, known) * clients
    spanned = nodes_per_replica(release)

    def replicas(nodes: int) -> int:
        return nodes * per_node // spanned

    def metrics(nodes: int) -> tuple[Prediction, dict[str, float]]:
        prediction = predict(times, slots=slots, replicas=replicas(nodes), traffic=traffic, spread=spread)
        return prediction, metrics_of(prediction, traffic, nodes * hourly, objectives)

    def fits(nodes: int) -> bool:
        # More nodes keep every promise better but the one about cost, which is judged at the fewest that keep the rest.
        return not [name for name in unmet_of(metrics(nodes)[1], objectives) if name not in COSTS]

    nodes = fewest(fits, max(spanned, fleet.nodes.min), fleet.nodes.max)
    prediction, predicted = metrics(nodes)
    binds = _binds(prediction, times, slots, memory.held(clients), traffic)
    if nodes == fleet.nodes.max and not fits(nodes):
        needed = fewest_fitting(fits, nodes, spanned)
        if needed is not None:
            binds = f"{cap}: {nodes} nodes are allowed, {needed:,} would keep the promise"
    return Plan(
        slots=slots,
        max_slots=memory.held(clients),
        replicas_min=replicas(fleet.nodes.min),
        replicas_max=replicas(fleet.nodes.max),
        replicas_expected=replicas(nodes),
        replicas_per_node=per_node,
        nodes_per_replica=spanned,
        nodes_min=fleet.nodes.min,
        nodes_max=fleet.nodes.max,
        nodes_expected=nodes,
        machine_type=machine.id,
        gpu=known.gpu(release.accelerator.gpu).id,
        region=fleet.regions[0],
        spot=fleet.spot,
        cost_per_hour_min_usd=fleet.nodes.min * hourly,
        cost_per_hour_expected_usd=nodes * hourly,
        cost_per_hour_max_usd=fleet.nodes.max * hourly,
        cost_per_month_usd=nodes * hourly * HOURS_PER_MONTH,
        cost_per_million_tokens_usd=predicted["cost_per_million_tokens_usd"],
        cost_per_million_requests_usd=predicted["cost_per_million_requests_usd"],
        predicted=predicted,
        unmet=unmet_of(predicted, objectives),
        binds=binds,
        memory=memory,
        assumptions=_assumptions(release, fleet, traffic, known, book, spread),
        price_source=book.source,
        price_as_of=book.price(machine.id, region=fleet.regions[0]).as_of,
    )


def replicas_per_node(release: Release, machine: Machine, known: Catalog) -> int:
    """Replicas of a release on one machine: its GPUs or slices over what one replica asks of it."""
    accelerator = release.accelerator
    devices = machine.gpus
    if accelerator.mig_profile:
        devices *= known.gpu(accelerator.gpu).mig[accelerator.mig_profile].count
    return max(1, devices // accelerator.count)


def _hourly(book: PriceBook, fleet: Fleet) -> float:
    """USD per hour of one node: the mean over the regions, over which nodes are spread evenly."""
    total = 0.0
    for region in fleet.regions:
        price = book.price(fleet.machine_type, region=region)
        amount = price.spot if fleet.spot else price.on_demand
        if amount is None:
            raise InputError(
                where="fleet.spot",
                got=f"true, but {book.source} has no spot price of {fleet.machine_type} in {region}",
                allowed="false",
                fix="set it to false, or read new prices with `tollgate prices refresh`",
            )
        total += float(amount)
    return total / len(fleet.regions)


def metrics_of(
    prediction: Prediction, traffic: Traffic, dollars_per_hour: float, objectives: Objectives | None = None
) -> dict[str, float]:
    """A prediction by the names of `stacks.OBJECTIVES` and a few more; costs at that price of the whole fleet."""
    rate = prediction.requests_per_second
    tokens = rate * traffic.output_tokens.mean
    offered = traffic.requests_per_second if traffic.arrival != "closed" else None
    lost = max(0.0, 1.0 - rate / offered) if offered and prediction.saturated else 0.0
    return {
        "ttft_mean_seconds": prediction.ttft_mean_seconds,
        "ttft_p50_seconds": prediction.ttft_p50_seconds,
        "ttft_p95_seconds": prediction.ttft_p95_seconds,
        "itl_mean_seconds": prediction.itl_mean_seconds,
        "itl_p50_seconds": prediction.itl_p50_seconds,
        "itl_p95_seconds": prediction.itl_p95_seconds,
        "e2e_mean_seconds": prediction.e2e_mean_seconds,
        "e2e_p50_seconds": prediction.e2e_p50_seconds,
        "e2e_p95_seconds": prediction.e2e_p95_seconds,
        "queue_mean_seconds": prediction.queue_mean_seconds,
        "queue_depth": prediction.waiting,
        "running": prediction.running,
        "requests_per_second": rate,
        "capacity_requests_per_second": prediction.capacity,
        "output_tokens_per_second": tokens,
        "error_rate": lost,
        "goodput": _goodput(prediction, objectives),
        "cost_per_million_tokens_usd": dollars_per_hour / 3600 / tokens * 1e6,
        "cost_per_million_requests_usd": dollars_per_hour / 3600 / rate * 1e6,
    }


def _goodput(prediction: Prediction, objectives: Objectives | None) -> float:
    """Share of requests within the tightest promised latency, from the log-normal through median and p95."""
    share = 1.0
    if objectives is None:
        return share
    for limit, middle, late in (
        (objectives.ttft_p95_seconds, prediction.ttft_p50_seconds, prediction.ttft_p95_seconds),
        (objectives.e2e_p95_seconds, prediction.e2e_p50_seconds, prediction.e2e_p95_seconds),
    ):
        if limit is None:
            continue
        if not math.isfinite(late):
            return 0.0
        if middle <= 0 or late <= middle:
            share = min(share, 1.0 if late <= limit else 0.0)
            continue
        sigma = math.log(late / middle) / 1.6448536269514722
        share = min(share, 0.5 * (1 + math.erf(math.log(limit / middle) / sigma / math.sqrt(2))))
    return share


def unmet_of(predicted: Mapping[str, float], objectives: Objectives | None) -> tuple[str, ...]:
    """The promised metrics that a prediction does not keep."""
    if objectives is None:
        return ()
    missed = []
    for name, limit in objectives.items():
        value = predicted[name]
        if value > limit if OBJECTIVES[name][0] == "at most" else value < limit:
            missed.append(name)
    return tuple(missed)


def keeper(traffic: Traffic, objectives: Objectives | None) -> Callable[[Prediction], bool]:
    """A quick test whether a prediction keeps all promises but those about cost; without any: whether nobody waits."""
    if objectives is None:
        return lambda prediction: not prediction.saturated and prediction.waiting < 0.5
    promised = [(name, limit) for name, limit in objectives.items() if name not in COSTS]
    if all(name.endswith("_seconds") for name, _ in promised):
        return lambda prediction: all(getattr(prediction, name) <= limit for name, limit in promised)

    def kept(prediction: Prediction) -> bool:
        values = metrics_of(prediction, traffic, 0.0, objectives)
        return not [name for name in unmet_of(values, objectives) if name not in COSTS]

    return kept


def fewest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest number between low and high that fits, high where none does; what fits stays fitting above."""
    if low >= high or not fits(high):
        return high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def fewest_fitting(fits: Callable[[int], bool], low: int, step: int) -> int | None:
    """The smallest multiple of `step` from `low` on that fits, up to 100,000; None where not even that does."""
    first, last = max(1, -(-low // step)), MOST_NODES // step
    high = first
    while high < last and not fits(high * step):
        first, high = high + 1, min(last, high * 2)
    if not fits(high * step):
        return None
    return step * fewest(lambda count: fits(count * step), first, high)


def _binds(prediction: Prediction, times: Timing, slots: int, held: int, traffic: Traffic) -> str:
    """What to change to serve more."""
    if prediction.saturated:
        return "capacity: more requests arrive than the nodes can answer"
    if prediction.waiting >= 0.5:
        if slots < held:
            return f"slots: requests wait for a slot while memory would hold {held}"
        return "memory: requests wait for a slot, and memory holds no more"
    batch = max(1.0, prediction.running)
    context = traffic.prompt_tokens.mean + traffic.output_tokens.mean / 2
    bound = times.bound_by(batch, context)
    return f"{bound}: the longest part of a step with {batch:.3g} requests running"


def _assumptions(
    release: Release, fleet: Fleet, traffic: Traffic, known: Catalog, book: PriceBook, spread: Spread
) -> tuple[str, ...]:
    engine = known.engine(release.engine)
    price = book.price(fleet.machine_type, region=fleet.regions[0])
    lines = [
        "users are spread evenly over the replicas"
        if spread == "even"
        else "every user keeps to one replica chosen at random",
        f"prompts of {_length(traffic.prompt_tokens)}, replies of {_length(traffic.output_tokens)}",
        "requests fail only for want of capacity; goodput counts those within the promised latencies",
        "quantiles: service log-normal, waiting a Weibull of its mean and variance (exponential in M/M/c)",
    ]
    if traffic.prefix is not None:
        kept = "kept once for all" if engine.shares_prefix else f"kept in every slot by {engine.id}"
        lines.append(
            f"the first {traffic.prefix.tokens:g} tokens of {traffic.prefix.hit_rate:.0%} of the prompts are found in the "
            f"prefix cache, {kept}"
        )
    for name, (kind, source) in engine.sources.items():
        if kind != "measured":
            lines.append(f"{engine.id} {name} {getattr(engine, name):g} ({kind}: {source})")
    lines.append(f"prices of {price.as_of} ({price.source}{', ' + price.note if price.note else ''})")
    if fleet.sharing:
        lines.append(
            f"{fleet.sharing.clients} replicas share a GPU by {fleet.sharing.strategy}: each as slow as if all were always busy"
        )
    if len(fleet.regions) > 1:
        lines.append("nodes are spread evenly over the regions")
    return tuple(lines)


def _length(tokens: Any) -> str:
    spread = f" (cv {tokens.cv:g})" if tokens.cv else ""
    return f"{tokens.mean:g} tokens{spread}"


def finite(value: float) -> float | None:
    """For JSON, which has no infinity: None."""
    return value if math.isfinite(value) else None
