"""All that one plan has to say, as data; rendered for people by `_render` (terminal, Markdown) and `_html`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any

from stacks import OBJECTIVES, Fleet, InputError, Objectives, Release, Stack, Traffic, tag_warning

from ._answers import (
    Point,
    as_release,
    headroom,
    longest_reply,
    memory_line,
    nearest,
    over_slots,
    over_users,
)
from ._catalog import catalog
from ._check import resolve
from ._explore import Choice, Search, cheapest, choices, frontier, limits
from ._plan import MOST_NODES, Plan, finite, plan_for
from ._prices import PriceBook, price_book
from ._timing import Timing, timing


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A plan with its alternatives, curves and caveats.

    `committed_per_hour`: for one and three years. `shortage`: what would keep the promises that the plan does not keep;
    `promises`: (metric, limit, predicted, kept, longest reply in tokens at which it holds or None); `headroom`: times the
    traffic the planned nodes carry.
    """

    title: str
    release: Release
    fleet: Fleet
    traffic: Traffic
    objectives: Objectives | None
    plan: Plan
    why: str
    memory: str
    headroom: float
    promises: tuple[tuple[str, float, float, bool, int | None], ...]
    shortage: tuple[str, ...]
    impossible: tuple[str, ...]
    alternatives: tuple[Choice, ...]
    front: tuple[Choice, ...]
    slots_curve: tuple[Point, ...]
    users_curve: tuple[Point, ...]
    on_demand_per_hour: float
    spot_per_hour: float | None
    committed_per_hour: tuple[float | None, float | None]
    notes: tuple[str, ...]


def report_stack(
    stack: Stack, *, prices: PriceBook | None = None, times: Timing | None = None, today: date | None = None
) -> Report:
    """The report of a stack's own release and fleet, with what else would serve its model."""
    search = Search(
        model=stack.release.model,
        traffic=stack.traffic,
        objectives=stack.objectives,
        context_tokens=stack.release.context_tokens,
        region=stack.fleet.regions[0],
        spot=stack.fleet.spot,
    )
    report = _report(
        f"Stack {stack.name}",
        stack.release,
        stack.fleet,
        stack.traffic,
        stack.objectives,
        search,
        prices or price_book(),
        times,
        today or date.today(),
    )
    warning = tag_warning(stack)
    return report if warning is None else replace(report, notes=(*report.notes, warning.replace("\n  fix:", "; fix:")))


def report_search(search: Search, *, prices: PriceBook | None = None, today: date | None = None) -> Report:
    """The report of the best choice for a question.

    Raises InputError where nothing in the catalog can hold the model, or nothing has a price.
    """
    book = prices or price_book()
    found = choices(search, prices=book)
    priced = sorted(
        {region for region, machine in book.prices if machine in catalog().machines and catalog().machines[machine].gpu}
    )
    if search.region not in priced:
        raise InputError(
            where="--region",
            got=search.region,
            allowed=", ".join(priced),
            fix=f"read its prices with `tollgate prices refresh --region {search.region}`",
        )
    if not found:
        raise InputError(
            where="--model, --gpu, --budget",
            got=f"{search.model} with {_filters(search)}",
            allowed="a model whose weights fit, machines with a price, and at least one node within the budget",
            fix="leave out a filter, or raise the budget",
        )
    release, fleet = as_release(found[0], search)
    return _report(
        f"{search.model} for {_demand(search.traffic)}",
        release,
        fleet,
        search.traffic,
        search.objectives,
        search,
        book,
        None,
        today or date.today(),
        found,
        _cap(search, found[0]),
    )


