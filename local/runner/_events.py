"""Events on pods, as the kubelet words them; the same event within a minute is counted, not written again."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import OrderedDict
from datetime import UTC, datetime

import httpx

from ._api import Api, ApiError, Object

_QUIET_SECONDS = 60
_REMEMBERED = 2000


def now() -> str:
    """This moment as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Events:
    """Writes events; failing to write one is never an error of the pod."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._last: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    async def write(self, pod: Object, reason: str, message: str, *, warning: bool = False) -> None:
        meta = pod["metadata"]
        key = (meta["uid"], reason, message)
        if time.monotonic() - self._last.get(key, -_QUIET_SECONDS) < _QUIET_SECONDS:
            return
        self._last[key] = time.monotonic()
        self._last.move_to_end(key)
        while len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)
        body = {
            "metadata": {"generateName": f"{meta['name']}.", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "reason": reason,
            "message": message[:1000],
            "type": "Warning" if warning else "Normal",
            "source": {"component": "tollgate-runner", "host": pod["spec"].get("nodeName", "")},
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "count": 1,
        }
        try:
            # Nothing of a pod waits for its events for long.
            async with asyncio.timeout(5):
                await self._api.request("POST", f"/api/v1/namespaces/{meta['namespace']}/events", body, tries=2)
        except (ApiError, httpx.HTTPError, TimeoutError) as error:
            print(
                f"event on {meta['namespace']}/{meta['name']} not written: {error!r}: {reason}: {message}",
                file=sys.stderr,
            )
