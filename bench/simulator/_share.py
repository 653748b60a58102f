"""One engine served by several processes: what they have in common lies in memory that all of them map.

Slots are an eventfd that counts the free ones: taking and giving one is a system call, nobody waits in it, and a worker
with a queue is woken by it like by a socket. What a step of the batch has to know of the others (requests, context,
blocks) stands in a row per worker that only this worker writes; reading a row a moment too early costs nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from pathlib import Path

POOLS = 32
_KEY = 16
_HEAT = 8
# What a worker tells of itself: requests decoding, their context, tokens of the present step's prompts, blocks, requests
# that wait, prompt tokens of requests without a first token.
DECODING, CONTEXT, PREFILLING, BLOCKS, QUEUED, BACKLOG = range(6)
_ROW = 6


class Pool:
    """The slots of one model, shared by all workers."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def take(self) -> bool:
        """Take a free slot; False where there is none."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return False
        return True

    def give(self) -> None:
        """Give a slot back."""
        os.eventfd_write(self.fd, 1)

    def free(self) -> int:
        """Free slots now."""
        return _count(self.fd)


def _count(fd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "eventfd-count":
            return int(value, 16)
    return 0


class Board:
    """The shared memory of `workers` processes; made before they are forked. `slots`: of each model; `cached`: blocks that
    the prefix cache holds.

    The prefix cache is a table of block hashes in which each has two places: where both are taken, a newer one takes the
    first. So it forgets a little earlier than one in order of use would, and needs no lock.
    """

    def __init__(self, workers: int, slots: int, cached: int = 0) -> None:
        self.workers = workers
        self._slots = slots
        size = 1 << max(0, cached - 1).bit_length()
        self._table = mmap.mmap(-1, 8 * size)
        self.hashes = memoryview(self._table).cast("q")
        self.mask = size - 1
        names = POOLS * _KEY
        self._memory = mmap.mmap(-1, names + 8 * (_HEAT + workers * _ROW))
        self._names = memoryview(self._memory)[:names]
        self._cells = memoryview(self._memory)[names:].cast("d")
        self._fds = [os.eventfd(slots, os.EFD_NONBLOCK | os.EFD_SEMAPHORE) for _ in range(POOLS)]
        self._lock = os.memfd_create("simulator-lock")
        self._mine = _HEAT

    def become(self, worker: int) -> None:
        """This process is that worker from now on."""
        self._mine = _HEAT + worker * _ROW

    def close(self) -> None:
        """For the process that serves nothing: give up its hold, the workers keep theirs."""
        for fd in (*self._fds, self._lock):
            os.close(fd)
        for view in (self._names, self._cells, self.hashes):
            view.release()
        self._memory.close()
        self._table.close()

    @property
    def heat(self) -> memoryview[float]:
        """Three numbers for the one GPU's temperature."""
        return self._cells[:_HEAT]

    def pool(self, model: str) -> Pool:
        """The slots of `model`: the same ones in every worker that asks by this name."""
        key = hashlib.blake2b(model.encode(), digest_size=_KEY).digest()
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            for at in range(POOLS):
                found = bytes(self._names[at * _KEY : (at + 1) * _KEY])
                if found == key or not any(found):
                    self._names[at * _KEY : (at + 1) * _KEY] = key
                    break
            else:
                at = key[0] % POOLS  # more models than anybody loads at once: two share their slots
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)
        return Pool(self._fds[at])

    def running(self) -> int:
        """Requests in all workers that hold a slot. Never more than there are, while the sum of what the workers say one
        after the other counts a slot twice that has passed from one to the next in between."""
        used = (fd for at, fd in enumerate(self._fds) if any(self._names[at * _KEY : (at + 1) * _KEY]))
        return sum(self._slots - _count(fd) for fd in used)

    def put(self, cell: int, value: float) -> None:
        """Tell the others one of this worker's numbers."""
        self._cells[self._mine + cell] = value

    def others(self, cell: int) -> float:
        """The sum of that number over the other workers."""
        cells, mine = self._cells, self._mine + cell
        return sum(cells[_HEAT + cell :: _ROW]) - cells[mine]
