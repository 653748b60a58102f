"""The evidence store: append-only, its statements chained by their hashes.

Each statement names, under its signature, the hash of the file before it. So nothing in the middle can be removed,
reordered or replaced unnoticed. What a chain cannot show is that its newest links are still there; for that every checkout
keeps a witness of how far it has seen each store (`.tollgate/witness/`), and refuses one that has become shorter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import stacks

from ._backends import VARIABLE, Backend, Folder, backend_of
from ._envelope import borrowed, seal, unseal
from ._errors import EvidenceBroken
from ._facts import check
from ._keys import OWN, Keys

GENESIS = "sha256:" + "0" * 64
# Clocks of two machines may differ by this much.
CLOCK_SKEW = timedelta(minutes=5)
_NAME = re.compile(r"[0-9]{6}\.json")
_ATTEMPTS = 60


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One verified statement. `digest`: of its file, its name everywhere; `number`: its place, from 1; `signed_by`: key id."""

    number: int
    digest: str
    signed_by: str
    statement: Mapping[str, Any]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Our own part of the predicate."""
        found: Mapping[str, Any] = self.statement["predicate"]["tollgate"]
        return found

    @property
    def kind(self) -> str:
        """measurement, promotion, approval or calibration."""
        return str(self.facts["kind"])

    @property
    def stack(self) -> str:
        """The stack that it is about."""
        return str(self.facts["stack"])

    @property
    def release(self) -> str:
        """The digest of the release that it is about."""
        return "sha256:" + str(self.statement["subject"][0]["digest"]["sha256"])

    @property
    def release_name(self) -> str:
        """The name of that release when it was signed."""
        return str(self.statement["subject"][0]["name"])

    @property
    def signed_at(self) -> datetime:
        """In UTC."""
        return datetime.fromisoformat(str(self.facts["signed_at"]))


class Store:
    """Reading verifies every signature and the whole chain, and raises EvidenceBroken otherwise."""

    def __init__(self, backend: Backend, keys: Keys, witness: Path | None = None) -> None:
        self.backend, self.keys, self._witness = backend, keys, witness

    def entries(self) -> list[Entry]:
        """All statements, oldest first, verified."""
        # Before the names: what another process adds in between is then more than was seen, never less.
        seen = self._seen()
        names = self.backend.names()
        for number, name in enumerate(names, start=1):
            if not _NAME.fullmatch(name):
                raise EvidenceBroken(
                    f"evidence store {self.backend.location}: {name} does not belong there\n"
                    "  fix: nothing but this program writes to a store; move the file away, or name an empty store"
                )
            if name != _name(number):
                raise EvidenceBroken(f"evidence {_name(number)} is missing: {name} follows where it should be")
        found: list[Entry] = []
        files = dict(zip(names, self._read(names), strict=True))
        for name, data in files.items():
            try:
                entry = self._open(name, data, len(found) + 1)
            except EvidenceBroken:
                for other, its in files.items():
                    if other != name and borrowed(data, its, self.keys.trusted):
                        raise EvidenceBroken(
                            f"evidence {name}: bears the signature of {other}; signatures were swapped or copied"
                        ) from None
                raise
            before = found[-1].digest if found else GENESIS
            if entry.facts.get("previous") != before:
                raise EvidenceBroken(f"evidence {name}: does not follow the one before it; the chain was changed")
            if found and entry.signed_at < found[-1].signed_at - CLOCK_SKEW:
                raise EvidenceBroken(
                    f"evidence {name}: signed {entry.facts['signed_at']}, before the one that it follows; a clock was set back"
                )
            found.append(entry)
        self._testify(found, *seen)
        return found

    def append(self, make: Callable[[str, list[Entry]], Mapping[str, Any] | Entry], now: datetime) -> Entry:
        """Add what `make(previous digest, entries)` states; an Entry given back instead means it is there already.

        Of two writers at once one is first; the other makes its statement anew, after it. Nothing is ever overwritten.
        """
        signer = self.keys.signer
        if signer is None:
            raise stacks.TollgateError(
                "no signing key\n  fix: set TOLLGATE_SIGNING_KEY to an ed25519 private key in PEM, "
                "or write it to .tollgate/keys/evidence.key"
            )
        if signer.key_id not in self.keys.trusted:
            raise stacks.TollgateError(
                f"the signing key {signer.key_id[:12]}… is not one that this project trusts, so nothing was written\n"
                f"  fix: copy its .pub file (this checkout's own: {OWN / 'evidence.pub'}) to stacks/keys/, have that reviewed"
            )
        for attempt in range(_ATTEMPTS):
            entries = self.entries()
            if entries and now < entries[-1].signed_at - CLOCK_SKEW:
                raise stacks.TollgateError(
                    f"this machine's clock says {now:%Y-%m-%d %H:%M}, but the newest evidence was signed "
                    f"{entries[-1].signed_at:%Y-%m-%d %H:%M}\n  fix: set the clock"
                )
            made = make(entries[-1].digest if entries else GENESIS, entries)
            if isinstance(made, Entry):
                return made
            number, data = len(entries) + 1, seal(made, signer)
            if self.backend.create(_name(number), data):
                entry = self._open(_name(number), data, number)
                self._testify([*entries, entry], len(entries), entries[-1].digest if entries else GENESIS)
                return entry
            time.sleep(random.uniform(0, 0.02 * min(attempt + 1, 10)))
        raise stacks.TollgateError(f"evidence store {self.backend.location}: too many writers at once; try again")

    def _read(self, names: list[str]) -> list[bytes]:
        if isinstance(self.backend, Folder) or len(names) < 4:
            return [self.backend.read(name) for name in names]
        with ThreadPoolExecutor(max_workers=16) as pool:
            return list(pool.map(self.backend.read, names))

    def _open(self, name: str, data: bytes, number: int) -> Entry:
        where = f"evidence {name}"
        statement, signed_by = unseal(data, self.keys.trusted, where)
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        entry = Entry(number=number, digest=digest, signed_by=signed_by, statement=statement)
        try:
            whole = bool(entry.kind and entry.stack and entry.release_name) and len(entry.release) == 71
            check(entry.facts)
        except (KeyError, IndexError, TypeError, ValueError, RecursionError):
            whole = False
        if not whole:
            raise EvidenceBroken(f"{where}: signed, but not a statement of this program")
        return entry

    def _seen(self) -> tuple[int, str]:
        """How many statements this checkout has seen, and the digest of the last of them."""
        try:
            seen = json.loads(self._witness.read_text(encoding="utf-8")) if self._witness is not None else {}
            return int(seen["count"]), str(seen["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, GENESIS

    def _testify(self, entries: list[Entry], count: int, digest: str) -> None:
        """Hold the store against what this checkout saw of it before, and remember what it sees now."""
        if self._witness is None:
            return
        if count and (len(entries) < count or entries[count - 1].digest != digest):
            raise EvidenceBroken(
                f"evidence store {self.backend.location}: lost statements that this checkout has seen "
                f"({count} before, {len(entries)} now)\n"
                f"  fix: restore them; if the store was emptied on purpose, remove .tollgate/witness/{self._witness.name}"
            )
        if len(entries) > count:
            # A read-only checkout still verifies; it only remembers nothing.
            with contextlib.suppress(OSError):
                self._witness.parent.mkdir(parents=True, exist_ok=True)
                aside = self._witness.with_suffix(f".{os.getpid()}")
                aside.write_text(json.dumps({"count": len(entries), "digest": entries[-1].digest}), encoding="utf-8")
                aside.replace(self._witness)


def _name(number: int) -> str:
    return f"{number:06d}.json"


def location_of(location: str) -> str:
    """The address in force: TOLLGATE_EVIDENCE, else that of the stack."""
    return os.environ.get(VARIABLE) or location


def open_store(location: str, root: Path, keys: Keys) -> Store:
    """The store of a stack's `tollgate:evidence`; the environment variable TOLLGATE_EVIDENCE overrides it.

    A relative `file://` lies below the project's folder. Raises InputError for a location that is not supported.
    """
    chosen = location_of(location)
    backend = backend_of(chosen, root)
    name = hashlib.sha256(chosen.encode()).hexdigest()[:16]
    return Store(backend, keys, root / ".tollgate" / "witness" / f"{name}.json")
