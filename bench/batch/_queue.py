"""The durable queue of one batch: inputs, leases, results.

Inputs are leased in blocks of at most 256 and about a megabyte, so that a lease costs one row and not one per input, and a
runner that starts anew has to look at a few thousand blocks and not at a million inputs. An answer becomes a result
once, by its place in the input; whoever is later with another answer to the same input changes nothing. Results, strikes
and finished blocks of a moment are committed together (group commit), so that what the database says is always
consistent, and what it does not say was not answered.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import orjson
import psutil

import stacks

from ._database import Database, DatabaseTrouble, Postgres, Row, Sqlite, stands_twice
from ._formats import BadRow
from ._model import Block, Counts, Info, Input, Item, Outcome, RunnerReport, State, Strike

LEASE_SECONDS = 30.0
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


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _patiently(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """Once or twice more where the database had a moment of trouble: a connection that broke is noticed by using it."""

    @functools.wraps(method)
    def tried(*given: _P.args, **named: _P.kwargs) -> _T:
        for pause in (0.1, 1.0):
            try:
                return method(*given, **named)
            except DatabaseTrouble:
                time.sleep(pause)
        return method(*given, **named)

    return tried


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a runner tells the queue at once. `claim`: so many inputs more, about; `report`: of itself, None: as before."""

    outcomes: Sequence[Outcome] = ()
    strikes: Sequence[Strike] = ()
    finished: Sequence[Block] = ()
    claim: int = 0
    report: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What the queue answers: its state, new blocks with those of their inputs that have no result, and whether there is
    nothing left to be leased."""

    state: State
    blocks: list[tuple[Block, list[Item]]] = field(default_factory=list)
    empty: bool = False


class Queue:
    """One batch in one database. Used by one thread at a time."""

    def __init__(self, database: Database, id: str) -> None:
        self.database, self.id = database, id

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    # --- for runners

    def step(self, owner: str, step: Step) -> Taken:
        """Commit what the runner has and take what it wants, in one transaction. Raises DatabaseTrouble; then none of it
        happened and the same step may be tried again."""
        database = self.database
        with database.transaction():
            database.insert("result", Outcome._fields, step.outcomes, "(seq) DO NOTHING")
            database.insert(
                "strike", Strike._fields, step.strikes,
                "(seq) DO UPDATE SET tries = excluded.tries, losses = excluded.losses, error = excluded.error",
            )  # fmt: skip
            for block in step.finished:
                self._finish(block)
            if step.report is not None:
                self._beat(owner, step.report)
            state: State = database.run("SELECT state FROM batch")[0][0]
            if state != "running":
                return Taken(state=state)
            blocks = self._claim(owner, step.claim) if step.claim else []
            empty = bool(step.claim) and not blocks
            if empty and not database.run("SELECT first FROM block WHERE done = 0 LIMIT 1"):
                database.run(f"UPDATE batch SET state = 'done', ended = {database.now} WHERE state = 'running'")
                state = "done"
            return Taken(state=state, blocks=blocks, empty=empty)

    def _finish(self, block: Block) -> None:
        [[count, failed, into, out]] = self.database.run(
            "SELECT count(*), sum(CASE WHEN error = '' THEN 0 ELSE 1 END), sum(tokens_in), sum(tokens_out) FROM result "
            "WHERE seq BETWEEN ? AND ?",
            block,
        )
        if count != block.last - block.first + 1:
            raise AssertionError(f"block {block} has {count} results")
        self.database.run(
            "UPDATE block SET done = 1, owner = NULL, ok = ?, failed = ?, tokens_in = ?, tokens_out = ? WHERE first = ?",
            (count - failed, failed, int(into), int(out), block.first),
        )

    def _beat(self, owner: str, report: Mapping[str, Any]) -> None:
        database = self.database
        now = database.now
        database.run(f"UPDATE block SET until = {now} + ? WHERE owner = ? AND done = 0", (LEASE_SECONDS, owner))
        text = orjson.dumps(report).decode()
        database.run(
            f"INSERT INTO runner (owner, seen, report) VALUES (?, {now}, ?) "
            "ON CONFLICT (owner) DO UPDATE SET seen = excluded.seen, report = excluded.report",
            (owner, text),
        )
        # Time during which somebody works counts once, however many do; a gap between beats is time when nobody did.
        gone = f"CASE WHEN state = 'running' AND {now} - beat < 10 THEN {now} - beat ELSE 0 END"
        database.run(f"UPDATE batch SET busy = busy + {gone}, beat = {now} WHERE beat < {now}")

    def _claim(self, owner: str, inputs: int) -> list[tuple[Block, list[Item]]]:
        database, taken = self.database, []
        while inputs > 0:
            rows = database.run(
                f"UPDATE block SET owner = ?, until = {database.now} + ? WHERE first = (SELECT first FROM block WHERE done = 0 "
                f"AND (owner IS NULL OR until < {database.now}) ORDER BY first LIMIT 1 {database.skip_locked}) "
                "RETURNING first, last",
                (owner, LEASE_SECONDS),
            )
            if not rows:
                break
            block = Block(*rows[0])
            items = [
                Item(*row)
                for row in database.run(
                    "SELECT i.seq, i.custom_id, i.path, i.body, coalesce(s.tries, 0), coalesce(s.losses, 0) FROM item i "
                    "LEFT JOIN strike s ON s.seq = i.seq WHERE i.seq BETWEEN ? AND ? "
                    "AND NOT EXISTS (SELECT 1 FROM result r WHERE r.seq = i.seq) ORDER BY i.seq",
                    block,
                )
            ]
            taken.append((block, items))
            inputs -= len(items)
        return taken

    @_patiently
    def release(self, owner: str) -> None:
        """Give back what that runner holds, so that nobody waits for its leases to expire."""
        with self.database.transaction():
            self.database.run("UPDATE block SET owner = NULL WHERE owner = ? AND done = 0", (owner,))
            self.database.run("DELETE FROM runner WHERE owner = ?", (owner,))

    @_patiently
    def release_dead(self) -> list[str]:
        """Give back what runners of this machine hold that are no more: a lease need not expire where death is certain."""
        owners = self.database.run("SELECT DISTINCT owner FROM block WHERE done = 0 AND owner IS NOT NULL")
        owners += self.database.run("SELECT owner FROM runner")
        dead = sorted({str(owner) for (owner,) in owners if is_alive(str(owner)) is False})
        for owner in dead:
            self.release(owner)
        return dead

    # --- for people

    @_patiently
    def info(self) -> Info:
        """The batch itself."""
        row = self.database.run("SELECT id, state, total, created, ended, busy, reason, settings FROM batch")[0]
        return Info(
            id=row[0], state=row[1], total=row[2], created=row[3], ended=row[4], busy=row[5], reason=row[6],
            settings=orjson.loads(row[7]),
        )  # fmt: skip

    @_patiently
    def counts(self) -> Counts:
        """How far it is; exact, in time that does not grow with what is done."""
        closed = "SELECT sum(ok), sum(failed), sum(tokens_in), sum(tokens_out) FROM block WHERE done = 1"
        open_ = (
            "SELECT sum(CASE WHEN r.error = '' THEN 1 ELSE 0 END), sum(CASE WHEN r.error = '' THEN 0 ELSE 1 END), "
            "sum(r.tokens_in), sum(r.tokens_out) FROM block b CROSS JOIN result r "
            "WHERE b.done = 0 AND b.until > 0 AND r.seq BETWEEN b.first AND b.last"
        )
        with self.database.transaction():
            total = self.database.run("SELECT total FROM batch")[0][0]
            parts = [*self.database.run(closed), *self.database.run(open_)]
        ok, failed, into, out = (sum(int(part[i] or 0) for part in parts) for i in range(4))
        return Counts(total=int(total), ok=ok, failed=failed, tokens_in=into, tokens_out=out)

    @_patiently
    def runners(self) -> list[RunnerReport]:
        """Who works on it, or did until it was killed."""
        rows = self.database.run(f"SELECT owner, {self.database.now} - seen, report FROM runner ORDER BY owner")
        found = []
        for owner, ago, report in rows:
            alive = is_alive(owner)
            alive = ago < LEASE_SECONDS if alive is None else alive
            found.append(RunnerReport(owner=owner, seen=ago, alive=alive, report=orjson.loads(report)))
        return found

    @_patiently
    def set_state(self, state: State, *, reason: str = "", only: Sequence[State] = ("running", "paused")) -> bool:
        """Change it where it is one of `only`; whether that was so. Runners see it within a second."""
        marks = ",".join("?" * len(only))
        ended = self.database.now if state == "cancelled" else "0"
        rows = self.database.run(
            f"UPDATE batch SET state = ?, reason = ?, ended = {ended} WHERE state IN ({marks}) RETURNING id",
            (state, reason, *only),
        )
        return bool(rows)

    @_patiently
    def reopen_failed(self) -> int:
        """Forget the failures, so that those inputs are asked again; how many there were. Raises TollgateError while a runner
        is at work, which would not learn of it."""
        busy = [runner.owner for runner in self.runners() if runner.alive]
        if busy:
            raise stacks.TollgateError(f"batch {self.id} is being run by {busy[0]}\n  fix: pause it first")
        with self.database.transaction():
            failed = self.database.run("DELETE FROM result WHERE error <> '' RETURNING seq")
            self.database.run("DELETE FROM strike")
            self.database.run("UPDATE block SET done = 0, owner = NULL WHERE failed > 0")
            self.database.run("UPDATE batch SET state = 'running', reason = '', ended = 0 WHERE state <> 'cancelled'")
        return len(failed)

    def results(self, *, failed: bool | None = None) -> Iterator[Row]:
        """(custom_id, *Outcome) in the order of the input; only the failures, only the others, or all."""
        where = "" if failed is None else "WHERE r.error <> ''" if failed else "WHERE r.error = ''"
        columns = ", ".join(f"r.{name}" for name in Outcome._fields)
        return self.database.stream(
            f"SELECT i.custom_id, {columns} FROM result r JOIN item i ON i.seq = r.seq {where} ORDER BY r.seq"
        )

    def unanswered(self) -> Iterator[str]:
        """The custom_id of each input without a result, in order."""
        rows = self.database.stream(
            "SELECT i.custom_id FROM item i WHERE NOT EXISTS (SELECT 1 FROM result r WHERE r.seq = i.seq) ORDER BY i.seq"
        )
        return (str(row[0]) for row in rows)


# --- where queues are


def _path(store: str, id: str) -> Path:
    return Path(store) / f"{id}.sqlite"


def is_postgres(store: str) -> bool:
    """Whether the address of a store is one of PostgreSQL; anything else is a folder."""
    return store.startswith(("postgresql://", "postgres://"))


def create(
    store: str, inputs: Iterable[Input | BadRow], *, settings: Mapping[str, Any] | None = None, id: str = "",
    skip_bad: bool = False, source: str = "input",
) -> Queue:  # fmt: skip
    """Make a batch of all `inputs`, completely or not at all. `skip_bad`: what is no request is a failed result at once.

    Raises InputError for an empty input, a row that is no request, and a custom_id that stands there twice.
    """
    id = id or f"batch_{secrets.token_hex(6)}"
    if not _ID.fullmatch(id):
        raise stacks.InputError(where="batch", got=id, allowed="letters, digits, _ and -", fix="rename it")
    given = orjson.dumps(dict(settings or {})).decode()
    if is_postgres(store):
        schema = f"{_SCHEMA}{id}"
        root = Postgres(store, "public")
        try:
            with root.transaction():
                root.run(f'CREATE SCHEMA "{schema}"')
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
            raise stacks.InputError(where="batch", got=id, allowed="an id that is not taken", fix="name another")
        database = Sqlite(aside, building=True)
        try:
            with database.transaction():
                _fill(database, id, inputs, given, skip_bad, source)
            database.finish_building(_path(store, id))
        finally:
            database.close()
    except OSError as error:
        raise stacks.TollgateError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        aside.unlink(missing_ok=True)
    return open_queue(store, id)


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
        more = (
            f"{len(bad) - 1}{' or more' if len(bad) == _MOST_SHOWN else ''} further lines are none either; "
            if bad[1:]
            else ""
        )
        raise stacks.InputError(
            where=f"{source}, line {worst.number}", got=worst.got, allowed=worst.allowed,
            fix=f"{more}correct them, or say --skip-bad to have them listed as failed",
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
    database = Postgres(store, f'"{_SCHEMA}{found[0]}"') if is_postgres(store) else Sqlite(_path(store, found[0]))
    return Queue(database, found[0])


def _shown(store: str) -> str:
    """Without the password that may stand in a URL."""
    return re.sub(r"://([^:@/]*):[^@/]*@", r"://\1@", store)


def ids(store: str) -> list[str]:
    """All batches there."""
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
    if is_postgres(store):
        database = Postgres(store, "public")
        try:
            database.run(f'DROP SCHEMA IF EXISTS "{_SCHEMA}{id}" CASCADE')
        finally:
            database.close()
        return
    for suffix in ("", "-wal", "-shm"):
        _path(store, id).with_name(f"{id}.sqlite{suffix}").unlink(missing_ok=True)


# --- who runs


def this_owner() -> str:
    """This process as an owner of leases: machine, boot, process and its start, so that a number used again is no one else's."""
    return f"{_machine()}/{os.getpid()}/{psutil.Process().create_time():.2f}/{secrets.token_hex(3)}"


def is_alive(owner: str) -> bool | None:
    """Whether that process runs; None where it is of another machine."""
    machine, _, rest = owner.rpartition("/")[0].partition("/")
    pid, _, began = rest.partition("/")
    if machine != _machine() or not pid.isdigit():
        return None
    try:
        process = psutil.Process(int(pid))
        return abs(process.create_time() - float(began)) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):
        return False


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        boot = "0"
    return f"{platform.node().replace('/', '-')}.{boot}"
