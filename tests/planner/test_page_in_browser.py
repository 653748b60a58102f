"""The plan's page in headless Chromium: nothing runs out of the window, light and dark differ, curves have their points."""

from __future__ import annotations

import json
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import planner
from stacks import Objectives, Tokens, Traffic

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on PATH"),
]
# The page stands in a frame of the asked width: a headless window cannot be as narrow as a phone.
FRAME = """<!doctype html><body><iframe id="frame" src="page.html" style="width:{width}px;height:900px;border:0"></iframe>
<pre id="found"></pre><script>
document.getElementById("frame").onload = () => {{
  const page = document.getElementById("frame").contentDocument;
  const texts = [...page.querySelectorAll("svg text")].map(text => text.getBoundingClientRect());
  const charts = [...page.querySelectorAll("svg")].map(chart => chart.getBoundingClientRect());
  document.getElementById("found").textContent = JSON.stringify({{
    wide: page.documentElement.scrollWidth, charts: charts.length,
    dots: page.querySelectorAll("circle").length,
    outside: texts.filter(text => !charts.some(chart =>
      text.left >= chart.left - 1 && text.right <= chart.right + 1 &&
      text.top >= chart.top - 1 && text.bottom <= chart.bottom + 1
    )).length,
    paper: getComputedStyle(page.body).backgroundColor, ink: getComputedStyle(page.body).color,
    rows: page.querySelectorAll("tbody tr").length,
  }});
}};
</script>"""


def look(folder: Path, width: int, *flags: str) -> dict[str, Any]:
    (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", *flags,
        "--dump-dom", (folder / "frame.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    text = done.stdout.partition('<pre id="found">')[2].partition("</pre>")[0]
    found = json.loads(unescape(text))
    assert isinstance(found, dict)
    return found


@pytest.fixture
def page(tmp_path: Path) -> Path:
    search = planner.Search(
        model="gemma3:4b",
        traffic=Traffic(users=1000, prompt_tokens=Tokens(mean=128), output_tokens=Tokens(mean=128)),
        objectives=Objectives(e2e_p95_seconds=3.0),
    )
    (tmp_path / "page.html").write_text(planner.html_page(planner.report_search(search)), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_a_phone_and_a_screen_with_all_words_inside_their_charts(page: Path, width: int) -> None:
    found = look(page, width)
    assert found["wide"] <= width
    assert (found["charts"], found["outside"]) == (4, 0)
    assert found["dots"] > 30
    assert found["rows"] > 20


def test_the_page_is_dark_where_the_reader_wants_it_dark(page: Path) -> None:
    light, dark = look(page, 1200), look(page, 1200, "--force-dark-mode")
    assert (light["paper"], dark["ink"]) == ("rgb(255, 255, 255)", "rgb(237, 238, 240)")
    assert dark["paper"] == "rgb(17, 18, 20)"
