"""The steps of parallelism, nodes and cost, each with its source."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gate
import planner
import stacks
import values

from ._live import Live

_GB = 1e9
# Where the chart puts what is an argument (True) and what is a variable (False) into the container.
_CHART = {True: ".server.args", False: "engine.environment"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """`value`: parallelism, nodes or cost. `found`: what it is at this step; `how`: in words; `source`: file:line, relative to
    the project or to Tollgate, or what was asked."""

    value: str
    at: str
    found: str
    how: str
    source: str


def trace(stack: stacks.Stack, root: Path, now: Live) -> list[Step]:
    """All steps, in the order in which a value passes them. Raises InputError for a stack that cannot work."""
    plan = planner.plan(stack)
    entry = _evidence(stack, root)
    return [
        *_parallelism(stack, plan, root, now, entry),
        *_nodes(stack, plan, root, now),
        *_cost(stack, plan, root, entry),
    ]


def _parallelism(
    stack: stacks.Stack, plan: planner.Plan, root: Path, now: Live, entry: gate.Entry | str
) -> Iterator[Step]:
    release = stack.release
    file, own = f"stacks/releases/{release.name}.yaml", f"stacks/Pulumi.{stack.name}.yaml"
    yield Step(
        value="parallelism", at="stack", found=release.name, how="the stack runs this release",
        source=_line(root, own, "config", "tollgate:release"),
    )  # fmt: skip
    yield Step(
        value="parallelism", at="release", found=f"slots: {release.parallelism.slots}",
        how="written down" if release.parallelism.slots != "auto" else "left to the planner",
        source=_line(root, file, "parallelism", "slots"),
    )  # fmt: skip
    memory = plan.memory
    yield Step(
        value="parallelism", at="memory", found=f"{memory.max_slots} slots at most",
        how=f"({_gb(memory.usable_bytes)} usable - {_gb(memory.weights_bytes)} weights - {_gb(memory.overhead_bytes)} overhead"
        f" - {_gb(memory.prefix_bytes)} prefix) / {_gb(memory.kv_bytes_per_slot)} of KV cache a slot",
        source=_code(planner.memory_for),
    )  # fmt: skip
    resolved = release.parallelism.slots == "auto"
    yield Step(
        value="parallelism", at="plan", found=f"{plan.slots} slots",
        how="the fewest with 95 % of the throughput of as many as fit" if resolved else "what the release says, and it fits",
        source=_code(planner.resolve),
    )  # fmt: skip
    rendered = values.render(stack, plan)
    knob, template = _knob(release.engine, plan.slots)
    yield Step(
        value="parallelism", at="values", found=f"slots: {rendered.get('slots', plan.slots)}; {knob}",
        how=f"the engine's own name for it, by the template of {release.engine}", source=template,
    )  # fmt: skip
    if release.chart == "engine":
        yield Step(
            value="parallelism", at="chart", found=knob, how="into the pod's container",
            source=_text("charts/engine/templates/_pod.tpl", _CHART[knob.startswith("-")]),
        )  # fmt: skip
    yield _pod(knob, now)
    if isinstance(entry, str):
        yield Step(value="parallelism", at="evidence", found="none", how=entry, source=stack.evidence)
        return
    server = gate.result_of(entry).server
    yield Step(
        value="parallelism", at="evidence", found=f"{server.get('slots', 'no number of')} slots",
        how=f"as the server said while it was measured, {entry.signed_at:%Y-%m-%d %H:%M} UTC",
        source=f"tollgate evidence show {entry.digest[7:19]}",
    )  # fmt: skip


def _pod(knob: str, now: Live) -> Step:
    name, _, _ = knob.partition("=")
    if now.why:
        return Step(value="parallelism", at="pod", found="not seen", how=now.why, source=f"{now.asked} get pods")
    found = next((text for text in now.arguments if text.startswith(f"{name}=")), None)
    if name in now.environment:
        found = f"{name}={now.environment[name]}"
    pod = next(iter(now.pods))
    same = found == knob
    how = "as planned" if same else "another than planned: the stack has changed since it was deployed"
    return Step(
        value="parallelism", at="pod", found=found or f"no {name}", how=how, source=f"{now.asked} get pod {pod}"
    )


def _nodes(stack: stacks.Stack, plan: planner.Plan, root: Path, now: Live) -> Iterator[Step]:
    own = f"stacks/Pulumi.{stack.name}.yaml"
    fleet, traffic = stack.fleet, stack.traffic
    lengths = f"{traffic.prompt_tokens.mean:g} tokens in, {traffic.output_tokens.mean:g} out"
    asked = f"{traffic.users} users" if traffic.arrival == "closed" else f"{traffic.requests_per_second:g} requests/s"
    yield Step(
        value="nodes", at="traffic", found=f"{asked}, {lengths}",
        how="whom it is for", source=_line(root, own, "config", "tollgate:traffic"),
    )  # fmt: skip
    promised = ", ".join(
        f"{stacks.OBJECTIVES[name][2]} {stacks.OBJECTIVES[name][0]} {limit:g}"
        for name, limit in stack.objectives.items()
    )
    yield Step(
        value="nodes", at="promise", found=promised, how="what has to be kept",
        source=_line(root, own, "config", "tollgate:objectives"),
    )  # fmt: skip
    yield Step(
        value="nodes", at="fleet", found=f"{fleet.nodes.min} to {fleet.nodes.max} {fleet.machine_type}",
        how="bounds of the autoscaler" if fleet.nodes.min < fleet.nodes.max else "fixed by the stack",
        source=_line(root, own, "config", "tollgate:fleet", "nodes"),
    )  # fmt: skip
    yield Step(
        value="nodes", at="replicas", found=_replicas(plan),
        how="the machine's GPUs or slices over what a replica asks for", source=_code(planner.plan_for),
    )  # fmt: skip
    latency = plan.predicted["e2e_p95_seconds"]
    yield Step(
        value="nodes", at="plan", found=f"{plan.nodes_expected} nodes",
        how=f"the fewest within the bounds that keep every promise: end-to-end p95 {latency:.2f} s, "
        f"{plan.predicted['capacity_requests_per_second']:.1f} requests/s at most; {plan.binds}"
        if plan.feasible
        else f"all of them, and still not kept: {', '.join(plan.unmet)}; {plan.binds}",
        source=_code(planner.predict),
    )  # fmt: skip
    if now.why and not now.nodes:
        yield Step(value="nodes", at="cluster", found="not seen", how=now.why, source=f"{now.asked} get nodes")
        return
    ready = sum(now.pods.values())
    yield Step(
        value="nodes", at="cluster", found=f"{len(now.nodes)} nodes, {ready} of {len(now.pods)} pods ready",
        how=f"now; not seen: {now.unseen}" if now.unseen else "now",
        source=f"{now.asked} get nodes -l {values.POOL_LABEL}={stack.name}",
    )  # fmt: skip


def _cost(stack: stacks.Stack, plan: planner.Plan, root: Path, entry: gate.Entry | str) -> Iterator[Step]:
    fleet, book = stack.fleet, planner.price_book()
    for region in fleet.regions:
        price = book.price(fleet.machine_type, region=region)
        amount = price.spot if fleet.spot else price.on_demand
        yield Step(
            value="cost", at="price", found=f"${amount}/h a {'spot ' if fleet.spot else ''}{fleet.machine_type} in {region}",
            how=f"{price.source}, as of {price.as_of}", source=_price_row(region, fleet.machine_type),
        )  # fmt: skip
    yield Step(
        value="cost", at="plan", found=f"${plan.cost_per_hour_expected_usd:.2f}/h, ${plan.cost_per_month_usd:,.2f} a month",
        how=f"{plan.nodes_expected} nodes; ${plan.cost_per_hour_min_usd:.2f} to ${plan.cost_per_hour_max_usd:.2f} by the bounds. "
        "Disks, cluster and network come beside it: tollgate preview",
        source=_code(planner.plan_for),
    )  # fmt: skip
    yield Step(
        value="cost", at="tokens", found=f"${plan.cost_per_million_tokens_usd:.2f} per million tokens out",
        how=f"{plan.predicted['output_tokens_per_second']:,.0f} tokens/s at this traffic", source=_code(planner.plan_for),
    )  # fmt: skip
    if not isinstance(entry, str):
        runs = gate.result_of(entry).runs
        rates = sorted(
            run.metrics["output_tokens_per_second"] for run in runs if "output_tokens_per_second" in run.metrics
        )
        if rates:
            yield Step(
                value="cost", at="evidence", found=f"{rates[len(rates) // 2]:,.0f} tokens/s measured",
                how=f"median of {len(rates)} runs", source=f"tollgate evidence show {entry.digest[7:19]}",
            )  # fmt: skip


def _evidence(stack: stacks.Stack, root: Path) -> gate.Entry | str:
    try:
        found = gate.newest(stack, root, values.release_digest(stack.release))
    except stacks.TollgateError as error:
        return str(error).splitlines()[0]
    return found if found is not None else f"this release was not measured on {stack.name} yet"


def _replicas(plan: planner.Plan) -> str:
    if plan.nodes_per_replica > 1:
        return f"{plan.nodes_per_replica} nodes a replica"
    return f"{plan.replicas_per_node} replica{'s' if plan.replicas_per_node > 1 else ''} a node"


def _knob(engine: str, slots: int) -> tuple[str, str]:
    """How the engine calls its slots, `NAME=VALUE` or `--flag=VALUE`, and the template's line that says so."""
    folder = Path(inspect.getfile(values)).parent
    path = folder / f"{engine}.yaml.j2"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"values/{path.name}:{number}"
        if "{{ slots }}" in line and line.strip().startswith("- --"):
            return line.strip().removeprefix("- ").replace("{{ slots }}", str(slots)), where
        if "{{ slots }}" in line and "{name: " in line:
            return f"{line.partition('{name: ')[2].partition(',')[0]}={slots}", where
    return f"slots={slots}", f"values/{path.name}"


def _line(root: Path, file: str, *keys: str) -> str:
    line = stacks.line_of(root / file, list(keys))
    return f"{file}:{line}" if line is not None else f"{file} (by default)"


def _text(file: str, wanted: str) -> str:
    """The first line of a file of Tollgate's that holds these words."""
    path = Path(inspect.getfile(values)).parents[1] / file
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if wanted in line and "define" not in line:
            return f"{file}:{number}"
    return file


def _code(what: Callable[..., Any]) -> str:
    path = Path(inspect.getfile(what))
    return f"{path.parent.name}/{path.name}:{inspect.getsourcelines(what)[1]} {what.__name__}"


def _price_row(region: str, machine: str) -> str:
    folder = Path(inspect.getfile(planner)).parent / "catalog" / "prices"
    found = ""
    for path in sorted(folder.glob("*.csv")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if f",{region},{machine}," in line:
                found = f"planner/catalog/prices/{path.name}:{number}"
    return found


def _gb(amount: float) -> str:
    return f"{amount / _GB:.2f} GB"
