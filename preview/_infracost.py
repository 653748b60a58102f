"""The report in the shape of Infracost's JSON, for tools that read that.

It knows one figure per resource, so that here it is the expected one; what has no price has null costs, as theirs does.
Shape: https://www.infracost.io/docs/features/json_output (version 0.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from ._model import HOURS_PER_MONTH, ZERO, Item, total
from ._report import Report, StackReport


def infracost(report: Report, now: datetime) -> dict[str, Any]:
    """A project per stack: past breakdown, breakdown and diff; one that cannot be evaluated has its error in its metadata."""
    projects = [_project(stack) for stack in report.stacks]
    hours = [
        total(Decimal(project[part]["totalHourlyCost"]) for project in projects)
        for part in ("pastBreakdown", "breakdown", "diff")
    ]
    names = ("pastTotal{}Cost", "total{}Cost", "diffTotal{}Cost")
    sums = {
        name.format(unit): str(value * factor)
        for name, value in zip(names, hours, strict=True)
        for unit, factor in (("Hourly", Decimal(1)), ("Monthly", HOURS_PER_MONTH))
    }
    generated = now.astimezone(UTC).isoformat(timespec="seconds")
    return {
        "version": "0.2",
        # Who committed what is the CI's to know; the fields are required.
        "metadata": {
            "infracostCommand": "diff",
            "vcsBranch": "",
            "vcsBaseBranch": report.base or "",
            "vcsCommitSha": "",
            "vcsCommitAuthorName": "",
            "vcsCommitAuthorEmail": "",
            "vcsCommitTimestamp": generated,
            "vcsCommitMessage": "",
        },
        "currency": "USD",
        "projects": projects,
        **sums,
        "timeGenerated": generated,
        "summary": _summary(report.stacks),
    }


def _project(stack: StackReport) -> dict[str, Any]:
    before = [line.before for line in stack.resources if line.before is not None]
    after = [line.after for line in stack.resources if line.after is not None]
    changed = [line for line in stack.resources if line.before != line.after]
    diff = [
        {
            **_resource(line.item),
            "hourlyCost": str(_cost(line.after) - _cost(line.before)),
            "monthlyCost": str((_cost(line.after) - _cost(line.before)) * HOURS_PER_MONTH),
        }
        for line in changed
    ]
    grown = total(_cost(line.after) - _cost(line.before) for line in changed)
    return {
        "name": stack.stack,
        "displayName": stack.stack,
        "metadata": {
            "path": f"stacks/Pulumi.{stack.stack}.yaml",
            "type": "pulumi",
            **({"errors": [_error(stack.error)]} if stack.error is not None else {}),
        },
        "pastBreakdown": _breakdown(before),
        "breakdown": _breakdown(after),
        "diff": {
            "resources": diff,
            "totalHourlyCost": str(grown),
            "totalMonthlyCost": str(grown * HOURS_PER_MONTH),
            "totalMonthlyUsageCost": str(
                _usage(line.after for line in changed) - _usage(line.before for line in changed)
            ),
        },
        "summary": _summary([stack]),
    }


def _breakdown(items: Iterable[Item]) -> dict[str, Any]:
    listed = list(items)
    hourly = total(_cost(item) for item in listed)
    return {
        "resources": [_resource(item) for item in listed],
        "totalHourlyCost": str(hourly),
        "totalMonthlyCost": str(hourly * HOURS_PER_MONTH),
        "totalMonthlyUsageCost": str(_usage(listed)),
    }


def _usage(items: Iterable[Item | None]) -> Decimal:
    """What depends on how much the service is asked."""
    return total(_cost(item) for item in items if item is not None and item.kind == "egress") * HOURS_PER_MONTH


def _error(message: str) -> dict[str, Any]:
    return {"code": 1, "message": message, "data": None, "isError": True}


def _resource(item: Item) -> dict[str, Any]:
    priced = item.usd_per_hour is not None
    quantity = item.quantity.expected
    component = {
        "name": item.words,
        "unit": "hours" if item.unit == "node" else item.unit,
        "hourlyQuantity": str(quantity),
        "monthlyQuantity": str(quantity * HOURS_PER_MONTH),
        "price": str(item.usd_per_hour) if priced else None,
        "usageBased": item.kind == "egress",
        "priceNotFound": not priced,
        "hourlyCost": str(_cost(item)) if priced else None,
        "monthlyCost": str(_cost(item) * HOURS_PER_MONTH) if priced else None,
    }
    return {
        "name": item.name,
        "resourceType": item.kind,
        "metadata": {"region": item.region},
        "hourlyCost": component["hourlyCost"],
        "monthlyCost": component["monthlyCost"],
        "costComponents": [component],
    }


def _summary(stacks: Iterable[StackReport]) -> dict[str, Any]:
    lines = [line for stack in stacks for line in stack.resources if line.after is not None]
    unpriced = sum(line.after is not None and line.after.usd_per_hour is None for line in lines)
    return {
        "totalDetectedResources": len(lines),
        "totalSupportedResources": len(lines) - unpriced,
        "totalUnsupportedResources": unpriced,
    }


def _cost(item: Item | None) -> Decimal:
    return item.cost("expected") if item is not None else ZERO
