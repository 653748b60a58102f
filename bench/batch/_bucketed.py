"""A batch in a bucket, for runners whose disk goes with them: inputs once, results as segments, a word to all runners.

ID/batch.json              what it is; there last, so that a batch is there whole or not at all
ID/control.json            running, paused or cancelled
ID/<token>/00003.sqlite    the inputs of a shard, as a queue on which nobody has worked
ID/shard-00003/…           its segments (see `_segments`), and report-00000017.json: how far it is, by the runner that took it
                           with segment 17; the newest counts
"""

from __future__ import annotations

import itertools
import secrets
import sqlite3
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

import stacks

from ._database import Row, Sqlite
from ._files import scratch
from ._model import Counts, Info, RunnerReport, State
from ._objects import Objects
from ._owners import is_alive, this_owner
from ._queue import LEASE_SECONDS, Queue
from ._segments import Segments
from ._shard import REPORT, Shard, restored

_SAMPLE, _SAMPLE_BYTES = 64, 65536
_SEEN_SECONDS = 1.0


def submitted(
    store: str, queue: Queue, file: Path, shards: int, tables: Sequence[str], settings: Mapping[str, Any]
) -> None:
    """Put a finished queue into the bucket in at most so many shards. Raises InputError for an id that is taken."""
    objects, id, info = Objects(store), queue.id, queue.info()
    token = secrets.token_hex(4)
    blocks = queue.database.run("SELECT first, last FROM block ORDER BY first")
    shards = min(shards, len(blocks))
    edges = [round(number * len(blocks) / shards) for number in range(shards + 1)]
    ranges = [(int(blocks[low][0]), int(blocks[high - 1][1])) for low, high in itertools.pairwise(edges)]
    sample = [bytes(row[0]) for row in queue.database.run("SELECT body FROM item WHERE seq < ?", (_SAMPLE,))]
    while sum(map(len, sample)) > _SAMPLE_BYTES and len(sample) > 1:
        sample.pop()
    queue.close()
    written = []
    for number, span in enumerate(ranges):
        written.append(f"{id}/{token}/{number:05d}.sqlite")
        if shards == 1:
            with file.open("rb") as whole:
                objects.put(written[-1], whole)
            continue
        part = file.with_name(f"part-{number}.sqlite")
        _cut(file, part, span, tables)
        with part.open("rb") as cut:
            objects.put(written[-1], cut)
        part.unlink()
    manifest = {
        "id": id, "total": info.total, "created": info.created, "settings": dict(settings), "token": token,
        "shards": ranges, "sample": [one.decode() for one in sample],
    }  # fmt: skip
    if not objects.create(f"{id}/batch.json", orjson.dumps(manifest)):
        objects.delete(written)
        raise stacks.InputError(where="batch", got=id, allowed="an id that is not taken", fix="name another")


def _cut(whole: Path, part: Path, span: tuple[int, int], tables: Sequence[str]) -> None:
    try:
        database = sqlite3.connect(part, isolation_level=None)
        database.execute("PRAGMA journal_mode=OFF")
        database.execute("ATTACH ? AS whole", (str(whole),))
        database.execute("BEGIN")
        for table in tables:
            database.execute(table.format(**Sqlite.types))
        for name, key in (("item", "seq"), ("block", "first"), ("result", "seq")):
            database.execute(f"INSERT INTO {name} SELECT * FROM whole.{name} WHERE {key} BETWEEN ? AND ?", span)
        database.execute("INSERT INTO batch SELECT * FROM whole.batch")
        database.execute("UPDATE batch SET total = ?", (span[1] - span[0] + 1,))
        database.execute("CREATE INDEX block_open ON block (first) WHERE done = 0")
        database.execute("COMMIT")
        database.close()
    except sqlite3.Error as error:
        raise stacks.TollgateError(f"{part}: cannot be written ({error})") from None


def in_bucket(store: str) -> list[str]:
    """All batches there."""
    objects = Objects(store)
    return [name for name in objects.folders() if objects.get(f"{name}/batch.json") is not None]


def remove_from_bucket(store: str, id: str) -> None:
    """Delete a batch with its results; the word that it is one first."""
    objects = Objects(store)
    objects.delete([f"{id}/batch.json"])
    objects.delete([f"{id}/{name}" for name in objects.sizes(f"{id}/")])


