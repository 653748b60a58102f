"""The gateway's configuration in a real HAProxy before small servers: what balances, checks, remembers and splits.

HAProxy is optional: `tollgate tools build --with haproxy`.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import stacks
from components.autoscaler_policy import GATEWAY_QUEUES
from components.gateway import HEALTH_PATH, Backend, haproxy, most_at_once
from local import tools
from tests.ports import free_port
from tests.waiting import until

pytestmark = pytest.mark.timeout(300)


@dataclass
class Replica:
    """Answers with its name; `/hold` waits until it is let go, `/health` says whether it is well."""

    name: str
    port: int = 0
    address: str = "127.0.0.1"
    well: bool = True
    asked: int = 0
    release: threading.Event = field(default_factory=threading.Event)
    server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        replica = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/health":
                    return self.say(200 if replica.well else 503)
                replica.asked += 1
                if self.path == "/hold":
                    replica.release.wait(120)
                return self.say(200)

            def say(self, status: int) -> None:
                body = replica.name.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer((self.address, self.port), Handler)
        self.port = self.server.server_port
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.release.set()
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


@dataclass
class Proxy:
    port: int
    replicas: dict[str, list[Replica]]
    metrics: int = 0

    def queue(self) -> float:
        """What the autoscaler adds up."""
        return self.number(*GATEWAY_QUEUES)

    def number(self, *metrics: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics, timeout=60)
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(metrics))

    def ask(self, path: str = "/", headers: dict[str, str] | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def wait(self, status: int, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if self.ask(HEALTH_PATH)[0] == status:
                    return
            time.sleep(0.1)
        raise AssertionError(f"the gateway's health never was {status}")


@contextlib.contextmanager
def gateway(
    folder: Path, backends: dict[str, tuple[int, float]], *, slots: int = 100, **options: object
) -> Iterator[Proxy]:
    """HAProxy on our configuration; `backends`: name -> (replicas, percent). Addresses stand in for the cluster's DNS."""
    try:
        program = tools.path("haproxy")
    except stacks.TollgateError:
        pytest.skip("haproxy is not there: tollgate tools build --with haproxy")
    replicas = {name: [Replica(f"{name}-{number}") for number in range(count)] for name, (count, _) in backends.items()}
    for replica in (one for group in replicas.values() for one in group):
        replica.start()
    given = [
        Backend(service=name, engine="vllm", port=8000, health="/health", most=count, slots=slots, percent=percent)
        for name, (count, percent) in backends.items()
    ]
    text = haproxy(stacks.Gateway.model_validate(options), "ns", given, 10)
    port, metrics = free_port(), free_port()
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}").replace("bind :8404", f"bind 127.0.0.1:{metrics}")
    for name, group in replicas.items():
        lines = "\n".join(f"    server {one.name} 127.0.0.1:{one.port}" for one in group)
        text, number = re.subn(rf"    server-template pod \d+ {name}-pods\.ns\..*", lines, text)
        assert number == 1
    # Names are not looked up here.
    text = text.replace(" resolvers cluster resolve-prefer ipv4 init-addr none", "")
    (folder / "haproxy.cfg").write_text(text)
    process = subprocess.Popen([str(program), "-db", "-f", str(folder / "haproxy.cfg")], stdout=subprocess.DEVNULL)
    try:
        proxy = Proxy(port=port, replicas=replicas, metrics=metrics)
        proxy.wait(200)
        yield proxy
    finally:
        process.terminate()
        process.wait(60)
        for replica in (one for group in replicas.values() for one in group):
            replica.stop()


def test_the_configuration_is_valid_to_haproxy_itself(tmp_path: Path) -> None:
    with gateway(tmp_path, {"engine": (1, 90), "engine-candidate": (1, 10)}, affinity="session") as proxy:
        assert proxy.ask()[0] == 200


