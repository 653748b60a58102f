"""One comment, updated in place: against a local server that behaves as GitHub's and GitLab's APIs do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import typer
from typer.testing import CliRunner

import stacks
from preview import MARKER, as_json, comment, failure
from tollgate.commands import preview as command

BODY = f"{MARKER}\n### prod: +5 g2-standard-8\n"


class Forge:
    """Comments in pages of 100 (fewer here), and a list of answers to give before behaving."""

    def __init__(self) -> None:
        self.comments: list[dict[str, Any]] = []
        self.trouble: list[tuple[int, dict[str, str]]] = []
        self.calls: list[tuple[str, str, str]] = []
        self.may_write = True
        # Comments that are made, and then answered by a gateway that had given up waiting.
        self.made_and_lost = 0
        self.page = 30
        self.gitlab = False
        forge = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                forge.handle(self)

            do_POST = do_PATCH = do_PUT = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("content-length") or 0)
        body = json.loads(request.rfile.read(length) or b"{}")
        token = request.headers.get("authorization") or request.headers.get("private-token") or ""
        self.calls.append((request.command, request.path, token))
        if self.trouble:
            status, headers = self.trouble.pop(0)
            message = headers.pop("message", "trouble")
            return self.answer(request, status, [] if status == 200 else {"message": message}, headers)
        if request.path.endswith("/user"):
            return self.answer(request, 200, {"id": 7})
        if request.command == "GET":
            return self.list(request)
        if not self.may_write:
            # As GitHub answers the token of a fork's pull request; its budget is not spent.
            headers = {"x-ratelimit-remaining": "4999"}
            return self.answer(request, 403, {"message": "Resource not accessible by integration"}, headers)
        if request.command == "POST":
            made = {
                "id": len(self.comments) + 1,
                "body": body["body"],
                "html_url": f"{self.url}/c{len(self.comments) + 1}",
                **self.author("bot"),
            }
            self.comments.append(made)
            if self.made_and_lost:
                self.made_and_lost -= 1
                return self.answer(request, 502, {"message": "bad gateway"})
            return self.answer(request, 201, made)
        number = int(request.path.rpartition("/")[2])
        found = next(entry for entry in self.comments if entry["id"] == number)
        assert request.command == ("PUT" if self.gitlab else "PATCH")
        found["body"] = body["body"]
        return self.answer(request, 200, found)

    def list(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        page = int(parse_qs(parts.query).get("page", ["1"])[0])
        entries = self.comments[(page - 1) * self.page : page * self.page]
        more = len(self.comments) > page * self.page
        headers = {}
        if self.gitlab:
            headers["x-next-page"] = str(page + 1) if more else ""
        elif more:
            headers["link"] = f'<{self.url}{parts.path}?per_page=100&page={page + 1}>; rel="next", <x>; rel="last"'
        self.answer(request, 200, entries, headers)

    def answer(
        self, request: BaseHTTPRequestHandler, status: int, body: Any, headers: dict[str, str] | None = None
    ) -> None:
        data = json.dumps(body).encode()
        request.send_response(status)
        for name, value in {**(headers or {}), "content-length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)

    def author(self, who: str) -> dict[str, Any]:
        if self.gitlab:
            return {"author": {"id": {"bot": 7, "stranger": 8}[who]}, "system": False}
        kind = {"bot": "Bot", "stranger": "User"}[who]
        return {"user": {"login": who, "type": kind}, "author_association": "NONE"}

    def talk(self, others: int, body: str = f"about {MARKER} and more") -> None:
        for _ in range(others):
            self.comments.append({"id": len(self.comments) + 1, "body": body, **self.author("stranger")})


@pytest.fixture
def forge() -> Iterator[Forge]:
    made = Forge()
    yield made
    made.server.shutdown()
    made.server.server_close()


def env(forge: Forge, **more: str) -> dict[str, str]:
    if forge.gitlab:
        found = {"CI_API_V4_URL": f"{forge.url}/api/v4", "CI_PROJECT_ID": "7", "CI_MERGE_REQUEST_IID": "12"}
        return {**found, "GITLAB_TOKEN": "secret", **more}
    found = {"GITHUB_API_URL": forge.url, "GITHUB_REPOSITORY": "our/repo", "GITHUB_REF": "refs/pull/12/merge"}
    return {**found, "GITHUB_TOKEN": "secret", **more}


def put(forge: Forge, body: str = BODY, *, wanted: bool = True, **more: Any) -> Any:
    kind: Any = "gitlab" if forge.gitlab else "github"
    return comment(
        kind,
        body,
        wanted=wanted,
        env=env(forge, **more.pop("env", {})),
        sleep=more.pop("sleep", lambda _: None),
        **more,
    )


@pytest.mark.parametrize("gitlab", [False, True])
def test_the_first_run_makes_a_comment_and_the_next_ones_update_it_wherever_it_stands(
    forge: Forge, gitlab: bool
) -> None:
    forge.gitlab = gitlab
    forge.talk(3)
    assert put(forge).done == "created"
    forge.talk(70)
    assert put(forge, BODY + "more").done == "updated"
    assert put(forge, BODY + "more").done == "left"
    ours = [entry for entry in forge.comments if entry["body"].startswith(MARKER)]
    assert [entry["body"] for entry in ours] == [BODY + "more"]
    assert len(forge.comments) == 74


@pytest.mark.parametrize("gitlab", [False, True])
def test_a_stranger_s_comment_with_our_marker_is_not_taken_for_ours(forge: Forge, gitlab: bool) -> None:
    """He could change it again, and it would say what he likes where ours is read."""
    forge.gitlab = gitlab
    forge.talk(1, body=f"{MARKER}\n### no change")
    assert put(forge).done == "created"
    assert put(forge, BODY + "more").done == "updated"
    assert [entry["body"] for entry in forge.comments] == [f"{MARKER}\n### no change", BODY + "more"]


def test_a_comment_of_somebody_who_may_write_is_updated(forge: Forge) -> None:
    """A personal token writes as a person."""
    forge.talk(1, body=BODY)
    forge.comments[0] |= {"author_association": "MEMBER"}
    assert put(forge, BODY + "more").done == "updated"
    assert len(forge.comments) == 1


def test_a_comment_behind_many_pages_is_found(forge: Forge) -> None:
    forge.talk(95)
    put(forge)
    forge.talk(10)
    assert put(forge, BODY + "again").done == "updated"
    assert sum(path.startswith("/repos/our/repo/issues/12/comments?") for _, path, _ in forge.calls) == 8


def test_nothing_to_say_makes_no_comment_but_corrects_an_old_one(forge: Forge) -> None:
    assert put(forge, wanted=False).done == "nothing"
    assert forge.comments == []
    put(forge)
    assert put(forge, f"{MARKER}\n### no change\n", wanted=False).done == "updated"
    assert "no change" in forge.comments[0]["body"]


def test_a_fork_s_token_may_not_write_and_the_job_s_summary_gets_the_text(forge: Forge, tmp_path: Path) -> None:
    forge.may_write = False
    summary = tmp_path / "summary.md"
    outcome = put(forge, env={"GITHUB_STEP_SUMMARY": str(summary)})
    assert (outcome.done, outcome.where) == ("summary", str(summary))
    assert summary.read_text() == BODY
    assert put(forge).done == "nowhere"
    assert sum(method == "POST" for method, _, _ in forge.calls) == 2


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_trouble_of_the_server_is_waited_out_with_growing_pauses(forge: Forge, status: int) -> None:
    forge.trouble = [(status, {}), (status, {}), (status, {})]
    pauses: list[float] = []
    assert put(forge, sleep=pauses.append).done == "created"
    assert len(pauses) == 3
    assert pauses[2] > 1.9 > pauses[0]
    assert len(forge.comments) == 1


def test_a_comment_that_was_made_and_answered_with_an_error_is_not_made_twice(forge: Forge) -> None:
    forge.made_and_lost = 1
    assert put(forge).done == "left"
    assert [entry["body"] for entry in forge.comments] == [BODY]


def test_a_server_that_never_takes_the_comment_is_an_error(forge: Forge) -> None:
    pauses: list[float] = []
    forge.trouble = [(status, {}) for _ in range(5) for status in (200, 502)]
    with pytest.raises(stacks.TollgateError, match=r"github did not take the comment: HTTP 502"):
        put(forge, sleep=pauses.append)
    assert (len(pauses), forge.comments) == (4, [])


def test_a_secondary_rate_limit_says_so_in_words_only_and_is_waited_for(forge: Forge) -> None:
    forge.trouble = [(403, {"message": "You have exceeded a secondary rate limit"})]
    pauses: list[float] = []
    assert put(forge, sleep=pauses.append).done == "created"
    assert pauses == [60.0]


def test_a_server_that_stays_broken_is_an_error_that_names_it(forge: Forge) -> None:
    forge.trouble = [(503, {})] * 9
    with pytest.raises(stacks.TollgateError, match=r"HTTP 503 after 5 tries"):
        put(forge)
    assert len(forge.calls) == 5


def test_a_rate_limit_is_waited_for_as_long_as_it_says(forge: Forge) -> None:
    forge.trouble = [
        (429, {"retry-after": "7"}),
        (403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1030"}),
    ]
    pauses: list[float] = []
    assert put(forge, sleep=pauses.append, clock=lambda: 1000.0).done == "created"
    assert pauses == [7.0, 30.0]


def test_a_rate_limit_of_an_hour_is_not_waited_for(forge: Forge) -> None:
    forge.trouble = [(403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "4600"})]
    pauses: list[float] = []
    with pytest.raises(stacks.TollgateError, match=r"the rate limit ends in 3600 s"):
        put(forge, sleep=pauses.append, clock=lambda: 1000.0)
    assert pauses == []


def test_the_token_is_sent_to_the_api_and_nowhere_else(forge: Forge) -> None:
    put(forge)
    assert {token for _, _, token in forge.calls} == {"Bearer secret"}
    for elsewhere in ("http://127.0.0.1:9/evil", f"{forge.url}0/repos/our/repo/issues/12/comments?page=2"):
        forge.trouble = [(200, {"link": f'<{elsewhere}>; rel="next"'})]
        with pytest.raises(stacks.TollgateError, match="next page is elsewhere"):
            put(forge)


def test_what_the_job_lacks_is_named(forge: Forge) -> None:
    with pytest.raises(stacks.InputError, match="GITHUB_REF"):
        put(forge, env={"GITHUB_REF": "refs/heads/main"})
    with pytest.raises(stacks.InputError, match="GITHUB_TOKEN"):
        put(forge, env={"GITHUB_TOKEN": ""})
    forge.gitlab = True
    with pytest.raises(stacks.InputError, match="CI_MERGE_REQUEST_IID"):
        put(forge, env={"CI_MERGE_REQUEST_IID": ""})


def test_a_pull_request_number_may_be_given(forge: Forge) -> None:
    put(forge, env={"GITHUB_REF": "refs/heads/main", "TOLLGATE_PULL_REQUEST": "99"})
    assert forge.calls[0][1].startswith("/repos/our/repo/issues/99/comments")


def test_an_api_that_is_not_there_is_an_error(forge: Forge) -> None:
    with pytest.raises(stacks.TollgateError, match="github did not answer"):
        put(forge, env={"GITHUB_API_URL": "http://127.0.0.1:9"})


def test_the_command_puts_what_another_job_found_on_the_pull_request_and_exits_with_its_code(
    forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tmp_path / "preview.json"
    found.write_text(as_json(failure(stacks.TollgateError("no such base"), source="offline", base="main")))
    for name, value in env(forge).items():
        monkeypatch.setenv(name, value)
    app = typer.Typer()
    app.command()(command.preview)
    for done in ("created", "left"):
        outcome = CliRunner().invoke(app, ["--from", str(found), "--comment", "github"])
        assert outcome.exit_code == 1
        assert f"comment: {done}" in outcome.output
    (entry,) = forge.comments
    assert "no preview: no such base" in entry["body"]
    assert CliRunner().invoke(app, ["--from", str(found), "--comment", "gitea"]).exception is not None


def test_a_document_too_large_to_be_ours_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "preview.json"
    with path.open("wb") as file:
        file.truncate(60_000_000)
    with pytest.raises(stacks.InputError, match=r"60000000 bytes"):
        command._text(path)
