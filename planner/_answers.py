"""Answers around a plan: how much more it carries, how long replies may be, what the curves look like, what is nearest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from stacks import OBJECTIVES, Accelerator, Fleet, Nodes, Objectives, Parallelism, Release, Traffic

from ._catalog import catalog
from ._explore import Choice, Search
from ._plan import COSTS, MOST_NODES, Plan, fewest_fitting, keeper, metrics_of, unmet_of
from ._queueing import Spread, Station, predict
from ._timing import Timing, timing


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One point of a curve. `x`: slots, users or output tokens, as the curve says."""

    x: float
    requests_per_second: float
    e2e_mean_seconds: float
    e2e_p95_seconds: float
    ttft_p95_seconds: float
    nodes: int
    cost_per_hour: float
    kept: bool


def headroom(
    plan: Plan, release: Release, traffic: Traffic, objectives: Objectives | None, *, times: Timing | None = None
) -> float:
    """How many times the traffic the planned nodes carry before a promise breaks (1.0: none to spare; 0: broken now).

    Without promises: before anybody waits for a slot. Costs are left out, since more traffic only lowers them.
    """
    station, keeps = Station(times or timing(release), plan.slots, traffic), keeper(traffic, objectives)

    def kept(factor: float) -> bool:
        return keeps(station.predict(plan.replicas_expected, _scaled(traffic, factor)))

    if not kept(1.0):
        return 0.0
    factor = 1.0
    while factor < 1024 and kept(factor * 2):
        factor *= 2
    low, high = factor, factor * 2
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


def longest_reply(
    times: Timing, *, slots: int, replicas: int, traffic: Traffic, metric: str, limit: float, spread: Spread = "even"
) -> int:
    """The longest mean reply (tokens) at which `metric` stays within `limit`; 0 where not even one token does.

    Searched up to 100,000 tokens; latencies only grow with the reply.
    """

    def kept(tokens: int) -> bool:
        longer = traffic.model_copy(
            update={"output_tokens": traffic.output_tokens.model_copy(update={"mean": float(tokens)})}
        )
        prediction = predict(times, slots=slots, replicas=replicas, traffic=longer, spread=spread)
        return metrics_of(prediction, longer, 0.0)[metric] <= limit

    return _largest(kept, 100_000)


def over_slots(
    plan: Plan, release: Release, traffic: Traffic, objectives: Objectives | None, *, times: Timing | None = None
) -> tuple[Point, ...]:
    """The planned nodes with 1, 2, 4 … slots per replica, as many as memory holds."""
    times = times or timing(release)
    steps = [2**power for power in range(13) if 2**power <= plan.max_slots]
    extra = {plan.slots, plan.max_slots} - set(steps)
    hourly = plan.cost_per_hour_expected_usd
    return tuple(
        _point(float(slots), times, slots, plan.replicas_expected, traffic, objectives, plan.nodes_expected, hourly)
        for slots in sorted({*steps, *extra})
    )


def over_users(
    plan: Plan,
    release: Release,
    traffic: Traffic,
    objectives: Objectives | None,
    *,
    times: Timing | None = None,
    points: int = 13,
) -> tuple[Point, ...]:
    """The fewest nodes, without the fleet's bounds, from an eighth to eight times the traffic; `x`: users or req/s.

    A promised rate is left out: it belongs to the traffic, and a tenth of the users cannot ask as often.
    """
    times = times or timing(release)
    objectives = _without_rate(objectives)
    price = plan.cost_per_hour_expected_usd / plan.nodes_expected
    found = []
    for step in range(points):
        scaled = _scaled(traffic, 2 ** (6 * step / (points - 1) - 3))
        nodes = fewest_nodes(plan, times, scaled, objectives) or MOST_NODES
        x = float(scaled.users or 0) if scaled.arrival == "closed" else float(scaled.requests_per_second or 0.0)
        replicas = nodes * plan.replicas_per_node // plan.nodes_per_replica
        found.append(_point(x, times, plan.slots, replicas, scaled, objectives, nodes, nodes * price))
    return tuple(found)


