"""The comment a pull request gets: one hidden marker, one headline each, one table, details folded."""

from __future__ import annotations

from ._changes import Change, money
from ._shape import HOURS_PER_MONTH

MARKER = "<!-- tollgate-preview -->"


def markdown(changes: list[Change], base: str | None, book: dict[str, str]) -> str:
    """Markdown of all changes; unchanged stacks are counted, not listed."""
    shown = [change for change in changes if change.changed]
    lines = [MARKER, f"### Cost and nodes{f' against `{base}`' if base else ''}", ""]
    if not shown:
        lines += [f"No change in {len(changes)} stack{'s' if len(changes) != 1 else ''}.", ""]
    else:
        lines += [f"- {_safe(change.headline)}" for change in shown]
        lines += ["", "| stack | nodes min / expected / max | $/h expected | $/month expected | $/h at most |"]
        lines += ["|---|---|---|---|---|"]
        lines += [_row(change) for change in shown if change.error is None]
        lines += [""]
        for change in shown:
            lines += _details(change)
    unpriced = sorted({name for change in changes for name in change.unpriced})
    if unpriced:
        lines += [f"**Unpriced, not counted above:** {', '.join(unpriced)}", ""]
    lines.append(f"<sub>Prices: {book['source']}, {book['as_of']}.</sub>")
    return "\n".join(lines) + "\n"


def _row(change: Change) -> str:
    nodes = " / ".join(_arrow(*map(str, change.nodes(which))) for which in ("min", "expected", "max"))
    before, after = change.hourly("expected")
    month = _arrow(money(before * HOURS_PER_MONTH), money(after * HOURS_PER_MONTH))
    top = _arrow(*map(money, change.hourly("max")))
    return f"| {_safe(change.stack)} | {nodes} | {_arrow(money(before), money(after))} | {month} | {top} |"


def _details(change: Change) -> list[str]:
    if change.after is None:
        return []
    rows = [
        f"| {_safe(pool.name)} | {pool.machine_type} ({pool.gpu}{f', {pool.mig_profile}' if pool.mig_profile else ''})"
        f" | {pool.region} | {'spot' if pool.spot else 'on demand'}"
        f" | {money(pool.hourly) if pool.hourly is not None else 'unpriced'} |"
        for pool in change.after.pools
    ]
    head = ["| pool | machine | region | | $/h a node |", "|---|---|---|---|---|"]
    return [f"<details><summary>{_safe(change.stack)}</summary>", "", *head, *rows, "", "</details>", ""]


def _arrow(before: str, after: str) -> str:
    return after if before == after else f"{before} → {after}"


def _safe(text: str) -> str:
    """Names come from files of a pull request: nothing of them may become markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'").replace("\n", " ")
