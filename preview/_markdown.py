"""The comment a pull request gets: one hidden marker, one headline, what is dangerous, one table, details folded."""

from __future__ import annotations

from decimal import Decimal

from ._changes import Line, cents, money, plain
from ._model import LEVELS, Item, Level, amount
from ._report import PriceAge, Report, StackReport, alerts, unpriced_words

MARKER = "<!-- tollgate-preview -->"
# GitHub takes 65,536 characters, GitLab a million.
_MOST = 60_000
_ALERTS = 20
_NAMES: dict[Level, str] = {"min": "at least", "expected": "expected", "max": "at most"}


def markdown(report: Report, *, most: int = _MOST) -> str:
    """The whole comment in at most that many characters: what does not fit is left out from the details on, and says so."""
    for folded, stacks in ((True, None), (False, None), (False, 20), (False, 0)):
        text = _document(report, folded=folded, stacks=stacks)
        if len(text) <= most:
            return text
    return text[: most - 20] + "\n\n(cut off)\n"


def _document(report: Report, *, folded: bool, stacks: int | None) -> str:
    shown = [stack for stack in report.stacks if stack.status != "unchanged"]
    listed = shown if stacks is None else shown[:stacks]
    lines = [MARKER, f"### {safe(report.headline)}", ""]
    if report.error is not None:
        lines += ["```text", *_fenced(report.error), "```", ""]
    if len(shown) > 1:
        lines += [f"- {safe(stack.headline)}" for stack in listed]
        lines += [f"- and {len(shown) - len(listed)} more"] if len(listed) < len(shown) else []
        lines += [""]
    lines += _alerts(report)
    if any(stack.error is None for stack in listed):
        lines += _table(listed)
    # Release, gate and plan are in the headlines already.
    said = [
        f"- **evidence** {safe(f'{stack.stack}: ' if len(listed) > 1 else '')}{safe(stack.evidence.words)}"
        for stack in listed
        if stack.evidence is not None and stack.evidence.state != "not asked"
    ]
    said += [f"- **unpriced, in no sum above** {safe(words)}" for words in unpriced_words(listed)]
    lines += [*said, ""] if said else []
    if folded:
        for stack in listed:
            lines += _details(stack)
    elif shown:
        lines += ["The details are too long for a comment: see `tollgate preview --html`.", ""]
    against = f" against `{' '.join(report.base.replace('`', '').split())}`" if report.base else ""
    how = "the program, evaluated offline" if report.source == "offline" else "what Pulumi would do to the state"
    lines.append(f"<sub>{how}{against}. {prices_words(report.prices)}</sub>")
    return "\n".join(lines) + "\n"


def prices_words(prices: PriceAge) -> str:
    """Where the prices come from and how old they can be."""
    if prices.oldest is None:
        return f"Prices: {safe(prices.book)}." if prices.book else ""
    return f"Prices: {safe(prices.book)}, the oldest used is of {safe(prices.oldest)} ({prices.days} days)."


def _alerts(report: Report) -> list[str]:
    """In GitHub's alert boxes: red first."""
    lines = []
    for kind, messages in zip(("CAUTION", "WARNING"), alerts(report), strict=True):
        if messages:
            lines += [f"> [!{kind}]", *[f"> - {safe(message)}" for message in messages[:_ALERTS]]]
            lines += [f"> - and {len(messages) - _ALERTS} more"] if len(messages) > _ALERTS else []
            lines += [""]
    return lines


def _table(shown: list[StackReport]) -> list[str]:
    lines = ["| stack | | nodes | $/h | $/month | $/1M tokens |", "|---|---|--:|--:|--:|--:|"]
    for stack in shown:
        if stack.error is None:
            lines += _rows(stack)
    return [*lines, ""]