def _report(
    title: str,
    release: Release,
    fleet: Fleet,
    traffic: Traffic,
    objectives: Objectives | None,
    search: Search,
    book: PriceBook,
    times: Timing | None,
    today: date,
    found: Sequence[Choice] | None = None,
    cap: str = "quota (fleet.nodes.max)",
) -> Report:
    release = resolve(release)
    base = times or timing(release)
    times = base.shared(fleet.sharing.clients if fleet.sharing else 1)
    asked = found is None
    found = choices(search, prices=book) if found is None else found
    plan = plan_for(
        release=release, fleet=fleet, traffic=traffic, objectives=objectives, prices=book, step_times=base, cap=cap
    )
    price = book.price(fleet.machine_type, region=fleet.regions[0])
    nodes = plan.nodes_expected

    def on_all(amount: Decimal | None) -> float | None:
        return None if amount is None else nodes * float(amount)

    return Report(
        title=title,
        release=release,
        fleet=fleet,
        traffic=traffic,
        objectives=objectives,
        plan=plan,
        why=_why(plan, fleet, found) if asked else _chosen(found, objectives),
        memory=memory_line(plan),
        headroom=headroom(plan, release, traffic, objectives, times=times),
        promises=_promises(plan, traffic, objectives, times),
        shortage=nearest(plan, release, traffic, objectives, times=times) if objectives else (),
        impossible=_impossible(search, book) if plan.unmet else (),
        alternatives=_distinct(found),
        front=frontier(search, prices=book, found=found),
        slots_curve=over_slots(plan, release, traffic, objectives, times=times),
        users_curve=over_users(plan, release, traffic, objectives, times=times),
        on_demand_per_hour=nodes * float(price.on_demand),
        spot_per_hour=on_all(price.spot),
        committed_per_hour=(on_all(price.commit_1y), on_all(price.commit_3y)),
        notes=_notes(plan, price.age_days(today), price.as_of) + (_cheaper(plan, found, search) if asked else ()),
    )


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON-ready data: infinities become null."""
    plan = report.plan
    return {
        "title": report.title,
        "release": report.release.model_dump(mode="json"),
        "fleet": report.fleet.model_dump(mode="json"),
        "traffic": report.traffic.model_dump(mode="json"),
        "objectives": report.objectives.model_dump(mode="json", exclude_none=True) if report.objectives else {},
        "plan": {
            "slots": plan.slots,
            "max_slots": plan.max_slots,
            "replicas": {"min": plan.replicas_min, "expected": plan.replicas_expected, "max": plan.replicas_max},
            "replicas_per_node": plan.replicas_per_node,
            "nodes_per_replica": plan.nodes_per_replica,
            "nodes": {"min": plan.nodes_min, "expected": plan.nodes_expected, "max": plan.nodes_max},
            "machine_type": plan.machine_type,
            "gpu": plan.gpu,
            "region": plan.region,
            "spot": plan.spot,
            "cost_per_hour_usd": {
                "min": plan.cost_per_hour_min_usd,
                "expected": plan.cost_per_hour_expected_usd,
                "max": plan.cost_per_hour_max_usd,
                "on_demand": report.on_demand_per_hour,
                "spot": report.spot_per_hour,
                "commit_1y": report.committed_per_hour[0],
                "commit_3y": report.committed_per_hour[1],
            },
            "cost_per_month_usd": plan.cost_per_month_usd,
            "predicted": {name: finite(value) for name, value in plan.predicted.items()},
            "feasible": plan.feasible,
            "unmet": plan.unmet,
            "why": report.why,
            "binds": plan.binds,
            "headroom": report.headroom,
            "memory_bytes": {
                "usable": plan.memory.usable_bytes,
                "weights": plan.memory.weights_bytes,
                "overhead": plan.memory.overhead_bytes,
                "prefix": plan.memory.prefix_bytes,
                "kv_per_slot": plan.memory.kv_bytes_per_slot,
                "used": plan.memory.used_bytes(plan.slots),
            },
        },
        "promises": [
            {"metric": name, "limit": limit, "predicted": finite(got), "kept": kept, "longest_reply_tokens": reply}
            for name, limit, got, kept, reply in report.promises
        ],
        "shortage": report.shortage,
        "impossible": report.impossible,
        "alternatives": [choice_json(choice) for choice in report.alternatives],
        "pareto": [choice_json(choice) for choice in report.front],
        "over_slots": [_point(point) for point in report.slots_curve],
        "over_users": [_point(point) for point in report.users_curve],
        "assumptions": plan.assumptions,
        "notes": report.notes,
        "prices": {"source": plan.price_source, "as_of": plan.price_as_of},
    }


def choice_json(choice: Choice) -> dict[str, Any]:
    """One choice as JSON-ready data."""
    return {
        "engine": choice.engine,
        "quantization": choice.quantization,
        "gpu": choice.gpu,
        "mig_profile": choice.mig_profile,
        "tensor": choice.tensor,
        "pipeline": choice.pipeline,
        "machine_type": choice.machine_type,
        "slots": choice.slots,
        "replicas": choice.replicas,
        "nodes": choice.nodes,
        "cost_per_hour_usd": choice.cost_per_hour,
        "spot_per_hour_usd": choice.spot_per_hour,
        "cost_per_month_usd": choice.cost_per_month,
        "predicted": {name: finite(value) for name, value in choice.predicted.items()},
        "unmet": choice.unmet,
    }


def _point(point: Point) -> dict[str, Any]:
    return {
        "x": point.x,
        "requests_per_second": point.requests_per_second,
        "e2e_mean_seconds": finite(point.e2e_mean_seconds),
        "e2e_p95_seconds": finite(point.e2e_p95_seconds),
        "ttft_p95_seconds": finite(point.ttft_p95_seconds),
        "nodes": point.nodes,
        "cost_per_hour_usd": point.cost_per_hour,
        "kept": point.kept,
    }


def _promises(
    plan: Plan, traffic: Traffic, objectives: Objectives | None, times: Timing
) -> tuple[tuple[str, float, float, bool, int | None], ...]:
    rows = []
    for name, limit in objectives.items() if objectives else ():
        reply = None
        if name in ("ttft_p95_seconds", "e2e_p95_seconds"):
            reply = longest_reply(
                times, slots=plan.slots, replicas=plan.replicas_expected, traffic=traffic, metric=name, limit=limit
            )
        rows.append((name, limit, plan.predicted[name], name not in plan.unmet, reply))
    return tuple(rows)


def _impossible(search: Search, book: PriceBook) -> tuple[str, ...]:
    """Promises that nothing in the catalog keeps, with the nearest that something does; else what keeps them all."""
    lines = []
    best = limits(search, prices=book)
    for name, limit in search.objectives.items() if search.objectives else ():
        direction, _, words = OBJECTIVES[name]
        if name in best and (best[name] > limit if direction == "at most" else best[name] < limit):
            lines.append(
                f"{words}: no choice in the catalog keeps {shown(name, limit)}; the nearest that one can promise is "
                f"{shown(name, best[name])}"
            )
    if lines:
        return tuple(lines)
    found = cheapest(replace(search, budget=None, max_nodes=MOST_NODES), prices=book)
    if found is None or found.unmet:
        return ("no choice in the catalog keeps all promises at once, though each alone can be kept",)
    hourly = found.spot_per_hour if search.spot else found.cost_per_hour
    return (f"the cheapest choice that keeps every promise is {found.summary}: {money(hourly)}/h",)


def _chosen(found: Sequence[Choice], objectives: Objectives | None) -> str:
    """Why the first of the choices is the plan."""
    if objectives is None:
        return f"the cheapest of {len(found)} choices on which nobody waits"
    kept = sum(not choice.unmet for choice in found)
    if kept:
        return f"the cheapest of {kept} choices that keep the promise ({len(found)} were tried)"
    return f"none of {len(found)} choices keeps the promise; this one comes nearest"


def _why(plan: Plan, fleet: Fleet, found: Sequence[Choice]) -> str:
    """Why a stack runs on so many nodes."""
    if fleet.nodes.min == fleet.nodes.max:
        return "release and nodes are what the stack names"
    if plan.unmet:
        return f"the stack's release; no number of its {fleet.nodes.min} to {fleet.nodes.max} nodes keeps the promise"
    return (
        f"the stack's release on the fewest of its {fleet.nodes.min} to {fleet.nodes.max} nodes that keep the promise"
    )


def _cheaper(plan: Plan, found: Sequence[Choice], search: Search) -> tuple[str, ...]:
    """A choice that keeps the promise for less than the stack's own, by more than a tenth."""
    for choice in found[:1]:
        hourly = choice.spot_per_hour if search.spot else choice.cost_per_hour
        if not choice.unmet and hourly is not None and hourly < 0.9 * plan.cost_per_hour_expected_usd:
            return (f"{choice.summary} would keep the promise for {money(hourly)}/h",)
    return ()


