"""The two databases that a queue can lie in, with what differs between them and nothing more.

SQLite in WAL mode with full synchronisation: a commit is on the disk, and readers never wait. PostgreSQL: many runners on
many machines. The statements are the same; `?` stands for a value in both.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

import stacks

Row = tuple[Any, ...]
_SQLITE_FIRST_BYTES = b"SQLite format 3\0"
_CHUNKS = (256, 32, 4, 1)


class DatabaseTrouble(stacks.TollgateError):
    """The database cannot be used at the moment: the disk is full, the server is gone. Nothing was changed; try again."""


class Database(Protocol):
    """One connection. What fails for a reason that may pass raises DatabaseTrouble, and the transaction did not happen."""

    now: str  # SQL for the epoch seconds of the one clock that all runners share
    skip_locked: str  # SQL at the end of a SELECT of rows to be taken
    types: ClassVar[Mapping[str, str]]

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """One statement; the rows it gives."""

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], conflict: str) -> None:
        """Many rows at once; `conflict`: SQL after ON CONFLICT."""

    def load(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Fill an empty table, within a transaction."""

    def stream(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        """The rows one by one, in memory that does not grow with them."""

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """All or nothing; holds the right to write from its beginning."""

    def close(self) -> None:
        """Let go of it."""


class Sqlite:
    """A file. `building`: nobody else sees it yet, so that nothing need be synchronised until it is done; `scratch`: what
    it holds is durable elsewhere."""

    now = "((julianday('now') - 2440587.5) * 86400.0)"
    skip_locked = ""
    types: ClassVar[Mapping[str, str]] = {"int": "INTEGER", "real": "REAL", "bytes": "BLOB"}

    def __init__(self, path: Path, *, building: bool = False, scratch: bool = False) -> None:
        self.path = path
        try:
            if not building:
                with path.open("rb") as file:
                    head = file.read(16)
                if head != _SQLITE_FIRST_BYTES:
                    raise stacks.TollgateError(f"{path}: is no batch, or its beginning is damaged")
            durable = "OFF" if scratch else "FULL"
            self._connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            for pragma in (
                ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-65536")
                if building
                # A checkpoint every 16 MiB: each page that changed often is then written back once.
                else ("journal_mode=WAL", f"synchronous={durable}", "wal_autocheckpoint=4096", "journal_size_limit=67108864",
                      "cache_size=-16384")
            ):  # fmt: skip
                self._connection.execute(f"PRAGMA {pragma}")
        except (sqlite3.Error, OSError) as error:
            raise _trouble(path, error) from None

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise _trouble(self.path, error) from None

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], conflict: str) -> None:
        # Few statements of many rows: each step of a statement hands the interpreter's lock over and back.
        at = 0
        for size in _CHUNKS:
            while len(rows) - at >= size:
                marks = ",".join(["(" + ",".join("?" * len(columns)) + ")"] * size)
                values = [value for row in rows[at : at + size] for value in row]
                self.run(f"INSERT INTO {table} ({','.join(columns)}) VALUES {marks} ON CONFLICT {conflict}", values)
                at += size

    def load(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        marks = ",".join("?" * len(columns))
        try:
            self._connection.executemany(f"INSERT INTO {table} ({','.join(columns)}) VALUES ({marks})", rows)
        except sqlite3.Error as error:
            raise _trouble(self.path, error) from None

    def stream(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        try:
            yield from self._connection.execute(sql, values)
        except sqlite3.Error as error:
            raise _trouble(self.path, error) from None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                # SQLite has rolled back by itself after some errors.
                self._connection.execute("ROLLBACK")
            raise

    def finish_building(self, final: Path) -> None:
        """Make the file durable under its final name as well; the connection is closed. Raises FileExistsError."""
        try:
            self._connection.execute("PRAGMA locking_mode=NORMAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA journal_mode=WAL").fetchall()
            self._connection.close()
            stacks.sync(self.path)
            # A link and not a rename: of two that make the same batch at once, one must lose.
            final.hardlink_to(self.path)
            stacks.sync(self.path.parent)
        except FileExistsError:
            raise
        except (sqlite3.Error, OSError) as error:
            raise _trouble(self.path, error) from None

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()


def _trouble(path: Path, error: Exception) -> stacks.TollgateError:
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, sqlite3.DatabaseError) and ("malformed" in words or "not a database" in words):
        return stacks.TollgateError(
            f"{path}: is damaged ({words})\n  fix: what is left of it can be read by sqlite3's .recover; submit the batch again"
        )
    if words.startswith("no such"):
        return stacks.TollgateError(f"{path}: is no batch of this version ({words})")
    return DatabaseTrouble(f"{path}: {words}")


class Postgres:
    """A schema of a database at `postgresql://…`, made for one batch. Connects anew after a broken connection."""

    now = "extract(epoch from clock_timestamp())::double precision"
    skip_locked = "FOR UPDATE SKIP LOCKED"
    types: ClassVar[Mapping[str, str]] = {"int": "BIGINT", "real": "DOUBLE PRECISION", "bytes": "BYTEA"}

    def __init__(self, url: str, schema: str) -> None:
        try:
            self._psycopg: Any = import_module("psycopg")
        except ImportError:
            raise stacks.TollgateError(
                "PostgreSQL needs the package psycopg\n  fix: pip install 'tollgate[postgres]'"
            ) from None
        self._url, self._schema = url, schema
        self._connection: Any = None
        self._inside = False
        self._connect()

    def _connect(self) -> None:
        try:
            self._connection = self._psycopg.connect(
                self._url, autocommit=True, connect_timeout=5, options=f"-c search_path={self._schema}",
                application_name="tollgate batch", keepalives_idle=10, keepalives_interval=5, keepalives_count=3,
            )  # fmt: skip
        except self._psycopg.ProgrammingError as error:
            raise stacks.InputError(
                where="--store", got=_words(error), allowed="postgresql://user@host/database", fix="correct the URL"
            ) from None
        except self._psycopg.Error as error:
            raise DatabaseTrouble(f"PostgreSQL: {_words(error)}") from None

    def _cursor(self) -> Any:
        if self._connection.closed or self._connection.broken:
            if self._inside:
                # What came before in this transaction is lost; only its owner knows how to begin again.
                raise DatabaseTrouble("PostgreSQL: the connection broke")
            self._connect()
        return self._connection.cursor()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.IntegrityError:
            raise
        except (self._psycopg.DataError, self._psycopg.ProgrammingError) as error:
            # Waiting does not mend these: the batch was removed, a value cannot be stored.
            raise stacks.TollgateError(f"PostgreSQL: {_words(error)}") from None
        except self._psycopg.Error as error:
            raise DatabaseTrouble(f"PostgreSQL: {_words(error)}") from None

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        with self._errors(), self._cursor() as cursor:
            cursor.execute(sql.replace("?", "%s"), values or None)
            return list(cursor.fetchall()) if cursor.description else []

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], conflict: str) -> None:
        if not rows:
            return
        marks = ",".join(["%s"] * len(columns))
        sql = f"INSERT INTO {table} ({','.join(columns)}) VALUES ({marks}) ON CONFLICT {conflict}"
        with self._errors(), self._cursor() as cursor:
            cursor.executemany(sql, rows)

    def load(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        with (
            self._errors(),
            self._cursor() as cursor,
            cursor.copy(f"COPY {table} ({','.join(columns)}) FROM STDIN") as copy,
        ):
            for row in rows:
                copy.write_row(row)

    def stream(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        self._cursor().close()
        with self._errors(), self._connection.transaction(), self._connection.cursor(name="rows") as cursor:
            cursor.itersize = 500
            cursor.execute(sql.replace("?", "%s"), values or None)
            yield from cursor

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self._cursor().close()
        self._inside = True
        try:
            with self._errors(), self._connection.transaction():
                yield
        finally:
            self._inside = False

    def close(self) -> None:
        with contextlib.suppress(self._psycopg.Error):
            self._connection.close()


def _words(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def stands_twice(error: BaseException) -> bool:
    """Whether the database refused a value because it stands there already."""
    return type(error).__name__ in ("IntegrityError", "UniqueViolation")