def test_the_replica_with_the_fewest_open_requests_is_asked(tmp_path: Path) -> None:
    with gateway(tmp_path, {"engine": (2, 100)}) as proxy:
        busy, idle = proxy.replicas["engine"]
        with futures.ThreadPoolExecutor(1) as other:
            held = other.submit(proxy.ask, "/hold")
            try:
                end = time.monotonic() + 90
                while busy.asked + idle.asked < 1:
                    assert time.monotonic() < end, "the long request has reached no replica"
                    time.sleep(0.02)
                if idle.asked:
                    busy, idle = idle, busy
                # One stream is open on the first: what is short goes to the second, unless its last answer still counts as
                # open, when both are alike. Taking turns would give each the half of them.
                asked: Counter[str] = Counter()
                for _ in range(40):
                    asked[proxy.ask()[1]] += 1
                    time.sleep(0.05)
                assert asked[idle.name] >= 26
            finally:
                busy.release.set()
            # Its answer comes, whole, from where it was asked: nothing ends before it.
            assert held.result(timeout=60) == (200, busy.name)


def test_three_failed_checks_take_a_replica_out_and_nobody_notices(tmp_path: Path) -> None:
    with gateway(tmp_path, {"engine": (2, 100)}) as proxy:
        one, other = proxy.replicas["engine"]
        one.well = False
        end, row = time.monotonic() + 90, 0
        # Taking turns, it would not be passed over twenty times.
        while row < 20:
            status, name = proxy.ask()
            assert status == 200
            row = row + 1 if name == other.name else 0
            assert time.monotonic() < end, "it is asked although it is not well"
            time.sleep(0.05)
        before = one.asked
        assert [proxy.ask()[1] for _ in range(10)] == [other.name] * 10
        assert one.asked == before
        # And it comes back by itself.
        one.well = True
        end = time.monotonic() + 90
        while one.name not in {proxy.ask()[1] for _ in range(4)}:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_replica_that_is_gone_costs_no_request(tmp_path: Path) -> None:
    with gateway(tmp_path, {"engine": (2, 100)}) as proxy:
        proxy.replicas["engine"][0].stop()
        assert [proxy.ask()[0] for _ in range(40)] == [200] * 40


def test_a_fleet_that_shrinks_at_once_costs_no_request(tmp_path: Path) -> None:
    with gateway(tmp_path, {"engine": (7, 100)}) as proxy:
        # Those that are gone have the fewest requests, and each is asked first.
        for one in proxy.replicas["engine"][:6]:
            one.stop()
        assert [proxy.ask()[0] for _ in range(40)] == [200] * 40


def test_a_busy_rest_of_a_fleet_that_shrinks_at_once_answers_all_the_same(tmp_path: Path) -> None:
    with gateway(tmp_path, {"engine": (7, 100)}) as proxy, futures.ThreadPoolExecutor(21) as others:
        replicas = proxy.replicas["engine"]
        held = [others.submit(proxy.ask, "/hold") for _ in range(21)]
        try:
            until(lambda: sum(one.asked for one in replicas) == 21, "all are busy")
            for one in replicas[:6]:
                one.stop()
            # The one that is left has the most requests: asked after the others have refused as often as it takes.
            assert [proxy.ask()[0] for _ in range(40)] == [200] * 40
        finally:
            for one in replicas:
                one.release.set()
        for one in held:
            one.result(timeout=60)


def test_without_any_replica_the_gateway_says_so_to_load_balancers(tmp_path: Path) -> None:
    with gateway(tmp_path, {"engine": (1, 100)}) as proxy:
        proxy.replicas["engine"][0].stop()
        proxy.wait(503)


