"""Words from outside in what we write: pages, tables, spreadsheets, comments, terminals, logs and archives."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import pytest
from markdown_it import MarkdownIt

import gate
import planner
import preview
import stacks
from bench import batch, report
from bench.job import _together
from bench.results import Result, Run
from components import benchmark
from local.runner import _environment, _nodes
from tests.attack.conftest import CANARY, HTML
from tollgate.__main__ import main
from tollgate.commands import preview as previews


class _Tags(HTMLParser):
    """Every tag and attribute of a page that could run or load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "img", "iframe", "object", "embed", "link", "base", "form"):
            self.found.append(tag)
        self.found += [name for name, _ in attrs if name.startswith("on") or name in ("src", "srcdoc", "action")]
        self.found += [str(value) for name, value in attrs if name == "href" and not str(value).startswith("#")]


def result(words: str) -> Result:
    """Every text that a benchmarked server, or whoever wrote the file, may choose."""
    traffic = stacks.Traffic.model_validate({"users": 1, "prompt_tokens": 8, "output_tokens": 8})
    run = Run(
        started=datetime(2026, 11, 21, tzinfo=UTC), seconds=1, warmup_seconds=0, sent=1, ok=1, failed=0, cut=0, valid=True,
        errors={words: 1}, metrics={"requests_per_second": 1.0, "e2e_p95_seconds": 1.0, words: 2.0},
    )  # fmt: skip
    return Result(
        release="sha256:" + "0" * 64,
        stack=words,
        url=f"http://host/{words}",
        traffic=traffic,
        replicas=1,
        runs=(run, run.model_copy(update={"valid": False, "invalid_because": words})),
        server={"engine": words, words: words},
        environment={"accelerator": words, words: words},
        tool_version=words,
    )


@pytest.mark.parametrize("words", [HTML, f"</title>{HTML}", f'"{HTML}', f"'>{HTML}", "javascript:alert(1)"])
def test_no_words_of_a_result_become_part_of_a_page(words: str) -> None:
    page = report.html([result(words), result(words)])
    assert _Tags(page).found == []
    assert "alert(1)" in page


def test_no_words_of_a_result_become_html_or_a_row_of_a_markdown_table() -> None:
    text = report.markdown([result(f"{HTML}\n| a | b |")])
    assert "<img" not in text
    assert "| a | b |" not in text


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t=", "\r=", "\n="])
def test_no_cell_of_a_spreadsheet_is_a_formula(begin: str) -> None:
    sheet = report.csv([result(f"{begin}cmd|' /C calc'!A0")])
    rows = list(csv.reader(io.StringIO(sheet)))
    assert len(rows) == 3
    for cell in (cell for row in rows for cell in row):
        assert not cell or (cell[0] not in "=+@\t\r\n" and not cell.startswith("-c"))


def test_empty_cells_of_a_spreadsheet_are_empty() -> None:
    one, other = result("a"), result("b")
    runs = tuple(run.model_copy(update={"metrics": {"only_here": 1.0}}) for run in one.runs)
    rows = list(csv.DictReader(io.StringIO(report.csv([one.model_copy(update={"runs": runs}), other]))))
    assert rows[0]["requests_per_second"] == ""
    assert rows[2]["only_here"] == ""


def test_no_name_of_a_stack_file_becomes_part_of_a_comment_or_a_page(project: Path) -> None:
    shutil.copy(project / "stacks" / "Pulumi.local-dev.yaml", project / "stacks" / f"Pulumi.{HTML}.yaml")
    found = previews.collect(project, [HTML], None)
    assert found.exit_code != 0
    assert _Tags(preview.page(found)).found == []
    # As GitHub would render it: what stands in a block of code is only shown.
    assert _Tags(MarkdownIt("commonmark").render(preview.markdown(found))).found == []


def test_no_title_of_a_plan_becomes_part_of_its_page(project: Path) -> None:
    import dataclasses

    found = planner.report_stack(stacks.load_stack("local-dev", project))
    assert _Tags(planner.html_page(dataclasses.replace(found, title=HTML, why=HTML, notes=(HTML,)))).found == []


def approve(project: Path, who: str, why: str) -> None:
    gate.load_keys(project, create=True)
    now = datetime.now(UTC)
    gate.approve(
        stacks.load_stack("local-prod", project), release_name="r", release_digest="sha256:" + "1" * 64, who=who,
        why=why, expires=now + timedelta(days=1), criteria=(), root=project, now=now,
    )  # fmt: skip


