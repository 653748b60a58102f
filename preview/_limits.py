"""Budgets, quotas and rules of `stacks/preview.yaml`, and what of a change goes against them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

import stacks

from ._changes import Change, cents, money, plain, signed
from ._model import ZERO, Item, Level, Model, total

PATH = Path("stacks") / "preview.yaml"
_Amount = Annotated[Decimal, Field(ge=0, lt=Decimal("1e9"))]
_Globs = Annotated[tuple[str, ...], Field(min_length=1)]
Verdict = Literal["fail", "warn"]


class Bounds(Model):
    """Dollars per hour, by how much they may grow, and by how many percent of before; above any of them is too much."""

    usd_per_hour: _Amount | None = None
    increase_usd_per_hour: _Amount | None = None
    increase_percent: _Amount | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if all(value is None for value in self.__dict__.values()):
            raise ValueError("name at least one of usd_per_hour, increase_usd_per_hour, increase_percent")
        return self


class Budget(Model):
    """For each of the stacks (globs), or with `together` for their sum: a pipeline's. `at`: which of the three figures."""

    stacks: _Globs = ("*",)
    together: bool = False
    at: Level = "expected"
    warn: Bounds | None = None
    fail: Bounds | None = None


class Quota(Model):
    """GPUs that Google grants in a region, on demand and spot apart where `spot` is given; over all stacks at most."""

    region: str
    gpu: str
    gpus: Annotated[int, Field(ge=0)]
    spot: bool | None = None
    level: Verdict = "fail"


class Rule(Model):
    """Pools of these stacks that fit everything given here are against it: `message` says why, `level` what it does.

    `only_machine_types`: turned around: against it is a pool of any other type.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    message: Annotated[str, Field(min_length=3, max_length=300)]
    level: Verdict = "fail"
    stacks: _Globs = ("*",)
    machine_types: _Globs | None = None
    only_machine_types: _Globs | None = None
    gpus: _Globs | None = None
    regions: _Globs | None = None
    spot: bool | None = None
    mig: bool | None = None
    nodes_above: Annotated[int, Field(ge=0)] | None = None

    def against(self, stack: str, pool: Item) -> bool:
        """Whether that pool goes against the rule."""
        fits = [
            _any(stack, self.stacks),
            self.machine_types is None or _any(str(pool.machine_type), self.machine_types),
            self.only_machine_types is None or not _any(str(pool.machine_type), self.only_machine_types),
            self.gpus is None or _any(pool.gpu or "", self.gpus),
            self.regions is None or _any(pool.region, self.regions),
            self.spot is None or pool.spot is self.spot,
            self.mig is None or (pool.mig_profile is not None) is self.mig,
            self.nodes_above is None or pool.quantity.max > self.nodes_above,
        ]
        return all(fits)


class Limits(Model):
    """`stacks/preview.yaml`. `comment_above`: smaller changes of the expected cost get no comment where nothing else changes;
    `old_prices_days`: a price this old is said to be old; `days`: shares of a stack's traffic through a day."""

    comment_above_usd_per_hour: _Amount = ZERO
    old_prices_days: Annotated[int, Field(ge=1)] = 365
    days: Mapping[
        str, Annotated[tuple[Annotated[float, Field(ge=0, le=10)], ...], Field(min_length=1, max_length=1440)]
    ] = Field(default_factory=dict)
    budgets: tuple[Budget, ...] = ()
    quotas: tuple[Quota, ...] = ()
    rules: tuple[Rule, ...] = ()


class Finding(Model):
    """Something against a limit, or a warning. `stack` is None where it is about several."""

    level: Literal["fail", "warn", "info"]
    rule: str
    stack: str | None
    message: str


def load_limits(root: Path) -> Limits:
    """The limits of a checkout; none where there is no such file. Raises InputError naming file and key."""
    path = root / PATH
    if not path.is_file():
        return Limits()
    try:
        return Limits.model_validate(stacks.read_mapping(path, root, empty=True))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise stacks.InputError(
            where=f"{PATH}, {'.'.join(map(str, first['loc'])) or 'the whole file'}",
            got=repr(first["input"])[:200],
            allowed=first["msg"].removeprefix("Value error, ").removeprefix("Input should be "),
            fix="see docs/preview.md",
        ) from None