class Bucketed(Queue):
    """The whole of a batch in a bucket; runners work on its shards."""

    def __init__(self, store: str, id: str) -> None:
        self.id = id
        self._objects = Objects(store)
        manifest = self._objects.get(f"{id}/batch.json")
        if manifest is None:
            raise stacks.TollgateError(f"batch {id} is not there any more")
        self._is: dict[str, Any] = orjson.loads(manifest)
        self._seen, self._reports_then = 0.0, [dict[str, Any]()]

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self._is["shards"])

    def close(self) -> None:
        """Nothing is held."""

    def sample(self) -> list[bytes]:
        return [str(one).encode() for one in self._is["sample"]]

    # --- for runners

    def parts(self, only: int | None = None) -> Generator[Queue]:
        """Each shard that is not done, restored from its checkpoints and held by this process until the next is asked for.
        `only`: this one alone; of more runners than shards the rest have nothing to do. Raises TollgateError where a
        runner that is alive holds it."""
        numbers = range(self.shards) if only is None else range(only, min(only + 1, self.shards))
        for number in numbers:
            if self._reports()[number].get("state") == "done":
                continue
            with scratch() as folder:
                shard = self._take(number, folder)
                try:
                    yield shard
                finally:
                    shard.close()
                    self._seen = 0.0

    def release_dead(self) -> list[str]:
        """Nobody's: shards are taken over one by one."""
        return []

    def _take(self, number: int, folder: Path) -> Shard:
        self._await(number)
        segments = Segments(self._objects, f"{self.id}/shard-{number:05d}/")
        database = restored(self._objects, self._base(number), segments, folder)
        report = self._reports()[number]
        name = f"shard {number + 1} of {self.shards}" if self.shards > 1 else ""
        before = self._report_names().get(number, [])
        shard = Shard(database, self.id, self._objects, segments, busy=report.get("busy", 0.0), part=name)
        self._objects.delete(before)
        return shard

    def _base(self, number: int) -> str:
        return f"{self.id}/{self._is['token']}/{number:05d}.sqlite"

    def _await(self, number: int) -> None:
        """Until nobody alive holds it: one that was killed on another machine is not heard of any more."""
        end = time.monotonic() + LEASE_SECONDS + 5
        while True:
            self._seen = 0.0
            report = self._reports()[number]
            owner = str(report.get("owner", ""))
            alive = is_alive(owner) if owner else False
            if owner == this_owner() or alive is False or time.time() - report["seen"] > LEASE_SECONDS:
                return
            if alive or time.monotonic() > end:
                raise stacks.TollgateError(
                    f"batch {self.id}: shard {number + 1} is being run by {owner}\n  fix: stop that runner, or let it work; "
                    "submit with --shards N for N runners at once"
                )
            time.sleep(1)

    # --- for people

    def info(self) -> Info:
        reports = self._reports()
        word = self._word()
        state: State = word.get("state", "running")
        ended = word.get("ended", 0.0)
        if state == "running" and all(report.get("state") == "done" for report in reports):
            state, ended = "done", max(float(report.get("ended", 0.0)) for report in reports)
        return Info(
            id=self.id, state=state, total=self._is["total"], created=self._is["created"], ended=ended,
            # Shards are worked on side by side, or one after the other; who has been at it longest is nearer to the truth.
            busy=max(float(report.get("busy", 0.0)) for report in reports), reason=word.get("reason", ""),
            settings=self._is["settings"],
        )  # fmt: skip

    def counts(self) -> Counts:
        """As the runners said last, a few seconds ago."""
        found = [report.get("counts", {}) for report in self._reports()]
        names = ("ok", "failed", "tokens_in", "tokens_out")
        return Counts(total=self._is["total"], **{name: sum(int(one.get(name, 0)) for one in found) for name in names})

    def runners(self) -> list[RunnerReport]:
        found = []
        for report in self._reports():
            if owner := report.get("owner"):
                ago, alive = time.time() - report["seen"], is_alive(owner)
                alive = ago < LEASE_SECONDS if alive is None else alive
                found.append(RunnerReport(owner=owner, seen=ago, alive=alive, report=report.get("report", {})))
        return found

    def set_state(self, state: State, *, reason: str = "", only: Sequence[State] = ("running", "paused")) -> bool:
        """Runners see it within a few seconds."""
        if self.info().state not in only:
            return False
        ended = time.time() if state == "cancelled" else 0.0
        self._objects.put(f"{self.id}/control.json", orjson.dumps({"state": state, "reason": reason, "ended": ended}))
        return True

    def reopen_failed(self) -> int:
        busy = [runner.owner for runner in self.runners() if runner.alive]
        if busy:
            raise stacks.TollgateError(f"batch {self.id} is being run by {busy[0]}\n  fix: pause it first")
        number = 0
        for at, report in enumerate(self._reports()):
            if report.get("counts", {}).get("failed"):
                with scratch() as folder:
                    shard = self._take(at, folder)
                    number += shard.reopen_failed()
                    shard.finish()
                    shard.close()
        self._seen = 0.0
        self.set_state("running", only=("running", "paused", "done"))
        return number

    def results(self, *, failed: bool | None = None) -> Iterator[Row]:
        for queue in self._read():
            yield from queue.results(failed=failed)

    def unanswered(self) -> Iterator[str]:
        for queue in self._read():
            yield from queue.unanswered()

    def seconds(self) -> float:
        return sum(float(report.get("answering", 0.0)) for report in self._reports())

    def _read(self) -> Iterator[Queue]:
        """Each shard as its checkpoints say, for reading; one at a time on the disk."""
        for number in range(self.shards):
            with scratch() as folder:
                segments = Segments(self._objects, f"{self.id}/shard-{number:05d}/")
                queue = Queue(restored(self._objects, self._base(number), segments, folder), self.id)
                try:
                    yield queue
                finally:
                    queue.close()

    def _word(self) -> dict[str, Any]:
        found = self._objects.get(f"{self.id}/control.json")
        return dict(orjson.loads(found)) if found else {}

    def _reports(self) -> list[dict[str, Any]]:
        """Of each shard; empty where nobody has worked on it."""
        if time.monotonic() - self._seen > _SEEN_SECONDS:
            names = self._report_names()
            found = [self._report(names.get(number, [])) for number in range(self.shards)]
            self._reports_then = [dict(orjson.loads(one)) if one else {} for one in found]
            self._seen = time.monotonic()
        return self._reports_then

    def _report(self, names: Sequence[str]) -> bytes | None:
        """The newest of a shard's that is there: who takes it deletes what those before him said."""
        return next((found for name in reversed(names) if (found := self._objects.get(name)) is not None), None)

    def _report_names(self) -> dict[int, list[str]]:
        """Of each shard that has any, the newest last."""
        numbers = {f"shard-{number:05d}": number for number in range(self.shards)}
        found: dict[int, list[str]] = {}
        for name in sorted(self._objects.sizes(f"{self.id}/")):
            shard, _, last = name.partition("/")
            if last.startswith(REPORT) and shard in numbers:
                found.setdefault(numbers[shard], []).append(f"{self.id}/{name}")
        return found
