"""One place where bytes from outside come in, and the rule that it has to keep: take them, or refuse them in clear words."""

from __future__ import annotations

import random
import resource
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import stacks

from ._mutate import Kind, mutated

MOST_SECONDS = 5.0
MOST_BYTES = 500_000_000


@dataclass(frozen=True)
class Target:
    """`run` does with one input all that the program would; it raises TollgateError for what is refused. `seeds`: valid ones."""

    name: str
    kind: Kind
    seeds: Sequence[bytes]
    run: Callable[[bytes], object]

    def mutant(self, data: bytes, draw: random.Random) -> bytes:
        """Another input made of that one."""
        return mutated(data, self.kind, draw, draw.choice(self.seeds))

    def attempt(self, data: bytes) -> str:
        """What is wrong with how the program took this input: a traceback, or a sentence; empty where nothing is."""
        before, began = _peak(), time.process_time()
        said = ""
        try:
            self.run(data)
        except stacks.TollgateError as error:
            said = str(error)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - a panic of an extension module, or an exit, is a finding as well
            return traceback.format_exc()
        took, grown = time.process_time() - began, _peak() - before
        if took > MOST_SECONDS:
            return f"took {took:.1f} s of processor time"
        if grown > MOST_BYTES:
            return f"took {grown / 1e6:.0f} MB"
        if len(said) > 20_000:
            return f"an error of {len(said)} characters: {said[:200]}"
        return ""


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


Make = Callable[[Path], list[Target]]
