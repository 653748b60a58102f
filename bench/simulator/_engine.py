"""The simulated engine: who runs, who waits, when each token is ready.

`BatchEngine` steps as an engine does. Each step takes the next token of every running request and as many prompt tokens
as fit `max_batched_tokens` (chunked prefill), lasts as long as the latency model says for that batch, and then every
request whose prompt is done has one more token. A request that finds no free block of the KV cache waits; one that
needs a block to go on when none is free takes it from the youngest, which starts again (preemption by recomputation).
One timer serves all streams, and none is set while nothing runs. Where several workers serve one engine, slots, queue and
blocks are counted over all of them, and a step lasts as long as the batch of all takes (`_share`).

`_paced.PacedEngine` has fixed latencies instead. Both keep time by an ideal clock: a late timer delays one token, never
the rate. Only when this process was starved for `MAX_LAG` seconds is the lost time given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from ._options import Engine as EngineOptions
from ._scheduler import Scheduler, Sequence, clock
from ._share import BLOCKS, CONTEXT, DECODING, PREFILLING
from ._stats import Stats
from ._timing import Timing

if TYPE_CHECKING:
    from ._share import Board

MAX_LAG = 0.25
CACHED_BLOCKS = 1 << 14
_RETRY = 0.005
_EARLY = 0.0006  # uvloop rounds timers to whole milliseconds: this much early is on time.


class BatchEngine(Scheduler):
    """Steps through time as the module's docstring says.

    `blocks`: blocks of the KV cache, 0 for an engine whose slots each have their whole context reserved (Ollama).
    """

    def __init__(
        self,
        options: EngineOptions,
        timing: Timing,
        stats: Stats,
        loop: asyncio.AbstractEventLoop,
        *,
        blocks: int = 0,
        slowdown: Callable[[float], float] | None = None,
    ) -> None:
        super().__init__(options, stats, loop)
        self.timing = timing
        self.running: list[Sequence] = []
        self.blocks = blocks
        self.used = 0
        self._elsewhere = 0
        self.block_tokens = options.block_tokens
        # Without chunked prefill a prompt is worked in one step, which must then be able to take the longest.
        self.chunked = options.chunked
        self.budget = max(options.max_batched_tokens, 0 if options.chunked else options.context_tokens)
        self.speed = options.sim.speed
        self.slowdown = slowdown
        self._timer: asyncio.TimerHandle | None = None
        self._now = 0.0
        self._duration = 0.0
        self._ready: list[Sequence] = []
        self._cache: dict[int, None] = {}
        self._salt = 0
        self._stopped = False

    @property
    def free(self) -> int:
        """Blocks of the KV cache that nobody holds."""
        return self.blocks - self.used - self._elsewhere

    def kv_usage(self) -> float:
        return self.used / self.blocks if self.blocks else 0.0

    def _wake(self) -> None:
        if self._timer is None and not self._stopped:
            self._now = clock()
            # Requests that arrive in the same turn of the event loop belong into the same step.
            self._timer = self.loop.call_later(0, self._begin_soon)

    def _begin_soon(self) -> None:
        self._timer = None
        self._begin()

    def _begin(self) -> None:
        """Choose the next step's batch and set its timer."""
        budget = self.budget
        board = self.board
        if board is not None:
            self._elsewhere = int(board.others(BLOCKS))
            budget = max(budget // board.workers, budget - int(board.others(DECODING) + board.others(PREFILLING)))
        decoding = context = prefilling = 0
        ready = self._ready
        ready.clear()
        position = 0
        running = self.running
        while position < len(running):
            seq = running[position]
            position += 1
            if self.blocks and not self._room(seq):
                break  # it was the youngest and lost its own blocks
            missing = seq.prompt + seq.made - seq.computed
            if missing <= 1 and seq.made:
                decoding += 1
                budget -= 1
                context += seq.computed
                if seq.slow > 1.0:
                    # Made slower on purpose: it takes part in the step without a token until its turn.
                    seq.debt += 1.0
                    if seq.debt < seq.slow:
                        continue
                    seq.debt -= seq.slow
                seq.computed += 1
                ready.append(seq)
            elif budget > 0:
                chunk = min(missing, budget)
                prefilling += chunk
                budget -= chunk
                seq.computed += chunk
                if chunk == missing:
                    ready.append(seq)
        while budget > 0:
            head = self._next()
            if head is None or not self._take():
                break
            if not self._admit(head, budget):
                self._give()
                break
            seq = self.waiting.popleft()
            self._queue(-1)
            self.active += 1
            seq.state = 1
            if not seq.admitted:
                seq.admitted = max(seq.arrived, self._now)
            running.append(seq)
            missing = seq.prompt + seq.made - seq.computed
            chunk = min(missing, budget)
            prefilling += chunk
            budget -= chunk
            seq.computed += chunk
            if chunk == missing:
                ready.append(seq)
        if board is not None:
            for cell, value in (
                (DECODING, decoding),
                (CONTEXT, context),
                (PREFILLING, prefilling),
                (BLOCKS, self.used),
            ):
                board.put(cell, value)
        if not running:
            if board is not None and self.queued and not self._watching:
                # The others hold the blocks that the first in the queue needs.
                self._now = clock()
                self._timer = self.loop.call_later(_RETRY, self._begin_soon)
            self._after()
            return
        self.stats.iteration(prefilling + decoding)
        if board is not None:
            decoding += int(board.others(DECODING))
            context += int(board.others(CONTEXT))
            prefilling += int(board.others(PREFILLING))
        duration = 0.0
        if prefilling:
            duration += self.timing.prefill_seconds(prefilling, decoding)
        if decoding:
            duration += self.timing.decode_step_seconds(decoding, context / decoding)
        duration /= self.speed
        if self.slowdown is not None:
            duration = self.slowdown(duration)
        self._duration = duration
        self._timer = self.loop.call_later(max(0.0, self._now + duration - clock()), self._end)

    def _end(self) -> None:
        """The step is over: hand out its tokens and begin the next, catching up where the timer came late."""
        turns = 0
        while True:
            self._timer = None
            end = self._now + self._duration
            now = clock()
            if end - now > _EARLY:
                self._timer = self.loop.call_later(end - now, self._end)
                return
            if now - end > MAX_LAG:
                end = now
            self._now = end
            self._emit(end)
            if not self.busy:
                self._after()
                return
            if self._timer is not None:  # a sink's callback woke the engine
                return
            self._begin()
            turns += 1
            if self._timer is None or turns >= 8 or self._now + self._duration > clock() + _EARLY:
                return
            self._timer.cancel()

    def _emit(self, now: float) -> None:
        stats = self.stats
        gaps = 0
        previous = 0.0
        gap = 0.0
        for seq in self._ready:
            if seq.state != 1:
                continue
            seq.made += 1
            if seq.made == 1:
                seq.first = now
                self._backlog(-seq.prompt)
                stats.first_token(seq)
            else:
                if seq.last == previous:
                    gaps += 1
                else:
                    if gaps:
                        stats.gaps(gap, gaps)
                    previous, gap, gaps = seq.last, now - seq.last, 1
            seq.last = now
            if seq.made >= seq.output:
                self._finish(seq)
            elif seq.streams:
                try:
                    seq.sink.on_token(seq)
                except Exception as error:  # noqa: BLE001 - see `broken`
                    self.broken(seq, error)
        if gaps:
            stats.gaps(gap, gaps)

    def _finish(self, seq: Sequence) -> None:
        self._leave(seq)
        seq.state = 2
        self.stats.finished(seq)
        self._over(seq)

    # The KV cache: counted in blocks, not held.

    def _admit(self, seq: Sequence, budget: int) -> bool:
        hit = self._lookup(seq)
        if not self.chunked and seq.prompt + seq.made - hit > budget:
            return False
        if self.blocks:
            need = -(-(seq.prompt + seq.made + 1) // self.block_tokens)
            if need > self.free:
                return False
            self.used += need
            seq.blocks = need
        seq.computed = hit
        return True

    def _lookup(self, seq: Sequence) -> int:
        """Prompt tokens found in the prefix cache, whole blocks, never the whole prompt."""
        chain = seq.chain
        if not chain:
            return 0
        hits = self._hits(chain)
        tokens = min(hits * seq.prompt // len(chain), seq.prompt - 1)
        tokens -= tokens % self.block_tokens
        if not seq.preemptions:
            seq.cached = tokens
            self.stats.prefix(seq.prompt, tokens)
        return tokens

    def _hits(self, chain: tuple[int, ...]) -> int:
        """How many blocks from the start of `chain` are cached; all of them are from now on."""
        hits = 0
        board = self.board
        if board is not None:
            hashes, mask = board.hashes, board.mask
            keys = [key ^ self._salt for key in chain]
            while hits < len(keys):
                key = keys[hits]
                if hashes[key & mask] != key and hashes[key >> 24 & mask] != key:
                    break
                hits += 1
            for key in keys[hits:]:
                place, second = key & mask, key >> 24 & mask
                hashes[second if hashes[place] and not hashes[second] else place] = key
            return hits
        cache = self._cache
        for key in chain:
            if key not in cache:
                break
            del cache[key]  # to the young end
            cache[key] = None
            hits += 1
        for key in chain[hits:]:
            cache[key] = None
        limit = self.blocks or CACHED_BLOCKS
        while len(cache) > limit:
            del cache[next(iter(cache))]
        return hits

    def share(self, board: Board, model: str) -> None:
        super().share(board, model)
        self._salt = hash(model)

    def _room(self, seq: Sequence) -> bool:
        """A block for the next token, taken from the youngest where none is free; False where `seq` itself was it."""
        if seq.computed < seq.blocks * self.block_tokens:
            return True
        while self.free <= 0:
            victim = self.running[-1]
            self._leave(victim)
            self._queue(1)
            victim.state = 0
            victim.computed = 0
            victim.preemptions += 1
            self.waiting.appendleft(victim)
            self.stats.preempted()
            if victim in self._ready:
                self._ready.remove(victim)
            if victim is seq:
                return False
        self.used += 1
        seq.blocks += 1
        return True

    def _leave(self, seq: Sequence) -> None:
        if self.running[-1] is seq:
            self.running.pop()
        else:
            self.running.remove(seq)
        self.active -= 1
        self.used -= seq.blocks
        seq.blocks = 0
        self._give()

    def stop(self) -> None:
        super().stop()
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
