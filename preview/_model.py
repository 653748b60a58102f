"""What a preview knows of one stack at one commit: typed resources with their price, its release, its gate, its plan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

import stacks

# Google and AWS both bill by the second and quote 730 hours as a month.
HOURS_PER_MONTH = Decimal(730)
Level = Literal["min", "expected", "max"]
LEVELS: tuple[Level, ...] = ("min", "expected", "max")
Kind = Literal["gpu-pool", "cpu-pool", "disk", "load-balancer", "cluster", "address", "nat", "egress"]
ZERO = Decimal(0)
_P = ParamSpec("_P")
_T = TypeVar("_T")
_MOST_NUMBER, _MOST_SUM = Decimal("1e9"), Decimal("1e22")
_UNLIKE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def of_strangers(read: Callable[_P, _T]) -> Callable[_P, _T]:
    """For what reads resources. A program may register anything under any name; what then cannot be read as what it is called
    is said in words, as a TollgateError, and not a fault of ours in the middle of somebody's pull request."""

    @functools.wraps(read)
    def reading(*given: _P.args, **named: _P.kwargs) -> _T:
        try:
            return read(*given, **named)
        except _UNLIKE as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise stacks.TollgateError(
                f"a resource is not of the form that its type has ({what})\n"
                "  fix: see what the program registers; if that is right, report it"
            ) from error

    return reading


def _within(most: Decimal) -> AfterValidator:
    """What is beyond it has more digits than a sum keeps, and as many as somebody likes where it is written out."""

    def judged(value: Decimal) -> Decimal:
        if not -most < value < most:
            raise ValueError(f"must be below {most:g}")
        return value

    return AfterValidator(judged)


Number = Annotated[Decimal, _within(_MOST_NUMBER)]
# Of products of them.
Sum = Annotated[Decimal, _within(_MOST_SUM)]


class Model(BaseModel):
    """Base of everything a report is made of: frozen, no unknown keys, decimals as strings in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Quantity(Model):
    """How much of a resource there is: at least, as planned (the mean where a day is given), at most; `peak`: as planned for
    the traffic as the stack states it."""

    min: Number
    expected: Number
    max: Number
    peak: Number

    @classmethod
    def fixed(cls, amount: Decimal | int) -> Quantity:
        """The same at every level."""
        value = Decimal(amount)
        return cls(min=value, expected=value, max=value, peak=value)

    def times(self, factor: Decimal) -> Quantity:
        """Every level multiplied."""
        return Quantity(
            min=self.min * factor, expected=self.expected * factor, max=self.max * factor, peak=self.peak * factor
        )


class Item(Model):
    """One priced resource. `usd_per_hour`: of one `unit`, None where no price is known; `source`, `as_of`: of that price.

    Pools: `unit` is node; `gpus` per node, `slices` of them by `mig_profile`. `zones`: named ones.
    """

    kind: Kind
    name: str
    region: str
    unit: str
    quantity: Quantity
    usd_per_hour: Number | None
    source: str = ""
    as_of: str | None = None
    machine_type: str | None = None
    gpu: str | None = None
    gpus: int = 0
    mig_profile: str | None = None
    slices: int = 0
    zones: tuple[str, ...] = ()
    spot: bool = False
    note: str = ""

    @property
    def key(self) -> str:
        """The same before and after."""
        return f"{self.kind} {self.name}"

    @property
    def words(self) -> str:
        """What it is, without how much."""
        parts = [self.machine_type or self.note]
        if self.gpu:
            cut = f" as {self.slices} × {self.mig_profile}" if self.mig_profile else ""
            parts.append(f"{self.gpus} × {self.gpu}{cut}")
        parts.append(", ".join(self.zones) or self.region)
        if self.machine_type:
            parts.append("spot" if self.spot else "on demand")
            parts += [self.note] if self.note else []
        return ", ".join(part for part in parts if part)

    def cost(self, level: Level) -> Decimal:
        """Dollars per hour; 0 for what has no price, which `Shape.unpriced` names."""
        return (self.usd_per_hour or ZERO) * amount(self.quantity, level)


def amount(quantity: Quantity, level: Level) -> Decimal:
    """The quantity at one level."""
    found: Decimal = getattr(quantity, level)
    return found


class Unpriced(Model):
    """Something that costs money, and nobody knows how much; `why`."""

    name: str
    why: str


class Plan(Model):
    """What the planner says of a stack: latencies in seconds at its traffic (None: it saturates), tokens per second in the
    mean of the day and at its peak, broken promises."""

    e2e_p95_seconds: Number | None = None
    ttft_p95_seconds: Number | None = None
    output_tokens_per_second: Number = ZERO
    output_tokens_per_second_peak: Number = ZERO
    unmet: tuple[str, ...] = ()
    binds: str = ""


class Shape(Model):
    """One stack at one commit. `release`: its fields, flat; `gate`: what its promotion check asks."""

    stack: str
    target: str = ""
    items: tuple[Item, ...] = ()
    unpriced: tuple[Unpriced, ...] = ()
    release: Mapping[str, Any] = Field(default_factory=dict)
    digest: str = ""
    gate: Mapping[str, Any] = Field(default_factory=dict)
    plan: Plan | None = None

    @property
    def pools(self) -> tuple[Item, ...]:
        """GPU and CPU pools."""
        return tuple(item for item in self.items if item.kind in ("gpu-pool", "cpu-pool"))

    @property
    def gpu_pools(self) -> tuple[Item, ...]:
        """Pools with GPUs."""
        return tuple(item for item in self.items if item.kind == "gpu-pool")

    def nodes(self, level: Level) -> Decimal:
        """Nodes of all pools."""
        return total(amount(pool.quantity, level) for pool in self.pools)

    def hourly(self, level: Level) -> Decimal:
        """Dollars per hour of all that has a price."""
        return total(item.cost(level) for item in self.items)

    @property
    def usd_per_million_tokens(self) -> Decimal | None:
        """All that has a price, as expected, over the tokens expected; None without tokens or with a pool unpriced."""
        if self.plan is None or not self.plan.output_tokens_per_second:
            return None
        if any(pool.usd_per_hour is None for pool in self.pools):
            return None
        tokens = self.plan.output_tokens_per_second * 3600 / 1_000_000
        each = self.hourly("expected") / tokens
        # Next to no tokens cost more than anybody could write down.
        return each.quantize(Decimal("0.0001")) if each < _MOST_SUM else None


def total(amounts: Iterable[Decimal]) -> Decimal:
    """Their sum; 0 of none."""
    return sum(amounts, ZERO)
