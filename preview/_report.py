"""All of a preview as one document: what every rendering is made of, and the JSON that is published.

Pure: everything that is not in its arguments (today, prices, evidence) is read elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, Literal

from pydantic import ValidationError

import stacks

from ._changes import Amounts, Change, Evidence, Line, Status, money, signed
from ._events import NODE_POOL, Event
from ._limits import Finding, Limits, judge, raised
from ._model import LEVELS, Model, Plan, Sum, Unpriced, total
from ._prices import age_days

SCHEMA_VERSION = 2
Source = Literal["offline", "state"]
# Beyond the exit codes of every command (0 done, 1 failed, 2 wrong input, 3 refused by the gate).
OVER_A_LIMIT = 4
_MOST_NAMES = 6


class Levels(Model):
    """Amounts at least, as planned, at most."""

    min: Amounts
    expected: Amounts
    max: Amounts


class StackReport(Model):
    """One stack. `release`, `gate`, `plan`: what changes, in words; `partial_*`: sums without what is unpriced."""

    stack: str
    status: Status
    headline: str
    error: str | None
    base_error: str | None
    release: tuple[str, ...]
    gate: tuple[str, ...]
    plan: tuple[str, ...]
    plan_before: Plan | None
    plan_after: Plan | None
    evidence: Evidence | None
    totals: Levels
    partial_before: bool
    partial_after: bool
    usd_per_million_tokens_before: Sum | None
    usd_per_million_tokens_after: Sum | None
    events: tuple[Event, ...]
    created: int
    updated: int
    deleted: int
    unpriced: tuple[Unpriced, ...]
    resources: tuple[Line, ...]


class PriceAge(Model):
    """The price book, and the oldest price that was used, as written and in days."""

    book: str
    oldest: str | None
    days: int | None


class Report(Model):
    """A preview. `error`: why there is none at all. `exit_code`: 0, 1 (a program failed), 2 (wrong input), 4 (over a limit).

    `worth_a_comment`: whether anything changes, fails or is against a limit; `base`: what it is compared with.
    """

    schema_version: int = SCHEMA_VERSION
    source: Source
    base: str | None
    headline: str
    error: str | None
    stacks: tuple[StackReport, ...]
    findings: tuple[Finding, ...]
    prices: PriceAge
    exit_code: int
    worth_a_comment: bool


def report(
    changes: Sequence[Change],
    *,
    source: Source,
    base: str | None,
    book: str,
    today: date,
    limits: Limits | None = None,
    base_limits: Limits | None = None,
) -> Report:
    """The document of these changes. `base_limits`: those of the base, where they differ from the limits in force."""
    limits = limits or Limits()
    ordered = sorted(changes, key=lambda change: change.stack)
    findings = judge(ordered, limits) + (raised(ordered, limits, base_limits) if base_limits is not None else [])
    prices = _age(ordered, book, today)
    if prices.days is not None and prices.days > limits.old_prices_days:
        message = f"prices are up to {prices.days} days old ({prices.oldest}): tollgate prices refresh"
        findings.append(Finding(level="warn", rule="old prices", stack=None, message=message))
    failed = any(change.error is not None for change in ordered)
    code = 0
    if failed:
        code = 2 if all(change.input_error for change in ordered if change.error is not None) else 1
    elif any(finding.level == "fail" for finding in findings):
        code = OVER_A_LIMIT
    return Report(
        source=source,
        base=base,
        headline=_headline(ordered),
        error=None,
        stacks=tuple(_stack(change) for change in ordered),
        findings=tuple(findings),
        prices=prices,
        exit_code=code,
        worth_a_comment=failed or any(_worth(change, limits) for change in ordered) or code != 0,
    )


def failure(error: Exception, *, source: Source, base: str | None) -> Report:
    """The document of a preview that could not be made at all: a base that does not exist, a limits file that is wrong."""
    return Report(
        source=source,
        base=base,
        headline=f"no preview: {str(error).splitlines()[0]}",
        error=str(error),
        stacks=(),
        findings=(),
        prices=PriceAge(book="", oldest=None, days=None),
        exit_code=error.exit_code if isinstance(error, stacks.TollgateError) else 1,
        worth_a_comment=True,
    )


def alerts(document: Report) -> tuple[list[str], list[str]]:
    """What must not be overlooked, graver things first: (red, yellow)."""
    red = [finding.message for finding in document.findings if finding.level == "fail"]
    yellow = [finding.message for finding in document.findings if finding.level == "warn"]
    lost: dict[str, list[str]] = {}
    for stack in document.stacks:
        for event in stack.events:
            if event.stateful or event.type == NODE_POOL:
                (red if event.stateful else yellow).append(f"{stack.stack}: {event.words}")
        if stack.error is not None:
            red.append(f"{stack.stack} cannot be evaluated")
        if stack.base_error is not None:
            lost.setdefault(stack.base_error.splitlines()[0], []).append(stack.stack)
        red += [f"{stack.stack}: {words}" for words in stack.gate if "TAKEN AWAY" in words]
        red += [f"{stack.stack}: {words}" for words in stack.plan if "BREAKS" in words]
    for why, names in lost.items():
        yellow.append(f"{', '.join(names)} cannot be evaluated at the base, so all of it counts as new: {why}")
    return red, yellow


def unpriced_words(stacks: Sequence[StackReport]) -> list[str]:
    """What has no price: `names: why` per reason, with whose it is where there are several stacks."""
    found: dict[str, dict[str, list[str]]] = {}
    for stack in stacks:
        for entry in stack.unpriced:
            found.setdefault(entry.why, {}).setdefault(entry.name, []).append(stack.stack)

    def named(name: str, whose: Sequence[str]) -> str:
        return f"{name} ({_some(whose)})" if len(stacks) > 1 else name

    return [f"{_some([named(*one) for one in names.items()])}: {why}" for why, names in sorted(found.items())]


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:_MOST_NAMES]) + (
        f" and {len(words) - _MOST_NAMES} more" if len(words) > _MOST_NAMES else ""
    )


def as_json(document: Report) -> str:
    """The published form: stable names, amounts as decimal strings. See docs/preview/report.schema.json."""
    return document.model_dump_json(indent=2) + "\n"


def from_json(text: str) -> Report:
    """The document again. Raises InputError for anything else, so that a job with rights can render what one without made."""
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise stacks.InputError(
            where=f"--from, {'.'.join(map(str, first['loc'])) or 'the document'}",
            got=repr(first["input"])[:100],
            allowed=first["msg"],
            fix="give the output of tollgate preview --json of the same version",
        ) from None


def report_schema() -> dict[str, Any]:
    """JSON Schema of the published form."""
    return Report.model_json_schema(mode="serialization")


def _stack(change: Change) -> StackReport:
    return StackReport(
        stack=change.stack,
        status=change.status,
        headline=change.headline,
        error=change.error,
        base_error=change.base_error,
        release=change.release_words,
        gate=change.gate_words,
        plan=change.plan_words,
        plan_before=change.before.plan if change.before else None,
        plan_after=change.after.plan if change.after else None,
        evidence=change.evidence,
        totals=Levels(**{level: change.amounts(level) for level in LEVELS}),
        partial_before=change.partial("before"),
        partial_after=change.partial("after"),
        usd_per_million_tokens_before=change.before.usd_per_million_tokens if change.before else None,
        usd_per_million_tokens_after=change.after.usd_per_million_tokens if change.after else None,
        events=change.events,
        created=change.counts.get("created", 0),
        updated=change.counts.get("updated", 0),
        deleted=change.counts.get("deleted", 0),
        unpriced=change.unpriced,
        resources=change.lines,
    )


def _headline(changes: Sequence[Change]) -> str:
    shown = [change for change in changes if change.status != "unchanged"]
    if not shown:
        return f"no change in {len(changes)} stack{'' if len(changes) == 1 else 's'}"
    if len(shown) == 1:
        return shown[0].headline
    whole = [change for change in shown if change.error is None and change.known]
    new = all(change.status == "new" for change in changes)
    words = [f"{len(shown)} new stacks" if new else f"{len(shown)} of {len(changes)} stacks change"]
    if whole:
        grown = total(change.amounts("expected").usd_per_hour_step for change in whole)
        words[0] += f": {money(grown) if new else signed(grown)}/h expected in all"
    for word, names in (
        ("the cost of {} is not known", [one.stack for one in shown if one.error is None and not one.known]),
        ("{} cannot be evaluated", [one.stack for one in shown if one.error is not None]),
    ):
        if names:
            words.append(word.format(_some(names)))
    return ", ".join(words)


def _worth(change: Change, limits: Limits) -> bool:
    """Whether a pull request's readers want to know. Below the limit only a cost that merely moves is left out."""
    if change.status == "unchanged":
        return False
    said = bool(change.events or change.release_words or change.gate_words or change.base_error)
    said = said or change.status in ("new", "removed", "broken") or not change.known
    moved = max(abs(change.amounts(level).usd_per_hour_change) for level in LEVELS)
    if said or not limits.comment_above_usd_per_hour:
        return True
    return moved > limits.comment_above_usd_per_hour


def _age(changes: Sequence[Change], book: str, today: date) -> PriceAge:
    used = [
        item.as_of
        for change in changes
        for shape in (change.before, change.after)
        for item in (shape.items if shape else ())
        if item.as_of is not None
    ]
    oldest = max(used, key=lambda as_of: age_days(as_of, today), default=None)
    return PriceAge(book=book, oldest=oldest, days=None if oldest is None else age_days(oldest, today))