def judge(changes: Sequence[Change], limits: Limits) -> list[Finding]:
    """What goes against the limits: failures first, in a stable order. Stacks that cannot be evaluated are judged by nobody."""
    found: list[Finding] = []
    whole = [change for change in changes if change.after is not None and change.error is None]
    for number, budget in enumerate(limits.budgets, start=1):
        chosen = [change for change in changes if _any(change.stack, budget.stacks) and change.error is None]
        if budget.together:
            names = ", ".join(budget.stacks)
            found += _over(f"budget {number}", None, f"{names} together", chosen, budget)
        else:
            for change in chosen:
                if change.after is not None:
                    found += _over(f"budget {number}", change.stack, change.stack, [change], budget)
    for quota in limits.quotas:
        found += _quota(whole, quota)
    for rule in limits.rules:
        for change in whole:
            assert change.after is not None
            for pool in change.after.pools:
                if rule.against(change.stack, pool):
                    found.append(
                        Finding(
                            level=rule.level,
                            rule=rule.name,
                            stack=change.stack,
                            message=f"{change.stack}: {rule.message} (pool {pool.name}: {pool.words})",
                        )
                    )
    return sorted(set_(found), key=lambda finding: (finding.level != "fail", finding.rule, finding.message))


def raised(changes: Sequence[Change], now: Limits, before: Limits) -> list[Finding]:
    """What the limits of the base would have refused, and those of this very change let pass."""
    mine = {(finding.rule, finding.message) for finding in judge(changes, now) if finding.level == "fail"}
    return [
        Finding(
            level="warn",
            rule=finding.rule,
            stack=finding.stack,
            message=f"{finding.message}; {PATH} of the base forbids that, and this change lifts the limit",
        )
        for finding in judge(changes, before)
        if finding.level == "fail" and (finding.rule, finding.message) not in mine
    ]


def _over(rule: str, stack: str | None, who: str, changes: Iterable[Change], budget: Budget) -> list[Finding]:
    chosen = list(changes)
    lacking = [change for change in chosen if change.partial("after")]
    if lacking and (budget.warn or budget.fail):
        # What has no price could cost anything: a limit is not kept by not knowing.
        named = "; ".join(f"{change.stack}: {change.missing('after')}" for change in lacking)
        return [
            Finding(
                level="fail" if budget.fail else "warn",
                rule=rule,
                stack=stack,
                message=f"{who}: the budget cannot be judged, unpriced is {named}",
            )
        ]
    sums = [change.amounts(budget.at) for change in chosen]
    before, after = (
        total(one.usd_per_hour_before for one in sums),
        total(one.usd_per_hour_after for one in sums),
    )
    for level, bounds in (("fail", budget.fail), ("warn", budget.warn)):
        words = _exceeded(before, after, bounds) if bounds is not None else None
        if words is not None:
            return [Finding(level=level, rule=rule, stack=stack, message=f"{who}: {words} ({budget.at})")]  # type: ignore[arg-type]
    return []


def _exceeded(before: Decimal, after: Decimal, bounds: Bounds) -> str | None:
    grown = after - before
    if bounds.usd_per_hour is not None and after > bounds.usd_per_hour:
        return f"{money(after)}/h is above the limit of {money(bounds.usd_per_hour)}/h"
    if bounds.increase_usd_per_hour is not None and grown > bounds.increase_usd_per_hour:
        return f"{signed(grown)}/h is above the limit of {signed(bounds.increase_usd_per_hour)}/h"
    if bounds.increase_percent is not None and before and grown / before * 100 > bounds.increase_percent:
        return f"+{cents(grown / before * 100)} % is above the limit of +{plain(bounds.increase_percent)} %"
    return None


def _quota(changes: Sequence[Change], quota: Quota) -> list[Finding]:
    used = {
        change.stack: total(
            pool.quantity.max * pool.gpus
            for pool in change.after.gpu_pools
            if pool.region == quota.region
            and pool.gpu == quota.gpu
            and (quota.spot is None or pool.spot is quota.spot)
            and change.after.target != "local"
        )
        for change in changes
        if change.after is not None
    }
    wanted = total(used.values())
    if wanted <= quota.gpus:
        return []
    whose = ", ".join(f"{stack} {plain(number)}" for stack, number in sorted(used.items()) if number)
    kind = "" if quota.spot is None else " spot" if quota.spot else " on-demand"
    return [
        Finding(
            level=quota.level,
            rule=f"quota {quota.gpu} {quota.region}",
            stack=None,
            message=f"{plain(wanted)}{kind} {quota.gpu} at most in {quota.region}, the quota is {quota.gpus}: {whose}",
        )
    ]


def set_(findings: Iterable[Finding]) -> list[Finding]:
    """Each finding once."""
    return list({finding.model_dump_json(): finding for finding in findings}.values())


def _any(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def schema() -> dict[str, Any]:
    """JSON Schema of `stacks/preview.yaml`, for editors."""
    return Limits.model_json_schema()
