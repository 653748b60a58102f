"""The embedded cluster's answers for names, byte by byte; tests/components/test_gateway_names.py asks them by HAProxy."""

from __future__ import annotations

import struct

import pytest

from local.cluster._dns import reply
from local.cluster._hosts import names, render

A, AAAA, ANY = 1, 28, 255
KNOWN = {"engine-pods.ns": ["10.77.1.1", "10.77.1.2"], "empty.ns": []}


def question(name: str, kind: int = A, flags: int = 0x0100, count: int = 1) -> bytes:
    labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split("."))
    return struct.pack("!6H", 77, flags, count, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


def answered(packet: bytes) -> tuple[int, int, list[str]]:
    """(code, flags, addresses) of what is said to that packet."""
    said = reply(packet, KNOWN.get)
    assert said is not None
    number, flags, _, count, _, _ = struct.unpack_from("!6H", said)
    assert number == 77
    assert said[12 : len(packet)] == packet[12:]
    records = said[len(packet) :]
    assert len(records) == 16 * count
    return (
        flags & 15,
        flags,
        [".".join(str(byte) for byte in records[at + 12 : at + 16]) for at in range(0, len(records), 16)],
    )


def test_a_headless_service_is_its_ready_endpoints() -> None:
    code, flags, addresses = answered(question("engine-pods.ns.svc.cluster.local"))
    assert (code, addresses) == (0, ["10.77.1.1", "10.77.1.2"])
    # An answer, authoritative, and "recursion desired" as it was asked.
    assert flags == 0x8500
    assert answered(question("Engine-Pods.NS.svc.cluster.LOCAL", ANY))[2] == addresses


def test_who_has_no_such_address_exists_all_the_same() -> None:
    assert answered(question("engine-pods.ns.svc.cluster.local", AAAA))[::2] == (0, [])
    assert answered(question("empty.ns.svc.cluster.local"))[::2] == (0, [])


def test_unknown_names_do_not_exist_and_other_domains_are_refused() -> None:
    assert answered(question("nobody.ns.svc.cluster.local"))[0] == 3
    assert answered(question("example.org"))[0] == 5
    assert answered(question("engine-pods.ns.svc.cluster.local", flags=0x2800))[0] == 4


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\0" * 12,
        question("a.b")[:-3],
        question("engine-pods.ns.svc.cluster.local", flags=0x8000),
        question("a.b", count=2),
        question("a.b")[:12] + b"\xc0\x0c\0\1\0\1",
        question("a.b")[:12] + b"\x3fabc",
        question("a.b")[:12] + b"\1\xff\0\0\1\0\1",
    ],
)
def test_what_is_no_question_gets_no_answer(packet: bytes) -> None:
    assert reply(packet, KNOWN.get) is None


def test_more_addresses_than_a_packet_holds_are_cut_and_said_to_be() -> None:
    many = {"many.ns": [f"10.77.{one // 250}.{one % 250}" for one in range(1000)]}
    said = reply(question("many.ns.svc.cluster.local"), many.get)
    assert said is not None
    assert len(said) <= 8192
    assert struct.unpack_from("!H", said, 2)[0] & 0x0200


def test_a_service_without_ready_endpoints_is_known_and_stands_in_no_hosts_file() -> None:
    services = [
        {"metadata": {"name": "engine", "namespace": "ns"}, "spec": {"clusterIP": "10.96.0.7"}},
        {"metadata": {"name": "engine-pods", "namespace": "ns"}, "spec": {"clusterIP": "None"}},
    ]
    piece = {
        "metadata": {"namespace": "ns", "labels": {"kubernetes.io/service-name": "engine-pods"}},
        "endpoints": [{"addresses": ["10.77.1.1"], "conditions": {"ready": False}}],
    }
    known = names(services, [piece])
    assert known == {"engine.ns": ["10.96.0.7"], "engine-pods.ns": []}
    assert "engine-pods" not in render("", known)
    piece["endpoints"] = [{"addresses": ["10.77.1.1"], "hostname": "engine-0"}]
    known = names(services, [piece])
    assert known["engine-0.engine-pods.ns"] == known["engine-pods.ns"] == ["10.77.1.1"]
    assert "10.77.1.1 engine-pods.ns.svc engine-pods.ns.svc.cluster.local engine-pods.ns\n" in render("", known)
