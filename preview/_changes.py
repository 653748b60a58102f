"""The difference of two shapes, in numbers and in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal, Self

from pydantic import model_validator

from ._events import Event
from ._model import HOURS_PER_MONTH, LEVELS, ZERO, Item, Level, Model, Shape, Sum, Unpriced, amount

# Field of a release -> its word; in the order in which they are said.
_RELEASE = {
    "release": "release",
    "engine": "engine",
    "version": "version",
    "image": "image",
    "model": "model",
    "source": "source",
    "revision": "revision",
    "quantization": "quantization",
    "slots": "slots",
    "tensor": "tensor parallelism",
    "pipeline": "pipeline parallelism",
    "context_tokens": "context",
    "kv_cache": "KV cache",
    "gpu": "GPU",
    "gpus": "GPUs per replica",
    "slice": "MIG slice",
    "chart": "chart",
}
_CENT = Decimal("0.01")
Status = Literal["unchanged", "changed", "new", "removed", "broken"]


class Amounts(Model):
    """Nodes and dollars at one level, of what has a price. A month has 730 hours; change is after minus before, exactly."""

    nodes_before: Sum
    nodes_after: Sum
    usd_per_hour_before: Sum
    usd_per_hour_after: Sum
    usd_per_hour_change: Sum
    usd_per_month_before: Sum
    usd_per_month_after: Sum
    usd_per_month_change: Sum

    @property
    def usd_per_hour_step(self) -> Decimal:
        """The change as people are told it: before and after are shown to the cent, and with this they add up."""
        return cents(self.usd_per_hour_after) - cents(self.usd_per_hour_before)


class Line(Model):
    """One priced resource before and after; None where it is not there, which it is in one of them."""

    before: Item | None
    after: Item | None

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.before is None and self.after is None:
            raise ValueError("a resource is there before, after or both")
        return self

    @property
    def item(self) -> Item:
        """Whichever is there, the later one first."""
        found = self.after or self.before
        assert found is not None
        return found


class Evidence(Model):
    """Whether the gate has evidence for the release as it would be. `words`: one sentence."""

    state: Literal["found", "missing", "not looked at", "not asked"]
    words: str


class Change(Model):
    """One stack before and after. `error`: why it cannot be evaluated at head; `base_error`: at base, so that all of it counts
    as new. `before` is None for a new stack, `after` for a removed one. `counts`: resources created, updated, deleted."""

    stack: str
    before: Shape | None = None
    after: Shape | None = None
    events: tuple[Event, ...] = ()
    counts: Mapping[str, int] = {}
    evidence: Evidence | None = None
    error: str | None = None
    input_error: bool = False
    base_error: str | None = None

    @property
    def status(self) -> Status:
        """What happens to the stack."""
        if self.error is not None:
            return "broken"
        if self.after is None:
            return "removed"
        if self.before is None:
            return "new"
        same = _same(self.before, self.after) and not self.events and not any(self.counts.values())
        return "unchanged" if same else "changed"

    @property
    def unpriced(self) -> tuple[Unpriced, ...]:
        """What the stack has, or had, without a price."""
        shape = self.after or self.before
        return shape.unpriced if shape else ()

    def partial(self, when: Literal["before", "after"]) -> bool:
        """Whether pools, disks or rules of that side have no price, so that its sum is not all of it."""
        shape = self.before if when == "before" else self.after
        return bool(shape) and any(item.usd_per_hour is None for item in shape.items)  # type: ignore[union-attr]

    def amounts(self, level: Level) -> Amounts:
        """Before, after and the difference."""
        nodes = [shape.nodes(level) if shape else ZERO for shape in (self.before, self.after)]
        before, after = (shape.hourly(level) if shape else ZERO for shape in (self.before, self.after))
        return Amounts(
            nodes_before=nodes[0],
            nodes_after=nodes[1],
            usd_per_hour_before=before,
            usd_per_hour_after=after,
            usd_per_hour_change=after - before,
            usd_per_month_before=before * HOURS_PER_MONTH,
            usd_per_month_after=after * HOURS_PER_MONTH,
            usd_per_month_change=(after - before) * HOURS_PER_MONTH,
        )

    @property
    def lines(self) -> tuple[Line, ...]:
        """All priced resources, those that change first."""
        old = {item.key: item for item in (self.before.items if self.before else ())}
        new = {item.key: item for item in (self.after.items if self.after else ())}
        lines = [Line(before=old.get(key), after=new.get(key)) for key in sorted({*old, *new})]
        return tuple(sorted(lines, key=lambda line: line.before == line.after))

    @property
    def release_words(self) -> tuple[str, ...]:
        """What of the release changes, as `slots 8 → 16`."""
        if not (self.before and self.after):
            return ()
        before, after = self.before.release, self.after.release
        words = [
            f"{word} {_value(before.get(key))} → {_value(after.get(key))}"
            for key, word in _RELEASE.items()
            if before.get(key) != after.get(key) and (key in before and key in after)
        ]
        if not words and self.before.digest != self.after.digest:
            words.append("the release's contents change (digest)")
        return tuple(words)

    @property
    def gate_words(self) -> tuple[str, ...]:
        """What of the gate changes: taking it away is said in capitals, asking something else of the evidence by its key."""
        if not (self.before and self.after):
            return ()
        before, after = self.before.gate, self.after.gate
        if before.get("gated") and not after.get("gated"):
            return ("THE GATE IS TAKEN AWAY: it would deploy without evidence",)
        if before.get("after") != after.get("after"):
            return (f"gate: evidence of {before.get('after') or 'nobody'} → {after.get('after')}",)
        then: Mapping[str, Any] = before.get("criteria") or {}
        now: Mapping[str, Any] = after.get("criteria") or {}
        return tuple(
            f"gate: {key} {_value(then.get(key))} → {_value(now.get(key))}"
            for key in sorted({*then, *now})
            if then.get(key) != now.get(key)
        )

    @property
    def plan_words(self) -> tuple[str, ...]:
        """What the plan says of the latency, and of promises that break or are kept again."""
        now = self.after.plan if self.after else None
        if now is None or not (then := self.before.plan if self.before else None):
            return ()
        words = []
        if then.e2e_p95_seconds != now.e2e_p95_seconds:
            words.append(f"p95 latency {_seconds(then.e2e_p95_seconds, now.e2e_p95_seconds)} by plan")
        broken = [name for name in now.unmet if name not in then.unmet]
        if broken:
            words.append(f"BREAKS ITS PROMISE of {', '.join(broken)} by plan")
        kept = [name for name in then.unmet if name not in now.unmet]
        if kept:
            words.append(f"keeps its promise of {', '.join(kept)} again by plan")
        return tuple(words)

    @property
    def headline(self) -> str:
        """One sentence for people."""
        if self.error is not None:
            return f"{self.stack}: cannot be evaluated: {self.error.splitlines()[0]}"
        status = self.status
        if status == "unchanged":
            return f"{self.stack}: no change"
        hourly = self.amounts("expected")
        if status == "removed":
            return f"{self.stack}: removed, {self._price(hourly.usd_per_hour_before, 'before', '−')}"
        if status == "new":
            counted = _counted(self.after_pools, "peak")
            nodes = ", ".join(f"{plain(number)} {name}" for name, number in counted.items())
            price = self._price(hourly.usd_per_hour_after, "after")
            return f"{self.stack}: new, {nodes + ' at peak, ' if nodes else ''}{price}"
        parts = [*self.gate_words, *self._node_words(), *self._money_words(), *self.release_words, *self.plan_words]
        recreated = [event for event in self.events if event.type.endswith(":NodePool")]
        if recreated:
            parts.append(f"{len(recreated)} node pool{'s' if len(recreated) > 1 else ''} recreated or deleted")
        return f"{self.stack}: " + (", ".join(parts) or "resources change, nodes and cost do not")

    @property
    def after_pools(self) -> tuple[Item, ...]:
        """GPU pools as they would be, with any node at peak; without such, the others."""
        pools = _telling(self.after)
        return tuple(pool for pool in pools if pool.quantity.peak) or pools

    def _node_words(self) -> list[str]:
        """`+5 g2-standard-8 at peak` per machine type; the bounds where only those move."""
        words = []
        for level, said in (("peak", "at peak"), ("max", "at most"), ("min", "at least")):
            old, new = (_counted(_telling(shape), level) for shape in (self.before, self.after))
            moved = {name: new.get(name, ZERO) - old.get(name, ZERO) for name in sorted({*old, *new})}
            words += [f"{_signed(plain(abs(by)), by)} {name} {said}" for name, by in moved.items() if by]
            if words:
                break
        return words

    def _money_words(self) -> list[str]:
        """A difference of sums that lack something is no difference: what lacks is named instead."""
        now, most = self.amounts("expected"), self.amounts("max")
        if self.partial("after"):
            return [f"cost not known: {self.missing('after')} UNPRICED"]
        if self.partial("before"):
            before = self.missing("before")
            return [f"{money(now.usd_per_hour_after)}/h expected, before it was not known: {before} UNPRICED"]
        words = []
        by, by_most = now.usd_per_hour_step, most.usd_per_hour_step
        if by:
            before_usd = now.usd_per_hour_before
            share = ""
            if before_usd:
                percent = abs(now.usd_per_hour_change / before_usd * 100)
                share = f" ({_signed(f'{percent:.0f}', now.usd_per_hour_change)} %)"
            words.append(f"{signed(by)}/h expected{share}")
        if by_most and cents(most.usd_per_hour_change - now.usd_per_hour_change):
            words.append(f"{signed(by_most)}/h at most")
        return words

    @property
    def known(self) -> bool:
        """Whether both sums are whole, so that their difference says something."""
        return not (self.partial("before") or self.partial("after"))

    def missing(self, when: Literal["before", "after"]) -> str:
        """What has no price on that side: machines, or else whatever it is."""
        shape = self.before if when == "before" else self.after
        lacking = [item for item in (shape.items if shape else ()) if item.usd_per_hour is None]
        machines = dict.fromkeys(str(item.machine_type) for item in lacking if item.machine_type)
        return ", ".join(machines or dict.fromkeys(item.key for item in lacking))

    def _price(self, value: Decimal, when: Literal["before", "after"], sign: str = "") -> str:
        """A sum, and what is not in it."""
        parts = [f"{sign}{money(value)}/h expected"] if cents(value) or not self.partial(when) else []
        return " and ".join([*parts, *([f"{self.missing(when)} UNPRICED"] if self.partial(when) else [])])


def _telling(shape: Shape | None) -> tuple[Item, ...]:
    """The pools that a headline counts: those with GPUs, or all where there are none."""
    return (shape.gpu_pools or shape.pools) if shape else ()


def _counted(pools: Iterable[Item], level: str) -> dict[str, Decimal]:
    """Nodes by machine type."""
    found: dict[str, Decimal] = {}
    for pool in pools:
        found[str(pool.machine_type)] = found.get(str(pool.machine_type), ZERO) + getattr(pool.quantity, level)
    return found


def _same(before: Shape, after: Shape) -> bool:
    """Whether nothing of it is different to those who pay, promise and let in."""
    skipped = {"plan"} if before.plan is None or after.plan is None else set()
    return before.model_dump(exclude=skipped) == after.model_dump(exclude=skipped)


def cents(value: Decimal) -> Decimal:
    """To the cent, half up; −0 is 0."""
    return value.quantize(_CENT, rounding=ROUND_HALF_UP) + 0


def money(value: Decimal) -> str:
    """`$8.54`, to the cent; less than half a cent and more than nothing is `<$0.01`."""
    if ZERO < value < Decimal("0.005"):
        return "<$0.01"
    return f"${cents(value):,.2f}"


def signed(value: Decimal) -> str:
    """`+$8.54` or `−$8.54`."""
    return _signed(money(abs(value)), value)


def plain(value: Decimal) -> str:
    """A number without needless zeros: `10`, `2.5`."""
    return f"{value.quantize(Decimal('0.01')).normalize():f}"


def _signed(text: str, value: Decimal) -> str:
    return ("+" if value >= 0 else "−") + text


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _seconds(before: Decimal | None, after: Decimal | None) -> str:
    first = "saturated" if before is None else f"{before:.1f}"
    second = "saturated" if after is None else f"{after:.1f} s"
    if before is not None and after is not None and first == f"{after:.1f}":
        return f"{before:.2f} → {after:.2f} s"
    return f"{first} → {second}"


__all__ = [
    "LEVELS",
    "Amounts",
    "Change",
    "Evidence",
    "Line",
    "Status",
    "amount",
    "cents",
    "money",
    "plain",
    "signed",
]
