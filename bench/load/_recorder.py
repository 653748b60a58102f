"""Every request as one row, packed as it ends: 60 bytes each, and four for every gap between two of its reads."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

OK, CUT = 0, -1
# scheduled, sent, first token, last token, end; tokens in, tokens out, frames with a token, gaps, zero gaps, status.
_ROW = struct.Struct("=dddddiiiiihh")
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
    ]
)
assert ROW.itemsize == _ROW.size
pack_row = _ROW.pack


@dataclass(slots=True)
class Records:
    """What one process saw. All times are of `time.monotonic()`, which all processes of a machine share.

    `rows`: packed, in the order in which requests ended. `first` is 0 where no token came. A row's `gaps` values stand
    in `gaps` in the same order; `together` counts the tokens that came in one read with the one before.
    `status`: OK, CUT, or k ≥ 1 for the error `kinds[k-1]`.
    """

    rows: bytearray = field(default_factory=bytearray)
    gaps: array[float] = field(default_factory=lambda: array("f"))
    queued: array[float] = field(default_factory=lambda: array("d"))
    cached: array[int] = field(default_factory=lambda: array("q"))
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

    def merge(self, other: Records) -> None:
        """Append another process's records; kinds are matched by name."""
        table = other.table().copy()
        for number, kind in enumerate(other.kinds, 1):
            table["status"][other.table()["status"] == number] = self.status_of(kind)
        self.rows += table.tobytes()
        self.gaps.extend(other.gaps)
        self.queued.extend(other.queued)
        self.cached.extend(other.cached)


def write_raw(path: Path, records: Records, run: int, began: float) -> None:
    """Append one line of JSON for every request: moments in seconds since the run began, null for what did not happen."""
    table = records.table()
    with path.open("ab") as file:
        for row in table:
            status = int(row["status"])
            entry = {
                "run": run + 1,
                "status": {OK: "ok", CUT: "cut"}.get(status) or records.kinds[status - 1],
                **{name: round(float(row[name]) - began, 6) for name in ("scheduled", "sent", "end")},
                **{name: round(float(row[name]) - began, 6) if row[name] else None for name in ("first", "last")},
                **{name: int(row[name]) if row[name] >= 0 else None for name in ("tokens_in", "tokens_out")},
                "frames": int(row["frames"]),
                "retries": int(row["retries"]),
            }
            file.write(orjson.dumps(entry) + b"\n")
