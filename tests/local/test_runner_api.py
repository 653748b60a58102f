"""The runner's way to the API server."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from pathlib import Path

from local.cluster import _pki
from local.cluster._layout import Addresses
from local.runner._api import Api


class _Loopback(Addresses):
    @property
    def control_plane(self) -> str:
        return "127.0.0.1"


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError, ssl.SSLError):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
    writer.close()


def test_requests_that_were_given_up_do_not_keep_a_place_in_the_pool_of_connections(tmp_path: Path) -> None:
    # Pods that end give up the writing of their status. Where each of these keeps a place, the runner is cut off after
    # the last one: pods start no more, and only a new runner helps.
    _pki.write(tmp_path, cluster="test", addresses=_Loopback(slot=0))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "apiserver.crt", tmp_path / "apiserver.key")
    dice = random.Random(1)

    async def run() -> dict[str, object]:
        server = await asyncio.start_server(_answer, "127.0.0.1", 0, ssl=context)
        async with server:
            port = server.sockets[0].getsockname()[1]
            config = tmp_path / "runner.kubeconfig"
            config.write_text(
                _pki.kubeconfig(name="test", server=f"https://127.0.0.1:{port}", folder=tmp_path, user="admin")
            )
            api = Api(config, connections=4)
            for wave in range(60):
                calls = [asyncio.create_task(api.request("GET", "/", tries=1)) for _ in range(8)]
                for _ in range(wave % 6 + 1):
                    await asyncio.sleep(0)
                dice.shuffle(calls)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            async with asyncio.timeout(60):
                return await api.request("GET", "/", tries=1)

    assert asyncio.run(run()) == {}