@pytest.mark.parametrize("words", ["[/bold]", "[link=http://evil.invalid]click[/link]", "[red]pass[/red]"])
def test_no_reason_of_an_approval_is_markup_on_the_terminal(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    monkeypatch.chdir(project)
    approve(project, "A", f"because {words}")
    monkeypatch.setattr(sys, "argv", ["tollgate", "evidence", "history", "local-prod"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("words", ["\x1b]0;title\x07\x1b[2J", "fine\n2026-11-21 promotion by everybody", "a\u202eb"])
def test_nobody_signs_an_escape_or_a_second_line(project: Path, words: str) -> None:
    for who, why in (("A", f"because {words}"), (words, "because I say so")):
        with pytest.raises(stacks.InputError, match="control characters"):
            approve(project, who, why)


def test_a_small_log_does_not_become_all_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_together, "_MOST_BYTES", 1_000_000)
    pieces = _together.Pieces()
    packed = base64.b64encode(zlib.compress(b"\0" * 1_000_001)).decode()
    pieces.take(f"{_together.RESULT}1/1 00000000 {packed}")
    with pytest.raises(stacks.TollgateError, match="more than"):
        pieces.result()


def test_a_small_config_map_does_not_become_all_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_MOST_BYTES", 1_000_000)
    packed = base64.b64encode(gzip.compress(b"\0" * 1_000_001)).decode()
    with pytest.raises(stacks.TollgateError, match="more than"):
        benchmark.result_text(None, {"result.json": packed})
    whole = base64.b64encode(gzip.compress(b"\0" * 1_000_000)).decode()
    assert len(benchmark.result_text(None, {"result.json": whole})) == 1_000_000


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", "null", "5", '{"cpu": "-1; reboot"}', '{"cpu": {"a": 1}}', "{", '{"a": NaN}']
)
def test_no_annotation_of_a_node_ends_the_pod_runner(text: str) -> None:
    found = _nodes.capacity({"metadata": {"name": "n", "annotations": {_nodes.CAPACITY_ANNOTATION: text}}})
    assert all(_nodes._QUANTITY.fullmatch(value) for value in found.values())
    assert "cpu" in found


def test_an_annotation_of_a_pod_stays_one_value_in_its_downward_file() -> None:
    meta = {"name": "p", "namespace": "n", "uid": "u", "annotations": {"a": 'x"\nb="injected', "$(reboot)": "`reboot`"}}
    text = _environment.field({"metadata": meta, "spec": {}}, "metadata.annotations", ip="", node_ip="")
    assert len(text.splitlines()) == 2
    assert _environment.field({"metadata": meta, "spec": {}}, "metadata.annotations['../x']", ip="", node_ip="") == ""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[batch.Service]:
    endpoint = batch.EndpointSettings(url="http://127.0.0.1:9")
    with batch.Service(tmp_path / "service", [endpoint], batch.RunSettings(tries=1)) as found:
        yield found


Asks = Callable[..., httpx2.Response]


@pytest.fixture
def ask(service: batch.Service) -> Iterator[Asks]:
    with httpx2.Client(base_url=service.url, timeout=60) as client:
        yield client.request


@pytest.mark.parametrize(
    "host", ["evil.invalid", "127.0.0.1.evil.invalid", "localhost.evil.invalid", "", "127.evil", "[::2]"]
)
def test_a_name_that_was_made_to_point_here_is_not_answered(ask: Asks, host: str) -> None:
    assert ask("GET", "/v1/batches", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:80"])
def test_this_machines_own_names_are_answered(ask: Asks, host: str) -> None:
    assert ask("GET", "/v1/batches", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.invalid", "null", "http://localhost:1", "file://"])
def test_a_web_page_cannot_submit_through_its_readers_browser(ask: Asks, origin: str) -> None:
    form = {"purpose": (None, "batch"), "file": ("in.jsonl", b"{}\n")}
    answer = ask("POST", "/v1/files", headers={"Origin": origin}, files=form)
    assert answer.status_code == 403
    assert ask("GET", "/v1/files").json()["data"] == []


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest/meta-data", "//evil.invalid/v1/chat/completions", "/v1/../admin", "@evil.invalid", "file:///etc/passwd"]
)  # fmt: skip
def test_no_line_of_a_batch_chooses_who_is_asked(tmp_path: Path, url: str) -> None:
    line = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": "m", "messages": []}}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    rows = list(batch.read(str(tmp_path / "in.jsonl"), batch.Recipe(), "jsonl"))
    assert [type(row).__name__ for row in rows] == ["BadRow"]


@pytest.mark.parametrize(
    "id", ["..", "file-..", "file-../../x", "file-%2e%2e", "file-a%2Fb", "file-a\\b", "file-.json", "batch_.."]
)
def test_no_id_leads_out_of_the_folder_of_files(ask: Asks, tmp_path: Path, id: str) -> None:
    for folder in (tmp_path, tmp_path / "service"):
        (folder / "x.json").write_text(json.dumps({"id": CANARY}))
        (folder / "x").write_text(CANARY)
    for method, path in (
        ("GET", f"files/{id}"),
        ("GET", f"files/{id}/content"),
        ("DELETE", f"files/{id}"),
        ("GET", f"batches/{id}"),
    ):
        answer = ask(method, f"/v1/{path}")
        assert answer.status_code in (404, 405)
        assert CANARY not in answer.text
    assert (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a\0b", HTML])
def test_no_name_of_an_uploaded_file_is_a_path(ask: Asks, tmp_path: Path, name: str) -> None:
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    answer = ask("POST", "/v1/files", files={"purpose": (None, "batch"), "file": (name, b"{}\n")})
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert answer.status_code in (200, 400)
    assert all(path.parent.name == "files" and path.name.startswith("file-") for path in new)


@pytest.mark.parametrize("url", [f"http://user:{CANARY}@host", f"http://{CANARY}@host/v1", f"ftp://u:{CANARY}@host"])
def test_an_address_with_a_password_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(stacks.InputError) as caught:
        batch.EndpointSettings(url=url).target()
    assert CANARY not in str(caught.value)


def test_a_database_that_cannot_be_reached_does_not_tell_its_password() -> None:
    with pytest.raises(stacks.TollgateError) as caught:
        batch.ids(f"postgresql://user:{CANARY}@127.0.0.1:9/db?connect_timeout=2")
    assert CANARY not in str(caught.value)
