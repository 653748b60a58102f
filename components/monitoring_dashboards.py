"""Four Grafana dashboards of one stack, made with Grafana's own SDK: performance, resources, scaling, business.

Every panel reads what `monitoring_rules` records, so a panel without its recording is left out, and a test runs every query
against a live Prometheus. Deliberately not here: Grafana itself, which would start with a password that everybody knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import stacks

from .autoscaler_policy import triggers
from .monitoring_rules import Facts, memory, recordings

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.timeseries import Panel as Builder

_RECORD = re.compile(r"tollgate:[a-z0-9_:]+")
_SOURCE = "datasource"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One query of a panel, and what its line is called."""

    expr: str
    legend: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """`unit`: Grafana's name of it (s, reqps, percentunit, short, bytes, currencyUSD)."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    about: str = ""


def panels(facts: Facts, scaling: stacks.Autoscaling) -> dict[str, tuple[Panel, ...]]:
    """Dashboard -> its panels, each with at least one query that the stack's recordings can answer."""
    made = {record for record, _ in recordings(facts)}
    wanted = {
        "performance": _performance(facts),
        "resources": _resources(facts),
        "scaling": _scaling(facts, scaling),
        "business": _business(facts),
    }
    found = {}
    for name, all_panels in wanted.items():
        kept = []
        for one in all_panels:
            lines = tuple(line for line in one.lines if set(_RECORD.findall(line.expr)) <= made)
            if lines:
                kept.append(Panel(title=one.title, unit=one.unit, lines=lines, about=one.about))
        found[name] = tuple(kept)
    return found


def _ns(facts: Facts) -> str:
    return f'{{namespace="{facts.source.namespace}"}}'


def _quantiles(kind: str, ns: str) -> tuple[Line, ...]:
    return tuple(
        Line(expr=f"tollgate:{kind}_seconds:{name}{ns}", legend=name) for name in ("p50", "p95", "p99", "mean")
    )


def _performance(facts: Facts) -> tuple[Panel, ...]:
    ns = _ns(facts)
    return (
        Panel(title="Requests", unit="reqps", lines=(Line(expr=f"tollgate:requests:rate1m{ns}", legend="answered"),)),
        Panel(
            title="Failed requests",
            unit="percentunit",
            lines=(Line(expr=f"tollgate:errors:ratio5m{ns}", legend="5 minutes"),
                   Line(expr=f"tollgate:errors:ratio1h{ns}", legend="1 hour")),
            about="Of all requests; empty while nobody asks",
        ),
        Panel(title="Time to first token", unit="s", lines=_quantiles("ttft", ns)),
        Panel(title="Time between tokens", unit="s", lines=_quantiles("itl", ns)),
        Panel(title="Time to last token", unit="s", lines=_quantiles("e2e", ns)),
        Panel(
            title="Tokens",
            unit="short",
            lines=(Line(expr=f"tollgate:output_tokens:rate1m{ns}", legend="output per second"),
                   Line(expr=f"tollgate:input_tokens:rate1m{ns}", legend="input per second")),
        ),
        Panel(
            title="Requests over the promise",
            unit="percentunit",
            lines=tuple(Line(expr=f"tollgate:{kind}_over:ratio5m{ns}", legend=kind) for kind in ("ttft", "itl", "e2e")),
            about="A promise at p95 allows 5 %",
        ),
    )  # fmt: skip


def _resources(facts: Facts) -> tuple[Panel, ...]:
    ns = _ns(facts)
    pods = f'namespace="{facts.source.namespace}",pod=~"engine.*"'
    return (
        Panel(
            title="CPU",
            unit="percentunit",
            lines=(Line(expr=f"tollgate:cpu_utilisation:ratio{ns}", legend="mean"),
                   Line(expr=f"tollgate:cpu_utilisation:max{ns}", legend="busiest replica")),
            about="Of what a replica asks for",
        ),
        Panel(
            title="Memory",
            unit="percentunit",
            lines=(Line(expr=f"tollgate:memory_utilisation:max{ns}", legend="fullest replica"),),
        ),
        Panel(title="KV cache", unit="percentunit", lines=(Line(expr=f"tollgate:kv_cache:max{ns}", legend="fullest replica"),)),
        Panel(title="Preemptions", unit="reqps", lines=(Line(expr=f"tollgate:preemptions:rate5m{ns}", legend="per second"),)),
        Panel(
            title="Memory by replica",
            unit="bytes",
            lines=(Line(expr=memory(pods), legend="{{pod}}"),),
        ),
    )  # fmt: skip


