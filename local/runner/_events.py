"""Events on pods, as the kubelet words them: the same one again is counted, a flood is dropped, and nothing waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime

from ._api import MERGE, UNREACHABLE, Api, ApiError, Object

_REMEMBERED = 2000
_WAITING = 1000
_COUNT_SECONDS = 5.0
_WRITE_SECONDS = 5.0
# Per pod, as the kubelet's own spam filter: this many at once, then one every so often.
_BURST, _REFILL_SECONDS = 25, 30.0


def now() -> str:
    """This moment as Kubernetes writes it."""
    return stamp(time.time())


def stamp(moment: float) -> str:
    """Seconds since 1970 as Kubernetes writes a moment."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(kw_only=True)
class _Known:
    name: str
    count: int
    written: float


class Events:
    """`note` queues an event; `write_for_ever` writes them. Failing to write one is never an error of the pod."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._known: OrderedDict[tuple[str, str, str], _Known] = OrderedDict()
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._queue: asyncio.Queue[tuple[str, str, Object]] = asyncio.Queue(_WAITING)

    def note(self, pod: Object, reason: str, message: str, *, warning: bool = False) -> None:
        """Something happened to `pod`; told again within seconds, it is only counted."""
        meta, moment = pod["metadata"], time.monotonic()
        key = (str(meta["uid"]), reason, message)
        known = self._known.get(key)
        if known is not None:
            known.count += 1
            if moment - known.written < _COUNT_SECONDS:
                return
            known.written = moment
            change: Object = {"count": known.count, "lastTimestamp": now()}
            self._put("PATCH", f"/api/v1/namespaces/{meta['namespace']}/events/{known.name}", change)
            return
        if not self._allowed(str(meta["uid"]), moment):
            return
        name = f"{meta['name'][:200]}.{secrets.token_hex(8)}"
        self._known[key] = _Known(name=name, count=1, written=moment)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        at = now()
        body = {
            "metadata": {"name": name, "namespace": meta["namespace"]},
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
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }
        self._put("POST", f"/api/v1/namespaces/{meta['namespace']}/events", body)

    async def write_for_ever(self) -> None:
        """One after the other, so that a hundred pods that start do not keep their own status waiting."""
        while True:
            method, path, body = await self._queue.get()
            kind = MERGE if method == "PATCH" else "application/json"
            try:
                async with asyncio.timeout(_WRITE_SECONDS):
                    await self._api.request(method, path, body, kind=kind, tries=2)
            except (ApiError, TimeoutError, *UNREACHABLE) as error:
                # A namespace that is being deleted takes no events: nothing to tell anyone.
                if not isinstance(error, ApiError) or error.code not in (403, 404):
                    print(f"event not written: {error!r}: {body.get('reason')}: {body.get('message')}", file=sys.stderr)

    def _put(self, method: str, path: str, body: Object) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait((method, path, body))

    def _allowed(self, uid: str, moment: float) -> bool:
        left, at = self._tokens.pop(uid, (float(_BURST), moment))
        left = min(float(_BURST), left + (moment - at) / _REFILL_SECONDS)
        self._tokens[uid] = (max(0.0, left - 1), moment)
        while len(self._tokens) > _REMEMBERED:
            self._tokens.popitem(last=False)
        return left >= 1
