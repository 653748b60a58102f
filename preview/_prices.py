"""Where prices come from: the planner's book for machines, `rates.yaml` for everything around them. Pure but for reading both."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

import planner
import stacks

from ._model import HOURS_PER_MONTH

_FILE = Path(__file__).with_name("rates.yaml")
_DIGITS = Decimal("1e-12")
_PER = {"hour": Decimal(1), "GiB-month": HOURS_PER_MONTH, "GiB": Decimal(1)}


@dataclass(frozen=True, kw_only=True)
class Rate:
    """USD per hour of one unit (of one GiB for `egress`). `as_of`: `2026`, `2026-08` or `2026-08-31`."""

    usd_per_hour: Decimal
    source: str
    as_of: str


@dataclass(frozen=True, kw_only=True)
class Prices:
    """A price book and rates. `book`: the book's name."""

    book: str
    machines: planner.PriceBook
    rates: Mapping[tuple[str, str], Rate]

    def machine(self, machine_type: str, region: str, *, spot: bool) -> Rate | None:
        """Of one machine; None for what neither the book nor the rates have."""
        usd = self.machines.hourly(machine_type, region=region, spot=spot)
        if usd is not None:
            row = self.machines.price(machine_type, region=region)
            return Rate(usd_per_hour=usd, source=row.source, as_of=row.as_of)
        return None if spot else self.rate(f"machine {machine_type}", region)

    def rate(self, what: str, region: str) -> Rate | None:
        """Of anything else; None where there is none for that region."""
        return self.rates.get((what, region)) or self.rates.get((what, "any"))


@functools.cache
def prices(book: Path | None = None) -> Prices:
    """The newest price book that ships with the planner (or the one at `book`) with the rates. Raises InputError."""
    found = planner.price_book(book) if book is not None else planner.price_book()
    return Prices(book=found.source, machines=found, rates=parse_rates(_FILE.read_text(encoding="utf-8")))


def parse_rates(text: str) -> dict[tuple[str, str], Rate]:
    """(what, region) -> rate. Raises InputError naming the entry that is wrong."""
    found: dict[tuple[str, str], Rate] = {}
    for number, entry in enumerate(yaml.safe_load(text)["rates"], start=1):
        try:
            # So few digits that sums and differences of them stay exact.
            usd = (Decimal(str(entry["usd"])) / _PER[entry["per"]]).quantize(_DIGITS)
            if not 0 < usd < 10_000:
                raise ValueError("usd must be above 0")
            rate = Rate(usd_per_hour=usd, source=str(entry["source"]), as_of=str(entry["as_of"]))
            age_days(rate.as_of, date(2000, 1, 1))
            regions: Sequence[Any] = [entry["regions"]] if isinstance(entry["regions"], str) else entry["regions"]
            for region in regions:
                found[str(entry["what"]), str(region)] = rate
        except (KeyError, ValueError, ArithmeticError) as error:
            raise stacks.InputError(
                where=f"preview/rates.yaml, entry {number}",
                got=str(error),
                allowed="what, regions, usd, per (hour, GiB-month, GiB), as_of, source",
                fix="correct the entry",
            ) from None
    return found


def age_days(as_of: str, today: date) -> int:
    """Days since `as_of`, from the first day it can mean. Raises ValueError for no date."""
    year, month, day = ([int(part) for part in as_of.split("-")] + [1, 1])[:3]
    return (today - date(year, month, day)).days
