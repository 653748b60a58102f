"""The report: complete, self-contained, and honest about what does not count."""

from __future__ import annotations

import html.parser
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

import stacks
from bench import report
from bench.load import Histogram
from bench.report._html import _edges, _steps
from bench.results import Result, Run


def result(stack: str, factor: float = 1.0, because: str = "", url: str = "http://h") -> Result:
    values = np.random.default_rng(1).lognormal(-1.0, 0.3, 500) * factor
    series: dict[str, Any] = {
        "seconds": (1.0, 2.0, 3.0),
        "requests_per_second": (0.0, 10.0, 11.0),
        "errors_per_second": (0.0, 0.0, 1.0),
        "concurrency": (5.0, 5.0, 5.0),
        **{f"{f}_{p}_seconds": (None, 0.5, 0.6) for f in ("ttft", "e2e") for p in ("p50", "p95")},
    }
    run = Run(
        started=datetime(2026, 1, 2, tzinfo=UTC),
        seconds=2.0,
        warmup_seconds=1.0,
        sent=26,
        ok=20,
        failed=1,
        cut=5,
        errors={"http_503": 1},
        metrics={"requests_per_second": 10.0 / factor, "e2e_p95_seconds": 0.6 * factor, "error_rate": 1 / 21},
        valid=not because,
        invalid_because=because,
        histograms={"e2e_seconds": Histogram.of(values).to_dict()},
        series=series,
    )
    return Result(
        release="sha256:" + "0" * 64,
        stack=stack,
        url=url,
        traffic=stacks.Traffic(users=5, prompt_tokens=stacks.Tokens(mean=1), output_tokens=stacks.Tokens(mean=1)),
        replicas=1,
        runs=(run, run),
        tool_version="0",
    )


class Balance(html.parser.HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.links += [value for key, value in attributes if key in ("src", "href")]
        if tag not in ("meta", "!doctype", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_no_network_and_is_well_formed() -> None:
    page = report.html([result("a"), result("b", 1.5)])
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert balance.links == []
    assert "url(" not in page
    assert "@import" not in page
    # Four over time for each; of each of the families a histogram and the share below; latency against rate.
    families = page.count("how many took so long</figcaption>")
    assert families == page.count("share of all below</figcaption>") >= 1
    assert page.count("<svg") == 8 + 2 * families + 1
    assert "nan" not in page.lower().replace("stack-name", "")


def test_the_bars_of_a_histogram_hold_every_request_once() -> None:
    whole = Histogram.of([0.01] * 70 + [0.1] * 20 + [1.0] * 10)
    edges = _edges([whole, Histogram.of([5.0])])
    points = _steps(whole, edges)
    # Each bar is two points of its height; together they are all there is.
    assert sum(height for _, height in points) / 2 == pytest.approx(100)
    assert max(height for _, height in points) == pytest.approx(70)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert _edges([]) == _steps(Histogram(), []) == []


def test_what_does_not_count_is_said_and_is_in_no_median() -> None:
    page = report.html([result("a", because="interrupted: <b>too early</b>")])
    assert "does not count: interrupted: &lt;b&gt;too early&lt;/b&gt;" in page
    assert "<b>too early" not in page
    text = report.markdown([result("a", because="interrupted")])
    assert "0 of 2" in text
    assert "run 1 is invalid: interrupted" in text
    assert "| Requests |" not in text


def test_names_from_outside_cannot_break_page_or_table() -> None:
    evil = result("none", url="http://h/<script>|")
    assert "<script>" not in report.html([evil])
    assert "\\|" in report.markdown([evil])


def test_a_comparison_knows_which_direction_is_better() -> None:
    changes = {change.metric: change for change in report.comparison(result("a"), result("b", 2.0))}
    assert changes["requests_per_second"].ratio == pytest.approx(0.5)
    assert changes["requests_per_second"].better is False
    assert changes["e2e_p95_seconds"].better is False
    assert changes["error_rate"].better is None
    back = {change.metric: change for change in report.comparison(result("b", 2.0), result("a"))}
    assert back["e2e_p95_seconds"].better is True


def test_two_results_of_one_stack_can_be_told_apart() -> None:
    assert report.markdown([result("a"), result("a")]).startswith("| | a #1 | a #2 |")
