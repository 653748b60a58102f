"""The API server as the runner needs it: requests with retries, and watches that survive its absence."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

Object = dict[str, Any]
MERGE = "application/merge-patch+json"


class ApiError(Exception):
    """An answer of 400 or above; `code` is its status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Api:
    """One client for everything; safe to use from many tasks."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cadata=_pem(cluster, "certificate-authority", kubeconfig))
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as both:
            both.write(_pem(user, "client-certificate", kubeconfig) + _pem(user, "client-key", kubeconfig))
            both.flush()
            context.load_cert_chain(both.name)
        self._client = httpx.AsyncClient(
            base_url=cluster["server"],
            verify=context,
            timeout=httpx.Timeout(10, read=30),
            trust_env=False,
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=16),
        )

    async def request(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json", tries: int = 5
    ) -> Object:
        """One call; repeated while the API server is away. Raises ApiError for an answer of 400 or above."""
        for attempt in range(tries):
            try:
                content = None if body is None else json.dumps(body).encode()
                answer = await self._client.request(method, path, content=content, headers={"Content-Type": kind})
            except httpx.HTTPError:
                if attempt == tries - 1:
                    raise
            else:
                if answer.status_code < 400:
                    found: Object = answer.json() if answer.content else {}
                    return found
                if answer.status_code not in (429, 500, 502, 503, 504) or attempt == tries - 1:
                    raise ApiError(answer.status_code, _message(answer))
            await asyncio.sleep(min(5.0, 0.1 * 2**attempt))
        raise AssertionError("the last try returns or raises")

    async def watch(self, path: str, selector: str, handle: Callable[[str, Object], Awaitable[None]]) -> None:
        """Call `handle` with ADDED, MODIFIED, DELETED and, after every full list, SYNCED with {"uids": [...]}; for ever.

        Whatever ends a watch (a restarted API server, an expired version), the next begins with a list.
        """
        while True:
            try:
                listed = await self.request("GET", f"{path}?{selector}")
                for item in listed.get("items") or []:
                    await handle("ADDED", item)
                await handle("SYNCED", {"uids": [item["metadata"]["uid"] for item in listed.get("items") or []]})
                await self._follow(f"{path}?{selector}", listed["metadata"]["resourceVersion"], handle)
            except (httpx.HTTPError, ApiError, ValueError, KeyError):
                await asyncio.sleep(0.5)

    async def _follow(self, path: str, version: str, handle: Callable[[str, Object], Awaitable[None]]) -> None:
        query = f"&watch=1&allowWatchBookmarks=true&timeoutSeconds=300&resourceVersion={version}"
        timeout = httpx.Timeout(10, read=330)
        async with self._client.stream("GET", path + query, timeout=timeout) as answer:
            if answer.status_code >= 400:
                raise ApiError(answer.status_code, "watch refused")
            async for line in answer.aiter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                if event["type"] != "BOOKMARK":
                    await handle(event["type"], event["object"])


def _pem(entry: Object, key: str, kubeconfig: Path) -> str:
    if f"{key}-data" in entry:
        return base64.b64decode(entry[f"{key}-data"]).decode()
    return (kubeconfig.parent / str(entry[key])).read_text()


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("message", answer.text))
    except ValueError:
        return answer.text[:500]