def fewest_nodes(plan: Plan, times: Timing, traffic: Traffic, objectives: Objectives | None) -> int | None:
    """The fewest nodes of the plan's kind that keep the promise (nobody waiting, where there is none); None: none do."""
    station, kept = Station(times, plan.slots, traffic), keeper(traffic, objectives)

    def fits(nodes: int) -> bool:
        return kept(station.predict(max(1, nodes * plan.replicas_per_node // plan.nodes_per_replica), traffic))

    return fewest_fitting(fits, 1, plan.nodes_per_replica)


def nearest(
    plan: Plan, release: Release, traffic: Traffic, objectives: Objectives, *, times: Timing | None = None
) -> tuple[str, ...]:
    """For each promise the plan does not keep: what would, in one sentence each; empty where all are kept."""
    times = times or timing(release)
    lonely = traffic.model_copy(update={"arrival": "closed", "users": 1, "requests_per_second": None})
    alone = metrics_of(predict(times, slots=plan.slots, replicas=1, traffic=lonely), lonely, 0.0)
    lines = []
    for name in plan.unmet:
        limit = dict(objectives.items())[name]
        _, unit, words = OBJECTIVES[name]
        got = plan.predicted[name]
        only = Objectives.model_validate({name: limit})
        if name.endswith("_seconds") and alone[name] > limit:
            lines.append(
                f"{words}: {limit:g} {unit} is beyond this release on any fleet; alone on a replica it takes "
                f"{alone[name]:.3g} {unit}, the nearest that can be promised"
            )
        elif name in COSTS:
            lines.append(f"{words}: {got:.3g} {unit} is the least with the nodes that keep the other promises")
        elif (nodes := fewest_nodes(plan, times, traffic, only)) is not None:
            lines.append(
                f"{words}: {nodes:,} nodes keep {limit:g} {unit}; {plan.nodes_max} are allowed and give {got:.3g}"
            )
        else:
            lines.append(f"{words}: {got:.3g} {unit} is the nearest with {plan.nodes_max} nodes")
    return tuple(lines)


def as_release(choice: Choice, search: Search) -> tuple[Release, Fleet]:
    """The release and the fleet that a choice stands for, as they would be written into `stacks/`."""
    known = catalog()
    model = known.model(search.model)
    engine = known.engine(choice.engine)
    tag = engine.version if choice.engine == "ollama" else f"v{engine.version}"
    source = next((a for a in model.aliases if (":" in a) == (choice.engine == "ollama")), model.id)
    release = Release(
        name=f"{model.id}-{choice.engine}",
        engine=choice.engine,
        version=engine.version,
        image=f"{engine.image}:{tag}",
        model=model.id,
        source=source,
        quantization=choice.quantization,
        context_tokens=search.context_tokens,
        parallelism=Parallelism(slots=choice.slots, tensor=choice.tensor, pipeline=choice.pipeline),
        accelerator=Accelerator(gpu=choice.gpu, count=choice.tensor, mig_profile=choice.mig_profile),
        chart="engine",
    )
    nodes = Nodes(min=choice.nodes, max=choice.nodes)
    fleet = Fleet(regions=(search.region,), machine_type=choice.machine_type, nodes=nodes, spot=search.spot)
    return release, fleet


def memory_line(plan: Plan) -> str:
    """The memory of one replica in words."""
    memory = plan.memory
    prefix = f"+ {memory.prefix_bytes / 1e9:.2f} GB shared prefix " if memory.prefix_bytes else ""
    return (
        f"{memory.weights_bytes / 1e9:.1f} GB weights + {plan.slots} × {memory.kv_bytes_per_slot / 1e9:.2f} GB KV "
        f"{prefix}+ {memory.overhead_bytes / 1e9:.1f} GB engine = {memory.used_bytes(plan.slots) / 1e9:.1f} of "
        f"{memory.usable_bytes / 1e9:.1f} GB; {plan.max_slots} slots would fit"
    )


def _without_rate(objectives: Objectives | None) -> Objectives | None:
    if objectives is None:
        return None
    left = {name: limit for name, limit in objectives.items() if name != "requests_per_second"}
    return Objectives.model_validate(left) if left else None


def _scaled(traffic: Traffic, factor: float) -> Traffic:
    if traffic.arrival == "closed":
        return traffic.model_copy(update={"users": max(1, math.floor((traffic.users or 1) * factor + 1e-9))})
    return traffic.model_copy(update={"requests_per_second": (traffic.requests_per_second or 0.0) * factor})


def _point(
    x: float,
    times: Timing,
    slots: int,
    replicas: int,
    traffic: Traffic,
    objectives: Objectives | None,
    nodes: int,
    cost: float,
) -> Point:
    prediction = predict(times, slots=slots, replicas=max(1, replicas), traffic=traffic)
    values = metrics_of(prediction, traffic, cost, objectives)
    return Point(
        x=x,
        requests_per_second=prediction.requests_per_second,
        e2e_mean_seconds=prediction.e2e_mean_seconds,
        e2e_p95_seconds=prediction.e2e_p95_seconds,
        ttft_p95_seconds=prediction.ttft_p95_seconds,
        nodes=nodes,
        cost_per_hour=cost,
        kept=not unmet_of(values, objectives),
    )


def _largest(kept: Callable[[int], bool], top: int) -> int:
    if not kept(1):
        return 0
    low, high = 1, 2
    while high <= top and kept(high):
        low, high = high, high * 2
    high = min(high, top + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low
