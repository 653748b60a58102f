"""One comment on a pull or merge request, updated in place: found by its hidden marker, through the REST API.

GitHub and GitLab differ in addresses, the field of the text and how pages go on; everything else is the same. Where the token may
not write (a fork's pull request), the text goes to the job's summary instead, and nothing fails.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import stacks

from ._markdown import MARKER

if TYPE_CHECKING:
    import httpx2

_ATTEMPTS = 5
_LONGEST_WAIT_SECONDS = 60.0
_PAGES = 50
_AGAIN = (429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was done. `where`: the comment's address, or the summary's file."""

    done: Literal["created", "updated", "left", "nothing", "summary", "nowhere"]
    where: str = ""


@dataclass(frozen=True, kw_only=True)
class _Forge:
    """A pull or merge request's comments. `page`: the address of the list; `one`: of one of them; `whoami`: of the token's user,
    where the forge tells."""

    page: str
    one: str
    method: Literal["PATCH", "PUT"]
    headers: Mapping[str, str]
    number: str
    whoami: str | None = None


def comment(
    kind: Literal["github", "gitlab"],
    body: str,
    *,
    wanted: bool,
    env: Mapping[str, str] | None = None,
    client: httpx2.Client | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> Outcome:
    """Put `body` on the request that the CI's environment names. Not `wanted` (nothing changes): an earlier comment is updated,
    none is made.

    Raises InputError where the environment names no request, TollgateError where the API does not answer.
    """
    import httpx2

    env = os.environ if env is None else env
    forge = _github(env) if kind == "github" else _gitlab(env)
    own = client or httpx2.Client(timeout=20.0)
    api = _Api(own, forge, sleep, clock)
    try:
        for attempt in range(_ATTEMPTS):
            try:
                return _put(api, forge, body, wanted=wanted)
            except _UnsureError as error:
                # It may have been made all the same: look again before making another.
                if attempt == _ATTEMPTS - 1:
                    raise stacks.TollgateError(f"{kind} did not take the comment: {error}") from error
                sleep(_pause(attempt))
        raise AssertionError("unreachable")
    except _MayNotError:
        return _summary(body, env) if wanted else Outcome(done="nothing")
    except httpx2.HTTPError as error:
        raise stacks.TollgateError(f"{kind} did not answer: {type(error).__name__}: {error}") from error
    finally:
        if client is None:
            own.close()


def _put(api: _Api, forge: _Forge, body: str, *, wanted: bool) -> Outcome:
    found = api.find()
    if found is None and not wanted:
        return Outcome(done="nothing")
    if found is not None and str(found.get("body", "")).strip() == body.strip():
        return Outcome(done="left", where=_address(found))
    if found is None:
        return Outcome(done="created", where=_address(api.send("POST", forge.page, {"body": body})))
    answer = api.send(forge.method, forge.one.format(id=found["id"]), {"body": body})
    return Outcome(done="updated", where=_address(answer))


class _MayNotError(Exception):
    """The token may not do that."""


class _UnsureError(Exception):
    """Nobody knows whether the comment was made."""


class _Api:
    def __init__(
        self, client: httpx2.Client, forge: _Forge, sleep: Callable[[float], None], clock: Callable[[], float]
    ) -> None:
        self._client, self._forge, self._sleep, self._clock = client, forge, sleep, clock
        self._me: object = None

    def find(self) -> Mapping[str, Any] | None:
        """The oldest comment that begins with our marker and that no stranger wrote: its author could change it again."""
        for entry in self._entries():
            if str(entry.get("body", "")).startswith(MARKER) and self._ours(entry):
                return entry
        return None

    def _ours(self, entry: Mapping[str, Any]) -> bool:
        """GitHub: a bot's, or of one who may write to the repository anyway. GitLab: of the token's own user."""
        if entry.get("system") is True:
            return False
        if self._forge.whoami is None:
            bot = (entry.get("user") or {}).get("type") == "Bot"
            return bot or entry.get("author_association") in ("OWNER", "MEMBER", "COLLABORATOR")
        if self._me is None:
            self._me = self._call("GET", self._forge.whoami, None).json().get("id")
        return (entry.get("author") or {}).get("id") == self._me

    def _entries(self) -> Iterator[Mapping[str, Any]]:
        address: str | None = f"{self._forge.page}?per_page=100"
        for _ in range(_PAGES):
            answer = self._call("GET", str(address), None)
            yield from answer.json()
            following = answer.headers.get("x-next-page")
            if following:
                address = f"{self._forge.page}?per_page=100&page={following}"
            else:
                address = answer.links.get("next", {}).get("url")
            if not address:
                return
            if not str(address).startswith(self._forge.page.split("/repos/")[0].split("/projects/")[0] + "/"):
                # The token goes nowhere else.
                raise stacks.TollgateError(f"the API's next page is elsewhere: {address}")

    def send(self, method: str, address: str, body: Mapping[str, str]) -> Mapping[str, Any]:
        """Create or change."""
        found: Mapping[str, Any] = self._call(method, address, body).json()
        return found

    def _call(self, method: str, address: str, body: Mapping[str, str] | None) -> httpx2.Response:
        """With retries: of lost connections and 5xx with growing pauses, of rate limits when they say."""
        import httpx2

        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            try:
                answer = self._client.request(method, address, json=body, headers=dict(self._forge.headers))
            except httpx2.TransportError as error:
                if method == "POST":
                    raise _UnsureError(f"{type(error).__name__}: {error}") from error
                if last:
                    raise
                self._sleep(_pause(attempt))
                continue
            wait = self._limited(answer)
            if wait is None and answer.status_code in (401, 403, 404):
                raise _MayNotError
            if wait is None and answer.status_code not in _AGAIN:
                answer.raise_for_status()
                return answer
            if wait is None and method == "POST":
                raise _UnsureError(f"HTTP {answer.status_code}")
            if last or (wait or 0.0) > _LONGEST_WAIT_SECONDS:
                raise stacks.TollgateError(
                    f"{method} {answer.request.url.path}: HTTP {answer.status_code} after {attempt + 1} tries"
                    + (f", the rate limit ends in {wait:.0f} s" if wait else "")
                )
            self._sleep(wait if wait is not None else _pause(attempt))
        raise AssertionError("unreachable")

    def _limited(self, answer: httpx2.Response) -> float | None:
        """Seconds until a rate limit ends; None where there is none."""
        if answer.status_code not in (403, 429):
            return None
        after = answer.headers.get("retry-after", "")
        if after.isdigit():
            return float(after)
        if answer.headers.get("x-ratelimit-remaining") == "0":
            reset = answer.headers.get("x-ratelimit-reset", "")
            return max(1.0, float(reset) - self._clock()) if reset.isdigit() else _pause(_ATTEMPTS)
        if "rate limit" in answer.text.lower():
            # GitHub's secondary limit, which need not say for how long: at least a minute, by its documentation.
            return _LONGEST_WAIT_SECONDS
        return _pause(2) if answer.status_code == 429 else None


def _pause(attempt: int) -> float:
    return float(min(_LONGEST_WAIT_SECONDS, 2.0**attempt)) * (0.5 + random.random() / 2)


def _github(env: Mapping[str, str]) -> _Forge:
    repository = _given(env, "GITHUB_REPOSITORY", "github", "owner/name")
    number = env.get("TOLLGATE_PULL_REQUEST") or _from_ref(env.get("GITHUB_REF", ""))
    if not number.isdigit():
        raise _lacks("GITHUB_REF", env.get("GITHUB_REF", "nothing"), "refs/pull/NUMBER/merge, as on pull_request")
    api = env.get("GITHUB_API_URL", "https://api.github.com").rstrip("/")
    base = f"{api}/repos/{repository}/issues"
    return _Forge(
        page=f"{base}/{number}/comments",
        one=f"{base}/comments/{{id}}",
        method="PATCH",
        headers={
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {_given(env, 'GITHUB_TOKEN', 'github', 'the token of the job')}",
            "X-GitHub-Api-Version": "2022-11-28",
            "User-Agent": "tollgate",
        },
        number=number,
    )


def _from_ref(ref: str) -> str:
    parts = ref.split("/")
    return parts[2] if ref.startswith("refs/pull/") and len(parts) == 4 else ""


def _gitlab(env: Mapping[str, str]) -> _Forge:
    api = _given(env, "CI_API_V4_URL", "gitlab", "the address of the API").rstrip("/")
    project = _given(env, "CI_PROJECT_ID", "gitlab", "a project's number")
    number = _given(env, "CI_MERGE_REQUEST_IID", "gitlab", "a merge request's number, as in merge request pipelines")
    base = f"{api}/projects/{project}/merge_requests/{number}/notes"
    return _Forge(
        page=base,
        one=f"{base}/{{id}}",
        method="PUT",
        headers={
            "PRIVATE-TOKEN": _given(env, "GITLAB_TOKEN", "gitlab", "a token that may write notes"),
            "User-Agent": "tollgate",
        },
        number=number,
        whoami=f"{api}/user",
    )


def _given(env: Mapping[str, str], name: str, kind: str, allowed: str) -> str:
    value = env.get(name)
    if not value:
        raise _lacks(name, "nothing", allowed, kind)
    return value


def _lacks(name: str, got: str, allowed: str, kind: str = "github") -> stacks.InputError:
    return stacks.InputError(
        where=f"--comment {kind}, {name}", got=got, allowed=allowed, fix=f"set {name}, or leave --comment out"
    )


def _address(entry: Mapping[str, Any]) -> str:
    return str(entry.get("html_url") or entry.get("id") or "")


def _summary(body: str, env: Mapping[str, str]) -> Outcome:
    """The job's summary, which every reader of the checks sees; no right is needed for it."""
    path = env.get("GITHUB_STEP_SUMMARY")
    if not path:
        return Outcome(done="nowhere")
    with Path(path).open("a", encoding="utf-8") as summary:
        summary.write(body)
    return Outcome(done="summary", where=path)
