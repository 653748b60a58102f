"""The local page in a real Chromium: by keyboard alone, by a screen reader's tree, on a phone, in the dark, live."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import gate
import stacks
import values
from bench import batch
from tests.gate.conftest import GOOD, SLOW, make_result
from tests.tollgate.conftest import HERE
from tests.tollgate.test_json import answering  # noqa: F401 - the fixture is shared
from tollgate.ui import Page

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM, reason="no Chromium on PATH")]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
# What a busy machine needs; nothing here waits for it unless something is wrong.
SECONDS = 60
Open = Callable[..., Any]


def record(root: Path, name: str, started: datetime, **given: Any) -> None:
    stack = stacks.load_stack(name, root)
    digest = values.release_digest(stack.release)
    result = make_result(release=digest, stack=name, started=started, **given)
    gate.record(stack, result, release_digest=digest, root=root, now=started + timedelta(minutes=2))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which things have happened: measured, promoted, measured badly, approved, a batch begun."""
    root = tmp_path_factory.mktemp("project")
    shutil.copy(HERE / "Pulumi.yaml", root)
    shutil.copytree(HERE / "stacks", root / "stacks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (root / "stacks" / "pipeline.yaml").write_text(
        "stages:\n  - stack: local-dev\n  - stack: local-prod\n    after: local-dev\n  - stack: prod\n"
    )
    now = datetime.now(UTC)
    record(root, "local-dev", now - timedelta(hours=5), metrics={**GOOD, "error_rate": 0.0})
    digest = values.release_digest(stacks.load_stack("local-dev", root).release)
    gate.promote("local-dev", "local-prod", root, release_digest=digest, now=now - timedelta(hours=4))
    path = root / "stacks" / "Pulumi.local-dev.yaml"
    path.write_text(path.read_text().replace("release: gemma-3-4b-ollama-8", "release: gemma-3-4b-ollama-1"))
    record(root, "local-dev", now - timedelta(hours=3), metrics={**SLOW, "error_rate": 0.002})
    gate.approve(
        stacks.load_stack("local-prod", root), release_name="gemma-3-4b-ollama-1", release_digest="sha256:" + "1" * 64,
        who="Anna", why="the fair", expires=now + timedelta(days=1), criteria=(), root=root, now=now - timedelta(hours=1),
    )  # fmt: skip
    queue(root, "first", 40).close()
    return root


