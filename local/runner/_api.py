"""The API server as the runner needs it: requests with retries, and watches that survive its absence."""

from __future__ import annotations

import asyncio
import base64
import random
import ssl
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import orjson
import yaml

Object = dict[str, Any]
Handler = Callable[[str, Object], Awaitable[None]]
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
UNREACHABLE = (httpx2.HTTPError, OSError, ssl.SSLError)
_LONGEST_WAIT_SECONDS = 5.0
_WATCH_SECONDS = 300


class ApiError(Exception):
    """An answer of 400 or above; `code` is its status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Api:
    """One client for everything; safe to use from many tasks. `connections`: open at the same time, watches among them."""

    def __init__(self, kubeconfig: Path, *, connections: int = 64) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cadata=_pem(cluster, "certificate-authority", kubeconfig))
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as both:
            both.write(_pem(user, "client-certificate", kubeconfig) + _pem(user, "client-key", kubeconfig))
            both.flush()
            context.load_cert_chain(both.name)
        self._client = httpx2.AsyncClient(
            base_url=cluster["server"],
            verify=context,
            timeout=httpx2.Timeout(10, read=30),
            trust_env=False,
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=16),
        )

    async def request(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json", tries: int = 5
    ) -> Object:
        """One call; repeated while the API server is away. Raises ApiError for an answer of 400 or above, httpx2.HTTPError
        when there was none at the last try."""
        for attempt in range(tries):
            try:
                content = None if body is None else orjson.dumps(body)
                answer = await self._client.request(method, path, content=content, headers={"Content-Type": kind})
            except httpx2.HTTPError:
                if attempt == tries - 1:
                    raise
            else:
                if answer.status_code < 400:
                    found: Object = orjson.loads(answer.content) if answer.content else {}
                    return found
                if answer.status_code not in (429, 500, 502, 503, 504) or attempt == tries - 1:
                    raise ApiError(answer.status_code, _message(answer))
            await asyncio.sleep(min(_LONGEST_WAIT_SECONDS, 0.1 * 2**attempt) * random.uniform(0.8, 1.2))
        raise AssertionError("the last try returns or raises")

    async def watch(self, path: str, selector: str, handle: Handler) -> None:
        """Call `handle` with ADDED, MODIFIED, DELETED and, after every full list, SYNCED with {"uids": [...]}; for ever.

        A watch that ends goes on from where it was; where the API server no longer knows that place, with a new list.
        """
        version, wait = "", 0.1
        while True:
            try:
                if not version:
                    version = await self._list(path, selector, handle)
                    wait = 0.1
                version = await self._follow(f"{path}?{selector}", version, handle)
                continue
            except (ApiError, orjson.JSONDecodeError, KeyError):
                version = ""
            except UNREACHABLE:
                pass
            await asyncio.sleep(wait * random.uniform(0.8, 1.2))
            wait = min(_LONGEST_WAIT_SECONDS, wait * 2)

    async def _list(self, path: str, selector: str, handle: Handler) -> str:
        listed = await self.request("GET", f"{path}?{selector}", tries=1)
        items = listed.get("items") or []
        for item in items:
            await _told(handle, "ADDED", item)
        await _told(handle, "SYNCED", {"uids": [item["metadata"]["uid"] for item in items]})
        return str(listed["metadata"]["resourceVersion"])

    async def _follow(self, path: str, version: str, handle: Handler) -> str:
        """Until the server ends it; gives the version to go on from, "" where that needs a list."""
        query = f"&watch=1&allowWatchBookmarks=true&timeoutSeconds={_WATCH_SECONDS}&resourceVersion={version}"
        timeout = httpx2.Timeout(10, read=_WATCH_SECONDS + 30)
        try:
            async with self._client.stream("GET", path + query, timeout=timeout) as answer:
                if answer.status_code >= 400:
                    raise ApiError(answer.status_code, "watch refused")
                rest = b""
                async for piece in answer.aiter_bytes():
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in filter(None, lines):
                        event = orjson.loads(line)
                        if event["type"] == "ERROR":
                            # 410 Gone among others: the place is too old.
                            return ""
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            await _told(handle, event["type"], event["object"])
        except UNREACHABLE:
            # A killed API server: what was seen stays seen.
            await asyncio.sleep(0.1)
        return version


async def _told(handle: Handler, event: str, found: Object) -> None:
    found.get("metadata", {}).pop("managedFields", None)
    try:
        await handle(event, found)
    except Exception:  # noqa: BLE001 - one object's trouble must not end the watch of all others
        traceback.print_exc(file=sys.stderr)


def _pem(entry: Object, key: str, kubeconfig: Path) -> str:
    if f"{key}-data" in entry:
        return base64.b64decode(entry[f"{key}-data"]).decode()
    return (kubeconfig.parent / str(entry[key])).read_text()


def _message(answer: httpx2.Response) -> str:
    try:
        return str(answer.json().get("message", answer.text))
    except (ValueError, AttributeError):
        return answer.text[:500]
