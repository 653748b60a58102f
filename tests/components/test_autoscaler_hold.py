"""A request that finds nobody is held by a real HAProxy until somebody serves, also where names are looked up by DNS.

HAProxy is optional: `tollgate tools build --with haproxy`.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

import stacks
from components.gateway import HEALTH_PATH, Backend, haproxy
from local import tools
from local.cluster._layout import DNS_PORT
from tests.components.test_gateway_real import Proxy, Replica
from tests.ports import free_port

BACKEND = Backend(service="engine", engine="vllm", port=8000, health="/health", most=3, slots=10, percent=100)


def config(*, sleeps: bool, embedded: bool = False) -> str:
    return haproxy(stacks.Gateway(), "ns", [BACKEND], 10, hold_seconds=30, sleeps=sleeps, embedded=embedded)


def test_only_who_may_sleep_holds_requests() -> None:
    awake, asleep = config(sleeps=False), config(sleeps=True)
    assert "monitor fail" in awake
    assert "held" not in awake
    # Without replicas it is well: a load balancer that took it out would refuse what is to be held.
    assert "monitor fail" not in asleep
    assert "server held engine.ns.svc.cluster.local:80 backup" in asleep
    # Asked again for so many seconds, and besides as often as those that are gone may refuse first: three times each.
    tries = [int(line.split()[1]) for text in (awake, asleep) for line in text.splitlines() if "retries" in line]
    assert tries == [3 * BACKEND.most + 10, 3 * BACKEND.most + 30]
    # Both wait as long for a slot.
    assert "timeout queue 30s" in awake
    assert "timeout queue 30s" in asleep


def test_on_the_embedded_cluster_the_proxy_has_its_own_address_and_asks_the_node_for_names() -> None:
    embedded, elsewhere = config(sleeps=True, embedded=True), config(sleeps=True)
    assert "bind ${POD_IP}:8080" in embedded
    assert f"nameserver node ${{NODE_IP}}:{DNS_PORT}" in embedded
    # All else is the same.
    own = ("bind ", "nameserver ", "parse-resolv-conf")
    left, right = (
        [line for line in text.splitlines() if not line.strip().startswith(own)] for text in (embedded, elsewhere)
    )
    assert left == right


def test_a_request_that_finds_nobody_is_answered_by_the_first_replica(tmp_path: Path) -> None:
    try:
        program = tools.path("haproxy")
    except stacks.TollgateError:
        pytest.skip("haproxy is not there: tollgate tools build --with haproxy")
    replica, port = Replica("first", port=free_port()), free_port()
    text = config(sleeps=True)
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}").replace("bind :8404", f"bind 127.0.0.1:{free_port()}")
    # The pods' names have no address; the Service's refuses until the replica is there.
    text, pods = re.subn(r"server-template pod 3 \S+", f"server pod 127.0.0.1:{free_port()}", text)
    text, service = re.subn(r"server held \S+", f"server held 127.0.0.1:{replica.port}", text)
    assert (pods, service) == (1, 1)
    text = text.replace(" resolvers cluster resolve-prefer ipv4 init-addr none", "")
    text = text.replace(" resolvers cluster resolve-prefer ipv4 init-addr libc,none", "")
    (tmp_path / "haproxy.cfg").write_text(text)
    process = subprocess.Popen([str(program), "-db", "-f", str(tmp_path / "haproxy.cfg")], stdout=subprocess.DEVNULL)
    proxy = Proxy(port=port, replicas={})
    try:
        proxy.wait(200)
        assert proxy.ask(HEALTH_PATH)[0] == 200
        answers: list[tuple[int, str]] = []
        threads = [threading.Thread(target=lambda: answers.append(proxy.ask())) for _ in range(5)]
        for one in threads:
            one.start()
        time.sleep(2.5)
        assert answers == []
        replica.start()
        for one in threads:
            one.join(120)
        assert answers == [(200, "first")] * 5
    finally:
        process.terminate()
        process.wait(60)
        replica.stop()
