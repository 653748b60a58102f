"""What a runner has found out, as objects of a bucket: segments in a row, each written once and never changed.

A shard's results are its segments 0, 1, 2, …: gzip of a line of JSON for each outcome, followed by the answer itself. A
segment is created only where none of its number is, so that of two runners who both believe that they hold a shard one is
told that it does not. Sixty-four small segments become one (gzip files may be joined end to end), and sixty-four of those.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

import stacks

from ._model import Outcome, Strike
from ._objects import Objects

_JOINED, _JOINED_BYTES = (64, 4096), 16 << 20
# An answer is at most 64 MiB (`_wire`), an id 512 characters.
_MOST_LINE_BYTES, _MOST_BODY_BYTES = 1 << 20, 64 << 20


def pack(outcomes: Sequence[Outcome], strikes: Sequence[Strike], *, owner: str, reopened: bool = False) -> bytes:
    """A segment. `reopened`: before it, the failures until then were forgotten."""
    lines = [orjson.dumps({"owner": owner, "reopened": reopened}), b"\n"]
    for one in outcomes:
        head = [*(value for value in one if not isinstance(value, bytes)), len(one.body)]
        lines += [orjson.dumps(head), b"\n", one.body, b"\n"]
    for strike in strikes:
        lines += [orjson.dumps(list(strike)), b"\n"]
    return gzip.compress(b"".join(lines), 1, mtime=0)


def unpack(data: bytes, name: str) -> Iterator[bool | Outcome | Strike]:
    """Outcomes and strikes in their order; True where the failures before were forgotten. Raises TollgateError."""
    try:
        with gzip.open(io.BytesIO(data)) as file:
            # What is packed small may unpack without end.
            for line in iter(lambda: file.readline(_MOST_LINE_BYTES), b""):
                found: Any = orjson.loads(line)
                if isinstance(found, dict):
                    if found["reopened"]:
                        yield True
                elif len(found) == len(Strike._fields):
                    yield Strike(*found)
                else:
                    *values, size = found
                    if not 0 <= size <= _MOST_BODY_BYTES:
                        raise ValueError(f"an answer of {size} bytes")
                    yield Outcome._make([*values[:3], file.read(size), *values[3:]])
                    file.read(1)
    except (OSError, EOFError, ValueError, TypeError, LookupError, zlib.error) as error:
        raise stacks.TollgateError(f"{name}: is damaged ({error})") from None


class Segments:
    """Those of one shard, below `prefix`. `next`: the number of the one to come, as far as this process knows."""

    def __init__(self, objects: Objects, prefix: str) -> None:
        self._objects, self.prefix = objects, prefix
        self.next = 0

    def read(self) -> Iterator[bytes]:
        """All of them in their order; `next` is right afterwards. Raises TollgateError where one is missing."""
        chain, number = deque(self._chain()), 0
        while chain:
            span = chain.popleft()
            data = self._objects.get(self._name(*span))
            if data is not None:
                yield data
                number = span[1] + 1
                continue
            # Joined with others just now; to read some of them twice changes nothing.
            chain = deque(one for one in self._chain() if one[1] >= number)
            if not chain or span in chain:
                raise stacks.TollgateError(f"{self._where()}: segment {number} is missing")
        self.next = number

    def write(self, data: bytes) -> None:
        """As the next one. Raises TollgateError where somebody else has written that."""
        number = self.next
        if not self._objects.create(self._name(number, number), data):
            raise self._taken()
        self.next = number + 1

    def check(self) -> None:
        """Raises TollgateError where somebody else has written a segment that is not known here."""
        chain = self._chain()
        if (chain[-1][1] + 1 if chain else 0) != self.next:
            raise self._taken()

    def join(self) -> None:
        """Make few objects of many, when it is time; what is covered by a larger one is deleted after that is there."""
        for size in _JOINED:
            if self.next % size:
                return
            first, last = self.next - size, self.next - 1
            sizes = self._objects.sizes(self.prefix)
            parts = [span for span in self._chain(sizes) if first <= span[0] and span[1] <= last]
            if (
                len(parts) < 2
                or sum(sizes[self._name(*span).removeprefix(self.prefix)] for span in parts) > _JOINED_BYTES
            ):
                continue
            data = [self._objects.get(self._name(*span)) or b"" for span in parts]
            self._objects.put(self._name(first, last), b"".join(data))
            self._objects.delete([self._name(*span) for span in parts])

    def _chain(self, names: Iterable[str] | None = None) -> list[tuple[int, int]]:
        longest: dict[int, int] = {}
        for name in self._objects.sizes(self.prefix) if names is None else names:
            first, _, last = name.removesuffix(".gz").partition("-")
            if first.isdigit() and last.isdigit():
                longest[int(first)] = max(longest.get(int(first), 0), int(last))
        chain, number = [], 0
        while number in longest:
            chain.append((number, longest[number]))
            number = longest[number] + 1
        if any(first > number for first in longest):
            raise stacks.TollgateError(f"{self._where()}: segment {number} is missing, later ones are there")
        return chain

    def _name(self, first: int, last: int) -> str:
        return f"{self.prefix}{first:08d}-{last:08d}.gz"

    def _where(self) -> str:
        return f"{self._objects.location}/{self.prefix.rstrip('/')}"

    def _taken(self) -> stacks.TollgateError:
        return stacks.TollgateError(
            f"{self._where()}: another runner has taken over\n  fix: nothing, it goes on there; what was answered here "
            "since the last checkpoint is asked again"
        )
