"""`tollgate prices`: show the price book, or read a new one from Google's billing catalog."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import planner
import stacks

from ._saying import Json, machine

app = typer.Typer(
    rich_markup_mode=None, pretty_exceptions_enable=False, invoke_without_command=True, help="The price book."
)


@app.callback()
def show(
    context: typer.Context,
    as_json: Json = False,
) -> None:
    """Show the price book: USD per hour of every machine, its source and its age."""
    if context.invoked_subcommand is not None:
        return
    book = planner.price_book()
    today = datetime.now(UTC).date()
    if as_json:
        machine(
            [
                {
                    "region": price.region,
                    "machine_type": price.machine_type,
                    "on_demand_usd_per_hour": str(price.on_demand),
                    "spot_usd_per_hour": None if price.spot is None else str(price.spot),
                    "commit_1y_usd_per_hour": None if price.commit_1y is None else str(price.commit_1y),
                    "commit_3y_usd_per_hour": None if price.commit_3y is None else str(price.commit_3y),
                    "source": price.source,
                    "as_of": price.as_of,
                    "age_days": price.age_days(today),
                    "note": price.note,
                }
                for price in book.prices.values()
            ]
        )
        return
    console = Console()
    table = Table(
        "machine", "region", "on demand", "spot", "saves", "1 year", "3 years", "of", "at most old", "note", box=None
    )
    for price in book.prices.values():
        saves = "–" if price.spot is None else f"{1 - price.spot / price.on_demand:.0%}"
        amounts = [_dollars(amount) for amount in (price.on_demand, price.spot, price.commit_1y, price.commit_3y)]
        age = f"{price.age_days(today)} days"
        table.add_row(price.machine_type, price.region, *amounts[:2], saves, *amounts[2:], price.as_of, age, price.note)
    console.print(table)
    console.print(f"{book.source}, oldest row of {book.as_of}", highlight=False)


def _dollars(amount: Decimal | None) -> str:
    return "–" if amount is None else f"${amount:.4f}"


@app.command()
def refresh(
    region: Annotated[str, typer.Option(help="Google Cloud region.")] = "us-central1",
    url: Annotated[str, typer.Option(help="Where the billing catalog is.", hidden=True)] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for the new book; default: planner/catalog/prices.")] = None,
    as_json: Json = False,
) -> None:
    """Read the Cloud Billing Catalog and write a new dated price book. Needs GOOGLE_API_KEY."""
    key = os.environ.get("GOOGLE_API_KEY", "")
    if not key and not url:
        raise stacks.InputError(
            where="GOOGLE_API_KEY",
            got="nothing",
            allowed="an API key of a project with the Cloud Billing API enabled",
            fix="export GOOGLE_API_KEY=…",
        )
    today = datetime.now(UTC).date()
    book, text = planner.refresh_prices(region=region, key=key, today=today, url=url or planner.BILLING_URL)
    folder = out or Path(planner.__file__).parent / "catalog" / "prices"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / book.source
    path.write_text(text, encoding="utf-8")
    if as_json:
        machine({"written": str(path), "region": region, "machines": len(book.prices)})
        return
    typer.echo(f"written: {path} ({len(book.prices)} machines)")
