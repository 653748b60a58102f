"""Works through a batch: sends as fast as the endpoints gain by it, loses nothing, and says how far it is.

One event loop sends and reads; one thread writes (see `_keeper`). An input that is asked is leased, and its answer is a
result only when it is committed; killed at any moment, the runner leaves behind nothing but inputs without results.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import heapq
import math
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from time import monotonic
from typing import Any

import orjson
import uvloop

import stacks

from ._endpoint import Endpoint, Work
from ._forecast import Forecast, projected, warnings
from ._judge import Finding, Kind
from ._keeper import Keeper
from ._model import Block, Counts, Outcome, State, Strike
from ._owners import this_owner
from ._progress import STOPPED, Ending, Progress, RunSettings, report_of
from ._queue import Queue, Taken
from ._wire import EndpointSettings

_TICK_SECONDS = 0.1
_CLAIM_AGAIN_SECONDS = 1.0
_FEWEST_READY = 64
# Broken connections until an input is given up: the last two of them with nothing else in flight.
_MOST_LOSSES = 5
_RETRY_FIRST, _RETRY_MOST = 0.5, 30.0
# So many different inputs, each asked alone of an endpoint that is well, do not fail by themselves: a wrong model does it.
_MOST_ALONE = 5


def run(
    queue: Queue,
    endpoints: Sequence[EndpointSettings],
    settings: RunSettings | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    signals: bool = True,
    stop: Callable[[], bool] | None = None,
    only: int | None = None,
) -> Ending:
    """Work until the batch is done, cancelled or paused by its failures; blocks. While paused by somebody, it waits.

    SIGINT and SIGTERM (or `stop` returning true) end it early: what is in flight may finish within `grace`, or until the signal
    comes again. Of a batch in shards all are worked on, one after the other, or `only` that one. Raises TollgateError where
    the database fails for good or no endpoint answers for `patience` seconds.
    """
    if not endpoints:
        raise stacks.InputError(where="--endpoint", got="none", allowed="at least one", fix="name one")
    names = Counter(endpoint.url for endpoint in endpoints)
    if max(names.values()) > 1:
        raise stacks.InputError(
            where="--endpoint", got=names.most_common(1)[0][0] + " twice", allowed="once", fix="remove one"
        )
    info = queue.info()
    if info.state in ("paused", "cancelled"):
        why = f": {info.reason}" if info.reason else ""
        fix = f"\n  fix: tollgate batch resume {info.id}" if info.state == "paused" else ", for ever"
        raise stacks.TollgateError(f"batch {info.id} is {info.state}{why}{fix}")
    queue.release_dead()
    asked = 0
    ending: Ending | None = None
    with contextlib.closing(queue.parts(only)) as parts:
        for part in parts:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
                runner = _Runner(part, endpoints, settings or RunSettings(), progress)
                ending = loop.run(runner.run(signals=signals, stop=stop))
            part.finish()
            asked += ending.asked
            if ending.state != "done":
                break
    # Without any: all were done before.
    ending = ending or Ending(state="done", counts=queue.counts(), reason="", asked=0)
    return dataclasses.replace(ending, counts=queue.counts(), asked=asked)


class _Runner:
    def __init__(
        self, queue: Queue, endpoints: Sequence[EndpointSettings], settings: RunSettings,
        progress: Callable[[Progress], None] | None,
    ) -> None:  # fmt: skip
        self._queue, self._settings, self._progress = queue, settings, progress
        self._given = endpoints
        self._endpoints: list[Endpoint] = []
        self._ready: deque[Work] = deque()
        self._suspects: deque[Work] = deque()
        self._delayed: list[tuple[float, int, Work]] = []
        self._numbers = count()
        self._blocks: dict[int, tuple[Block, int]] = {}
        self._claiming, self._claim_at = False, 0.0
        self._state: State = "running"
        self._stopping = False
        self._pausing = self._hurry = False
        self._reason = self._trouble = ""
        self._last_report: Mapping[str, Any] = {}
        self._checks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self._failed_in_a_row = 0
        self._asked = 0
        self._errors: Counter[str] = Counter()
        self._counts: Counts | None = None
        self._base = 0
        self._busy = 0.0
        self._looked = self._answered_at = 0.0
        self._busy_before = 0.0

    async def run(self, *, signals: bool, stop: Callable[[], bool] | None) -> Ending:
        loop = asyncio.get_running_loop()
        self._endpoints = [Endpoint(given, self._ended, timeout=self._settings.timeout) for given in self._given]
        self._looked = self._answered_at = monotonic()
        self._busy_before = self._queue.info().busy
        self._forecast = Forecast(0.0)
        self._over = asyncio.Event()
        self._keeper = Keeper(
            self._queue, this_owner(), committed=self._committed, trouble=self._troubled, broken=self._broke,
            report=lambda: self._last_report,
        )  # fmt: skip
        if signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._signalled)
        try:
            self._claim()
            self._keeper.start()
            while not self._over.is_set():
                self._tick()
                if stop is not None and stop():
                    self._stop("stopped")
                try:
                    await asyncio.wait_for(self._over.wait(), _TICK_SECONDS)
                except TimeoutError:
                    continue
            await self._leave()
        finally:
            for endpoint in self._endpoints:
                endpoint.close()
            if signals:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(number)
        if self._error is not None:
            raise self._error
        if self._reason and self._state == "running" and self._pausing:
            self._queue.set_state("paused", reason=self._reason)
        found = self._queue.info()
        return Ending(state=found.state, counts=self._queue.counts(), reason=self._reason, asked=self._asked)

    def _stop(self, reason: str, *, pausing: bool = False) -> None:
        if not self._stopping:
            self._stopping, self._reason, self._pausing = True, reason, pausing
            self._over.set()

    def _signalled(self) -> None:
        # Told twice: somebody is in a hurry.
        self._hurry = self._stopping
        self._stop(STOPPED)

    async def _leave(self) -> None:
        """Let what is in flight finish, commit it, give back the leases."""
        end = monotonic() + (self._settings.grace if self._state != "cancelled" and self._error is None else 0.0)
        while any(endpoint.in_flight for endpoint in self._endpoints) and monotonic() < end and not self._hurry:
            await asyncio.sleep(0.02)
        self._stopping = True
        await self._keeper.finish()
        # The last commit reports by a callback.
        await asyncio.sleep(0)

    # --- sending

    def _pump(self) -> None:
        """Send as much as there is room for."""
        if self._stopping or self._trouble or self._state != "running":
            return
        room_to_keep = self._most_unsettled() - self._keeper.unsettled
        if len(self._endpoints) == 1:
            endpoint = self._endpoints[0]
            while room_to_keep > 0 and self._send(endpoint):
                room_to_keep -= 1
        else:
            while room_to_keep > 0:
                # The one with the most of its capacity free comes first, so that all are used by their capacity.
                order = sorted(self._endpoints, key=lambda one: one.in_flight / max(1, one.pace.limit))
                if not any(self._send(endpoint) for endpoint in order):
                    break
                room_to_keep -= 1
        if not self._claiming and len(self._ready) < self._low() and monotonic() >= self._claim_at:
            self._claim()

    def _send(self, endpoint: Endpoint) -> bool:
        if endpoint.room() <= 0 or (endpoint.not_before and monotonic() < endpoint.not_before):
            return False
        suspects = self._suspects
        careful = bool(suspects) and (endpoint is self._ward() or (endpoint.probing and not self._ready))
        if careful:
            # Here only suspects are asked now, in crowds that leave few innocents beside a culprit.
            endpoint.pace.idle()
            if endpoint.in_flight + 1 > suspects[0].crowd:
                return False
            work = suspects.popleft()
        elif self._ready:
            work = self._ready.popleft()
        else:
            endpoint.pace.idle()
            return False
        self._asked += 1
        work.started = time.time()
        endpoint.ask(work)
        return True

    def _ward(self) -> Endpoint | None:
        """Where suspects are asked: the first endpoint that answers, so that the others go on undisturbed."""
        return next((endpoint for endpoint in self._endpoints if not endpoint.probing), None)

    def _limit(self) -> int:
        return sum(endpoint.pace.limit for endpoint in self._endpoints)

    def _most_unsettled(self) -> int:
        """How many answers may wait for their commit: with what is in flight, this is what a kill makes be asked again."""
        return max(_FEWEST_READY, self._limit())

    def _low(self) -> int:
        return max(_FEWEST_READY, self._limit())

    def _claim(self) -> None:
        self._claiming = True
        self._keeper.claim(2 * self._low())

    # --- what endpoints report

    def _ended(self, endpoint: Endpoint, work: Work, finding: Finding, body: bytes, status: int) -> None:
        now = monotonic()
        kind = finding.kind
        if kind is Kind.ANSWER:
            endpoint.last_ok = self._answered_at = now
            if endpoint.words or endpoint.probing:
                endpoint.lives(now)
            endpoint.ok += 1
            endpoint.tokens_in += finding.tokens_in
            endpoint.tokens_out += finding.tokens_out
            endpoint.pace.answered(now - work.sent)
            self._failed_in_a_row = 0
            self._settle(endpoint, work, now, finding, body, status)
        elif kind is Kind.REFUSED:
            self._answered_at = now
            endpoint.lives(now)
            endpoint.last_ok = now
            self._fail(endpoint, work, now, finding, body, status)
        elif self._stopping and kind is not Kind.FAILED:
            # Going away; it has no result and will be asked again.
            self._ready.append(work)
        else:
            self._errors[finding.code] += 1
            self._trouble_with(endpoint, work, now, finding, body, status)
        self._pump()

    def _trouble_with(
        self, endpoint: Endpoint, work: Work, now: float, finding: Finding, body: bytes, status: int
    ) -> None:
        words = f"{finding.code}: {finding.words}" if finding.words else finding.code
        proven = endpoint.last_ok > work.sent
        if finding.kind is Kind.BUSY:
            endpoint.pace.busy(now)
            self._ready.appendleft(work)
            if finding.retry_after or not endpoint.in_flight:
                endpoint.rest(now, words, seconds=finding.retry_after, probing=False)
            return
        if finding.kind is Kind.AWAY:
            self._ready.appendleft(work)
            endpoint.rest(now, words)
            return
        if finding.code in ("http_401", "http_403") and endpoint.last_ok == -math.inf:
            self._ready.append(work)
            self._stop(f"{endpoint.name} answers {words}; give a valid API key", pausing=True)
            return
        if finding.kind is Kind.LOST:
            work.lost()
            if work.losses >= _MOST_LOSSES:
                lost = Finding(
                    Kind.LOST, "lost", f"the connection broke {work.losses} times with it in flight, twice alone"
                )
                self._fail(endpoint, work, now, lost, b"", 0)
            else:
                self._keeper.strike(Strike(work.item.seq, work.tries, work.losses, words))
                (self._suspects if work.crowd < math.inf else self._ready).append(work)
            if not proven:
                endpoint.rest(now, words)
            return
        if proven:
            self._try_again(endpoint, work, now, finding, body, status)
            return
        alone = endpoint.probing and endpoint.in_flight == 0
        endpoint.rest(now, words)
        if not alone:
            self._ready.append(work)
            return
        # Asked alone and failed: only the endpoint's own word can tell whose fault that is.
        task = asyncio.get_running_loop().create_task(self._prove(endpoint, work, finding, body, status))
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    async def _prove(self, endpoint: Endpoint, work: Work, finding: Finding, body: bytes, status: int) -> None:
        healthy = await asyncio.to_thread(endpoint.healthy)
        if healthy:
            endpoint.is_well()
            endpoint.failed_alone.add(work.item.seq)
            if self._settings.stop_after and len(endpoint.failed_alone) >= _MOST_ALONE and len(self._endpoints) == 1:
                words = f"{finding.code}: {finding.words}" if finding.words else finding.code
                self._stop(f"{endpoint.name} says that it is well and fails every input, with {words}", pausing=True)
            self._try_again(endpoint, work, monotonic(), finding, body, status)
        else:
            self._ready.append(work)

    def _try_again(
        self, endpoint: Endpoint, work: Work, now: float, finding: Finding, body: bytes, status: int
    ) -> None:
        """A failure of the input's own: later once more, or never again."""
        if work.tries + 1 >= self._settings.tries:
            self._fail(endpoint, work, now, finding, body, status)
            return
        work.tries += 1
        words = f"{finding.code}: {finding.words}" if finding.words else finding.code
        self._keeper.strike(Strike(work.item.seq, work.tries, work.losses, words))
        pause = min(_RETRY_MOST, _RETRY_FIRST * 2 ** (work.tries - 1)) * random.uniform(0.75, 1.25)
        heapq.heappush(self._delayed, (now + pause, next(self._numbers), work))

    def _fail(self, endpoint: Endpoint, work: Work, now: float, finding: Finding, body: bytes, status: int) -> None:
        endpoint.failed += 1
        self._failed_in_a_row += 1
        most = self._settings.stop_after
        if most and self._failed_in_a_row >= most:
            said = f"{finding.code}: {finding.words}" if finding.words else finding.code
            self._stop(f"the last {most} inputs all failed, with {said}", pausing=True)
        self._settle(endpoint, work, now, finding, body or orjson.dumps(finding.words), status)

    def _settle(self, endpoint: Endpoint, work: Work, now: float, finding: Finding, body: bytes, status: int) -> None:
        item = work.item
        seconds, into, out = now - work.sent, finding.tokens_in, finding.tokens_out
        self._keeper.keep(
            Outcome(
                item.seq, status, finding.code, body, endpoint.name, work.started, seconds, work.tries + 1, into, out
            )
        )
        block, left = self._blocks[work.block]
        if left > 1:
            self._blocks[work.block] = (block, left - 1)
        else:
            del self._blocks[work.block]
            self._keeper.finished(block)

    # --- what the keeper reports

    def _committed(self, _written: int, taken: Taken, counts: Counts | None) -> None:
        if taken.state != self._state:
            self._state = taken.state
            if taken.state in ("cancelled", "done"):
                self._over.set()
        for block, items in taken.blocks:
            if not items:
                self._keeper.finished(block)
                continue
            self._blocks[block.first] = (block, len(items))
            for item in items:
                work = Work(item, block.first)
                (self._suspects if work.crowd < math.inf else self._ready).append(work)
        if self._claiming and (taken.blocks or taken.empty or taken.state != "running"):
            self._claiming = False
            if not taken.blocks:
                self._claim_at = monotonic() + _CLAIM_AGAIN_SECONDS
        if counts is not None:
            self._count(counts)
        self._pump()

    def _count(self, counts: Counts) -> None:
        now = monotonic()
        if self._counts is None:
            self._base = counts.done
            if not counts.done:
                self._answered_at = now
        self._counts = counts
        if self._state == "running":
            self._busy += now - self._looked
        self._looked = now
        # By the time at work: while somebody has paused the batch, nothing is slow.
        self._forecast.feed(self._busy, max(0, counts.done - self._base))
        found = self._state_of_things()
        self._last_report = report_of(found)
        if self._progress is not None:
            self._progress(found)

    def _troubled(self, words: str) -> None:
        self._trouble = words
        if self._progress is not None and self._counts is not None:
            self._progress(self._state_of_things())
        self._pump()

    def _broke(self, error: BaseException) -> None:
        self._error = self._error or error
        self._over.set()

    # --- now and then

    def _tick(self) -> None:
        now = monotonic()
        while self._delayed and self._delayed[0][0] <= now:
            # Behind the others: what fails again and again must not be the only thing that is asked.
            self._ready.append(heapq.heappop(self._delayed)[2])
        for endpoint in self._endpoints:
            endpoint.sweep(now)
            endpoint.pace.tick(now)
        if self._state != "running":
            # Nobody is asked, so that nobody can answer.
            self._answered_at = now
        elif not any(endpoint.in_flight for endpoint in self._endpoints) and not self._ready and not self._blocks:
            self._answered_at = now
        patience = max(self._settings.patience, self._settings.timeout)
        if now - self._answered_at > patience:
            said = "; ".join(f"{endpoint.name}: {endpoint.words or 'no answer'}" for endpoint in self._endpoints)
            self._error = stacks.TollgateError(
                f"no endpoint has answered for {patience:.0f} s: {self._trouble or said}\n"
                "  fix: mend it and run the batch again; nothing is lost"
            )
            self._over.set()
        self._pump()

    def _state_of_things(self) -> Progress:
        counts = self._counts or Counts()
        eta = self._forecast.eta(counts.left)
        settings = self._settings
        busy = self._busy_before + self._busy
        tokens = (counts.tokens_in, counts.tokens_out)
        known = settings.prices.known
        spent = settings.prices.cost(busy / 3600, *tokens) if known else math.nan
        cost = (
            projected(settings.prices, busy=busy, eta=eta.seconds, done=counts.done, left=counts.left, tokens=tokens)
            if known
            else math.nan
        )
        deadline = settings.deadline - time.time() if settings.deadline is not None else None
        return Progress(
            counts=counts, eta=eta, busy=busy, spent=spent, cost=cost, errors=dict(self._errors),
            endpoints={endpoint.name: self._of(endpoint) for endpoint in self._endpoints},
            trouble=self._trouble, state=self._state, part=self._queue.part,
            warnings=warnings(
                eta, left=counts.left, deadline=deadline, budget=settings.budget, cost=cost, prices=settings.prices, spent=spent
            ),
        )  # fmt: skip

    def _of(self, endpoint: Endpoint) -> dict[str, Any]:
        pace, prices = endpoint.pace, self._settings.prices
        per_hour = endpoint.settings.per_hour
        if per_hour is None and len(self._endpoints) == 1:
            per_hour = prices.per_hour
        state = "away" if endpoint.probing else "resting" if endpoint.not_before > monotonic() else "up"
        return {
            "state": state, "in_flight": endpoint.in_flight, "limit": pace.limit, "settled": pace.settled, "rate": pace.rate,
            "ok": endpoint.ok, "failed": endpoint.failed, "tokens_in": endpoint.tokens_in,
            "tokens_out": endpoint.tokens_out, "words": endpoint.words,
            # Of this run. Several runners at one endpoint pay for its hours once, and for their tokens each.
            "usd_hours": None if per_hour is None else per_hour * self._busy / 3600,
            "usd_tokens": prices.cost(0.0, endpoint.tokens_in, endpoint.tokens_out),
        }  # fmt: skip
