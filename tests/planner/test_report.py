"""What users see: the command line in its four forms, the page, and the answers for what cannot be kept."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

import planner
import tollgate.__main__ as command_line
from stacks import InputError, Objectives, Tokens, Traffic, load_stack

ASK = ["plan", "--model", "gemma3:4b", "--users", "1000"]


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(command_line.app, list(arguments), env={"COLUMNS": "160"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_a_stack_is_planned_and_says_what_binds_and_what_it_assumed() -> None:
    code, text = run("plan", "local-dev")
    assert code == 0
    for words in ("8 per replica, 80 in all", "$8.54/h", "binds", "headroom", "fitted", "2.70 s", "2026-07-30"):
        assert words in text


def test_json_is_plain_json_with_everything_in_it() -> None:
    code, text = run(*ASK, "--latency", "3", "--json")
    assert code == 0
    found = json.loads(text)
    assert found["plan"]["feasible"] is True
    assert found["alternatives"][0]["cost_per_hour_usd"] <= found["alternatives"][1]["cost_per_hour_usd"]
    assert {"over_slots", "over_users", "pareto", "assumptions", "prices"} <= set(found)
    assert found["promises"][0]["longest_reply_tokens"] >= 128


def test_markdown_has_the_same_numbers_as_tables() -> None:
    code, text = run(*ASK, "--latency", "3", "--markdown")
    assert code == 0
    assert "## Alternatives, cheapest first" in text
    assert "| end-to-end latency, p95 | at most 3.00 s |" in text


def test_more_arrivals_than_capacity_are_null_in_json_and_fail() -> None:
    code, text = run(
        "plan", "--model", "gemma3:4b", "--rate", "100", "--gpu", "l4", "--engine", "ollama", "--max-nodes", "2",
        "--latency", "3", "--json",
    )  # fmt: skip
    assert code == 1
    found = json.loads(text)
    assert found["plan"]["predicted"]["e2e_p95_seconds"] is None
    assert found["plan"]["predicted"]["error_rate"] > 0.4
    assert found["shortage"]


def test_a_promise_that_nothing_keeps_names_the_nearest_that_something_does() -> None:
    code, text = run(*ASK, "--latency", "0.05")
    assert code == 1
    assert "no choice in the catalog keeps 50 ms" in text
    nearest = re.search(r"the nearest that one can promise is ([0-9.]+) s", text)
    assert nearest is not None
    assert 0.05 < float(nearest[1]) < 1.0


@pytest.mark.parametrize(
    ("more", "binds"),
    [
        (("--budget", "5"), "budget ($5.00/h): 7 nodes are allowed, 25 would keep"),
        (
            ("--max-nodes", "9", "--machine", "g2-standard-4"),
            "quota (9 nodes at most): 9 nodes are allowed, 25 would keep",
        ),
    ],
)
def test_budget_and_quota_bind_where_more_nodes_would_keep_the_promise(more: tuple[str, ...], binds: str) -> None:
    code, text = run(*ASK, "--latency", "3", *more)
    assert code == 1
    assert binds in text
    assert "the cheapest choice that keeps every promise is 25 × g2-standard-4" in text


def test_without_a_promise_waiting_is_said_and_no_cheaper_plan_that_waits_is_preferred() -> None:
    assert "fewest nodes on which nobody waits" in run(*ASK)[1]
    waits = json.loads(run(*ASK, "--max-nodes", "1", "--gpu", "l4", "--json")[1])
    assert waits["plan"]["predicted"]["queue_depth"] > 1
    assert "requests wait for a slot" in run(*ASK, "--max-nodes", "1", "--gpu", "l4")[1]
    kept = [
        row["predicted"]["queue_depth"] < 0.5
        for row in json.loads(run(*ASK, "--budget", "30", "--json")[1])["alternatives"]
    ]
    assert kept == sorted(kept, reverse=True)


def test_every_plan_says_why_it_is_the_one() -> None:
    assert "the cheapest of " in json.loads(run(*ASK, "--latency", "3", "--json")[1])["plan"]["why"]
    assert "this one comes nearest" in json.loads(run(*ASK, "--latency", "0.05", "--json")[1])["plan"]["why"]
    own = json.loads(run("plan", "local-dev", "--json")[1])
    assert own["plan"]["why"] == "release and nodes are what the stack names"
    (cheaper,) = [note for note in own["notes"] if "would keep the promise for" in note]
    assert float(cheaper.rpartition("$")[2].removesuffix("/h")) < own["plan"]["cost_per_hour_usd"]["expected"]


def test_the_fleet_of_a_stack_binds_as_its_quota() -> None:
    stack = load_stack("local-dev")
    plan = planner.plan_for(
        release=stack.release, fleet=stack.fleet, traffic=stack.traffic, objectives=Objectives(e2e_p95_seconds=2.2)
    )
    assert plan.unmet == ("e2e_p95_seconds",)
    assert plan.binds.startswith("quota (fleet.nodes.max): 10 nodes are allowed, ")


def test_an_impossible_latency_buys_no_more_nodes_than_come_near_it() -> None:
    found = json.loads(run(*ASK, "--latency", "0.05", "--gpu", "l4", "--engine", "ollama", "--json")[1])
    assert found["plan"]["nodes"]["expected"] <= 1000
    assert found["impossible"]


@pytest.mark.parametrize(
    ("promise", "nearest"),
    [
        ({"cost_per_million_tokens_usd": 0.0001}, "cost per million output tokens"),
        ({"requests_per_second": 1_000_000}, "sustained rate"),
        ({"ttft_p95_seconds": 0.000_1}, "time to first token"),
    ],
)
def test_every_kind_of_promise_that_nothing_keeps_is_named_with_its_nearest(
    promise: dict[str, float], nearest: str
) -> None:
    search = planner.Search(
        model="gemma3:4b",
        traffic=Traffic(users=10, prompt_tokens=Tokens(mean=128), output_tokens=Tokens(mean=128)),
        objectives=Objectives.model_validate(promise),
    )
    (line,) = planner.report_search(search).impossible
    assert line.startswith(nearest)
    assert "no choice in the catalog keeps" in line


def test_every_model_is_planned_at_once_and_each_as_it_is_alone() -> None:
    code, text = run("plan", "--model", "any", "--users", "200", "--latency", "4", "--budget", "60", "--json")
    assert code == 0
    rows = {row["model"]: row for row in json.loads(text)}
    assert len(rows) >= 25
    assert rows["grok-1"]["unmet"] == ["e2e_p95_seconds"]
    alone = json.loads(
        run("plan", "--model", "qwen3-8b", "--users", "200", "--latency", "4", "--budget", "60", "--json")[1]
    )
    assert alone["plan"]["cost_per_hour_usd"]["expected"] == rows["qwen3-8b"]["cost_per_hour_usd"]
    table = run("plan", "--model", "any", "--users", "200", "--latency", "4", "--markdown")[1]
    assert "| qwen3-8b | " in table
    with pytest.raises(InputError, match="name one model"):
        run("plan", "--model", "any", "--users", "200", "--html", "plan.html")


@pytest.mark.parametrize("width", ["60", "100", "140", "200"])
def test_no_number_is_cut_on_a_narrow_terminal(width: str) -> None:
    done = CliRunner().invoke(command_line.app, [*ASK, "--latency", "3"], env={"COLUMNS": width})
    assert "…" not in done.stdout


def test_a_budget_is_kept_or_said_to_be_too_small() -> None:
    code, text = run(*ASK, "--latency", "3", "--budget", "20", "--json")
    assert code == 0
    assert json.loads(text)["plan"]["cost_per_hour_usd"]["expected"] <= 20
    assert run(*ASK, "--latency", "3", "--budget", "5")[0] == 1
    with pytest.raises(InputError, match="budget"):
        run(*ASK, "--budget", "0.1")


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan",),
        ("plan", "local-dev", "--model", "gemma3:4b"),
        ("plan", "--model", "gemma3:4b"),
        ("plan", "--model", "gemma3:4b", "--users", "1", "--rate", "1"),
        ("plan", "--model", "nobody", "--users", "1"),
        ("plan", "--model", "gemma3:4b", "--users", "1", "--gpu", "b200"),
        ("plan", "--model", "gemma3:4b", "--users", "1", "--context", "9999999"),
        ("plan", "--model", "gemma3:4b", "--users", "1", "--region", "mars-north1"),
        ("plan", "--model", "gemma3:4b", "--users", "1", "--prompt", "4000"),
        ("plan", "--model", "gemma3:4b", "--users", "1", "--prompt", "inf"),
        ("plan", "--model", "gemma3:4b", "--users", "1", "--latency", "inf"),
        ("plan", "--model", "gemma3:4b", "--users", "10000001"),
    ],
)
def test_questions_that_make_no_sense_are_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(InputError):
        run(*arguments)


class Page(HTMLParser):
    """Collects tags, addresses and whether every tag is closed."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_has_its_curves_and_asks_no_network(tmp_path: Path) -> None:
    target = tmp_path / "plan.html"
    assert run("plan", "local-dev", "--html", str(target))[0] == 0
    text = target.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.seen.count("svg") == 4
    assert page.addresses == []
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"url\(|@import|<script", text)
    assert not re.search(r"nan|inf\b", re.sub(r"<style>.*?</style>", "", text, flags=re.S).lower().replace("info", ""))


