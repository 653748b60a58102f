"""Evidence: envelopes that anybody may have written, and statements that a trusted key signed although they are none."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography.hazmat.primitives.asymmetric import ed25519

import gate
import stacks
from gate import _store
from tests.gate.conftest import DIGEST, NOW, World, make_world

from ._target import Target


class _Memory:
    """A store whose files are given."""

    location = "memory"

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def names(self) -> list[str]:
        return [f"{number:06d}.json" for number in range(1, len(self.files) + 1)]

    def read(self, name: str) -> bytes:
        return self.files[int(name.partition(".")[0]) - 1]

    def create(self, name: str, data: bytes) -> bool:
        raise AssertionError("only read here")


def evidence(folder: Path) -> list[Target]:
    """All four kinds of statement in one store."""
    root = folder / "gated"
    root.mkdir()
    world = make_world(root)
    # Always the same key, so that the same inputs come of it.
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    with mock.patch.object(ed25519, "Ed25519PrivateKey", mock.Mock(generate=lambda: key)):
        gate.load_keys(root, create=True)
    before = "sha256:" + "b2" * 32
    world.record(world.result(release=before))
    world.promote(release=before)
    world.record()
    sessions = [world.result({**world.good, "e2e_p95_seconds": 3.0 + part / 50}) for part in range(3)]
    gate.record_calibration(world.stack("local-dev"), sessions, root=root, now=NOW)
    gate.approve(
        world.stack("local-prod"), release_name="gemma-8", release_digest=DIGEST, who="Ada", why="a known quirk",
        criteria=["scale"], expires=world.later(days=1), root=root, now=NOW,
    )  # fmt: skip
    world.promote()
    world.criteria("min_runs: 3, looks: 2, soak_hours: 1, approvals: 1, max_regression: {e2e_p95_seconds: 0.5}")
    keys = gate.load_keys(root)
    signer = keys.signer
    assert signer is not None
    written = [path.read_bytes() for path in world.files()]
    statements = [gate.unseal(data, keys.trusted, "own")[0] for data in written]
    digests = ["sha256:" + hashlib.sha256(data).hexdigest() for data in written]
    gated = stacks.stack_path("local-prod", root)
    record = gated.read_text()

    def envelope(data: bytes) -> None:
        gate.unseal(data, keys.trusted, "fuzz")

    def store(data: bytes) -> None:
        gate.Store(_Memory(data.split(b"\n")), keys).entries()

    def signed(data: bytes) -> None:
        try:
            given = json.loads(data)
        except (ValueError, RecursionError):
            return
        if not isinstance(given, list):
            return
        moved: dict[str, str] = {}
        previous = _store.GENESIS
        shutil.rmtree(root / ".tollgate" / "witness", ignore_errors=True)
        for path in world.files():
            path.unlink()
        for number, found in enumerate(given[:8], 1):
            statement = _renamed(found, moved)
            with contextlib.suppress(KeyError, TypeError):
                statement["predicate"]["tollgate"]["previous"] = previous
            try:
                made = gate.seal(statement, signer)
            except (ValueError, TypeError, RecursionError):
                # Nobody can sign that.
                return
            previous = "sha256:" + hashlib.sha256(made).hexdigest()
            if number <= len(digests):
                moved[digests[number - 1]] = previous
            (root / ".tollgate" / "evidence" / f"{number:06d}.json").write_bytes(made)
        gated.write_text(_replaced(record, moved))
        _asked(root, world)

    return [
        Target("envelope", "json", written, envelope),
        Target("store", "json", [b"\n".join(written)], store),
        Target("signed", "json", [json.dumps(statements).encode()], signed),
    ]


def _asked(root: Path, world: World) -> None:
    """All that is ever read of a store. One refusal does not spare the others."""
    dev, prod = world.stack("local-dev"), world.stack("local-prod")
    questions: list[Callable[[], object]] = [
        lambda: gate.check(prod, release_digest=DIGEST, root=root, now=NOW),
        lambda: gate.check(prod, release_digest=DIGEST, root=root, now=NOW, candidate=True),
        lambda: gate.assess(dev, release_digest=DIGEST, root=root, now=NOW),
        lambda: gate.history("local-dev", root),
        lambda: gate.history("local-prod", root),
        lambda: gate.rollback("local-prod", root, digest_of=lambda _: DIGEST, why="because", now=NOW),
        lambda: _shown(root, dev),
    ]
    for ask in questions:
        with contextlib.suppress(stacks.TollgateError):
            ask()


def _shown(root: Path, stack: stacks.Stack) -> None:
    """What `tollgate evidence list` and `diff` take for granted."""
    entries = gate.open_store(stack.evidence, root, gate.load_keys(root)).entries()
    for entry in entries:
        if entry.kind == "measurement":
            assert isinstance(entry.facts["verdict"]["outcome"], str)
            assert {"objectives", "price_book", "release", "source", "tools"} <= entry.facts.keys()
            gate.result_of(entry)


def _renamed(value: Any, moved: dict[str, str]) -> Any:
    return json.loads(_replaced(json.dumps(value), moved))


def _replaced(text: str, moved: dict[str, str]) -> str:
    for old, new in moved.items():
        text = text.replace(old, new)
    return text
