"""A shard of a batch in a bucket, worked on in a database of this process's own that may vanish at any moment.

Every few seconds what is new goes to the bucket as one segment; only that counts. A machine that is lost with its disk costs
what was answered since, which is asked again. While the bucket is away the work goes on for a minute, and then waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from ._database import DatabaseTrouble, Sqlite
from ._model import Outcome, State, Strike
from ._objects import Objects
from ._owners import this_owner
from ._queue import Queue, Step, Taken
from ._segments import Segments, pack, unpack

_SHIP_SECONDS, _SHIP_BYTES = 5.0, 4 << 20
_INSERTED = 256
# What the names of reports begin with.
REPORT = "report-"
_ASK_SECONDS = 2.0
# What may be lost at most: nothing more is asked while so much waits for a bucket that is away.
_AWAY_SECONDS, _MOST_BYTES = 60.0, 32 << 20


def restored(objects: Objects, base: str, segments: Segments, folder: Path) -> Sqlite:
    """A queue in `folder` with all that the bucket knows."""
    path = folder / "shard.sqlite"
    objects.download(base, path)
    database = Sqlite(path, scratch=True)
    with database.transaction():
        outcomes: list[Outcome] = []
        strikes: dict[int, Strike] = {}
        for number, data in enumerate(segments.read()):
            for found in unpack(data, f"{objects.location}/{segments.prefix}, object {number}"):
                if isinstance(found, Strike):
                    strikes[found.seq] = found
                    continue
                if isinstance(found, Outcome):
                    outcomes.append(found)
                if len(outcomes) == _INSERTED or not isinstance(found, Outcome):
                    _insert(database, outcomes, [])
                    outcomes = []
                if not isinstance(found, Outcome):
                    strikes = {}
                    database.run("DELETE FROM result WHERE error <> ''")
        _insert(database, outcomes, list(strikes.values()))
        # As if this process had held every block before.
        database.run("UPDATE block SET done = 0, until = 1.0")
        database.run(
            "UPDATE block SET done = 1, ok = f.ok, failed = f.failed, tokens_in = f.tokens_in, tokens_out = f.tokens_out FROM ("
            "SELECT b.first AS at, count(*) AS number, sum(r.error = '') AS ok, sum(r.error <> '') AS failed, "
            "sum(r.tokens_in) AS tokens_in, sum(r.tokens_out) AS tokens_out "
            "FROM block b JOIN result r ON r.seq BETWEEN b.first AND b.last GROUP BY b.first) AS f "
            "WHERE block.first = f.at AND f.number = block.last - block.first + 1"
        )
    return database


def _insert(database: Sqlite, outcomes: Sequence[Outcome], strikes: Sequence[Strike]) -> None:
    database.insert("result", Outcome._fields, outcomes, "(seq) DO NOTHING")
    database.insert("strike", Strike._fields, strikes, "(seq) DO NOTHING")


class Shard(Queue):
    """Used by one thread at a time, like any queue; its own thread talks to the bucket."""

    def __init__(
        self, database: Sqlite, id: str, objects: Objects, segments: Segments, *, busy: float, part: str
    ) -> None:
        super().__init__(database, id)
        self.part = part
        self._objects, self._segments = objects, segments
        self._me = this_owner()
        self._outcomes: list[Outcome] = []
        self._strikes: list[Strike] = []
        self._reopened = False
        self._bytes = 0
        # What is on its way, as one that failed is sent again as it was.
        self._packed = b""
        self._packed_bytes = 0
        self._report: Any = {}
        self._settled = self._wrote = time.monotonic()
        self._asked = 0.0
        self._word: dict[str, Any] = {}
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="batch bucket")
        self._sending: Future[None] | None = None
        self._away = False
        # Whether the last word about this shard is that nobody holds it.
        self._told = False
        self._kept: Step | None = None
        self._answering = super().seconds()
        database.run("UPDATE batch SET busy = ?, beat = 0", (busy,))
        # Who held it before is told so when he next writes. What he still says of how far it is goes into a report of his own:
        # that of the last one who took the shard counts, by the number of the segment with which he did.
        segments.write(pack([], [], owner=self._me))
        self._report_name = f"{segments.prefix}{REPORT}{segments.next - 1:08d}.json"
        self._obey(self._read_word())
        self._say(owner=self._me)

    # --- for runners

    def step(self, owner: str, step: Step) -> Taken:
        self._look()
        taken = super().step(owner, step)
        self._told = self._told and taken.state == "done"
        if step is not self._kept:
            # One that failed here after it had been committed comes again.
            self._kept = step
            self._outcomes += step.outcomes
            self._strikes += step.strikes
            self._bytes += sum(len(one.body) + 100 for one in step.outcomes)
            self._answering += sum(one.seconds for one in step.outcomes)
        if step.report is not None:
            self._report = step.report
        if taken.state == "done":
            self.finish()
        elif self._sending is None:
            now = time.monotonic()
            new = bool(self._outcomes or self._strikes or self._packed)
            ship = new and (now - self._wrote >= _SHIP_SECONDS or self._bytes >= _SHIP_BYTES)
            if ship or now - self._asked >= _ASK_SECONDS:
                self._asked = now
                if ship:
                    self._pack()
                self._sending = self._sender.submit(self._talk, self._about(self._me) if ship or not new else None)
        return taken

    def release(self, owner: str) -> None:
        super().release(owner)
        self.finish()

    def finish(self) -> None:
        """Everything to the bucket, now; nobody holds the shard afterwards. Raises DatabaseTrouble where it cannot be."""
        self._wait()
        new = self._pack()
        while self._pack():
            self._ship()
        if self._told and not new:
            return
        if super().info().state == "done":
            self._segments.check()
        self._say(owner="")
        self._told = True

    def close(self) -> None:
        self._sender.shutdown(wait=True, cancel_futures=True)
        super().close()

    def set_state(self, state: State, *, reason: str = "", only: Sequence[State] = ("running", "paused")) -> bool:
        done = super().set_state(state, reason=reason, only=only)
        if done:
            self._objects.put(f"{self.id}/control.json", orjson.dumps({"state": state, "reason": reason, "ended": 0.0}))
        return done

    def reopen_failed(self) -> int:
        number = super().reopen_failed()
        self._outcomes, self._strikes, self._reopened = [], [], True
        self._answering = super().seconds()
        return number

    # --- with the bucket

    def _look(self) -> None:
        """What came of what was sent; raises DatabaseTrouble where too much waits already."""
        full = self._bytes + self._packed_bytes > _MOST_BYTES
        if self._sending is None or not (self._sending.done() or self._away or full):
            return
        sending, self._sending = self._sending, None
        try:
            sending.result()
            self._settled, self._away = time.monotonic(), False
        except DatabaseTrouble:
            self._away = full or time.monotonic() - self._settled > _AWAY_SECONDS
            if self._away:
                # The next step waits for this, and does nothing else until it succeeds.
                self._sending = self._sender.submit(self._talk, None)
                raise
        self._obey(self._word)

    def _wait(self) -> None:
        if self._sending is not None:
            sending, self._sending = self._sending, None
            try:
                sending.result()
            except DatabaseTrouble:
                # Sent again by whoever waits.
                return

    def _pack(self) -> bool:
        """Make the next segment of what is new, unless one is on its way; whether there is one."""
        if not self._packed and (self._outcomes or self._strikes or self._reopened):
            self._packed = pack(self._outcomes, self._strikes, owner=self._me, reopened=self._reopened)
            self._packed_bytes = self._bytes
            self._outcomes, self._strikes, self._reopened, self._bytes = [], [], False, 0
        return bool(self._packed)

    def _talk(self, about: bytes | None) -> None:
        """In the sender's thread: never touches the database."""
        if self._packed:
            self._ship()
        if about is not None:
            self._objects.put(self._report_name, about)
        self._word = self._read_word()

    def _ship(self) -> None:
        if time.monotonic() - self._wrote > _AWAY_SECONDS:
            # So long that others may have taken over and joined what they wrote: then the number is free again.
            self._segments.check()
        self._segments.write(self._packed)
        self._packed, self._packed_bytes = b"", 0
        self._wrote = time.monotonic()
        self._segments.join()

    def _say(self, *, owner: str) -> None:
        self._objects.put(self._report_name, self._about(owner))

    def _about(self, owner: str) -> bytes:
        info, counts = super().info(), super().counts()
        return orjson.dumps(
            {
                "owner": owner, "seen": time.time(), "state": info.state, "busy": info.busy, "ended": info.ended,
                "counts": asdict(counts), "answering": self._answering, "report": self._report,
            }
        )  # fmt: skip

    def _read_word(self) -> dict[str, Any]:
        found = self._objects.get(f"{self.id}/control.json")
        return dict(orjson.loads(found)) if found else {}

    def _obey(self, word: dict[str, Any]) -> None:
        state = word.get("state", "running")
        if state != super().info().state:
            super().set_state(state, reason=word.get("reason", ""))
