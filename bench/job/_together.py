"""A load by several pods of an Indexed Job: pod 0 coordinates, all of them send, and the log of pod 0 tells the outside.

The log carries what a program reads (a line for progress, lines for the result) so that whoever started the Job needs no
more rights in the cluster than to create it and to read logs.
"""

from __future__ import annotations

import base64
import json
import math
import multiprocessing
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

import stacks

from .. import load as generator
from ..results import Result
from ._config import JobConfig

PROGRESS, RESULT = "@progress ", "@result "
_PROGRESS_SECONDS = 0.5
_PIECE = 8_000
_MOST_BYTES = 256_000_000


def index() -> int:
    """Which pod of the Indexed Job this is. Raises TollgateError outside of one."""
    text = os.environ.get("JOB_COMPLETION_INDEX", "")
    if not text.isdigit():
        raise stacks.TollgateError(
            "JOB_COMPLETION_INDEX is not set: several pods measure together only in an Indexed Job"
        )
    return int(text)


def share_of(config: JobConfig, number: int) -> generator.Share:
    """What worker `number` does."""
    return generator.Share(
        target=config.target(),
        traffic=config.traffic,
        scenario=config.scenario,
        settings=config.settings(),
        objectives=config.objectives,
        index=number,
        of=config.pods,
    )


def follow(config: JobConfig, number: int) -> None:
    """Be worker `number`. What ends it is the coordinator: signals reach all pods at once, and then it still has to ask."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    host, _, port = config.coordinator.rpartition(":")
    generator.work((host, int(port)), config.token, share_of(config, number), patience=config.ready_timeout)


def _beside(config: JobConfig, port: int) -> None:
    address = f"{_own_address()}:{port}"
    follow(config.model_copy(update={"coordinator": address}), 0)


def _own_address() -> str:
    return os.environ.get("POD_IP") or "127.0.0.1"


def lead(config: JobConfig, measure: Callable[[generator.Crews], Result], say: Callable[[str], None]) -> Result:
    """Be pod 0: its own share runs in a process beside this one. Raises TollgateError when not all pods come."""
    port = int(config.coordinator.rpartition(":")[2])
    gathering = generator.Gathering(
        (_own_address(), port), config.token, config.pods, patience=config.ready_timeout, say=say
    )
    own = multiprocessing.get_context("spawn").Process(target=_beside, args=(config, gathering.port), daemon=False)
    own.start()
    try:
        with gathering:
            return measure(gathering.crews)
    finally:
        own.join(5.0)
        if own.is_alive():
            own.kill()
            own.join()


def teller(say: Callable[[str], None]) -> Callable[[generator.Progress], None]:
    """What takes progress and says it in lines for a program."""
    said = -math.inf

    def progress(now: generator.Progress) -> None:
        nonlocal said
        if time.monotonic() - said >= _PROGRESS_SECONDS:
            said = time.monotonic()
            # JSON has no word for what is not known.
            say(PROGRESS + json.dumps({k: None if v != v else v for k, v in asdict(now).items()}))

    return progress


def progress_of(line: str) -> generator.Progress:
    """The inverse, of one line. Raises ValueError or TypeError for what is none."""
    known: dict[str, Any] = json.loads(line.removeprefix(PROGRESS))
    if not isinstance(known, dict):
        raise TypeError("no progress")
    for key, value in known.items():
        if value is None and key != "errors":
            known[key] = math.nan
    return generator.Progress(**known)


def pieces(text: str) -> Iterator[str]:
    """A result as lines: `@result NUMBER/COUNT CHECKSUM BASE64`."""
    packed = base64.b64encode(zlib.compress(text.encode(), 6)).decode()
    count = max(1, math.ceil(len(packed) / _PIECE))
    for number in range(count):
        piece = packed[number * _PIECE : (number + 1) * _PIECE]
        yield f"{RESULT}{number + 1}/{count} {zlib.crc32(text.encode()):08x} {piece}"


class Pieces:
    """Puts a result together again."""

    def __init__(self) -> None:
        self._pieces: dict[int, str] = {}
        self._count, self._sum = 0, ""

    def take(self, line: str) -> None:
        """One line of a result. Raises TollgateError when it is none."""
        try:
            place, self._sum, piece = line.removeprefix(RESULT).split()
            number, count = map(int, place.split("/"))
        except ValueError as error:
            raise stacks.TollgateError(f"the coordinator's log holds a broken line: {line[:80]}") from error
        self._count = count
        self._pieces[number] = piece

    def result(self) -> Result | None:
        """The result when all of it has come. Raises TollgateError when it came damaged."""
        if not self._count or len(self._pieces) < self._count:
            return None
        try:
            packed = base64.b64decode("".join(self._pieces[n] for n in sorted(self._pieces)))
            # A log is whatever the pod wrote.
            text = stacks.unpacked(packed, _MOST_BYTES).decode()
        except ValueError as error:
            raise stacks.TollgateError(f"the result came damaged through the log: {error}") from error
        if f"{zlib.crc32(text.encode()):08x}" != self._sum:
            raise stacks.TollgateError("the result came damaged through the log: wrong checksum")
        try:
            return Result.model_validate_json(text)
        except ValidationError as error:
            what = error.errors(include_url=False)[0]
            raise stacks.TollgateError(
                f"the log holds no result: {'.'.join(map(str, what['loc']))}: {what['msg']}"
            ) from None
