"""Where queues are: a SQLite file each in a folder, a schema each in a PostgreSQL database, objects in a bucket; made whole or
not at all."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

import stacks

from ._bucketed import Bucketed, in_bucket, remove_from_bucket, submitted
from ._database import Database, Postgres, Row, Sqlite, stands_twice
from ._files import scratch
from ._formats import BadRow
from ._model import Input, Outcome
from ._queue import Queue

_BLOCK_INPUTS, _BLOCK_BYTES = 256, 1 << 20
_MOST_SHOWN = 5
_ID = re.compile(r"[A-Za-z0-9_-]{1,48}")
_SCHEMA = "tollgate_"

_TABLES = (
    "CREATE TABLE batch (id TEXT PRIMARY KEY, state TEXT NOT NULL, total {int} NOT NULL, created {real} NOT NULL, "
    "ended {real} NOT NULL, busy {real} NOT NULL, beat {real} NOT NULL, reason TEXT NOT NULL, settings TEXT NOT NULL)",
    "CREATE TABLE item (seq {int} PRIMARY KEY, custom_id TEXT NOT NULL, path TEXT NOT NULL, body {bytes} NOT NULL)",
    # `until`: 0 for a block that nobody has ever held, so that only the others can have results.
    "CREATE TABLE block (first {int} PRIMARY KEY, last {int} NOT NULL, owner TEXT, until {real} NOT NULL, "
    "done {int} NOT NULL, ok {int} NOT NULL, failed {int} NOT NULL, tokens_in {int} NOT NULL, tokens_out {int} NOT NULL)",
    "CREATE TABLE result (seq {int} PRIMARY KEY, status {int} NOT NULL, error TEXT NOT NULL, body {bytes} NOT NULL, "
    "endpoint TEXT NOT NULL, began {real} NOT NULL, seconds {real} NOT NULL, tries {int} NOT NULL, "
    "tokens_in {int} NOT NULL, tokens_out {int} NOT NULL)",
    "CREATE TABLE strike (seq {int} PRIMARY KEY, tries {int} NOT NULL, losses {int} NOT NULL, error TEXT NOT NULL)",
    "CREATE TABLE runner (owner TEXT PRIMARY KEY, seen {real} NOT NULL, report TEXT NOT NULL)",
)
_INDEXES = (
    "CREATE UNIQUE INDEX item_custom_id ON item (custom_id)",
    "CREATE INDEX block_open ON block (first) WHERE done = 0",
)


def _path(store: str, id: str) -> Path:
    return Path(store) / f"{id}.sqlite"


def is_postgres(store: str) -> bool:
    """Whether the address of a store is one of PostgreSQL; anything else is a folder."""
    return store.startswith(("postgresql://", "postgres://"))


def is_bucket(store: str) -> bool:
    """Whether it is one of objects."""
    return store.startswith(stacks.BUCKET_SCHEMES)


def create(
    store: str, inputs: Iterable[Input | BadRow], *, settings: Mapping[str, Any] | None = None, id: str = "",
    skip_bad: bool = False, source: str = "input", shards: int = 1,
) -> Queue:  # fmt: skip
    """Make a batch of all `inputs`, completely or not at all. `skip_bad`: what is no request is a failed result at once.
    `shards`: into how many parts a batch in a bucket is cut, each for one runner; elsewhere runners share by leases.

    Raises InputError for an empty input, a row that is no request, and a custom_id that stands there twice.
    """
    id = id or f"batch_{secrets.token_hex(6)}"
    if not _ID.fullmatch(id):
        raise stacks.InputError(where="batch", got=id, allowed="letters, digits, _ and -", fix="rename it")
    given = orjson.dumps(dict(settings or {})).decode()
    if is_bucket(store):
        if id in in_bucket(store):
            raise _taken(id)
        with scratch() as beside:
            queue = create(str(beside), inputs, settings=settings, id=id, skip_bad=skip_bad, source=source)
            submitted(store, queue, _path(str(beside), id), shards, _TABLES, settings or {})
        return open_queue(store, id)
    if is_postgres(store):
        schema = f"{_SCHEMA}{id}"
        root = Postgres(store, "public")
        try:
            with root.transaction():
                _make_schema(root, schema, id)
                root.run(f'SET LOCAL search_path TO "{schema}"')
                _fill(root, id, inputs, given, skip_bad, source)
        finally:
            root.close()
        return open_queue(store, id)
    folder = Path(store)
    aside = folder / f".{id}.partial-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _path(store, id).exists():
            raise _taken(id)
        database = Sqlite(aside, building=True)
        try:
            with database.transaction():
                _fill(database, id, inputs, given, skip_bad, source)
            database.finish_building(_path(store, id))
        finally:
            database.close()
    except FileExistsError:
        raise _taken(id) from None
    except OSError as error:
        raise stacks.TollgateError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        aside.unlink(missing_ok=True)
    return open_queue(store, id)


def _make_schema(root: Postgres, schema: str, id: str) -> None:
    try:
        root.run(f'CREATE SCHEMA "{schema}"')
    except Exception as error:
        # Two that do it at once are told so in another way than one that is late.
        if stands_twice(error) or "already exists" in str(error):
            raise _taken(id) from None
        raise


def _taken(id: str) -> stacks.InputError:
    return stacks.InputError(where="batch", got=id, allowed="an id that is not taken", fix="name another")


def _fill(
    database: Database, id: str, inputs: Iterable[Input | BadRow], settings: str, skip_bad: bool, source: str
) -> None:
    blocks: list[tuple[int, int]] = []
    bad: list[tuple[int, BadRow]] = []
    number = first = size = 0

    def rows() -> Iterator[Row]:
        nonlocal number, first, size
        for given in inputs:
            if isinstance(given, BadRow):
                bad.append((number, given))
                if not skip_bad:
                    if len(bad) == _MOST_SHOWN:
                        return
                    continue
                given = Input(f"line-{given.number}", "", b"null")
            yield (number, *given)
            number += 1
            size += len(given.body)
            if number - first >= _BLOCK_INPUTS or size >= _BLOCK_BYTES:
                blocks.append((first, number - 1))
                first, size = number, 0

    for table in _TABLES:
        database.run(table.format(**database.types))
    database.load("item", ("seq", "custom_id", "path", "body"), rows())
    if bad and not skip_bad:
        _, worst = bad[0]
        fix = "correct it, or say --skip-bad to have it listed as failed"
        if bad[1:]:
            number_more = f"{len(bad) - 1}{' or more' if len(bad) == _MOST_SHOWN else ''}"
            same = len({one.got for _, one in bad}) == 1
            # What is wrong with every line is seldom the file.
            fix = (
                f"the same is said of {number_more} further lines: correct the options, or the file"
                if same
                else f"{number_more} further lines are none either; correct them, or say --skip-bad to have them listed as failed"
            )
        raise stacks.InputError(
            where=f"{source}, line {worst.number}", got=worst.got, allowed=worst.allowed,
            fix=fix,
        )  # fmt: skip
    if not number:
        raise stacks.InputError(where=source, got="no requests", allowed="at least one", fix="is it the right file?")
    if first < number:
        blocks.append((first, number - 1))
    # Small batches in small blocks: many runners find something to do.
    most = max(1, number // 512)
    cut = [(low, min(low + most - 1, last)) for first, last in blocks for low in range(first, last + 1, most)]
    database.load(
        "block", ("first", "last", "until", "done", "ok", "failed", "tokens_in", "tokens_out"),
        ((low, high, 1.0 if bad else 0.0, 0, 0, 0, 0, 0) for low, high in cut),
    )  # fmt: skip
    database.load("result", Outcome._fields, (
        Outcome(seq, 0, "bad_row", orjson.dumps(str(row)), "", time.time(), 0.0, 0, 0, 0) for seq, row in bad
    ))  # fmt: skip
    try:
        for index in _INDEXES:
            database.run(index)
    except Exception as error:
        if not stands_twice(error):
            raise
        raise _twice(database, error, source) from None
    database.run(
        f"INSERT INTO batch VALUES (?, 'running', ?, {database.now}, 0, 0, 0, '', ?)",
        (id, number, settings),
    )


def _twice(database: Database, error: Exception, source: str) -> stacks.InputError:
    """PostgreSQL names the value in what it says, and then says nothing more in this transaction; SQLite can be asked."""
    named = re.search(r"\(custom_id\)=\((.*)\)", str(error))
    if named is None:
        row = database.run("SELECT custom_id, min(seq), max(seq) FROM item GROUP BY 1 HAVING count(*) > 1 LIMIT 1")[0]
        got = f"custom_id {row[0]!r} in requests {row[1] + 1} and {row[2] + 1}"
    else:
        got = f"custom_id {named[1]!r} twice"
    return stacks.InputError(
        where=source,
        got=got,
        allowed="each custom_id once: results are told apart by it",
        fix="give them ids of their own",
    )


def open_queue(store: str, id: str) -> Queue:
    """The batch of that id, or of the only id that begins so. Raises InputError where there is none or several."""
    known = ids(store)
    found = [id] if id in known else [name for name in known if name.startswith((id, f"batch_{id}"))] if id else []
    if len(found) != 1:
        raise stacks.InputError(
            where="batch", got=id or "nothing", allowed=", ".join(found or known) or f"none is in {_shown(store)}",
            fix="name one of these" if known else "submit one: tollgate batch submit FILE --endpoint URL",
        )  # fmt: skip
    if is_bucket(store):
        return Bucketed(store, found[0])
    database = Postgres(store, f'"{_SCHEMA}{found[0]}"') if is_postgres(store) else Sqlite(_path(store, found[0]))
    return Queue(database, found[0])


def _shown(store: str) -> str:
    """Without the password that may stand in a URL."""
    return re.sub(r"://([^:@/]*):[^@/]*@", r"://\1@", store)


def ids(store: str) -> list[str]:
    """All batches there."""
    if is_bucket(store):
        return in_bucket(store)
    if is_postgres(store):
        database = Postgres(store, "public")
        try:
            names = database.run("SELECT nspname FROM pg_namespace WHERE left(nspname, ?) = ? ORDER BY 1", (9, _SCHEMA))
        finally:
            database.close()
        return [str(name).removeprefix(_SCHEMA) for (name,) in names]
    folder = Path(store)
    files = [path for path in folder.glob("*.sqlite") if not path.name.startswith(".")] if folder.is_dir() else []
    return sorted(path.stem for path in files)


def remove(store: str, id: str) -> None:
    """Delete a batch with its results."""
    if is_bucket(store):
        remove_from_bucket(store, id)
        return
    if is_postgres(store):
        database = Postgres(store, "public")
        try:
            database.run(f'DROP SCHEMA IF EXISTS "{_SCHEMA}{id}" CASCADE')
        finally:
            database.close()
        return
    for suffix in ("", "-wal", "-shm"):
        _path(store, id).with_name(f"{id}.sqlite{suffix}").unlink(missing_ok=True)