def _scaling(facts: Facts, scaling: stacks.Autoscaling) -> tuple[Panel, ...]:
    ns = _ns(facts)
    replicas = [
        Line(expr=f"tollgate:replicas:count{ns}", legend="there"),
        Line(expr=f"vector({facts.replicas_min})", legend="least"),
        Line(expr=f"vector({facts.replicas_max})", legend="most"),
    ]
    if facts.autoscaled:
        asked = triggers(scaling, facts.source, replicas_min=facts.replicas_min)
        demand = " + ".join(f"({one.query}) / {one.per_replica:g}" for one in asked)
        replicas.append(Line(expr=demand, legend="asked for by demand"))
    return (
        Panel(title="Replicas", unit="short", lines=tuple(replicas), about="Replicas that Prometheus reaches"),
        Panel(
            title="Queue",
            unit="short",
            lines=(Line(expr=f"tollgate:queue:sum{ns}", legend="waiting"), Line(expr=f"tollgate:open:sum{ns}", legend="open")),
        ),
        Panel(
            title="Concurrency",
            unit="short",
            lines=(Line(expr=f"tollgate:running:sum{ns}", legend="running"),
                   Line(expr=f"tollgate:slots:sum{ns}", legend="slots")),
        ),
        Panel(
            title="Scale events",
            unit="short",
            lines=(Line(expr=f"changes(tollgate:replicas:count{ns}[5m])", legend="in 5 minutes"),),
        ),
    )  # fmt: skip


def _business(facts: Facts) -> tuple[Panel, ...]:
    ns = _ns(facts)
    return (
        Panel(
            title="Requests by model and region",
            unit="reqps",
            lines=(Line(expr=f"sum by (model, region) (tollgate:requests:rate1m{ns})", legend="{{model}} {{region}}"),),
        ),
        Panel(
            title="Requests of the last hour",
            unit="short",
            lines=(Line(expr=f"sum by (model, region) (tollgate:requests:increase1h{ns})", legend="{{model}} {{region}}"),),
        ),
        Panel(
            title="Cost per million output tokens",
            unit="currencyUSD",
            lines=(Line(expr=f"tollgate:cost_per_million_tokens:usd{ns}", legend="{{model}}"),),
            about="Replicas that run, at the price book's rate, over what they generate",
        ),
        Panel(
            title="Cost per hour",
            unit="currencyUSD",
            lines=(Line(expr=f"tollgate:replicas:count{ns} * {facts.replica_usd_per_hour:g}", legend="{{model}} {{region}}"),),
        ),
    )  # fmt: skip


def dashboards(facts: Facts, scaling: stacks.Autoscaling) -> dict[str, str]:
    """File name -> Grafana's JSON of the dashboard."""
    # Late: only who makes dashboards needs the SDK.
    from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    found = {}
    for name, shown in panels(facts, scaling).items():
        made = (
            Dashboard(f"{facts.stack}: {name}")
            .uid(stacks.digest({"stack": facts.stack, "dashboard": name}).removeprefix("sha256:")[:16])
            .tags(["tollgate", facts.stack])
            .refresh("10s")
            .time("now-1h", "now")
            .with_variable(DatasourceVariable(_SOURCE).type("prometheus").label("Prometheus"))
        )
        for one in shown:
            made = made.with_panel(_graph(one))
        found[f"{facts.stack}-{name}.json"] = JSONEncoder(sort_keys=True, indent=1).encode(made.build())
    return found


def _graph(panel: Panel) -> Builder:
    from grafana_foundation_sdk.builders.prometheus import Dataquery
    from grafana_foundation_sdk.builders.timeseries import Panel as Builder
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

    made = (
        Builder()
        .title(panel.title)
        .description(panel.about)
        .unit(panel.unit)
        .span(12)
        .height(8)
        .datasource(DataSourceRef(type_val="prometheus", uid=f"${{{_SOURCE}}}"))
    )
    for letter, line in zip("ABCDEFGH", panel.lines, strict=False):
        made = made.with_target(Dataquery().ref_id(letter).expr(line.expr).legend_format(line.legend))
    return made


def queries(found: dict[str, tuple[Panel, ...]]) -> Sequence[tuple[str, str, str]]:
    """(dashboard, panel, query) of all of them."""
    return [(name, one.title, line.expr) for name, shown in found.items() for one in shown for line in one.lines]