def _cap(search: Search, choice: Choice) -> str:
    """What keeps a choice from more nodes."""
    hourly = choice.spot_per_hour if search.spot else choice.cost_per_hour
    if search.budget is not None and hourly and search.budget / hourly * choice.nodes < search.max_nodes:
        return f"budget ({money(search.budget)}/h)"
    return f"quota ({search.max_nodes:,} nodes at most)"


def _distinct(found: Sequence[Choice], most: int = 12) -> tuple[Choice, ...]:
    """The cheapest of each engine, quantization, GPU and MIG profile, feasible ones first."""
    seen: set[tuple[str, str, str, str | None]] = set()
    kept = []
    for choice in found:
        kind = (choice.engine, choice.quantization, choice.gpu, choice.mig_profile)
        if kind not in seen:
            seen.add(kind)
            kept.append(choice)
    return tuple(kept[:most])


def _notes(plan: Plan, age: int, as_of: str) -> tuple[str, ...]:
    notes = []
    if age > 180:
        notes.append(
            f"prices are of {as_of}, at least {age // 30} months old: `tollgate prices refresh` reads new ones"
        )
    if plan.predicted["queue_depth"] >= 0.5:
        notes.append(f"{plan.predicted['queue_depth']:.3g} requests wait per replica on average")
    return tuple(notes)