def _rows(stack: StackReport) -> list[str]:
    """Three lines: at least, expected, at most."""
    new, gone = stack.status == "new", stack.status == "removed"
    rows = []
    for level in LEVELS:
        amounts = getattr(stack.totals, level)
        tokens = ""
        if level == "expected":
            tokens = arrow(
                tokens_words(stack.usd_per_million_tokens_before),
                tokens_words(stack.usd_per_million_tokens_after),
                new=new,
                gone=gone,
            )
        cells = [
            f"**{safe(stack.stack)}**" if level == "min" else "",
            _NAMES[level],
            arrow(plain(amounts.nodes_before), plain(amounts.nodes_after), new=new, gone=gone),
            *[
                arrow(
                    dollars(getattr(amounts, f"usd_per_{unit}_before"), partial=stack.partial_before),
                    dollars(getattr(amounts, f"usd_per_{unit}_after"), partial=stack.partial_after),
                    new=new,
                    gone=gone,
                )
                for unit in ("hour", "month")
            ],
            tokens,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _details(stack: StackReport) -> list[str]:
    if stack.error is not None:
        text = ["```text", *_fenced(stack.error), "```"]
        return [f"<details><summary>{safe(stack.stack)}: why</summary>", "", *text, "", "</details>", ""]
    changed = [line for line in stack.resources if line.before != line.after]
    words = f"{safe(stack.stack)}: {len(stack.resources)} priced resources, {len(changed)} change"
    others = [
        f"{count} {word}"
        for count, word in ((stack.created, "created"), (stack.updated, "updated"), (stack.deleted, "deleted"))
        if count
    ]
    head = ["| resource | what | $/h each | amount expected | $/h expected |", "|---|---|--:|--:|--:|"]
    rows = [_resource(line) for line in stack.resources]
    events = [f"- {safe(event.words)}" for event in stack.events]
    body = [*head, *rows, "", *(["Of all resources: " + ", ".join(others) + ".", ""] if others else []), *events]
    return [f"<details><summary>{words}</summary>", "", *body, "", "</details>", ""]


def _resource(line: Line) -> str:
    def side(item: Item | None, what: str) -> str:
        if item is None:
            return "–"
        if what == "each":
            return "unpriced" if item.usd_per_hour is None else each(item.usd_per_hour)
        if what == "amount":
            return f"{plain(amount(item.quantity, 'expected'))} {safe(item.unit)}"
        return "unpriced" if item.usd_per_hour is None else money(item.cost("expected"))

    mark = "**" if line.before != line.after else ""
    before, after = line.before, line.after
    what = arrow(before.words if before else "–", after.words if after else "–")
    cells = [f"{mark}{safe(line.item.name)}{mark} {line.item.kind}", safe(what)]
    cells += [arrow(side(before, one), side(after, one)) for one in ("each", "amount", "cost")]
    return f"| {' | '.join(cells)} |"


def release_words(stack: StackReport) -> str:
    """What of the release changes, below a heading that says `release` already."""
    return ", ".join(stack.release).removeprefix("release ")


def dollars(value: Decimal, *, partial: bool) -> str:
    """`$8.54`; with parts that have no price `$8.54 + unpriced`, and where nothing else is left `unpriced`: never $0."""
    if not partial:
        return money(value)
    return f"{money(value)} + unpriced" if cents(value) else "unpriced"


def each(value: Decimal) -> str:
    """A unit's price, to four digits where cents say too little."""
    return f"${value:.4f}" if value < 1 else f"${value:,.4f}"


def tokens_words(value: Decimal | None) -> str:
    """`$1.04`, or nothing where it is not known."""
    return "" if value is None else f"${value:.2f}"


def arrow(before: str, after: str, *, new: bool = False, gone: bool = False) -> str:
    """`before → after`, or the one that counts."""
    if new:
        return after
    if gone:
        return f"{before} → –" if before else ""
    return after if before == after else f"{before or '–'} → {after or '–'}"


def safe(text: str) -> str:
    """Names come from files of a pull request: nothing of them may become markup, a link or a mention."""
    for mark, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "&#64;"), ("://", ":&#47;&#47;")):
        text = text.replace(mark, instead)
    for mark in ("\\", "|", "*", "[", "]"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.replace("`", "'").split())


def _fenced(text: str) -> list[str]:
    """Lines that cannot end the fence they stand in."""
    return [line.replace("```", "'''") for line in text.splitlines()][:40]
