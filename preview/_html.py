"""The report as one self-contained page: no network, light and dark, the costs as bars."""

from __future__ import annotations

from decimal import Decimal
from html import escape

from ._changes import Amounts, Line, money, plain
from ._markdown import arrow, dollars, each, prices_words, release_words, tokens_words
from ._model import LEVELS, Item, amount
from ._report import Report, StackReport, alerts

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --dim: #60646c; --line: #d9d9e0; --soft: #f4f4f7;
  --old: #b9bbc6; --new: #0b68cb; --good: #18794e; --bad: #c62a2f; --badsoft: #ffefef; --warn: #ab6400; --warnsoft: #fff7e0; }
@media (prefers-color-scheme: dark) { :root { --paper: #111214; --ink: #edeef0; --dim: #a0a4ab; --line: #363a3f;
  --soft: #1a1b1e; --old: #5a6169; --new: #70b8ff; --good: #3dd68c; --bad: #ff9592; --badsoft: #341c1e; --warn: #ffca16;
  --warnsoft: #302008; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 1rem; text-wrap: balance; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .2rem; }
h2 small { font-weight: 500; font-size: .8rem; color: var(--dim); border: 1px solid var(--line); border-radius: 99px;
  padding: .1rem .6rem; margin-left: .4rem; vertical-align: middle; }
p { margin: .3rem 0 .8rem; } .dim, footer { color: var(--dim); }
.box { border-left: 4px solid; border-radius: 4px; padding: .6rem 1rem; margin: .8rem 0; }
.box ul { margin: 0; padding-left: 1.1rem; } .fail { border-color: var(--bad); background: var(--badsoft); }
.warn { border-color: var(--warn); background: var(--warnsoft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .4rem .7rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 500; white-space: nowrap; } .left { text-align: left; } .nowrap { white-space: nowrap; }
.bars { min-width: 11rem; width: 26%; } .bar { height: .5rem; border-radius: 2px; min-width: 1px; margin: .2rem 0; }
.old { background: var(--old); } .new { background: var(--new); } tr.moved td { background: var(--soft); }
.up { color: var(--bad); } .down { color: var(--good); } ul.facts { list-style: none; padding: 0; margin: .6rem 0; }
ul.facts b { display: inline-block; min-width: 5.5rem; font-weight: 600; } details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--new); } pre { overflow-x: auto; background: var(--soft); padding: .8rem;
  border-radius: 6px; font-size: .85rem; } footer { margin-top: 3rem; font-size: .85rem; }
@media (max-width: 40rem) { body { padding: 1.25rem .9rem 3rem; } table { font-size: .8rem; } .bars { display: none; }
  th, td { padding-right: .45rem; } }
"""
_NAMES = {"min": "at least", "expected": "expected", "max": "at most"}


def page(report: Report) -> str:
    """The whole page. Everything that came from a file is escaped."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Cost preview: {escape(report.headline)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(report.headline)}</h1>",
    ]
    if report.error is not None:
        parts.append(f"<pre>{escape(report.error)}</pre>")
    parts += _boxes(report)
    parts += [_stack(stack) for stack in report.stacks if stack.status != "unchanged"]
    quiet = [stack.stack for stack in report.stacks if stack.status == "unchanged"]
    if quiet:
        parts.append(f'<p class="dim">No change: {escape(", ".join(quiet))}.</p>')
    how = "The program, evaluated offline" if report.source == "offline" else "What Pulumi would do to the state"
    against = f" against {report.base}" if report.base else ""
    parts.append(f"<footer>{escape(how + against)}. {prices_words(report.prices)} A month has 730 hours.</footer>")
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _boxes(report: Report) -> list[str]:
    found = []
    for level, messages in zip(("fail", "warn"), alerts(report), strict=True):
        if messages:
            items = "".join(f"<li>{escape(message)}</li>" for message in messages)
            found.append(f'<div class="box {level}" role="alert"><ul>{items}</ul></div>')
    return found


def _stack(stack: StackReport) -> str:
    head = f"<h2>{escape(stack.stack)} <small>{stack.status}</small></h2>"
    if stack.error is not None:
        return f"{head}<pre>{escape(stack.error)}</pre>"
    words = stack.headline.removeprefix(f"{stack.stack}: ")
    return "".join([head, f"<p>{escape(words)}</p>", _table(stack), _facts(stack), _details(stack)])


