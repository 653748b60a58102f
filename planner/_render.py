"""A report for people: Markdown, and the same tables as rows for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stacks import OBJECTIVES

from ._explore import Choice, Search
from ._report import Report, demand, money, seconds, shown

Rows = list[tuple[str, ...]]


def facts(report: Report) -> Rows:
    """(what, value) of the plan itself."""
    plan = report.plan
    release = report.release
    nodes = f"{plan.nodes_expected}" if plan.nodes_min == plan.nodes_max else (
        f"{plan.nodes_expected} ({plan.nodes_min} to {plan.nodes_max})"
    )  # fmt: skip
    span = f", {plan.nodes_per_replica} nodes each" if plan.nodes_per_replica > 1 else ""
    return [
        ("asked", demand(report.traffic)),
        ("release", f"{release.model} {release.quantization} by {release.engine}, {release.context_tokens} tokens of context"),
        ("slots", f"{plan.slots} per replica, {plan.slots * plan.replicas_expected:,} in all"),
        ("nodes", f"{nodes} × {plan.machine_type} ({plan.gpu}), {plan.replicas_expected} replicas{span}"),
        ("why", report.why),
        ("memory", report.memory),
        ("binds", plan.binds),
        ("headroom", _headroom(report.headroom)),
        ("cost", f"{money(plan.cost_per_hour_expected_usd)}/h {'spot' if plan.spot else 'on demand'}, "
                 f"{money(plan.cost_per_month_usd, 0)}/month"),
        ("on demand | spot", f"{money(report.on_demand_per_hour)}/h | {money(report.spot_per_hour)}/h"),
        ("committed 1 | 3 years", " | ".join(f"{money(amount)}/h" for amount in report.committed_per_hour)),
        ("per 1M tokens | requests", f"{money(plan.cost_per_million_tokens_usd)} | "
                                     f"{money(plan.cost_per_million_requests_usd)}"),
    ]  # fmt: skip


def predicted(report: Report) -> Rows:
    """(metric, mean, p50, p95) and the rates."""
    values = report.plan.predicted
    rows: Rows = []
    for name, words in (("ttft", "time to first token"), ("itl", "between tokens"), ("e2e", "end to end")):
        rows.append(
            (words, *(seconds(values[f"{name}_{part}_seconds"]) for part in ("mean", "p50", "p95"))),
        )
    return rows


def promises(report: Report) -> Rows:
    """(promise, limit, predicted, kept, longest reply at which it holds)."""
    rows: Rows = []
    for name, limit, got, kept, reply in report.promises:
        direction, _, words = OBJECTIVES[name]
        longest = "" if reply is None else "100,000+ tokens" if reply >= 100_000 else f"{reply:,} tokens"
        rows.append(
            (words, f"{direction} {shown(name, limit)}", shown(name, got), "kept" if kept else "broken", longest)
        )
    return rows


def alternatives(choices: tuple[Choice, ...]) -> Rows:
    """(choice, $/h, spot $/h, $/month, $/1M tokens, TTFT p95, end to end p95, req/s, promise)."""
    return [
        (
            choice.summary,
            money(choice.cost_per_hour),
            money(choice.spot_per_hour),
            money(choice.cost_per_month, 0),
            money(choice.predicted["cost_per_million_tokens_usd"]),
            seconds(choice.predicted["ttft_p95_seconds"]),
            seconds(choice.predicted["e2e_p95_seconds"]),
            f"{choice.predicted['requests_per_second']:,.1f}",
            "kept" if not choice.unmet else "broken",
        )
        for choice in choices
    ]


ALTERNATIVE_COLUMNS = (
    "choice",
    "$/h",
    "spot",
    "$/month",
    "$/1M tokens",
    "TTFT p95",
    "e2e p95",
    "req/s",
    "promise",
)
PROMISE_COLUMNS = ("promise", "limit", "predicted", "", "holds for replies up to")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """A report in words: `facts` (what, value), `tables` (title, columns, rows), `lists` (title, lines)."""

    title: str
    verdict: str
    facts: Rows
    tables: tuple[tuple[str, tuple[str, ...], Rows], ...]
    lists: tuple[tuple[str, tuple[str, ...]], ...]


def rendered(report: Report) -> Rendered:
    """The report in words, for the terminal and for Markdown."""
    tables: list[tuple[str, tuple[str, ...], Rows]] = []
    if report.promises:
        tables.append(("Promises", PROMISE_COLUMNS, promises(report)))
    tables += [
        ("Predicted", ("", "mean", "p50", "p95"), predicted(report)),
        ("Alternatives, cheapest first", ALTERNATIVE_COLUMNS, alternatives(report.alternatives)),
        ("Pareto front of cost and latency", ALTERNATIVE_COLUMNS, alternatives(report.front)),
    ]
    return Rendered(
        title=report.title,
        verdict=_verdict(report),
        facts=facts(report),
        tables=tuple(tables),
        lists=(
            ("What would keep the promises", (*report.shortage, *report.impossible)),
            ("Notes", report.notes),
            ("Assumptions", report.plan.assumptions),
        ),
    )


def rendered_models(search: Search, found: Mapping[str, Choice]) -> Rendered:
    """The cheapest choice of every model that can be held at all, by model, in words; those that keep the promise first."""
    ordered = sorted(found.items(), key=lambda item: (len(item[1].unmet), item[1].cost_per_hour, item[0]))
    kept = sum(not choice.unmet for choice in found.values())
    rows = [(name, *row) for (name, _), row in zip(ordered, alternatives(tuple(c for _, c in ordered)), strict=True)]
    return Rendered(
        title=f"Every model for {demand(search.traffic)}",
        verdict=f"{kept} of {len(found)} models are predicted to keep the promise."
        if search.objectives
        else "Nothing was promised; these are the fewest nodes on which nobody waits.",
        facts=[],
        tables=(("Cheapest choice of each", ("model", *ALTERNATIVE_COLUMNS), rows),),
        lists=(),
    )


def markdown(words: Rendered) -> str:
    """A report in words as GitHub Markdown."""
    parts = [f"# {words.title}", words.verdict]
    parts += [_table(("", ""), words.facts)] if words.facts else []
    for title, columns, rows in words.tables:
        parts += [f"## {title}", _table(columns, rows)]
    for title, lines in words.lists:
        if lines:
            parts += [f"## {title}", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _verdict(report: Report) -> str:
    if not report.promises:
        if report.plan.predicted["queue_depth"] >= 0.5:
            return "Nothing was promised; with as many nodes as are allowed, requests wait for a slot."
        return "Nothing was promised; these are the fewest nodes on which nobody waits."
    return "Every promise is predicted to be kept." if report.plan.feasible else "A promise is predicted to be broken."


def _headroom(times: float) -> str:
    if times <= 0:
        return "none: a promise is broken now"
    return f"{times:.2f} times this traffic" if times < 100 else "more than 100 times this traffic"


def _table(columns: tuple[str, ...], rows: Rows) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
