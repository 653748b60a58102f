"""Startup, readiness and liveness probes, as the kubelet runs them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable

from ._api import Object
from ._environment import plain

Exec = Callable[[list[str], float], Awaitable[tuple[int, str]]]


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
            return await _http(probe["httpGet"], container, ip)
    except TimeoutError:
        return False, f"no answer within {seconds:g} s"
    except (OSError, KeyError, ValueError) as error:
        return False, str(error)


async def _http(get: Object, container: Object, ip: str) -> tuple[bool, str]:
    context = None
    if get.get("scheme", "HTTP").upper() == "HTTPS":
        # As the kubelet: a pod's certificate is not checked by its probes.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = get.get("host") or ip, port_of(get["port"], container)
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        path = "/" + str(get.get("path", "/")).lstrip("/")
        extra = "".join(f"{entry['name']}: {entry['value']}\r\n" for entry in get.get("httpHeaders") or [])
        head = (
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: kube-probe\r\nConnection: close\r\n{extra}\r\n"
        )
        writer.write(head.encode())
        await writer.drain()
        words = (await reader.readline()).split()
        status = int(words[1]) if len(words) > 1 else 0
        return 200 <= status < 400, f"HTTP probe failed with statuscode: {status}"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def port_of(port: object, container: Object) -> int:
    """A number, or the container's port of that name. Raises ValueError for a name that it does not have."""
    if isinstance(port, int):
        return port
    for entry in container.get("ports") or []:
        if entry.get("name") == port:
            return int(entry["containerPort"])
    if plain(port).isdigit():
        return int(plain(port))
    raise ValueError(f"the container has no port named {port!r}")


async def until(
    probe: Object, attempt: Callable[[], Awaitable[tuple[bool, str]]], changed: Callable[[bool, str], Awaitable[bool]]
) -> None:
    """Probe for ever. `changed(ok, why)` is told each time a threshold is crossed; True from it ends the probing."""
    await asyncio.sleep(float(probe.get("initialDelaySeconds", 0)))
    good = bad = 0
    while True:
        ok, why = await attempt()
        good, bad = (good + 1, 0) if ok else (0, bad + 1)
        crossed = good == int(probe.get("successThreshold", 1)) if ok else bad == int(probe.get("failureThreshold", 3))
        if crossed and await changed(ok, why):
            return
        await asyncio.sleep(float(probe.get("periodSeconds", 10)))