def _table(stack: StackReport) -> str:
    new, gone = stack.status == "new", stack.status == "removed"
    top = max(
        (max(one.usd_per_hour_before, one.usd_per_hour_after) for one in _levels(stack)), default=Decimal(0)
    ) or Decimal(1)
    rows = []
    for level, amounts in zip(LEVELS, _levels(stack), strict=True):
        way = "up" if amounts.usd_per_hour_change > 0 else "down" if amounts.usd_per_hour_change < 0 else ""
        # Half of a sum is no longer bar and no shorter one.
        whole = not (stack.partial_before or stack.partial_after)
        tokens = ""
        if level == "expected":
            tokens = arrow(
                tokens_words(stack.usd_per_million_tokens_before), tokens_words(stack.usd_per_million_tokens_after),
                new=new, gone=gone,
            )  # fmt: skip
        costs = [
            arrow(
                dollars(getattr(amounts, f"usd_per_{unit}_before"), partial=stack.partial_before),
                dollars(getattr(amounts, f"usd_per_{unit}_after"), partial=stack.partial_after),
                new=new, gone=gone,
            )
            for unit in ("hour", "month")
        ]  # fmt: skip
        bars = "".join(
            f'<div class="bar {kind}" style="width:{float(value / top * 100):.1f}%" title="{name} {money(value)}/h"></div>'
            for kind, name, value in (
                ("old", "before", amounts.usd_per_hour_before),
                ("new", "after", amounts.usd_per_hour_after),
            )
            if whole
        )
        nodes = arrow(plain(amounts.nodes_before), plain(amounts.nodes_after), new=new, gone=gone)
        rows.append(
            f'<tr><td class="left nowrap">{_NAMES[level]}</td><td class="nowrap">{nodes}</td>'
            f'<td class="nowrap {way if whole else ""}">{costs[0]}</td><td class="nowrap">{costs[1]}</td>'
            f'<td class="nowrap">{tokens}</td><td class="bars">{bars}</td></tr>'
        )
    head = "<tr><th></th><th>nodes</th><th>$/h</th><th>$/month</th><th>$/1M tokens</th>"
    head += '<th class="bars">before, after</th></tr>'
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _levels(stack: StackReport) -> list[Amounts]:
    return [getattr(stack.totals, level) for level in LEVELS]


def _facts(stack: StackReport) -> str:
    facts = [("release", release_words(stack)), ("gate", ", ".join(stack.gate)), ("plan", ", ".join(stack.plan))]
    if stack.evidence is not None and stack.evidence.state != "not asked":
        facts.append(("evidence", stack.evidence.words))
    facts.append(("unpriced", "; ".join(f"{entry.name} ({entry.why})" for entry in stack.unpriced)))
    items = "".join(f"<li><b>{name}</b> {escape(words)}</li>" for name, words in facts if words)
    return f'<ul class="facts">{items}</ul>' if items else ""


def _details(stack: StackReport) -> str:
    rows = "".join(_resource(line) for line in stack.resources)
    changed = sum(line.before != line.after for line in stack.resources)
    events = "".join(f"<li>{escape(event.words)}</li>" for event in stack.events)
    head = (
        '<tr><th class="left">resource</th><th class="left">what</th><th>$/h each</th><th>amount expected</th>'
        "<th>$/h expected</th></tr>"
    )
    words = f"{len(stack.resources)} priced resources, {changed} change; of all resources {stack.created} created, "
    words += f"{stack.updated} updated, {stack.deleted} deleted"
    return (
        f"<details><summary>{words}</summary>"
        f'<div class="wide"><table>{head}{rows}</table></div>{"<ul>" + events + "</ul>" if events else ""}</details>'
    )


def _resource(line: Line) -> str:
    def price(item: Item | None) -> str:
        return "–" if item is None else "unpriced" if item.usd_per_hour is None else each(item.usd_per_hour)

    def much(item: Item | None) -> str:
        return "–" if item is None else f"{plain(amount(item.quantity, 'expected'))} {item.unit}"

    def cost(item: Item | None) -> str:
        return "–" if item is None else "unpriced" if item.usd_per_hour is None else money(item.cost("expected"))

    before, after = line.before, line.after
    what = arrow(before.words if before else "–", after.words if after else "–")
    cells = [arrow(show(before), show(after)) for show in (price, much, cost)]
    tail = "".join(f'<td class="nowrap">{escape(cell)}</td>' for cell in cells)
    return (
        f'<tr class="{"moved" if before != after else ""}"><td class="left">{escape(line.item.name)} '
        f'<span class="dim">{line.item.kind}</span></td><td class="left">{escape(what)}</td>{tail}</tr>'
    )
