"""Raw records of every request: JSON lines, or Parquet where the file is called so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

import stacks

from ._recorder import CUT, OK, Records

# The columns of both forms. Moments are in seconds since the run began, null for what did not happen.
_MOMENTS = ("scheduled", "sent", "first", "last", "end")
_COUNTS = ("tokens_in", "tokens_out", "cached")
COLUMNS = ("run", "status", *_MOMENTS, *_COUNTS, "frames", "retries", "queued")


class RawFile:
    """Where raw records go; a context manager, because a Parquet file is one only when it has been closed.

    A file called *.parquet becomes Parquet (one row group per run) and needs pyarrow, the extra `tollgate[parquet]`;
    any other becomes one line of JSON per request. Raises InputError when pyarrow is missing or the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parquet: Any = None
        try:
            if path.suffix == ".parquet":
                self._open_parquet()
            else:
                path.write_bytes(b"")
        except OSError as error:
            raise stacks.InputError(
                where=f"--raw {path}", got=str(error.strerror or error), allowed="a file that can be written",
                fix="name another",
            ) from error  # fmt: skip

    def _open_parquet(self) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise stacks.InputError(
                where=f"--raw {self._path}",
                got="a Parquet file, but pyarrow is not installed",
                allowed="*.jsonl without it",
                fix="pip install 'tollgate[parquet]', or name the file *.jsonl",
            ) from error
        integer, real = pyarrow.int64(), pyarrow.float64()
        kinds = {"status": pyarrow.string(), **dict.fromkeys((*_MOMENTS, "queued"), real)}
        self._schema = pyarrow.schema([(name, kinds.get(name, integer)) for name in COLUMNS])
        self._table = pyarrow.Table.from_pydict
        self._parquet = pyarrow.parquet.ParquetWriter(self._path, self._schema, compression="zstd")

    def __enter__(self) -> RawFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._parquet is not None:
            self._parquet.close()

    def write(self, records: Records, run: int, began: float) -> None:
        """Append all requests of a run (counted from 0), which began at that monotonic moment."""
        if self._parquet is None:
            with self._path.open("ab") as file:
                for entry in entries(records, run, began):
                    file.write(orjson.dumps(entry) + b"\n")
            return
        rows = list(entries(records, run, began))
        columns = {name: [row[name] for row in rows] for name in COLUMNS}
        self._parquet.write_table(self._table(columns, schema=self._schema))


def entries(records: Records, run: int, began: float) -> Iterator[dict[str, Any]]:
    """Each request as a dictionary of `COLUMNS`."""
    for row in records.table():
        status = int(row["status"])
        queued = float(row["queued"])
        moments = {name: round(float(row[name]) - began, 6) if row[name] else None for name in _MOMENTS}
        yield {
            "run": run + 1,
            "status": {OK: "ok", CUT: "cut"}.get(status) or records.kinds[status - 1],
            **moments,
            **{name: int(row[name]) if row[name] >= 0 else None for name in _COUNTS},
            "frames": max(0, int(row["frames"])),
            "retries": int(row["retries"]),
            "queued": round(queued, 6) if queued == queued else None,
        }
