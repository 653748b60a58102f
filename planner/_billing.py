"""Reading prices from Google's Cloud Billing Catalog into a new dated price book.

The API is `GET /v1/services/{service}/skus` of cloudbilling.googleapis.com, paged by `nextPageToken`
(https://cloud.google.com/billing/docs/reference/rest/v1/services.skus/list). Compute Engine bills a machine by its parts:
vCPUs and memory of the family, and each GPU, all per hour; a machine's price is their sum.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from stacks import InputError, TollgateError

from ._catalog import Machine, catalog
from ._prices import COLUMNS, PriceBook, parse_book

if TYPE_CHECKING:
    import httpx2

URL = "https://cloudbilling.googleapis.com"
_COMPUTE_ENGINE = "6F81-5844-456A"
_MAX_PAGES = 200

# machine family -> (words in the descriptions of its core and memory SKUs, words of its GPU's SKU)
_FAMILIES = {
    "g2": ("G2 Instance Core", "G2 Instance Ram", "Nvidia L4 GPU"),
    "a2-highgpu": ("A2 Instance Core", "A2 Instance Ram", "Nvidia Tesla A100 GPU"),
    "a2-ultragpu": ("A2 Instance Core", "A2 Instance Ram", "Nvidia Tesla A100 80GB GPU"),
    "a3-highgpu": ("A3 Instance Core", "A3 Instance Ram", "Nvidia H100 80GB GPU"),
    "a3-ultragpu": ("A3 Ultra Instance Core", "A3 Ultra Instance Ram", "Nvidia H200 141GB GPU"),
}
_USAGE = {"OnDemand": "on_demand", "Preemptible": "spot", "Commit1Yr": "commit_1y", "Commit3Yr": "commit_3y"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sku:
    """One billed part: its words, its usage type (on_demand, spot, commit_1y, commit_3y), regions, USD per unit hour."""

    description: str
    usage: str
    regions: tuple[str, ...]
    price: Decimal


def refresh(
    *, region: str, key: str, today: date, url: str = URL, client: httpx2.Client | None = None
) -> tuple[PriceBook, str]:
    """Read all pages and return the new book with its CSV text. `key`: an API key of a Google Cloud project.

    Raises TollgateError when the API does not answer or a machine's parts are missing altogether.
    """
    import httpx2

    own = client or httpx2.Client(timeout=30.0)
    try:
        skus = list(_skus(own, url, key))
    except httpx2.HTTPError as error:
        raise TollgateError(f"the billing catalog at {url} did not answer: {type(error).__name__}: {error}") from error
    finally:
        if client is None:
            own.close()
    source = f"Cloud Billing Catalog, services/{_COMPUTE_ENGINE}"
    text = book_text(skus, region=region, source=source, as_of=today.isoformat())
    return parse_book(text, source=f"{today.isoformat()}-{region}.csv"), text


def book_text(skus: Iterable[Sku], *, region: str, source: str, as_of: str) -> str:
    """The CSV of every GPU machine in the catalog whose parts have a price in that region."""
    listed = [sku for sku in skus if region in sku.regions]
    rows = []
    for machine in catalog().machines.values():
        parts = _parts(machine)
        if parts is None:
            continue
        prices = {usage: _sum(machine, parts, listed, usage) for usage in _USAGE.values()}
        if prices["on_demand"] is not None:
            rows.append((machine, prices))
    if not rows:
        raise TollgateError(f"the billing catalog has no GPU machine of ours in {region}")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for machine, prices in rows:
        amounts = ["" if prices[usage] is None else f"{prices[usage]:f}" for usage in _USAGE.values()]
        note = "without local SSD" if machine.id.startswith(("a2-ultragpu", "a3-")) else ""
        writer.writerow(["gcp", region, machine.id, machine.gpu, machine.gpus, *amounts, source, as_of, note])
    return out.getvalue()


def parse_skus(page: Mapping[str, Any]) -> list[Sku]:
    """The priced Compute parts of one page of the API's JSON; other families, usage types and currencies are left out."""
    found = []
    for entry in page.get("skus", []):
        category = entry.get("category", {})
        usage = _USAGE.get(category.get("usageType", ""))
        info = entry.get("pricingInfo") or []
        if usage is None or category.get("resourceFamily") != "Compute" or not info:
            continue
        rates = info[-1].get("pricingExpression", {}).get("tieredRates") or []
        if not rates:
            continue
        # The last tier is the price beyond any free amount.
        money = rates[-1].get("unitPrice", {})
        if money.get("currencyCode", "USD") != "USD":
            continue
        price = Decimal(int(money.get("units") or 0)) + Decimal(int(money.get("nanos") or 0)) / Decimal(10**9)
        regions = tuple(entry.get("serviceRegions", []))
        found.append(Sku(description=str(entry.get("description", "")), usage=usage, regions=regions, price=price))
    return found


def _skus(client: httpx2.Client, url: str, key: str) -> Iterable[Sku]:
    token = ""
    for _ in range(_MAX_PAGES):
        query = {"currencyCode": "USD", "pageSize": "5000", **({"pageToken": token} if token else {})}
        # The key travels in a header: a URL would end up in logs and error messages.
        answer = client.get(f"{url}/v1/services/{_COMPUTE_ENGINE}/skus", params=query, headers={"X-Goog-Api-Key": key})
        if answer.status_code in (401, 403):
            raise InputError(
                where="billing catalog",
                got=f"HTTP {answer.status_code}",
                allowed="an API key of a project with the Cloud Billing API enabled",
                fix="set GOOGLE_API_KEY to such a key",
            )
        answer.raise_for_status()
        try:
            page = answer.json()
        except ValueError as error:
            raise TollgateError(f"the billing catalog at {url} answered with something else than JSON") from error
        yield from parse_skus(page)
        token = page.get("nextPageToken", "")
        if not token:
            return
    raise TollgateError(f"the billing catalog at {url} did not end after {_MAX_PAGES} pages")


def _parts(machine: Machine) -> tuple[str, str, str] | None:
    for family, words in _FAMILIES.items():
        if machine.id.startswith(family + "-"):
            return words
    return None


def _sum(machine: Machine, parts: tuple[str, str, str], skus: list[Sku], usage: str) -> Decimal | None:
    total = Decimal(0)
    for words, amount in zip(parts, (machine.vcpus, machine.memory_gb, machine.gpus), strict=True):
        price = _price(words, skus, usage)
        if price is None:
            return None
        total += price * Decimal(str(amount))
    return total


def _price(words: str, skus: list[Sku], usage: str) -> Decimal | None:
    """The rate of the part with these words; a description also says how it is bought and where ("… running in …")."""
    pattern = re.compile(rf"\b{re.escape(words)}\b(?! \d+GB)", re.IGNORECASE)
    other = re.compile(r"reserv|custom|sole tenan|dws|calendar|plus|upgrade", re.IGNORECASE)
    for sku in skus:
        if sku.usage == usage and pattern.search(sku.description) and not other.search(sku.description):
            return sku.price
    return None