@pytest.mark.parametrize("affinity", ["none", "session"])
def test_what_no_slot_is_free_for_waits_here_and_goes_to_whoever_is_free_first(affinity: str, tmp_path: Path) -> None:
    with gateway(tmp_path, {"engine": (2, 100)}, slots=1, replicas=1, headroom=0, affinity=affinity) as proxy:
        replicas = proxy.replicas["engine"]
        with futures.ThreadPoolExecutor(6) as others:
            held = [others.submit(proxy.ask, "/hold", {"x-session-id": f"user-{number}"}) for number in range(6)]
            try:
                until(lambda: sum(one.asked for one in replicas) == 2 and proxy.queue() == 4, "two run and four wait")
                assert [one.asked for one in replicas] == [1, 1]
                # The first that is free takes what waits for no other replica: here all, with sessions its own.
                replicas[0].release.set()
                free, busy = replicas
                until(lambda: free.asked == 5 or (affinity == "session" and free.asked > 1), "the free one goes on")
                assert busy.asked == 1
            finally:
                for one in replicas:
                    one.release.set()
            assert [one.result(timeout=60)[0] for one in held] == [200] * 6
        until(lambda: proxy.queue() == 0, "nobody waits any more")


def test_who_hangs_up_while_he_waits_is_never_worked_for(tmp_path: Path) -> None:
    with gateway(tmp_path, {"engine": (1, 100)}, slots=1, replicas=1, headroom=0) as proxy:
        (replica,) = proxy.replicas["engine"]
        with futures.ThreadPoolExecutor(1) as other:
            held = other.submit(proxy.ask, "/hold")
            until(lambda: replica.asked == 1, "one runs")
            impatient = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
            impatient.request("GET", "/")
            until(lambda: proxy.queue() == 1, "one waits")
            impatient.close()
            until(lambda: proxy.queue() == 0, "and is forgotten")
            replica.release.set()
            assert held.result(timeout=60)[0] == 200
        assert replica.asked == 1


@pytest.mark.parametrize(
    ("slots", "proxies", "headroom", "expected"),
    [(10, 1, 0.1, 11), (4, 1, 0.1, 5), (256, 2, 0.1, 141), (10, 3, 0.0, 4), (1, 3, 0.0, 1), (8, 1, 0.25, 10)],
)
def test_the_proxies_share_a_replicas_slots(slots: int, proxies: int, headroom: float, expected: int) -> None:
    gateway = stacks.Gateway.model_validate({"replicas": proxies, "headroom": headroom})
    assert most_at_once(slots, gateway) == expected


def test_a_session_stays_with_its_replica_and_sessions_are_spread(tmp_path: Path) -> None:
    with gateway(tmp_path, {"engine": (3, 100)}, affinity="session") as proxy:
        homes = {}
        for session in range(30):
            answers = set()
            for _ in range(4):
                answers.add(proxy.ask(headers={"x-session-id": f"user-{session}"})[1])
                # One that still counts as open is more than its replica's share of one.
                until(lambda: proxy.number("haproxy_backend_current_sessions") == 0, "nobody is asked any more")
            assert len(answers) == 1
            homes[session] = answers.pop()
        assert len(set(homes.values())) == 3


@pytest.mark.parametrize("affinity", ["none", "session"])
def test_a_candidate_gets_its_share(affinity: str, tmp_path: Path) -> None:
    with gateway(tmp_path, {"engine": (1, 80), "engine-candidate": (1, 20)}, affinity=affinity) as proxy:
        asked = Counter(proxy.ask(headers={"x-session-id": f"user-{number}"})[1] for number in range(600))
        # 120 wanted; five standard deviations are 49.
        assert 71 <= asked["engine-candidate-0"] <= 169


def test_a_candidate_that_is_not_there_takes_no_requests(tmp_path: Path) -> None:
    with gateway(tmp_path, {"engine": (1, 50), "engine-candidate": (1, 50)}) as proxy:
        proxy.replicas["engine-candidate"][0].stop()
        end = time.monotonic() + 90
        while {proxy.ask() for _ in range(30)} != {(200, "engine-0")}:
            assert time.monotonic() < end, "it is asked although it is not there"
            time.sleep(0.2)
