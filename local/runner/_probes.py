"""Startup, readiness and liveness probes, as the kubelet runs them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable

from ._api import Object

Exec = Callable[[list[str], float], Awaitable[tuple[int, str]]]
# Between two looks at a server that starts, so that a pod is Ready soon after its server is, not a whole period later.
_EAGER_SECONDS = (0.05, 0.1, 0.2, 0.2, 0.3)
_EAGER_LAST = 0.5


async def once(probe: Object, container: Object, ip: str, run: Exec) -> tuple[bool, str]:
    """One attempt: whether it succeeded, and what was seen when not."""
    seconds = float(probe.get("timeoutSeconds", 1))
    try:
        if "exec" in probe:
            code, text = await run(list(probe["exec"]["command"]), seconds)
            return code == 0, text or f"exit code {code}"
        async with asyncio.timeout(seconds):
            if "tcpSocket" in probe:
                port = port_of(probe["tcpSocket"]["port"], container)
                _, writer = await asyncio.open_connection(probe["tcpSocket"].get("host") or ip, port)
                writer.close()
                return True, ""
            if "httpGet" in probe:
                return await _http(probe["httpGet"], container, ip)
            return False, "the pod runner has exec, httpGet and tcpSocket probes"
    except TimeoutError:
        return False, f"no answer within {seconds:g} s"
    except (OSError, KeyError, ValueError) as error:
        return False, str(error)


async def _http(get: Object, container: Object, ip: str) -> tuple[bool, str]:
    context = None
    if get.get("scheme", "HTTP").upper() == "HTTPS":
        # As the kubelet: a pod's certificate is not checked by its probes.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = get.get("host") or ip, port_of(get["port"], container)
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        writer.write(_request(get, f"{host}:{port}"))
        await writer.drain()
        words = (await reader.readline()).split()
        status = int(words[1]) if len(words) > 1 else 0
        return 200 <= status < 400, f"HTTP probe failed with statuscode: {status}"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _request(get: Object, host: str) -> bytes:
    headers = {"Host": host, "User-Agent": "kube-probe/1.36", "Accept": "*/*", "Connection": "close"}
    headers |= {entry["name"]: entry["value"] for entry in get.get("httpHeaders") or []}
    path = "/" + str(get.get("path", "/")).lstrip("/")
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if any(set("\r\n") & set(line) for line in lines):
        raise ValueError("a probe's path or header has a line break")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def port_of(port: object, container: Object) -> int:
    """A number, or the container's port of that name. Raises ValueError for a name that it does not have."""
    if isinstance(port, int):
        return port
    for entry in container.get("ports") or []:
        if entry.get("name") == port:
            return int(entry["containerPort"])
    if str(port).isdigit():
        return int(str(port))
    raise ValueError(f"the container has no port named {port!r}")


async def until(
    probe: Object,
    attempt: Callable[[], Awaitable[tuple[bool, str]]],
    changed: Callable[[bool, str], Awaitable[bool]],
    *,
    failed: Callable[[str], None] = lambda _why: None,
    eager: bool = False,
) -> None:
    """Probe for ever. `changed(ok, why)` is told each time a threshold is crossed; True from it ends the probing.

    `failed` hears of every failure. With `eager`, a network probe that has not succeeded yet is tried more often than it asks
    for; those further attempts count when they succeed, never when they fail.
    """
    await asyncio.sleep(float(probe.get("initialDelaySeconds") or 0))
    period = float(probe.get("periodSeconds") or 10)
    good = bad = 0
    eager = eager and "exec" not in probe
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        ok, why = await attempt()
        good, bad = (good + 1, 0) if ok else (0, bad + 1)
        if not ok:
            failed(why)
        needed = probe.get("successThreshold") or 1 if ok else probe.get("failureThreshold") or 3
        if (good if ok else bad) == needed and await changed(ok, why):
            return
        eager = eager and not ok
        if eager and await _sooner(attempt, began + period):
            eager, good, bad = False, 1, 0
            if int(probe.get("successThreshold") or 1) == 1 and await changed(True, ""):
                return
            began = loop.time()
        await asyncio.sleep(max(0.01, began + period - loop.time()))


async def _sooner(attempt: Callable[[], Awaitable[tuple[bool, str]]], end: float) -> bool:
    """Further attempts until one succeeds or the next regular one is due."""
    loop, number = asyncio.get_running_loop(), 0
    while True:
        wait = _EAGER_SECONDS[number] if number < len(_EAGER_SECONDS) else _EAGER_LAST
        if loop.time() + wait >= end:
            return False
        await asyncio.sleep(wait)
        if (await attempt())[0]:
            return True
        number += 1
