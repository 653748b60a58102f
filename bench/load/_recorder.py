"""Every request as one row, packed as it ends: 72 bytes each, and four for every gap between two of its reads."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

OK, CUT = 0, -1
# Frames of a stream that ended well without a word in it.
EMPTY = -1
# scheduled, sent, first token, last token, end; tokens in, tokens out, frames with a token, gaps, zero gaps; status,
# retries; seconds in the engine's queue, tokens out of its prefix cache.
_TIMES, _REST = struct.Struct("=ddddd"), struct.Struct("=iiiiihhfi")
_ROW = struct.Struct(_TIMES.format + _REST.format[1:])
ROW = np.dtype(
    [
        ("scheduled", "f8"),
        ("sent", "f8"),
        ("first", "f8"),
        ("last", "f8"),
        ("end", "f8"),
        ("tokens_in", "i4"),
        ("tokens_out", "i4"),
        ("frames", "i4"),
        ("gaps", "i4"),
        ("together", "i4"),
        ("status", "i2"),
        ("retries", "i2"),
        ("queued", "f4"),
        ("cached", "i4"),
    ]
)
assert ROW.itemsize == _ROW.size
pack_row = _ROW.pack
# A row in two parts, of which the second is the same for all that answers alike.
pack_times, pack_rest = _TIMES.pack, _REST.pack


@dataclass(slots=True)
class Records:
    """What one process saw. All times are of `time.monotonic()`, which all processes of a machine share.

    `rows`: packed, in the order in which requests ended. `first` is 0 where no token came, `frames` EMPTY for a stream that
    ended well without any. A row's `gaps` values stand in `gaps` in the same order; `together` counts the tokens that came
    in one read with the one before. `status`: OK, CUT, or k ≥ 1 for the error `kinds[k-1]`. `queued` is nan and `cached` -1
    where the server does not tell.
    """

    rows: bytearray = field(default_factory=bytearray)
    gaps: array[float] = field(default_factory=lambda: array("f"))
    kinds: list[str] = field(default_factory=list)

    def status_of(self, kind: str) -> int:
        """The status that stands for this kind of error."""
        if kind not in self.kinds:
            self.kinds.append(kind)
        return self.kinds.index(kind) + 1

    def table(self, last: int = 0) -> NDArray[Any]:
        """All rows, or the last so many, as a structured array (a copy)."""
        data = self.rows[-last * ROW.itemsize :] if last else self.rows
        return np.frombuffer(bytes(data), dtype=ROW)

    def since(self, row: int) -> NDArray[Any]:
        """The rows from that number on (a copy)."""
        return np.frombuffer(bytes(self.rows[row * ROW.itemsize :]), dtype=ROW)

    def merge(self, other: Records) -> None:
        """Append another process's records; kinds are matched by name."""
        table = other.table().copy()
        for number, kind in enumerate(other.kinds, 1):
            table["status"][other.table()["status"] == number] = self.status_of(kind)
        self.rows += table.tobytes()
        self.gaps.extend(other.gaps)
