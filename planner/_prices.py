"""Price books: what a machine costs per hour, by region, on demand and spot, with source and date of every row."""

from __future__ import annotations

import csv
import functools
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path

from stacks import InputError

from ._catalog import FOLDER

# Of a price book, in order; those of `_REQUIRED` must be there.
COLUMNS = (
    "cloud",
    "region",
    "machine_type",
    "gpu",
    "gpu_count",
    "on_demand_usd_per_hour",
    "spot_usd_per_hour",
    "commit_1y_usd_per_hour",
    "commit_3y_usd_per_hour",
    "source",
    "as_of",
    "note",
)
_MOST_FIELD = 100_000
_REQUIRED = frozenset(COLUMNS) - {"gpu", "gpu_count", "commit_1y_usd_per_hour", "commit_3y_usd_per_hour"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """USD per hour of one machine. `as_of`: `2026`, `2026-08` or `2026-08-31`; None where there is no such offer."""

    cloud: str
    region: str
    machine_type: str
    on_demand: Decimal
    spot: Decimal | None
    commit_1y: Decimal | None
    commit_3y: Decimal | None
    source: str
    as_of: str
    note: str

    def age_days(self, today: date) -> int:
        """Days since `as_of`, counted from the first day it can mean: a price of `2026` is as old as January."""
        year, month, day = ([int(part) for part in self.as_of.split("-")] + [1, 1])[:3]
        return (today - date(year, month, day)).days


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceBook:
    """The prices of one file. `source`: the file's name."""

    source: str
    prices: Mapping[tuple[str, str], Price]

    @property
    def as_of(self) -> str:
        """The date of the oldest row: a book is as old as its oldest price."""
        return min(price.as_of for price in self.prices.values())

    def price(self, machine_type: str, *, region: str) -> Price:
        """The row of that machine. Raises InputError naming what the book has."""
        found = self.prices.get((region, machine_type))
        if found is None:
            here = sorted(name for where, name in self.prices if where == region)
            raise InputError(
                where=f"price book {self.source}",
                got=f"{machine_type} in {region}",
                allowed=", ".join(here) if here else f"regions {', '.join(sorted({r for r, _ in self.prices}))}",
                fix="choose one of these, or read new prices with `tollgate prices refresh`",
            )
        return found

    def hourly(self, machine_type: str, *, region: str, spot: bool = False) -> Decimal | None:
        """USD per hour of one machine; None for a machine, a region or a spot offer that the book lacks."""
        found = self.prices.get((region, machine_type))
        if found is None:
            return None
        return found.spot if spot else found.on_demand


@functools.cache
def price_book(path: Path | None = None) -> PriceBook:
    """The price book at `path`, or the planner's own: every book in `catalog/prices`, a newer row in place of an older one.

    Raises InputError if one is wrong.
    """
    if path is None:
        return _merged(sorted((FOLDER / "prices").glob("*.csv"), key=_dated))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            where="price book", got=str(error), allowed="a readable CSV file", fix="name an existing price book"
        ) from error
    return parse_book(text, source=path.name)


def _merged(paths: Sequence[Path]) -> PriceBook:
    """One book of several, the oldest first; rows that only an older one has stay."""
    books = [price_book(path) for path in paths]
    source = books[-1].source if len(books) == 1 else f"{len(books)} books, the newest {books[-1].source}"
    return PriceBook(source=source, prices={key: price for book in books for key, price in book.prices.items()})


def _dated(path: Path) -> tuple[str, str]:
    """Order of books: by the date that the name begins with (`2026`, `2026-11-21`), then by the rest of it."""
    date_ = re.match(r"\d{4}(-\d\d(-\d\d)?)?", path.name)
    return (date_[0] if date_ else "", path.name)


def parse_book(text: str, *, source: str) -> PriceBook:
    """The book of a CSV text. Raises InputError naming the line: missing columns, no price, spot not below on demand."""
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in COLUMNS if name in _REQUIRED and name not in (reader.fieldnames or ())]
    if missing:
        raise _bad(source, 1, f"no column {missing[0]}", ", ".join(COLUMNS))
    prices = {}
    for row in _rows(reader, source):
        line = reader.line_num
        price = Price(
            cloud=row["cloud"],
            region=row["region"],
            machine_type=row["machine_type"],
            on_demand=_amount(row, "on_demand_usd_per_hour", source, line) or Decimal(0),
            spot=_amount(row, "spot_usd_per_hour", source, line),
            commit_1y=_amount(row, "commit_1y_usd_per_hour", source, line),
            commit_3y=_amount(row, "commit_3y_usd_per_hour", source, line),
            source=row["source"] or "",
            as_of=row["as_of"] or "",
            note=row["note"] or "",
        )
        _judge(price, source, line)
        prices[price.region, price.machine_type] = price
    if not prices:
        raise _bad(source, 1, "no rows", "at least one price")
    return PriceBook(source=source, prices=prices)


def _rows(reader: csv.DictReader[str], source: str) -> Iterator[dict[str, str]]:
    try:
        for row in reader:
            # The reader's own limit is the whole process', and others raise it.
            if any(len(text or "") > _MOST_FIELD for text in row.values()):
                raise csv.Error(f"field larger than {_MOST_FIELD}")
            yield row
    except csv.Error as error:
        raise _bad(source, reader.line_num, str(error), "CSV with short fields") from None


def _judge(price: Price, source: str, line: int) -> None:
    if price.on_demand <= 0:
        raise _bad(source, line, f"{price.machine_type} without an on-demand price", "a price above 0")
    # A catalog in public use lists A100-80GB on demand below spot: such a row is a mix-up, whatever its source.
    if price.spot is not None and price.spot >= price.on_demand:
        raise _bad(
            source, line, f"{price.machine_type}: spot {price.spot} >= on demand {price.on_demand}", "spot below"
        )
    if not price.source or not price.as_of:
        raise _bad(source, line, f"{price.machine_type} without source or date", "source and as_of in every row")
    try:
        price.age_days(date(2000, 1, 1))
    except (ValueError, OverflowError) as error:
        raise _bad(source, line, f"as_of {price.as_of!r}", "2026, 2026-08 or 2026-08-31") from error


def _amount(row: Mapping[str, str | None], column: str, source: str, line: int) -> Decimal | None:
    text = (row.get(column) or "").strip()
    if not text:
        return None
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(-1)
    if not value.is_finite() or not Decimal("1e-6") <= value < 1_000_000:
        raise _bad(source, line, f"{column} {text!r}", "USD per hour above 0")
    return value


def _bad(source: str, line: int, got: str, allowed: str) -> InputError:
    return InputError(where=f"price book {source}, line {line}", got=got, allowed=allowed, fix="correct the row")