def queue(root: Path, id: str, inputs: int) -> batch.Queue:
    body = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
    rows = (batch.Input(f"{id}-{number}", "/v1/chat/completions", body) for number in range(inputs))
    return batch.create(str(root / ".tollgate" / "batches"), rows, id=id)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright.expect.set_options(timeout=SECONDS * 1000)
    with playwright.sync_playwright() as started:
        try:
            found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        except playwright.Error as error:
            pytest.skip(f"playwright cannot start {CHROMIUM}: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def opened(root: Path, browser: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """The page in a window: `width`, `dark`. No request may leave this machine, and nothing may complain."""
    monkeypatch.delenv("TOLLGATE_BATCHES", raising=False)
    contexts, wrong = [], []

    def make(width: int = 1100, dark: bool = False) -> Any:
        scheme = "dark" if dark else "light"
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        context.set_default_timeout(SECONDS * 1000)
        page = context.new_page()
        page.on("request", lambda request: request.url.startswith(served.url) or wrong.append(request.url))
        # That a question was refused is an answer like any other; the browser notes it all the same.
        page.on(
            "console",
            lambda said: said.type == "error" and "status of 400" not in said.text and wrong.append(said.text),
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(served.url)
        page.wait_for_selector("body[data-ready=yes]")
        return page

    with Page(root) as served:
        yield make
        for context in contexts:
            context.close()
    assert wrong == []


def focused(page: Any) -> dict[str, str]:
    """What has the focus: its tag, its name as a screen reader says it, and whether an outline shows it."""
    found: dict[str, str] = page.evaluate(
        """() => {
          const node = document.activeElement, style = getComputedStyle(node);
          const label = node.labels && node.labels[0];
          return { tag: node.tagName.toLowerCase(), id: node.id,
            name: (node.getAttribute("aria-label") || (label || node).textContent).trim(),
            outline: style.outlineStyle === "none" ? "" : style.outlineWidth };
        }"""
    )
    return found


def test_the_keyboard_alone_reaches_and_works_everything(opened: Open) -> None:
    page = opened()
    stops: list[dict[str, str]] = []
    while len(stops) < 60:
        page.keyboard.press("Tab")
        stop = focused(page)
        if stop["tag"] == "body":
            break
        stops.append(stop)
    assert (stops[0]["tag"], stops[0]["name"]) == ("a", "Skip to the pipeline")
    assert [stop["name"] for stop in stops[1:7]] == [
        "Pipeline", "Plan", "History", "Results", "Comparison", "Batches",
    ]  # fmt: skip
    # Every control is a stop, in the order in which it stands there, named, and seen.
    controls = page.locator('a, summary, select, input, [tabindex="0"]')
    reachable = controls.evaluate_all("(found) => found.map((one) => one.tagName.toLowerCase())")
    assert [stop["tag"] for stop in stops] == reachable
    assert [stop for stop in stops if not stop["name"] or not stop["outline"]] == []
    # Links lead, evidence unfolds, a list is chosen from, a slider moves.
    page.locator("nav a", has_text="Results").focus()
    page.keyboard.press("Enter")
    assert page.url.endswith("#results")
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None
    page.locator("#stack").focus()
    page.keyboard.press("ArrowDown")
    playwright.expect(page.locator("#stack")).to_have_value("local-prod")
    page.locator("#metric").focus()
    page.keyboard.press("ArrowDown")
    playwright.expect(page.locator("#chart svg title").first).to_contain_text("End to end, p95")
    slider = page.get_by_role("slider", name="Users")
    slider.focus()
    before = slider.get_attribute("aria-valuetext")
    page.keyboard.press("ArrowRight")
    playwright.expect(slider).not_to_have_attribute("aria-valuetext", str(before))


def test_a_screen_reader_finds_headings_in_order_tables_with_headers_and_named_controls(opened: Open) -> None:
    page = opened()
    levels = page.evaluate("() => [...document.querySelectorAll('h1,h2,h3')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for name in ("Users", "Tokens of a prompt", "Tokens of a reply", "Budget, USD per hour"):
        assert page.get_by_role("slider", name=name, exact=True).get_attribute("aria-valuetext")
    for name in ("Stack", "Shown", "Before", "After"):
        assert page.get_by_role("combobox", name=name, exact=True).count() == 1
    for name in ("Medians over valid runs, the newest first", "Medians over valid runs", "Batches of this project"):
        table = page.get_by_role("table", name=name, exact=True)
        assert table.get_by_role("columnheader").count() >= 5
    assert page.get_by_role("img").count() == 3
    assert page.get_by_role("progressbar", name="done of first").count() == 1
    assert page.get_by_role("status").inner_text().strip()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360], ids=["screen", "phone"])
def test_axe_finds_nothing_and_nothing_runs_out_of_the_window(opened: Open, width: int, dark: bool) -> None:
    page = opened(width, dark)
    for summary in page.locator("summary").all():
        summary.click()
    found = axe.Axe().run(page, options={"resultTypes": ["violations", "passes"]})
    assert found.violations_count == 0, found.generate_report()
    # That of contrast did look at something.
    contrast = [one for one in found.response["passes"] if one["id"] == "color-contrast"]
    assert contrast
    assert len(contrast[0]["nodes"]) > 50
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(17, 18, 20)" if dark else "rgb(255, 255, 255)")


def test_charts_have_a_mark_for_every_measurement_run_and_statement(opened: Open) -> None:
    page = opened()
    assert page.locator("#chart .mark").count() == 2
    assert page.locator("#chart .limit").count() == 2
    # Two measurements, a promotion, an approval.
    assert page.locator("#lanes .mark").count() == 4
    # Three runs of each, for each of four metrics and the tokens.
    metrics = page.locator("#metrics tbody tr").count()
    assert metrics >= 4
    assert page.locator("#both .mark").count() == 6 * metrics
    row = page.locator("#metrics tbody tr", has_text="end-to-end latency, p95")
    assert "+219.4 %" in row.inner_text()
    assert "worse" in row.inner_text()
    assert "gemma-3-4b-ollama-1" in page.locator("#differs").inner_text()
    page.locator("#one").select_option(index=0)
    playwright.expect(page.locator("#both")).to_contain_text("Choose two different measurements.")
    page.locator("#two").select_option(index=1)
    playwright.expect(page.locator("#metrics tbody tr", has_text="end-to-end latency, p95")).to_contain_text("better")


def test_a_stage_unfolds_the_evidence_that_it_was_let_in_on(opened: Open) -> None:
    page = opened()
    prod = page.locator("#stages li", has_text="local-prod")
    assert "gate: open" in prod.inner_text()
    prod.locator("summary", has_text="let in on evidence").click()
    playwright.expect(prod).to_contain_text("end-to-end latency, p95: pass, needed ≤ 5 s")
    dev = page.locator("#stages li").first
    dev.locator("summary").click()
    playwright.expect(dev).to_contain_text("end-to-end latency, p95: fail")


def test_the_plan_follows_a_slider_while_it_is_moved(opened: Open) -> None:
    page = opened()
    page.locator("#stack").select_option("local-prod")
    playwright.expect(page.locator("#answer")).to_contain_text("8 slots a replica")
    playwright.expect(page.get_by_role("status")).to_contain_text("Every promise is predicted to be kept.")
    first = page.locator("#answer").inner_text()
    page.get_by_role("slider", name="Users").fill("180")
    playwright.expect(page.locator("#answer")).not_to_have_text(first)
    playwright.expect(page.get_by_role("status")).to_contain_text(re.compile(r"[2-9]\d nodes"))
    page.get_by_role("slider", name="Budget").fill("20")
    playwright.expect(page.get_by_role("status")).to_contain_text("Not kept")
    # What a stack cannot be asked is said where the answer would stand, and taken back by the next move.
    page.get_by_role("slider", name="Tokens of a prompt").fill("200")
    playwright.expect(page.get_by_role("status")).to_contain_text("fix:")
    page.get_by_role("slider", name="Tokens of a prompt").fill("20")
    playwright.expect(page.get_by_role("status")).not_to_contain_text("fix:")


def test_a_running_batch_is_followed_without_a_reload(opened: Open, root: Path, answering: str) -> None:  # noqa: F811
    page = opened()
    with closing(queue(root, "second", 25)) as made:
        row = page.locator("#queues tr", has_text="second")
        playwright.expect(row).to_contain_text("0 of 25")
        # Beside this thread, in which the browser's own loop runs.
        endpoint = batch.EndpointSettings(url=answering, slots=2)
        settings = batch.RunSettings(timeout=30.0)
        running = threading.Thread(target=batch.run, args=(made, [endpoint], settings), kwargs={"signals": False})
        running.start()
        playwright.expect(row).to_contain_text("25 of 25")
        playwright.expect(row).to_contain_text("done")
        running.join(SECONDS)
        assert not running.is_alive()
    assert row.locator("progress").evaluate("(bar) => bar.value / bar.max") == 1
