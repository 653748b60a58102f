"""Evidence in a bucket: moto's S3 server for what a bucket promises, and a port that nobody listens on for when it breaks."""

from __future__ import annotations

import multiprocessing
import socket
import threading
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

import gate
import stacks
from gate._backends import Bucket
from tests.google_storage import google_storage, use_account


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, world: Any, request: pytest.FixtureRequest) -> Any:
    """A bucket of the test's own, as the store of every stack of the world."""
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    named = f"evidence-{abs(hash(request.node.name)) % 10**9}"
    client = boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1")
    client.create_bucket(Bucket=named)
    location = f"s3://{named}/tollgate?endpoint={endpoint}&disableSSL=true&s3ForcePathStyle=true&region=us-east-1"
    monkeypatch.setenv("TOLLGATE_EVIDENCE", location)
    # A bucket is shared: its key is given, never made on first use.
    gate.load_keys(world.root, create=True)

    class Found:
        url, name = location, named

        def keys(self) -> list[str]:
            return [item["Key"] for item in client.list_objects_v2(Bucket=named).get("Contents", [])]

        def get(self, key: str) -> bytes:
            return bytes(client.get_object(Bucket=named, Key=key)["Body"].read())

        def put(self, key: str, data: bytes) -> None:
            client.put_object(Bucket=named, Key=key, Body=data)

        def delete(self, key: str) -> None:
            client.delete_object(Bucket=named, Key=key)

    return Found()


def test_the_whole_gate_works_on_a_bucket(world: Any, bucket: Any) -> None:
    evidence = world.record()
    assert world.promote()[1]
    assert world.check().evidence == evidence.digest
    assert bucket.keys() == ["tollgate/000001.json", "tollgate/000002.json"]
    assert not (world.root / ".tollgate" / "evidence").exists()


def test_an_object_that_exists_is_never_overwritten(bucket: Any) -> None:
    store = Bucket(bucket.url)
    assert store.create("000001.json", b"first") is True
    assert store.create("000001.json", b"second") is False
    assert store.read("000001.json") == b"first"
    assert store.names() == ["000001.json"]


def _write_one(world: Any, index: int) -> None:
    world.record(world.result({**world.good, "e2e_p95_seconds": 3.0 + index / 100}))


def test_writers_at_once_lose_nothing(world: Any, bucket: Any) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_one, args=(world, index)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
    assert [worker.exitcode for worker in workers] == [0] * 4
    entries = gate.open_store("", world.root, gate.load_keys(world.root)).entries()
    assert [entry.number for entry in entries] == [1, 2, 3, 4]
    latencies = {entry.facts["result"]["runs"][1]["metrics"]["e2e_p95_seconds"] for entry in entries}
    assert latencies == {3.0 + index / 100 for index in range(4)}


def test_a_changed_object_is_told_by_its_signature(world: Any, bucket: Any) -> None:
    world.record(world.result(world.slow))
    data = bucket.get("tollgate/000001.json")
    place = data.index(b'"sig":"') + 20
    bucket.put(
        "tollgate/000001.json", data[:place] + (b"A" if data[place : place + 1] != b"A" else b"B") + data[place + 1 :]
    )
    world.not_promoted("the signature does not fit the statement|signature is not in the form")


def test_a_deleted_object_is_missed(world: Any, bucket: Any) -> None:
    world.record()
    world.promote()
    bucket.delete("tollgate/000001.json")
    world.refused(r"evidence 000001\.json is missing")


def test_a_bucket_emptied_by_somebody_else_is_missed_by_the_witness(world: Any, bucket: Any) -> None:
    world.record()
    world.promote()
    for key in list(bucket.keys()):
        bucket.delete(key)
    world.refused("lost statements that this checkout has seen")


def test_a_bucket_that_is_not_there_is_closed(world: Any, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.record()
    world.promote()
    monkeypatch.setenv("TOLLGATE_EVIDENCE", bucket.url.replace("s3://evidence", "s3://gone"))
    world.refused("cannot be reached, so the gate is closed")


def test_a_store_that_does_not_answer_is_closed_not_open(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.record()
    world.promote()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv(
        "TOLLGATE_EVIDENCE", f"s3://evidence/x?endpoint=127.0.0.1:{port}&disableSSL=true&region=us-east-1"
    )
    world.refused("cannot be reached, so the gate is closed")
    with pytest.raises(stacks.TollgateError, match="cannot be reached"):
        world.record(world.result(world.slow))


GOOGLE = "gs://evidence/tollgate?disableSSL=true"


def test_the_whole_gate_works_on_a_google_bucket(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with google_storage() as google:
        use_account(world.root, monkeypatch, google.server_port)
        monkeypatch.setenv("TOLLGATE_EVIDENCE", GOOGLE)
        gate.load_keys(world.root, create=True)
        world.record()
        world.promote()
        assert world.check().gated
        assert sorted(google.objects) == ["evidence/tollgate/000001.json", "evidence/tollgate/000002.json"]
        store = Bucket(GOOGLE)
        before = store.read("000001.json")
        assert store.create("000001.json", b"another") is False
        assert store.read("000001.json") == before
        # Of two that record the same number at once, one has it.
        made = [threading.Thread(target=store.create, args=("000003.json", b"%d" % number)) for number in range(8)]
        for thread in made:
            thread.start()
        for thread in made:
            thread.join(60)
        assert google.written == 3


def test_a_google_bucket_that_does_not_answer_is_closed(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.record()
    world.promote()
    use_account(world.root, monkeypatch, 9)
    monkeypatch.setenv("TOLLGATE_EVIDENCE", GOOGLE)
    world.refused("cannot be reached, so the gate is closed")


def test_a_bucket_never_makes_a_key_of_its_own(world: Any, bucket: Any) -> None:
    for path in (world.root / ".tollgate" / "keys").iterdir():
        path.unlink()
    with pytest.raises(stacks.TollgateError, match="no signing key"):
        world.record()
    assert bucket.keys() == []


@pytest.mark.parametrize("location", ["s3://bucket/x?colour=red", "s3:///x"])
def test_an_address_with_a_word_that_nobody_knows_is_wrong_input(location: str) -> None:
    with pytest.raises(stacks.InputError, match="evidence store"):
        Bucket(location)


def test_a_long_store_is_listed_whole(bucket: Any) -> None:
    """More names than one page of a listing holds."""
    store = Bucket(bucket.url)
    backend = s3_backends["123456789012"]["aws"]
    for number in range(1, 1004):
        backend.put_object(bucket.name, f"tollgate/{number:06d}.json", b"x")
    names = store.names()
    assert len(names) == 1003
    assert names == sorted(names)