def _demand(traffic: Traffic) -> str:
    if traffic.arrival == "closed":
        think = f", {traffic.think_seconds:g} s between" if traffic.think_seconds else ""
        return f"{traffic.users:,} users{think}"
    return f"{traffic.requests_per_second:g} req/s ({traffic.arrival})"


def _filters(search: Search) -> str:
    given: Mapping[str, Any] = {
        "GPUs": search.gpus,
        "engines": search.engines,
        "quantizations": search.quantizations,
        "machines": search.machines,
        "budget": f"${search.budget:g}/h" if search.budget else None,
        "region": search.region,
    }
    return ", ".join(f"{name} {value}" for name, value in given.items() if value) or "no filter"


def money(value: float | None, digits: int = 2) -> str:
    """USD for people; a dash where there is no price."""
    return "–" if value is None or not math.isfinite(value) else f"${value:,.{digits}f}"


def seconds(value: float) -> str:
    """Seconds for people; `∞` where arrivals exceed capacity."""
    if not math.isfinite(value):
        return "∞"
    return f"{value * 1000:.0f} ms" if value < 0.1 else f"{value:.2f} s"


def shown(metric: str, value: float) -> str:
    """A metric's value with its unit."""
    if metric.endswith("_seconds"):
        return seconds(value)
    if metric.endswith("_usd"):
        return money(value)
    if metric in ("error_rate", "goodput"):
        return f"{value:.2%}"
    return f"{value:,.1f} {OBJECTIVES[metric][1] if metric in OBJECTIVES else ''}".strip()


def demand(traffic: Traffic) -> str:
    """The traffic in words."""
    cached = f" ({traffic.prefix.tokens:g} of them cached for {traffic.prefix.hit_rate:.0%})" if traffic.prefix else ""
    spread = f" (cv {traffic.output_tokens.cv:g})" if traffic.output_tokens.cv else ""
    lengths = f"{traffic.prompt_tokens.mean:g} tokens in{cached}, {traffic.output_tokens.mean:g} out{spread}"
    return f"{_demand(traffic)}; {lengths}"


__all__ = [
    "Report",
    "as_json",
    "choice_json",
    "demand",
    "money",
    "report_search",
    "report_stack",
    "seconds",
    "shown",
]
