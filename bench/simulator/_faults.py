"""What goes wrong for one request, drawn by the seed."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from ._words import share

if TYPE_CHECKING:
    from ._http import Client
    from ._options import Faults


class Fate:
    """`error`: answer with 500. `slow`: how many times slower. `cut`: hang up after so many tokens, 0: never.
    `dies`: the process ends as one that is killed for memory."""

    __slots__ = ("cut", "dies", "error", "slow")

    def __init__(self, faults: Faults, draw: int) -> None:
        self.error = share(draw, 1) < faults.error
        self.slow = faults.slow_factor if share(draw, 2) < faults.slow else 1.0
        self.cut = 0
        self.dies = share(draw, 5) < faults.oom
        if share(draw, 3) < faults.disconnect:
            self.cut = 1 + int(share(draw, 4) * 16)

    def within(self, tokens: int) -> None:
        """Let a cut fall within an answer of that length."""
        if self.cut:
            self.cut = min(self.cut, max(1, tokens - 1))

    def meet(self, client: Client, made: int, *, last: bool = False) -> bool:
        """After token number `made` (or the last one): do what is due; whether the client has been cut off."""
        if self.dies:
            # What the kernel does to a container over its memory limit: exit code 137, nothing flushed.
            os.kill(os.getpid(), signal.SIGKILL)
        if self.cut and (last or made >= self.cut):
            client.abort()
            return True
        return False


def slow_replica(faults: Faults, name: str, seed: int) -> float:
    """How many times slower the replica called `name` is: `slow_factor` for a share of `slow_replica` of all names."""
    import zlib

    return faults.slow_factor if share(zlib.crc32(name.encode()) + seed, 6) < faults.slow_replica else 1.0
