"""The durable queue of one batch: inputs, leases, results.

Inputs are leased in blocks of at most 256 and about a megabyte, so that a lease costs one row and not one per input, and a
runner that starts anew has to look at a few thousand blocks and not at a million inputs. An answer becomes a result
once, by its place in the input; whoever is later with another answer to the same input changes nothing. Results, strikes
and finished blocks of a moment are committed together (group commit), so that what the database says is always
consistent, and what it does not say was not answered.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import orjson

import stacks

from ._database import Database, DatabaseTrouble, Row
from ._model import Block, Counts, Info, Item, Outcome, RunnerReport, State, Strike
from ._owners import is_alive

LEASE_SECONDS = 30.0

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
        # Of a batch in shards: which one this is, in words.
        self.part = ""

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    # --- for runners

    def parts(self, only: int | None = None) -> Generator[Queue]:
        """What one process works on one after the other: the whole batch, or its shards, or of these the one numbered `only`."""
        yield self

    def finish(self) -> None:
        """What a runner calls when it has worked on a part; where all is durable at once, nothing is left to do."""

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
                f"AND (owner IS NULL OR (until < {database.now} AND owner <> ?)) ORDER BY first LIMIT 1 {database.skip_locked}) "
                "RETURNING first, last",
                # Never one's own, however late: what is in flight of it is still on its way.
                (owner, LEASE_SECONDS, owner),
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
        # One statement sees one moment: a block that is finished meanwhile is counted once.
        parts = self.database.run(
            "SELECT sum(ok), sum(failed), sum(tokens_in), sum(tokens_out), (SELECT total FROM batch) FROM block WHERE done = 1 "
            "UNION ALL SELECT sum(CASE WHEN r.error = '' THEN 1 ELSE 0 END), sum(CASE WHEN r.error = '' THEN 0 ELSE 1 END), "
            "sum(r.tokens_in), sum(r.tokens_out), 0 FROM block b CROSS JOIN result r "
            "WHERE b.done = 0 AND b.until > 0 AND r.seq BETWEEN b.first AND b.last"
        )
        total = parts[0][4]
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

    @_patiently
    def sample(self) -> list[bytes]:
        """The bodies of the first few inputs."""
        return [bytes(row[0]) for row in self.database.run("SELECT body FROM item WHERE seq < 256")]

    @_patiently
    def seconds(self) -> float:
        """How long all answers took together."""
        return float(self.database.run("SELECT coalesce(sum(seconds), 0) FROM result")[0][0])

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
