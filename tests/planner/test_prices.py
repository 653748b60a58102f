"""Price books: what is refused, how old they are, and reading a new one from a (local) billing catalog."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from typer.testing import CliRunner

import planner
import tollgate.__main__ as command_line
from planner import _catalog, _prices
from planner._billing import book_text, parse_skus
from planner._prices import parse_book
from stacks import InputError, TollgateError

HEAD = "cloud,region,machine_type,on_demand_usd_per_hour,spot_usd_per_hour,source,as_of,note\n"


def test_the_shipped_book_has_every_gpu_machine_it_is_asked_for() -> None:
    book = planner.price_book()
    assert book.hourly("g2-standard-8", region="us-central1") == Decimal("0.8536")
    # Of 2026-07-30; from February to April it was 0.3406.
    assert book.hourly("g2-standard-8", region="us-central1", spot=True) == Decimal("0.4799")
    assert book.hourly("g2-standard-8", region="mars-north1") is None
    assert book.hourly("c6i.2xlarge", region="us-east-1", spot=True) is None


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ("gcp,us-central1,a2-ultragpu-1g,3.93,4.20,somewhere,2026,", "spot"),
        ("gcp,us-central1,a2-ultragpu-1g,3.93,3.93,somewhere,2026,", "spot"),
        ("gcp,us-central1,a2-ultragpu-1g,,1.0,somewhere,2026,", "without an on-demand price"),
        ("gcp,us-central1,a2-ultragpu-1g,-3,1.0,somewhere,2026,", "-3"),
        ("gcp,us-central1,a2-ultragpu-1g,NaN,1.0,somewhere,2026,", "NaN"),
        ("gcp,us-central1,a2-ultragpu-1g,3,1.0,,2026,", "source"),
        ("gcp,us-central1,a2-ultragpu-1g,3,1.0,somewhere,lately,", "lately"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(row: str, word: str) -> None:
    with pytest.raises(InputError, match="line 2") as caught:
        parse_book(HEAD + row + "\n", source="x.csv")
    assert word in str(caught.value)


def test_a_price_of_a_year_is_as_old_as_january() -> None:
    price = planner.price_book().price("c6i.2xlarge", region="us-east-1")
    assert price.as_of == "2024"
    assert price.age_days(date(2024, 11, 20)) == 324


def test_a_machine_without_a_price_names_the_ones_that_have_one() -> None:
    with pytest.raises(InputError, match="g2-standard-8"):
        planner.price_book().price("a3-ultragpu-8g", region="us-central1")


def sku(description: str, usage: str, dollars: str, region: str = "us-central1") -> dict[str, Any]:
    """One SKU as the API writes it: whole units as a string, the rest in billionths."""
    units, _, rest = dollars.partition(".")
    return {
        "description": description,
        "category": {"resourceFamily": "Compute", "usageType": usage},
        "serviceRegions": [region],
        "pricingInfo": [
            {
                "pricingExpression": {
                    "usageUnit": "h",
                    "tieredRates": [
                        {
                            "startUsageAmount": 0,
                            "unitPrice": {"currencyCode": "USD", "units": units, "nanos": int(rest.ljust(9, "0"))},
                        }
                    ],
                }
            }
        ],
    }


SKUS = [
    sku("G2 Instance Core running in Americas", "OnDemand", "0.024988"),
    sku("G2 Instance Ram running in Americas", "OnDemand", "0.002927"),
    sku("Nvidia L4 GPU running in Americas", "OnDemand", "0.560004"),
    sku("Nvidia L4 GPU reserved in Americas", "OnDemand", "0.1"),
    sku("Spot Preemptible G2 Instance Core running in Americas", "Preemptible", "0.00999"),
    sku("Spot Preemptible G2 Instance Ram running in Americas", "Preemptible", "0.00117"),
    sku("Nvidia L4 GPU attached to Spot Preemptible VMs running in Americas", "Preemptible", "0.22400"),
    sku("Commitment v1: G2 Instance Core in Americas for 1 Year", "Commit1Yr", "0.0157"),
    sku("G2 Instance Core running in Frankfurt", "OnDemand", "9.9", "europe-west3"),
    {"description": "Network Egress", "category": {"resourceFamily": "Network", "usageType": "OnDemand"}},
    {"description": "no price", "category": {"resourceFamily": "Compute", "usageType": "OnDemand"}, "pricingInfo": []},
]


class Catalog(BaseHTTPRequestHandler):
    """Three pages of SKUs, behind a key."""

    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if self.headers.get("X-Goog-Api-Key") != "right":
            self.send_response(403)
            self.end_headers()
            return
        page = int(parse_qs(urlparse(self.path).query).get("pageToken", ["0"])[0])
        body = {"skus": SKUS[page * 4 : page * 4 + 4], "nextPageToken": str(page + 1) if page < 2 else ""}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def billing() -> Iterator[str]:
    Catalog.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Catalog)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_new_book_is_summed_from_all_pages_of_the_billing_catalog(billing: str, tmp_path: Path) -> None:
    book, text = planner.refresh_prices(region="us-central1", key="right", today=date(2026, 11, 21), url=billing)
    assert len(Catalog.asked) == 3
    assert not any("right" in path for path in Catalog.asked)
    # 8 vCPUs, 32 GB and one L4, added up by hand.
    assert book.hourly("g2-standard-8", region="us-central1") == Decimal("0.853572")
    assert book.hourly("g2-standard-8", region="us-central1", spot=True) == Decimal("0.341360")
    assert book.hourly("a2-highgpu-1g", region="us-central1") is None
    assert book.price("g2-standard-8", region="us-central1").as_of == "2026-11-21"
    path = tmp_path / book.source
    path.write_text(text)
    assert planner.price_book(path).prices == book.prices


def test_a_wrong_key_is_said_and_never_shown(billing: str) -> None:
    with pytest.raises(InputError, match="403") as caught:
        planner.refresh_prices(region="us-central1", key="secret", today=date(2026, 11, 21), url=billing)
    assert "secret" not in str(caught.value)


def test_a_catalog_that_is_not_there_is_said() -> None:
    with pytest.raises(TollgateError, match="did not answer"):
        planner.refresh_prices(region="us-central1", key="k", today=date(2026, 11, 21), url="http://127.0.0.1:9")


def test_a_region_without_our_machines_is_said() -> None:
    with pytest.raises(TollgateError, match="mars"):
        book_text(parse_skus({"skus": SKUS}), region="mars-north1", source="x", as_of="2026-11-21")


def test_the_command_writes_a_dated_book_that_is_then_shown(
    billing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "right")
    done = CliRunner().invoke(command_line.app, ["prices", "refresh", "--url", billing, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.glob("20??-??-??-us-central1.csv")
    assert str(path) in done.output
    book = planner.price_book(path)
    assert book.price("g2-standard-8", region="us-central1").source.startswith("Cloud Billing Catalog")
    assert book.price("g2-standard-8", region="us-central1").age_days(datetime.now(UTC).date()) == 0


def test_without_a_key_the_command_says_which_variable_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    with pytest.raises(InputError, match="GOOGLE_API_KEY"):
        CliRunner().invoke(command_line.app, ["prices", "refresh"], catch_exceptions=False)


def test_the_shown_book_says_how_old_every_price_is_and_how_it_could_be_bought() -> None:
    done = CliRunner().invoke(command_line.app, ["prices", "--json"])
    rows = json.loads(done.stdout)
    (row,) = [row for row in rows if row["machine_type"] == "a2-highgpu-1g"]
    assert row["age_days"] > 110
    assert float(row["spot_usd_per_hour"]) < float(row["commit_1y_usd_per_hour"]) < float(row["on_demand_usd_per_hour"])
    assert float(row["commit_3y_usd_per_hour"]) < float(row["commit_1y_usd_per_hour"])
    shown = CliRunner().invoke(command_line.app, ["prices"], env={"COLUMNS": "200"}).stdout
    assert "days" in shown
    assert "with local SSD" in shown


def test_a_refreshed_book_takes_the_place_of_the_older_rows_and_leaves_the_others(
    billing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "prices"
    shutil.copytree(_catalog.FOLDER / "prices", folder)
    _, text = planner.refresh_prices(region="us-central1", key="right", today=date(2026, 11, 21), url=billing)
    (folder / "2026-11-21-us-central1.csv").write_text(text)
    monkeypatch.setattr(_prices, "FOLDER", tmp_path)
    planner.price_book.cache_clear()
    try:
        book = planner.price_book()
    finally:
        planner.price_book.cache_clear()
    assert book.hourly("g2-standard-8", region="us-central1") == Decimal("0.853572")
    assert book.hourly("a2-highgpu-1g", region="us-central1") == Decimal("3.6734")  # not in the new book
    assert book.hourly("c6i.2xlarge", region="us-east-1") == Decimal("0.340")
    assert "2026-11-21" in book.source
