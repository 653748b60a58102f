"""Matrices, limits, sheets, the terminal and the published schema."""

from __future__ import annotations

import csv
import html.parser
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import stacks
from bench import load, report, results
from bench.matrix import analyse, sample_of

ROOT = Path(stacks.__file__).parents[1]


def run(rate: float, **metrics: float) -> results.Run:
    known = {
        "requests_per_second": rate, "error_rate": 0.0, "e2e_mean_seconds": 1.0, "e2e_p95_seconds": 2.0,
        "ttft_p95_seconds": 0.2, "sustained_requests_per_second": rate, "sustained_requests_per_second_se": rate / 50,
        "sustained_batches": 20.0, "sustained_seconds": 100.0, "first_20_requests_per_second": rate, **metrics,
    }  # fmt: skip
    return results.Run(
        started=datetime(2026, 1, 2, tzinfo=UTC), seconds=100.0, warmup_seconds=0.0, sent=100, ok=100, failed=0, cut=0,
        metrics=known, valid=True,
    )  # fmt: skip


def traffic() -> stacks.Traffic:
    return stacks.Traffic(users=1, prompt_tokens=stacks.Tokens(mean=1), output_tokens=stacks.Tokens(mean=1))


def matrix(name: str = "dev") -> results.Matrix:
    cells = tuple(
        results.Cell(
            batch=batch, workers=workers, vram_bytes=4.5 * 2**30,
            run=run(min(3.0 * workers, 9.0), error_rate=0.02 if workers == 8 else 0.0),
        )
        for batch in (1000, 5000)
        for workers in (1, 2, 4, 8)
        if (batch, workers) != (5000, 4)
    )  # fmt: skip
    samples = [sample for cell in cells if (sample := sample_of(cell)) is not None]
    return results.Matrix(
        subject="sha256:" + "1" * 64, release="sha256:" + "0" * 64, stack=name, url="http://h", traffic=traffic(),
        batches=(1000, 5000), workers=(1, 2, 4, 8), cells=cells, analysis=analyse(samples, forecasts=(50_000, 170_000)),
        tool_version="0",
    )  # fmt: skip


def limit() -> results.Limit:
    steps = tuple(
        results.LimitStep(
            requests_per_second=rate, because="" if rate < 9 else "served 8 of 9 <requests/s>", run=run(rate)
        )
        for rate in (4.0, 8.0, 16.0)
    )
    return results.Limit(
        release="sha256:" + "0" * 64, stack="none", url="http://h", traffic=traffic(), highest_requests_per_second=8.0,
        lowest_refused_requests_per_second=16.0, knee_requests_per_second=4.0, steps=steps, tool_version="0",
    )  # fmt: skip


class Balance(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_matrix_is_a_heat_map_with_a_decision_and_forecasts() -> None:
    page = report.html([], matrices=[matrix()])
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert page.count('class="heat') == 7 + page.count('class="heatmap')
    assert "Workers help" in page
    assert "170\u202f000 requests" in page
    assert "2.00 % errors" in page
    assert "4.5 GiB" in page
    assert "--heat:1.000" in page


def test_a_limit_shows_knee_and_limit_and_what_did_not_hold() -> None:
    page = report.html([], limits=[limit()])
    assert "Highest rate that holds" in page
    assert "served 8 of 9 &lt;requests/s&gt;" in page
    assert "<requests/s>" not in page


def test_markdown_of_a_matrix_says_the_same_as_the_page() -> None:
    text = report.matrix_markdown(matrix())
    assert text.startswith("| Batch \\ workers | 1 | 2 | 4 | 8 |")
    assert "| 5000 | 3/s | 6/s | – | 9/s (2.0% errors) |" in text
    assert "170000 requests would take" in text


def result(stack: str) -> results.Result:
    return results.Result(
        release="sha256:" + "0" * 64, stack=stack, url="http://h", traffic=traffic(), replicas=1,
        runs=(run(3.0), run(4.0)), tool_version="0",
    )  # fmt: skip


def test_the_sheet_has_a_line_for_every_run_and_no_formula_from_outside() -> None:
    rows = list(csv.DictReader(io.StringIO(report.csv([result("a"), result("=HYPERLINK(1)")]))))
    assert [row["run"] for row in rows] == ["1", "2", "1", "2"]
    assert float(rows[1]["requests_per_second"]) == 4.0
    assert rows[2]["stack"] == "'=HYPERLINK(1)"


def test_every_kind_of_file_is_read_back_as_what_it_is(tmp_path: Path) -> None:
    for one in (result("a"), limit(), matrix()):
        file = tmp_path / "x.json"
        file.write_text(one.model_dump_json())
        assert results.read(file) == one
    file.write_text('{"kind": "limit"}')
    with pytest.raises(stacks.InputError, match=r"x\.json"):
        results.read(file)


def test_the_published_schema_is_that_of_the_code() -> None:
    published = (ROOT / "docs" / "benchmark.schema.json").read_text()
    assert json.loads(published) == json.loads(results.schema())


def test_every_metric_of_the_tables_is_explained_in_the_documentation() -> None:
    text = (ROOT / "docs" / "benchmark.md").read_text()
    missing = [metric for metric, *_ in report._text.ROWS if f"`{metric}`" not in text]
    assert missing == []


def shown(what: Any) -> str:
    console = Console(width=110, file=io.StringIO(), force_terminal=False)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_live_view_shows_rate_percentiles_errors_and_time_left() -> None:
    now = load.Progress(
        phase="measuring", run=2, runs=3, elapsed=12.0, eta=30.0, rate=41.5, concurrency=8, ok=500, failed=3,
        errors={"http_503": 3}, ttft_p50=0.05, ttft_p95=0.2, itl_p50=0.01, itl_p95=0.02, e2e_p50=0.9, e2e_p95=1.7,
    )  # fmt: skip
    text = shown(report.panel(now, [1.0, 2.0, 4.0]))
    for words in ("run 2 of 3", "41.5 req/s", "50.0 ms", "1.70 s", "http_503: 3", "30 s left", "▂▄█"):
        assert words in text, text
    unknown = shown(report.panel(load.Progress(phase="probe", run=0, runs=1, elapsed=0.0, eta=float("nan"))))
    assert "nan" not in unknown


def test_the_terminal_says_the_decision_and_the_warnings() -> None:
    console = Console(width=200, file=io.StringIO())
    report.show_matrix(matrix(), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Workers help" in text
    assert "50000 requests would take" in text
    console = Console(width=200, file=io.StringIO())
    report.show_analysis(None, console)
    assert "too few" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_more_likely_wrong_than_right_is_not_said_as_a_finding() -> None:
    def said(confidence: float) -> str:
        analysis = matrix().analysis
        assert analysis is not None
        console = Console(width=200, file=io.StringIO())
        report.show_analysis(analysis.model_copy(update={"confidence": confidence}), console)
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    assert "Workers help (61% sure)" in said(0.61)
    assert "Cannot tell, but it seems that workers help (23% sure)" in said(0.23)
