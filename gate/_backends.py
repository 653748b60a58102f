"""Where the bytes of a store lie: a folder, or a bucket of S3 or Google Cloud Storage.

All a store needs is to list names, to read one, and to create one that must not exist yet. The last is what keeps two
writers apart: on a disk by `link(2)`, in a bucket by a conditional write (`If-None-Match: *`).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Protocol

import stacks

from ._envelope import MAX_BYTES
from ._errors import EvidenceBroken

VARIABLE = "TOLLGATE_EVIDENCE"
_ALLOWED = "file://folder, s3://bucket/prefix or gs://bucket/prefix"


class Backend(Protocol):
    """Reading raises EvidenceBroken where it fails: a store that cannot be read is closed, not empty."""

    @property
    def location(self) -> str:
        """For messages."""

    def names(self) -> list[str]:
        """All names, sorted; empty for a store that was never written."""

    def read(self, name: str) -> bytes:
        """The bytes of that name."""

    def create(self, name: str, data: bytes) -> bool:
        """Write all of it or nothing; False when the name exists. Raises TollgateError when it cannot be written."""


class Folder:
    """A folder on a disk; also one shared by several machines, because `link(2)` is atomic on NFS too."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def location(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        try:
            if not self.path.exists():
                return []
            return sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
        except OSError as error:
            raise EvidenceBroken(f"evidence store {self.path}: cannot be read ({error.strerror})") from None

    def read(self, name: str) -> bytes:
        try:
            if (self.path / name).is_symlink():
                raise EvidenceBroken(f"evidence {name}: is a link; evidence lies in the store itself")
            if not (self.path / name).is_file():
                # A pipe would be waited for for ever.
                raise EvidenceBroken(f"evidence {name}: cannot be read (no file)")
            if (size := (self.path / name).stat().st_size) > MAX_BYTES:
                raise EvidenceBroken(f"evidence {name}: larger than any evidence ({size} bytes)")
            return (self.path / name).read_bytes()
        except OSError as error:
            raise EvidenceBroken(f"evidence {name}: cannot be read ({error.strerror})") from None

    def create(self, name: str, data: bytes) -> bool:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path, prefix=".writing-", delete=False) as file:
                aside = Path(file.name)
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    aside.chmod(0o444)
                    (self.path / name).hardlink_to(aside)
                finally:
                    # On a full disk, too: what was begun would take room for ever.
                    aside.unlink()
            stacks.sync(self.path)
        except FileExistsError:
            return False
        except OSError as error:
            raise stacks.TollgateError(f"evidence store {self.path}: cannot be written ({error.strerror})") from None
        return True


class Bucket:
    """A prefix of a bucket, by obstore. Credentials come from the environment, as each cloud's own tools read them."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._obstore = stacks.obstore()
        self._store = stacks.bucket(location, where="evidence store", allowed=_ALLOWED)

    @property
    def location(self) -> str:
        return self._location

    def names(self) -> list[str]:
        try:
            pages = self._obstore.list(self._store, chunk_size=1000)
            return sorted(str(item["path"]) for page in pages for item in page)
        except stacks.bucket_failures() as error:
            raise self._unreachable(error) from None

    def read(self, name: str) -> bytes:
        try:
            return bytes(self._obstore.get(self._store, name).bytes())
        except stacks.bucket_failures() as error:
            raise self._unreachable(error) from None

    def create(self, name: str, data: bytes) -> bool:
        try:
            self._obstore.put(self._store, name, data, mode="create")
        except self._obstore.exceptions.AlreadyExistsError:
            return False
        except stacks.bucket_failures() as error:
            raise stacks.TollgateError(
                f"evidence store {self._location}: cannot be written: {stacks.bucket_words(error)}"
            ) from None
        return True

    def _unreachable(self, error: BaseException) -> EvidenceBroken:
        return EvidenceBroken(
            f"evidence store {self._location}: cannot be reached, so the gate is closed\n  {stacks.bucket_words(error)}"
        )


def backend_of(location: str, root: Path) -> Backend:
    """The backend of that address; a relative `file://` lies below `root`. Raises InputError for any other kind."""
    if location.startswith("file://") and len(location) > len("file://"):
        return Folder(root / location.removeprefix("file://"))
    if location.startswith(stacks.BUCKET_SCHEMES):
        return Bucket(location)
    raise stacks.InputError(
        where=VARIABLE if os.environ.get(VARIABLE) else "tollgate:evidence",
        got=location,
        allowed=_ALLOWED,
        fix="name a folder, for example file://.tollgate/evidence",
    )
