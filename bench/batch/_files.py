"""Files that may lie on a disk or in a bucket: read as a stream, written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import stacks

_ALLOWED = "a file, s3://bucket/name, gs://bucket/name"
_BUFFER = 1 << 20
_SCRATCH = "tollgate-batch-"


class _Remote(io.RawIOBase):
    """An object of a bucket as a file: read in ranges, each tried again by itself, so that an hour of reading survives a
    connection that breaks."""

    def __init__(self, location: str) -> None:
        store, name, self._location = *_object(location), location
        try:
            self._file: Any = stacks.obstore().open_reader(store, name, buffer_size=_BUFFER)
        except stacks.bucket_failures() as error:
            raise stacks.TollgateError(f"{location}: cannot be read: {stacks.bucket_words(error)}") from None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = bytes(self._file.read(len(buffer)))
        except stacks.bucket_failures() as error:
            raise stacks.TollgateError(f"{self._location}: cannot be read: {stacks.bucket_words(error)}") from None
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())


def _object(location: str) -> tuple[Any, str]:
    """The store of the object's folder, and its name in it."""
    address, query, options = location.partition("?")
    folder, _, name = address.rpartition("/")
    if not name or folder.endswith(":/"):
        raise stacks.InputError(where="file in a bucket", got=location, allowed=_ALLOWED, fix="name the object")
    return stacks.bucket(folder + query + options, where="file in a bucket", allowed=_ALLOWED), name


@contextlib.contextmanager
def reading(location: str) -> Iterator[IO[bytes]]:
    """The bytes at `location` as a buffered, seekable file; `-` is standard input, which cannot be sought in.

    Raises InputError where there is no such file, TollgateError where a bucket cannot be read.
    """
    if location == "-":
        yield sys.stdin.buffer
    elif location.startswith(stacks.BUCKET_SCHEMES):
        with io.BufferedReader(_Remote(location), _BUFFER) as remote:
            yield cast("IO[bytes]", remote)
    else:
        try:
            file = Path(location).open("rb", buffering=_BUFFER)  # noqa: SIM115 - closed below; errors of reading are others
        except OSError as error:
            raise stacks.InputError(
                where=location, got=str(error.strerror), allowed="a file that can be read", fix="correct the path"
            ) from None
        with file:
            yield file


@contextlib.contextmanager
def writing(location: str) -> Iterator[IO[bytes]]:
    """A file to be filled; it appears at `location` when the block ends without an error, and not before.

    `-` is standard output. Raises TollgateError where it cannot be written.
    """
    if location == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif location.startswith(stacks.BUCKET_SCHEMES):
        with _uploading(location) as upload:
            yield upload
    else:
        with _replacing(Path(location)) as file:
            yield file


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False, buffering=_BUFFER
        ) as file:
            aside = Path(file.name)
            yield cast("IO[bytes]", file)
            file.flush()
            os.fsync(file.fileno())
        aside.chmod(0o666 & ~_umask())
        aside.replace(path)
    except OSError as error:
        raise stacks.TollgateError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


def _umask() -> int:
    """The process's own; there is no way to ask without setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def _uploading(location: str) -> Iterator[IO[bytes]]:
    # Filled on the disk first: an upload that is broken off would leave parts that the bucket's owner pays for.
    store, name = _object(location)
    with tempfile.TemporaryFile(buffering=_BUFFER) as file:
        yield cast("IO[bytes]", file)
        file.seek(0)
        try:
            stacks.obstore().put(store, name, file)
        except stacks.bucket_failures() as error:
            raise stacks.TollgateError(f"{location}: cannot be written: {stacks.bucket_words(error)}") from None


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes when the block ends; those that killed processes of this user left behind go now."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*/lock"):
        # The lock is let go by whoever dies, however; process numbers mean nothing where containers share a folder.
        with contextlib.suppress(OSError), lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH) as name:
        folder = Path(name)
        with (folder / "new").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            # Seen by others only when it is held.
            (folder / "new").rename(folder / "lock")
            yield folder
