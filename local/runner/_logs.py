"""Container logs: files that the processes write themselves, so that no log passes through the runner or waits for it.

Beside each file lies an index of moments: how long it was when. From it come the timestamps of `kubectl logs`, true to
the time between two looks. A file that has grown too long loses its beginning in place (a hole is punched), so that
offsets stay what they were and the process writes on undisturbed; where the file system can't, the file is copied and cut.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

LIMIT_BYTES = 10 * 2**20
CURRENT, PREVIOUS = "current.log", "previous.log"
_BLOCK = 65_536
_PUNCH = 0x1 | 0x2  # keep the size, punch a hole
_ENTRY = struct.Struct("<Qd")
_INDEX_LIMIT = 2**20
_libc = ctypes.CDLL(None, use_errno=True)


class Log:
    """The log of one run of a container, watched by `look`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CURRENT
        self._seen = _size(self.path)

    def begin(self) -> None:
        """Put the log of the run before aside and start an empty one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.path.replace(self.path.with_name(PREVIOUS))
            with contextlib.suppress(FileNotFoundError):
                index_of(self.path).replace(index_of(self.path.with_name(PREVIOUS)))
        self.path.touch(0o600)
        self._seen = 0

    def look(self, now: float, limit: int = LIMIT_BYTES) -> None:
        """Note what has been written since the last look, at `now` (seconds since 1970); keep at most twice `limit` bytes."""
        size = _size(self.path)
        if size == self._seen:
            return
        with contextlib.suppress(OSError), index_of(self.path).open("ab") as index:
            index.write(_ENTRY.pack(min(self._seen, size), now))
        self._seen = size
        with contextlib.suppress(OSError):
            if size > 2 * limit and size - beginning(self.path) > 2 * limit:
                self._shorten(size - limit)

    def _shorten(self, cut: int) -> None:
        with self.path.open("r+b") as file:
            done = _libc.fallocate(file.fileno(), _PUNCH, ctypes.c_longlong(0), ctypes.c_longlong(cut))
            if done != 0:
                # What is written between these two lines is lost; only file systems without holes come here.
                shutil.copyfile(self.path, self.path.with_name(PREVIOUS))
                file.truncate(0)
                self._seen = 0
        index = index_of(self.path)
        if _size(index) > _INDEX_LIMIT:
            times = Times.read(self.path)
            kept = times.entries[max(0, times.place(cut)) :]
            temporary = index.with_name(".index.new")
            temporary.write_bytes(b"".join(_ENTRY.pack(*entry) for entry in kept))
            temporary.replace(index)


@dataclass(frozen=True)
class Times:
    """`entries`: (offset, seconds since 1970) in order; what lies from that offset on was written about then."""

    entries: list[tuple[int, float]]

    @classmethod
    def read(cls, path: Path) -> Times:
        """Of the log at `path`; empty where there is no index."""
        with contextlib.suppress(OSError):
            data = index_of(path).read_bytes()
            whole = len(data) // _ENTRY.size * _ENTRY.size
            return cls([(offset, when) for offset, when in _ENTRY.iter_unpack(data[:whole])])
        return cls([])

    def place(self, offset: int) -> int:
        """The number of the entry that `offset` belongs to; -1 before the first."""
        return bisect.bisect_right(self.entries, (offset, float("inf"))) - 1

    def when(self, offset: int, otherwise: float) -> float:
        """When the byte at `offset` was written."""
        place = self.place(offset)
        return self.entries[place][1] if place >= 0 else otherwise

    def since(self, moment: float) -> int | None:
        """The offset of the first byte written at or after `moment`; None when nothing was."""
        return next((offset for offset, when in self.entries if when >= moment), None)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What of a log is wanted: the last `tail` lines, nothing written before `since` (seconds since 1970), at most
    `limit` bytes, each line with its time where `timestamps`."""

    tail: int | None = None
    since: float | None = None
    limit: int | None = None
    timestamps: bool = False


class Reader:
    """Reads one log file from where the selection begins; the file may be renamed or grow meanwhile."""

    def __init__(self, path: Path, wanted: Selection) -> None:
        self._file = path.open("rb")
        self._path, self._wanted, self._left = path, wanted, wanted.limit
        self.inode = os.fstat(self._file.fileno()).st_ino
        self._position = start_offset(self._file.fileno(), Times.read(path), wanted)
        self._open_line = False

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    @property
    def full(self) -> bool:
        """Whether the limit has been reached."""
        return self._left == 0

    def more(self) -> bytes:
        """The next piece, empty at the end of what there is now."""
        size = os.fstat(self._file.fileno()).st_size
        if size < self._position:
            # Cut: what follows begins at the new beginning.
            self._position = 0
        data = os.pread(self._file.fileno(), _BLOCK, self._position)
        begins, self._position = self._position, self._position + len(data)
        if data and self._wanted.timestamps:
            data = b"".join(self._stamped(data, begins))
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        return data

    def _stamped(self, data: bytes, offset: int) -> Iterator[bytes]:
        times = Times.read(self._path)
        for line in data.splitlines(keepends=True):
            if not self._open_line:
                when = times.when(offset, datetime.now(UTC).timestamp())
                yield datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z ").encode()
            yield line
            self._open_line = not line.endswith(b"\n")
            offset += len(line)


def start_offset(handle: int, times: Times, wanted: Selection) -> int:
    """Where reading begins in the file behind `handle`."""
    size = os.fstat(handle).st_size
    first = _first_data(handle)
    if first:
        # The hole ends in the middle of a line.
        newline = os.pread(handle, _BLOCK, first).find(b"\n")
        first += newline + 1
    if wanted.since is not None:
        since = times.since(wanted.since)
        first = max(first, size if since is None else since)
    if wanted.tail is not None:
        first = max(first, _tail(handle, first, size, wanted.tail))
    return min(first, size)


def _tail(handle: int, first: int, size: int, lines: int) -> int:
    if lines <= 0:
        return size
    end = size
    if size > first and os.pread(handle, 1, size - 1) == b"\n":
        end -= 1
    while end > first:
        begin = max(first, end - _BLOCK)
        block = os.pread(handle, end - begin, begin)
        place = len(block)
        while (place := block.rfind(b"\n", 0, place)) >= 0:
            lines -= 1
            if lines == 0:
                return begin + place + 1
        end = begin
    return first


def last_bytes(path: Path, count: int, lines: int) -> str:
    """The end of a log: at most `count` bytes and `lines` lines of it; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = os.pread(file.fileno(), count, max(0, size - count))
    except OSError:
        return ""
    return "\n".join(data.decode("utf-8", "replace").splitlines()[-lines:])


def beginning(path: Path) -> int:
    """The offset of the first byte that is still there."""
    with path.open("rb") as file:
        return _first_data(file.fileno())


def index_of(path: Path) -> Path:
    """Where the moments of the log at `path` are kept."""
    return path.with_suffix(".times")


def _first_data(handle: int) -> int:
    try:
        return os.lseek(handle, 0, os.SEEK_DATA)
    except OSError:
        # An empty file, or nothing but a hole.
        return os.fstat(handle).st_size


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
