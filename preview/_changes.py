"""The difference of two shapes, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ._shape import HOURS_PER_MONTH, Shape

_RELEASE_WORDS = ("release", "engine", "model", "slots", "replicas")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One stack before and after; `before` is None for a new stack, `after` for a removed one, `error` for a broken one."""

    stack: str
    before: Shape | None = None
    after: Shape | None = None
    error: str | None = None

    def nodes(self, which: str) -> tuple[int, int]:
        """Nodes before and after at `min`, `expected` or `max`."""
        return (self.before.nodes(which) if self.before else 0, self.after.nodes(which) if self.after else 0)

    def hourly(self, which: str) -> tuple[Decimal, Decimal]:
        """Dollars per hour before and after at `min`, `expected` or `max`."""
        zero = Decimal(0)
        return (self.before.hourly(which) if self.before else zero, self.after.hourly(which) if self.after else zero)

    @property
    def unpriced(self) -> tuple[str, ...]:
        return self.after.unpriced if self.after else ()

    @property
    def release_words(self) -> tuple[str, ...]:
        """What of the release changes, as `slots 8 → 16`."""
        if not (self.before and self.after):
            return ()
        before, after = self.before.release, self.after.release
        words = [
            f"{key} {before.get(key)} → {after.get(key)}" for key in _RELEASE_WORDS if before.get(key) != after.get(key)
        ]
        if not words and before.get("digest") != after.get("digest"):
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
        then, now = before.get("criteria") or {}, after.get("criteria") or {}
        return tuple(
            f"gate: {key} {then.get(key)} → {now.get(key)}"
            for key in sorted({*then, *now})
            if then.get(key) != now.get(key)
        )

    @property
    def changed(self) -> bool:
        return self.error is not None or self.before != self.after

    @property
    def headline(self) -> str:
        """One sentence for people."""
        if self.error is not None:
            return f"{self.stack}: cannot be evaluated: {self.error.splitlines()[0]}"
        if not self.changed:
            return f"{self.stack}: no change"
        if self.after is None:
            return f"{self.stack}: removed, −{money(self.hourly('expected')[0])}/h"
        parts = list(self.gate_words)
        old, new = self.nodes("expected")
        machines = "/".join(sorted({pool.machine_type for pool in self.after.pools})) or "node"
        if new != old:
            parts.append(f"{new - old:+d} {machines}")
        before, after = self.hourly("expected")
        if after != before:
            share = f" ({(after - before) / before * 100:+.0f} %)" if before else ""
            parts.append(f"{signed(after - before)}/h expected{share}")
        top_before, top_after = self.hourly("max")
        if top_after != top_before and (top_before, top_after) != (before, after):
            parts.append(f"{signed(top_after - top_before)}/h at most")
        parts.extend(self.release_words)
        return f"{self.stack}: " + (", ".join(parts) or "resources change, nodes and cost do not")


def money(amount: Decimal) -> str:
    """`$8.54`, to the cent."""
    return f"${amount:,.2f}"


def signed(amount: Decimal) -> str:
    """`+$8.54` or `−$8.54`."""
    return ("+" if amount >= 0 else "−") + money(abs(amount))


def as_json(changes: list[Change], base: str | None, book: dict[str, str]) -> dict[str, Any]:
    """The stable form for machines: amounts as decimal strings in dollars per hour."""

    def amounts(change: Change, which: str) -> dict[str, Any]:
        nodes, hourly = change.nodes(which), change.hourly(which)
        return {
            "nodes_before": nodes[0],
            "nodes_after": nodes[1],
            "usd_per_hour_before": str(hourly[0]),
            "usd_per_hour_after": str(hourly[1]),
            "usd_per_month_after": str(hourly[1] * HOURS_PER_MONTH),
        }

    return {
        "schema_version": 1,
        "base": base,
        "price_book": book,
        "stacks": [
            {
                "stack": change.stack,
                "headline": change.headline,
                "changed": change.changed,
                "error": change.error,
                "release": list(change.release_words),
                "gate": list(change.gate_words),
                "unpriced": list(change.unpriced),
                **{which: amounts(change, which) for which in ("min", "expected", "max")},
            }
            for change in changes
        ],
    }