def test_names_from_files_cannot_break_out_of_the_page() -> None:
    stack = load_stack("local-dev").model_copy(update={"name": "<script>alert(1)</script>"})
    page = planner.html_page(planner.report_stack(stack))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_promises_of_one_second_hold_only_for_short_replies() -> None:
    """The operators' guess of 1.0 s against what was measured: true of a reply of a few dozen tokens, not of 128."""
    stack = load_stack("local-dev")
    times = planner.timing(stack.release)
    ends = planner.longest_reply(
        times, slots=8, replicas=10, traffic=stack.traffic, metric="e2e_p95_seconds", limit=1.0
    )
    first = planner.longest_reply(
        times, slots=8, replicas=10, traffic=stack.traffic, metric="ttft_p95_seconds", limit=1.0
    )
    assert 30 < ends < 60
    assert first >= 1000


def test_the_plan_grows_with_users_and_its_cost_with_nodes() -> None:
    stack = load_stack("local-dev")
    plan = planner.plan(stack)
    curve = planner.over_users(plan, stack.release, stack.traffic, Objectives(e2e_p95_seconds=3.0))
    nodes = [point.nodes for point in curve]
    assert nodes == sorted(nodes)
    assert len(set(nodes)) > 5
    assert all(point.cost_per_hour == pytest.approx(point.nodes * 0.8536) for point in curve)


def test_headroom_is_where_the_promise_breaks() -> None:
    stack = load_stack("local-dev")
    plan = planner.plan(stack)
    factor = planner.headroom(plan, stack.release, stack.traffic, Objectives(e2e_p95_seconds=5.0))
    for users, kept in ((int(50 * factor * 0.95), True), (int(50 * factor * 1.1), False)):
        traffic = Traffic(users=users, prompt_tokens=Tokens(mean=128), output_tokens=Tokens(mean=128))
        found = planner.predict(planner.timing(stack.release), slots=8, replicas=10, traffic=traffic)
        assert (found.e2e_p95_seconds <= 5.0) is kept


def test_a_plan_says_which_images_may_change_unseen_where_images_are_pulled() -> None:
    (note,) = [one for one in planner.report_stack(load_stack("staging")).notes if "by tag alone" in one]
    assert "vllm/vllm-openai:v0.32.0 (release, image), haproxy:3.2-alpine (tollgate:gateway.image)" in note
    assert "; fix: append @sha256:" in note
    assert not [one for one in planner.report_stack(load_stack("local-prod")).notes if "by tag alone" in one]
