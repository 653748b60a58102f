"""The objects of a bucket that batches lie in: read, written, created only where there are none yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import stacks

from ._database import DatabaseTrouble

_ALLOWED = "a folder, postgresql://…, s3://bucket/prefix or gs://bucket/prefix"
_CHUNK = 1 << 20


class Objects:
    """All below one address. What fails raises DatabaseTrouble: buckets come back."""

    def __init__(self, location: str) -> None:
        self.location = location.partition("?")[0].rstrip("/")
        self._obstore = stacks.obstore()
        self._store = stacks.bucket(location, where="--store", allowed=_ALLOWED)

    def get(self, name: str) -> bytes | None:
        """The object's bytes; None where there is none."""
        try:
            with self._errors("read"):
                return bytes(self._obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            return None

    def download(self, name: str, path: Path) -> None:
        """Into that file, in memory that does not grow with it."""
        try:
            with self._errors("read"), path.open("wb") as file:
                for chunk in self._obstore.get(self._store, name).stream(min_chunk_size=_CHUNK):
                    file.write(chunk)
        except FileNotFoundError:
            raise stacks.TollgateError(f"{self.location}/{name}: is not there any more") from None

    def put(self, name: str, data: bytes | IO[bytes]) -> None:
        """Write it, over whatever is there."""
        with self._errors("written"):
            self._obstore.put(self._store, name, data)

    def create(self, name: str, data: bytes) -> bool:
        """Write it where nothing is; False where somebody else's is there already."""
        try:
            with self._errors("written"):
                self._obstore.put(self._store, name, data, mode="create")
        except FileExistsError:
            # The library tries again after a broken connection, and then finds its own.
            return self.get(name) == data
        return True

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of each object below `prefix`, which ends with a slash and is left out of the names."""
        with self._errors("read"):
            pages = self._obstore.list(self._store, prefix, chunk_size=1000)
            return {str(one["path"]).removeprefix(prefix): int(one["size"]) for page in pages for one in page}

    def folders(self) -> list[str]:
        """The first parts of all names."""
        with self._errors("read"):
            found = self._obstore.list_with_delimiter(self._store)
            return sorted(str(one).strip("/").rpartition("/")[2] for one in found["common_prefixes"])

    def delete(self, names: Sequence[str]) -> None:
        """Those that are there."""
        if names:
            with self._errors("deleted"):
                self._obstore.delete(self._store, list(names))

    @contextmanager
    def _errors(self, done: str) -> Iterator[None]:
        exceptions: Any = self._obstore.exceptions
        try:
            yield
        except exceptions.NotFoundError:
            raise FileNotFoundError from None
        except exceptions.AlreadyExistsError:
            raise FileExistsError from None
        except (FileNotFoundError, FileExistsError):
            raise
        except stacks.bucket_failures() as error:
            words = stacks.bucket_words(error)
            if "169.254.169.254" in words or "metadata.google.internal" in words:
                # Where a machine of the cloud finds its own; elsewhere this is what asking without any looks like.
                words = "no credentials in the environment\n  fix: set what the cloud's own tools read (AWS_ACCESS_KEY_ID, …)"
            raise DatabaseTrouble(f"{self.location}: cannot be {done}: {words}") from None
