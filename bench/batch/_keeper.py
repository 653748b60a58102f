"""Group commit: a thread of its own that writes what the runner has since it last wrote, and brings new work."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import stacks

from ._database import DatabaseTrouble
from ._model import Block, Counts, Outcome, Strike
from ._queue import Queue, Step, Taken

# Commits are no closer than this: each costs a synchronisation of the disk, however much is in it.
_APART_SECONDS = 0.01
_BEAT_SECONDS = 1.0
_AGAIN_SECONDS = 1.0
_T = TypeVar("_T")


class Keeper:
    """Between the event loop and the queue. `committed(outcomes, taken, counts)` is called in the loop after each commit
    (`counts` once a second, else None); `trouble(words)` when the database cannot be used, and with nothing when it can be
    again; `broken(error)` once, after which the thread ends."""

    def __init__(
        self,
        queue: Queue,
        owner: str,
        *,
        committed: Callable[[int, Taken, Counts | None], None],
        trouble: Callable[[str], None],
        broken: Callable[[BaseException], None],
        report: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._queue, self._owner = queue, owner
        self._committed, self._trouble, self._broken, self._report = committed, trouble, broken, report
        self._loop = asyncio.get_running_loop()
        # Queues between two threads: appending and taking one from the left are atomic.
        self._outcomes: deque[Outcome] = deque()
        self._strikes: deque[Strike] = deque()
        self._finished: deque[Block] = deque()
        self._claims: deque[int] = deque()
        self._committing = 0
        self._wake, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="batch keeper", daemon=True)

    def start(self) -> None:
        """Begin; the first lease is asked for by `claim`."""
        self._thread.start()

    def keep(self, outcome: Outcome) -> None:
        """Make this durable soon."""
        self._outcomes.append(outcome)
        if not self._wake.is_set():
            self._wake.set()

    def strike(self, strike: Strike) -> None:
        """Remember this failure."""
        self._strikes.append(strike)

    def finished(self, block: Block) -> None:
        """All of its outcomes have been given to `keep`."""
        self._finished.append(block)

    def claim(self, inputs: int) -> None:
        """Ask for so many more."""
        self._claims.append(inputs)
        self._wake.set()

    @property
    def unsettled(self) -> int:
        """How many outcomes are not durable yet."""
        return len(self._outcomes) + self._committing

    async def finish(self) -> None:
        """Commit everything, give back the leases, end the thread."""
        self._leave.set()
        self._wake.set()
        while self._thread.is_alive():
            await asyncio.sleep(0.005)

    # --- the thread

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - reported in the loop, where somebody waits
            self._loop.call_soon_threadsafe(self._broken, error)

    def _work(self) -> None:
        beat = 0.0
        while True:
            self._wake.wait(0.25)
            leave = self._leave.is_set()
            self._wake.clear()
            begun = time.monotonic()
            # Finished blocks first: their outcomes were given before them.
            finished, strikes, claim = _all(self._finished), _all(self._strikes), sum(_all(self._claims))
            # Counted before they leave the queue: some are counted twice for a moment, none is ever missed.
            self._committing = len(self._outcomes)
            outcomes = [self._outcomes.popleft() for _ in range(self._committing)]
            due = begun - beat >= _BEAT_SECONDS or beat == 0.0
            if outcomes or strikes or claim or due or leave or finished:
                last = {strike.seq: strike for strike in strikes}
                step = Step(
                    outcomes=outcomes,
                    strikes=list(last.values()),
                    finished=finished,
                    claim=0 if leave else claim,
                    report=self._report() if due or leave else None,
                )
                taken, counts = self._persist(step, count=due)
                if due:
                    beat = begun
                self._committing = 0
                self._loop.call_soon_threadsafe(self._committed, len(outcomes), taken, counts)
            if leave:
                if self._leave.is_set() and not self._outcomes and not self._finished:
                    self._persist_release()
                    return
                continue
            rest = _APART_SECONDS - (time.monotonic() - begun)
            if rest > 0:
                self._leave.wait(rest)

    def _persist(self, step: Step, *, count: bool) -> tuple[Taken, Counts | None]:
        """Until it is done: what has been answered is never thrown away because the disk is full for a while."""
        troubled, last_tries = False, 3
        while True:
            try:
                taken = self._queue.step(self._owner, step)
                if step.claim and taken.empty:
                    # Somebody else's leases are in the way: is he still there?
                    self._queue.release_dead()
                counts = self._queue.counts() if count else None
            except DatabaseTrouble as error:
                if self._leave.is_set():
                    last_tries -= 1
                    if not last_tries:
                        # Nobody waits for ever; what is not written will be asked again.
                        raise
                    time.sleep(_AGAIN_SECONDS)
                troubled = True
                self._loop.call_soon_threadsafe(self._trouble, str(error))
                self._leave.wait(_AGAIN_SECONDS)
                continue
            if troubled:
                self._loop.call_soon_threadsafe(self._trouble, "")
            return taken, counts

    def _persist_release(self) -> None:
        try:
            self._queue.release(self._owner)
        except stacks.TollgateError:
            # They expire by themselves.
            return


def _all(queue: deque[_T]) -> list[_T]:
    return [queue.popleft() for _ in range(len(queue))]
