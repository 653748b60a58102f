"""The local page: what it answers, whom it does not answer, and what stands there in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import httpx2
import pytest

import gate
import stacks
import values
from bench import batch
from tests.attack.conftest import CANARY, HTML
from tests.gate.conftest import make_result
from tollgate.ui import Page

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
Ask = Callable[..., Any]


@pytest.fixture
def served(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    monkeypatch.delenv("TOLLGATE_BATCHES", raising=False)
    # Two stages are enough to look at.
    (project / "stacks" / "pipeline.yaml").write_text(
        "stages:\n  - stack: local-dev\n  - stack: local-prod\n    after: local-dev\n  - stack: dev\n"
    )
    with Page(project) as page:
        yield page


@pytest.fixture
def ask(served: Page) -> Iterator[Ask]:
    with httpx2.Client(base_url=served.url, timeout=60) as client:

        def get(path: str, code: int = 200, **query: Any) -> Any:
            answer = client.get(f"/api/{path}", params=query)
            assert answer.status_code == code, answer.text
            return answer.json()

        yield get


def measure(project: Path) -> None:
    stack, now = stacks.load_stack("local-dev", project), datetime.now(UTC)
    digest = values.release_digest(stack.release)
    gate.record(stack, make_result(release=digest, started=now), release_digest=digest, root=project, now=now)


def test_the_pipeline_shows_each_stage_with_its_gate_and_evidence(ask: Ask, project: Path) -> None:
    dev, prod, cloud = ask("pipeline")
    assert (dev["gate"], dev["measured"]) == ("not gated", None)
    assert prod["gate"] == "closed"
    assert "nothing was promoted" in prod["why"]
    assert cloud["target"] == "gke"
    measure(project)
    assert ask("pipeline")[0]["measured"] == "pass"


def test_a_broken_stack_is_shown_and_hides_none_of_the_others(ask: Ask, project: Path) -> None:
    path = project / "stacks" / "Pulumi.local-prod.yaml"
    path.write_text(path.read_text().replace("users: 50", "users: many"))
    dev, prod, _ = ask("pipeline")
    assert dev["error"] is None
    assert "tollgate:traffic.users" in prod["error"]


def test_the_plan_follows_users_lengths_latency_and_budget(ask: Ask) -> None:
    first = ask("plan", stack="local-dev")
    assert first["kept"]
    assert first["asked"]["users"] == 50
    more = ask("plan", stack="local-dev", users=400)
    assert more["nodes"] > first["nodes"]
    assert more["usd_per_hour"] > first["usd_per_hour"]
    longer = ask("plan", stack="local-dev", output=512, latency=60)
    assert longer["e2e_p95_seconds"] > first["e2e_p95_seconds"]
    poor = ask("plan", stack="local-dev", users=400, budget=2)
    assert (poor["nodes"], poor["kept"]) == (2, False)
    assert "the budget" in poor["binds"]
    hasty = ask("plan", stack="local-dev", latency=0.5)
    assert "end-to-end latency, p95" in hasty["unmet"]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("nothing", {}),
        ("plan", {"stack": "nobody"}),
        ("plan", {"stack": "../../etc/passwd"}),
        ("plan", {"stack": "local-dev", "users": "nan"}),
        ("plan", {"stack": "local-dev", "users": "-1"}),
        ("plan", {"stack": "local-dev", "users": "1e99"}),
        ("plan", {"stack": "local-dev", "prompt": "9999999"}),
        ("plan", {"stack": "local-dev", "prompt": "999999"}),
        ("history", {"stack": HTML}),
    ],
)
def test_a_question_that_is_none_is_answered_with_what_is_wrong(ask: Ask, path: str, query: dict[str, str]) -> None:
    assert "fix:" in ask(path, code=400, **query)["error"]


def test_results_and_batches_are_those_of_the_project(ask: Ask, project: Path) -> None:
    assert ask("results") == []
    assert ask("batches") == []
    measure(project)
    (found,) = ask("results")
    assert (found["stack"], found["verdict"], found["runs"]) == ("local-dev", "pass", 3)
    store = project / ".tollgate" / "batches"
    body = b'{"model":"tiny","messages":[]}'
    with closing(batch.create(str(store), [batch.Input("a", "/v1/chat/completions", body)], id="b")):
        pass
    (found,) = ask("batches")
    assert (found["id"], found["total"]) == ("b", 1)


def test_the_address_of_a_database_is_not_used_and_not_shown(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_BATCHES", f"postgresql://user:{CANARY}@127.0.0.1:9/db")
    assert ask("batches") == []


@pytest.mark.parametrize("host", ["evil.invalid", "127.0.0.1.evil.invalid", "10.0.0.1", ""])
def test_a_name_that_was_made_to_point_here_is_not_answered(served: Page, host: str) -> None:
    for path in ("", "api/pipeline"):
        assert httpx2.get(f"{served.url}{path}", headers={"Host": host}).status_code == 403


def test_another_page_in_the_same_browser_gets_nothing(served: Page) -> None:
    answer = httpx2.get(f"{served.url}api/pipeline", headers={"Origin": "https://evil.invalid"})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    # What could change something is not there at all.
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert httpx2.request(method, f"{served.url}api/pipeline").status_code == 501


def test_it_listens_on_this_machine_only_and_serves_no_files(served: Page) -> None:
    assert served.url.startswith("http://127.0.0.1:")
    for path in ("stacks/pipeline.yaml", "../Pulumi.yaml", "api/../Pulumi.yaml", "%2e%2e/Pulumi.yaml"):
        answer = httpx2.get(f"{served.url}{path}")
        assert answer.status_code in (400, 404)
        assert "stackConfigDir" not in answer.text


def test_the_page_loads_nothing_and_only_its_own_script_may_run(served: Page) -> None:
    answer = httpx2.get(served.url, timeout=60)
    policy = answer.headers["content-security-policy"]
    (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
    assert policy.startswith("default-src 'none'")
    assert answer.text.count(f'nonce="{nonce}"') == 2
    assert nonce not in httpx2.get(served.url, timeout=60).text
    # Nothing from elsewhere, and no way to make markup of data; the name of SVG's elements is no address.
    text = answer.text.replace('"http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


def test_every_control_has_a_label_and_every_section_a_name(served: Page) -> None:
    text = httpx2.get(served.url, timeout=60).text
    assert '<html lang="en">' in text
    for section in re.findall(r"<section [^>]*>", text):
        name = re.search(r'aria-labelledby="([^"]+)"', section)
        assert name is not None
        assert f'id="{name.group(1)}"' in text
    assert '<label for="stack">' in text
    assert 'aria-live="polite"' in text
    assert ":focus-visible" in text


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on PATH")
def test_in_a_browser_all_of_it_stands_there_and_a_hostile_reason_is_only_text(
    served: Page, project: Path, tmp_path: Path
) -> None:
    measure(project)
    now = datetime.now(UTC)
    gate.approve(
        stacks.load_stack("local-dev", project), release_name="r", release_digest="sha256:" + "1" * 64, who="A",
        why=f"because {HTML}", expires=now + timedelta(days=1),
        criteria=(), root=project, now=now,
    )  # fmt: skip
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=8000", "--dump-dom", served.url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert 'data-ready="yes"' in done.stdout, done.stderr
    page = unescape(re.sub(r"<[^>]+>", "\n", done.stdout.partition("<main>")[2].partition("</main>")[0]))
    for words in (
        "local-prod",
        "gate: closed",
        "Every promise is predicted to be kept.",
        "Cost",
        "Users",
        "measured: pass",
    ):
        assert words in page, words
    assert done.stdout.count('type="range"') == 5
    assert "<img" not in done.stdout
    assert "because " in page
