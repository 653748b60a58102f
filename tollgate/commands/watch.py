"""`tollgate watch STACK`: what the dashboards show, live in the terminal or once as JSON."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live as Screen
from rich.table import Table
from rich.text import Text

import planner
import stacks
import values
from components.autoscaler import source_of
from components.autoscaler_check import Live, others
from components.engines import ENGINE_NAME
from components.monitoring import PROMETHEUS
from components.monitoring_rules import Facts, expanded, facts_of

# Recording, what it is called, and its unit.
_ROWS = (
    ("tollgate:requests:rate1m", "requests", "/s"),
    ("tollgate:errors:ratio5m", "failed", "%"),
    ("tollgate:ttft_seconds:p95", "time to first token, p95", "s"),
    ("tollgate:itl_seconds:p95", "time between tokens, p95", "s"),
    ("tollgate:e2e_seconds:p95", "time to last token, p95", "s"),
    ("tollgate:e2e_seconds:mean", "time to last token, mean", "s"),
    ("tollgate:output_tokens:rate1m", "output tokens", "/s"),
    ("tollgate:queue:sum", "waiting", ""),
    ("tollgate:running:sum", "running", ""),
    ("tollgate:open:sum", "open at the gateway", ""),
    ("tollgate:slots:sum", "slots", ""),
    ("tollgate:kv_cache:max", "KV cache, fullest", "%"),
    ("tollgate:cpu_utilisation:ratio", "CPU", "%"),
    ("tollgate:memory_utilisation:max", "memory, fullest", "%"),
    ("tollgate:cost_per_million_tokens:usd", "per million output tokens", "$"),
)
_PROMISES = {
    "tollgate:ttft_seconds:p95": "ttft_p95_seconds",
    "tollgate:itl_seconds:p95": "itl_p95_seconds",
    "tollgate:e2e_seconds:p95": "e2e_p95_seconds",
    "tollgate:errors:ratio5m": "error_rate",
}


@dataclass(frozen=True, kw_only=True)
class View:
    """One look at a stack. `numbers`: by recording, None where nobody knows. `problems`: in words, worst first."""

    stack: str
    wanted: int | None
    ready: int | None
    least: int
    most: int
    numbers: Mapping[str, float | None]
    promises: Mapping[str, float]
    scaling: str
    problems: tuple[str, ...]

    @property
    def broken(self) -> tuple[str, ...]:
        """The promises that are not kept now."""
        found = []
        for record, objective in _PROMISES.items():
            number, limit = self.numbers.get(record), self.promises.get(objective)
            if number is not None and limit is not None and number > limit:
                found.append(objective)
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        """For machines: units are seconds, requests per second and shares."""
        return {
            "stack": self.stack,
            "replicas": {"wanted": self.wanted, "ready": self.ready, "min": self.least, "max": self.most},
            "numbers": {record.removeprefix("tollgate:"): value for record, value in self.numbers.items()},
            "promises": dict(self.promises),
            "broken": list(self.broken),
            "scaling": self.scaling,
            "problems": list(self.problems),
        }


def look(facts: Facts, live: Live) -> View:
    """Ask the cluster and its Prometheus. What cannot be asked is a problem that is said, not an error."""
    problems: list[str] = []
    wanted = ready = None
    scaling = "fixed"
    ns = facts.source.namespace
    try:
        found = live.get(f"/apis/apps/v1/namespaces/{ns}/deployments/{ENGINE_NAME}")
        wanted, ready = int(found["spec"].get("replicas", 1)), int(found.get("status", {}).get("readyReplicas") or 0)
        if ready < wanted:
            problems.append(f"{wanted - ready} of {wanted} replicas are not Ready")
        if facts.autoscaled:
            scaling, said = _scaling(live.get, ns)
            problems += said
    except stacks.TollgateError as error:
        problems.insert(0, f"the API server does not answer: {_line(error)}")
    numbers: dict[str, float | None] = {}
    queries = expanded(facts)
    try:
        for record, _, _ in _ROWS:
            if record in queries:
                numbers[record] = _number(live.ask(queries[record]))
        if facts.source.waiting and ready and numbers.get("tollgate:queue:sum") is None:
            problems.insert(0, f"no replica publishes {facts.source.waiting}: nothing scales")
    except stacks.TollgateError as error:
        problems.insert(0, f"Prometheus does not answer: {_line(error)}")
    return View(
        stack=facts.stack,
        wanted=wanted,
        ready=ready,
        least=facts.replicas_min,
        most=facts.replicas_max,
        numbers=numbers,
        promises=dict(facts.objectives),
        scaling=scaling,
        problems=tuple(problems),
    )


def _scaling(get: Callable[[str], dict[str, Any]], ns: str) -> tuple[str, list[str]]:
    """What KEDA says of its object, in a word, and what is wrong with it."""
    found = get(f"/apis/keda.sh/v1alpha1/namespaces/{ns}/scaledobjects").get("items") or []
    (one,) = [item for item in found if item["metadata"]["name"] == ENGINE_NAME] or (None,)
    if one is None:
        return "none", ["there is no ScaledObject: the number of replicas is nobody's"]
    said = [f"{other} scales it too" for other in others(get, ns, ENGINE_NAME)]
    conditions = {item["type"]: item for item in (one.get("status") or {}).get("conditions") or []}
    if not conditions:
        return "unknown", ["KEDA has not seen the ScaledObject: kubectl get pods -n keda", *said]
    if conditions.get("Ready", {}).get("status") != "True":
        said.insert(0, f"KEDA: {conditions.get('Ready', {}).get('message', 'not ready')}")
    if conditions.get("Fallback", {}).get("status") == "True":
        return "holding: its metrics are gone", ["KEDA gets no numbers and holds the replicas", *said]
    return "active" if conditions.get("Active", {}).get("status") == "True" else "idle", said


def _number(series: Sequence[Mapping[str, Any]]) -> float | None:
    if len(series) != 1:
        return None
    value = float(series[0]["value"][1])
    return value if math.isfinite(value) else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def shown(view: View) -> Group:
    """The view as people read it; what breaks a promise is red."""
    table = Table(box=None, show_header=False, pad_edge=False)
    known = "?" if view.wanted is None else f"{view.ready} Ready of {view.wanted} (from {view.least} to {view.most})"
    table.add_row("replicas", known, "")
    table.add_row("autoscaler", view.scaling, "")
    for record, words, unit in _ROWS:
        if record not in view.numbers:
            continue
        limit = view.promises.get(_PROMISES.get(record, ""))
        bad = _PROMISES.get(record) in view.broken
        promise = f"promised {_unit(limit, unit)}" if limit is not None else ""
        table.add_row(words, Text(_unit(view.numbers[record], unit), style="bold red" if bad else ""), promise)
    lines: list[RenderableType] = [Text(f"{view.stack}  {time.strftime('%H:%M:%S')}", style="bold"), table]
    lines += [Text(problem, style="red") for problem in view.problems]
    return Group(*lines)


def _unit(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "%":
        return f"{value:.1%}"
    if unit == "$":
        return f"${value:,.2f}"
    return f"{value:,.3g} {unit}".rstrip() if unit == "s" else f"{value:,.1f} {unit}".rstrip()


def watch(
    stack: Annotated[str, typer.Argument(help="A stack's name.")],
    once: Annotated[bool, typer.Option("--once", help="One look, then end; exits 1 when something is wrong.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines; one line per look.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.5, max=3600, help="Seconds between looks.")] = 2.0,
    cluster: Annotated[str, typer.Option("--cluster", help="Embedded cluster or context, if not the stack's.")] = "",
) -> None:
    """A stack's replicas, queue, latency, cost and problems, live."""
    given = stacks.load_stack(stack)
    plan = planner.plan(given)
    facts = facts_of(given, plan, source_of(given, plan), values.render(given, plan))
    live = _live(given, cluster)
    if once or as_json:
        while True:
            view = look(facts, live)
            if as_json:
                typer.echo(json.dumps(view.as_json()))
            else:
                Console().print(shown(view))
            if once:
                raise typer.Exit(1 if view.problems or view.broken else 0)
            time.sleep(every)
    with Screen(shown(look(facts, live)), screen=True, auto_refresh=False) as screen:
        while True:
            time.sleep(every)
            screen.update(shown(look(facts, live)), refresh=True)


def _live(stack: stacks.Stack, cluster: str) -> Live:
    url = stack.autoscaling.prometheus or PROMETHEUS[stack.target]
    if stack.target != "local":
        return Live(url, context=cluster or (stack.cluster if stack.target == "kubernetes" else ""))
    import os

    from local import cluster as embedded

    found = embedded.load(cluster or os.environ.get("TOLLGATE_CLUSTER") or stack.cluster)
    environment = found.environment(stacks.project_root())
    found.enter()
    os.environ.update({key: environment[key] for key in ("KUBECONFIG", "PATH")})
    return Live(url, embedded=True)
