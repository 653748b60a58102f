"""Where evidence lies: an append-only folder whose files are chained by their hashes.

Each file names the hash of the one before it, under its signature. Nothing in the middle can be removed, reordered or
replaced unnoticed; that the newest are still there is what the promotion record in the stack file shows.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stacks

from ._envelope import Keys, seal, unseal
from ._errors import EvidenceBroken

VARIABLE = "TOLLGATE_EVIDENCE"
GENESIS = "sha256:" + "0" * 64


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One verified file of the store. `digest`: of its bytes; `number`: its place, from 1."""

    number: int
    digest: str
    statement: Mapping[str, Any]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Our own part of the predicate."""
        found: Mapping[str, Any] = self.statement["predicate"]["tollgate"]
        return found


class Store:
    """`file://` evidence store. Reading verifies every signature and the whole chain; it raises EvidenceBroken otherwise."""

    def __init__(self, folder: Path, keys: Keys) -> None:
        self.folder, self.keys = folder, keys

    def entries(self) -> list[Entry]:
        """All evidence, oldest first, verified."""
        found: list[Entry] = []
        previous = GENESIS
        for number, path in enumerate(self._files(), start=1):
            where = f"evidence {path.name}"
            try:
                data = path.read_bytes()
            except OSError as error:
                raise EvidenceBroken(f"{where}: cannot be read ({error.strerror})") from None
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            if path.name != _name(number, digest):
                raise EvidenceBroken(
                    f"{where}: stands where {number:06d} with hash {digest[7:19]} is expected; it was edited, or one is missing"
                )
            entry = Entry(number=number, digest=digest, statement=unseal(data, self.keys.trusted, where))
            if entry.facts.get("previous") != previous:
                raise EvidenceBroken(f"{where}: does not follow the file before it; the chain was changed")
            previous = digest
            found.append(entry)
        return found

    def append(self, make: Callable[[str, list[Entry]], Mapping[str, Any] | Entry]) -> Entry:
        """Add what `make(previous digest, entries)` states; an Entry given back instead means it is there already.

        Two writers at once are put in order by a lock; the file appears whole or not at all.
        """
        if self.keys.signer is None:
            raise stacks.TollgateError(
                "no signing key: set TOLLGATE_SIGNING_KEY to an ed25519 private key in PEM, or write .tollgate/keys/evidence.key"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            entries = self.entries()
            made = make(entries[-1].digest if entries else GENESIS, entries)
            if isinstance(made, Entry):
                return made
            data = seal(made, self.keys.signer)
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            number = len(entries) + 1
            temporary = self.folder / f".writing-{os.getpid()}"
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                # A link fails where a file stands already: nothing is ever overwritten.
                os.link(temporary, self.folder / _name(number, digest))
            finally:
                temporary.unlink(missing_ok=True)
            return Entry(number=number, digest=digest, statement=unseal(data, self.keys.trusted, "new evidence"))

    def _files(self) -> list[Path]:
        try:
            return sorted(path for path in self.folder.glob("[0-9]*.json") if not path.is_symlink())
        except OSError as error:
            raise EvidenceBroken(f"evidence store {self.folder}: cannot be read ({error.strerror})") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _name(number: int, digest: str) -> str:
    return f"{number:06d}-{digest.removeprefix('sha256:')[:12]}.json"


def open_store(location: str, root: Path, keys: Keys) -> Store:
    """The store of a stack's `tollgate:evidence`; the environment variable TOLLGATE_EVIDENCE overrides it.

    A relative `file://` lies below the project's folder. Raises InputError for a location that is not supported.
    """
    chosen = os.environ.get(VARIABLE) or location
    if not chosen.startswith("file://"):
        raise stacks.InputError(
            where=VARIABLE if os.environ.get(VARIABLE) else "tollgate:evidence",
            got=chosen,
            allowed="file://folder",
            fix="name a folder, for example file://.tollgate/evidence",
        )
    return Store(root / chosen.removeprefix("file://"), keys)
