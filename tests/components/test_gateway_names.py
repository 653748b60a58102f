"""The gateway of the embedded cluster as it is: a real HAProxy that follows replicas by the cluster's own DNS.

HAProxy is optional: `tollgate tools build --with haproxy`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import stacks
from components.gateway import Backend, haproxy
from local import tools
from local.cluster._dns import serve
from local.cluster._layout import DNS_PORT
from tests.components.test_gateway_real import Proxy, Replica
from tests.ports import free_port
from tests.waiting import until

pytestmark = pytest.mark.timeout(600)


@contextmanager
def dns(names: dict[str, list[str]]) -> Iterator[int]:
    """The port of 127.0.0.1 on which these names are answered for, as they are at each moment."""
    port = free_port()
    loop = asyncio.new_event_loop()
    task = loop.create_task(serve(names.get, "127.0.0.1", port))

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(60)
        loop.close()


def test_replicas_are_found_and_forgotten_by_name_and_one_that_is_gone_costs_nothing(tmp_path: Path) -> None:
    try:
        program = tools.path("haproxy")
    except stacks.TollgateError:
        pytest.skip("haproxy is not there: tollgate tools build --with haproxy")
    port, own = free_port(), free_port()
    replicas = [Replica(address, address=address, port=port) for address in ("127.0.0.2", "127.0.0.3")]
    backend = Backend(service="engine", engine="vllm", port=port, health="/health", most=4, slots=1, percent=100)
    text = haproxy(stacks.Gateway(replicas=1), "ns", [backend], 10, embedded=True)
    text = text.replace("${POD_IP}:8080", f"127.0.0.1:{own}").replace("${POD_IP}:8404", f"127.0.0.1:{free_port()}")
    names: dict[str, list[str]] = {"engine-pods.ns": []}
    with dns(names) as asked:
        (tmp_path / "haproxy.cfg").write_text(text.replace(f":{DNS_PORT}", f":{asked}"))
        environment = {**os.environ, "NODE_IP": "127.0.0.1"}
        process = subprocess.Popen(
            [str(program), "-db", "-f", str(tmp_path / "haproxy.cfg")], env=environment, stdout=subprocess.DEVNULL
        )
        proxy = Proxy(port=own, replicas={})
        try:
            for one in replicas:
                one.start()
            # Nobody is known yet, which load balancers are told.
            proxy.wait(503)
            names["engine-pods.ns"] = ["127.0.0.2"]
            proxy.wait(200)
            assert {proxy.ask() for _ in range(10)} == {(200, "127.0.0.2")}
            names["engine-pods.ns"] = ["127.0.0.2", "127.0.0.3"]
            until(lambda: replicas[1].asked > 0 or not proxy.ask(), "the second is asked")
            replicas[0].stop()
            names["engine-pods.ns"] = ["127.0.0.3"]
            # Before its name is forgotten, too.
            assert {proxy.ask() for _ in range(40)} == {(200, "127.0.0.3")}
        finally:
            process.terminate()
            process.wait(60)
            for one in replicas:
                one.stop()
