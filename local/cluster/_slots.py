"""Slots: which share of 10.77.0.0/16 and 10.96.0.0/16 is whose, machine-wide and across users."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stacks import TollgateError

from ._layout import SLOTS, slots_dir


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A slot this process holds until `descriptor` is closed (at the latest when the process ends)."""

    number: int
    descriptor: int


def _open(path: Path) -> int:
    # Opened without O_CREAT first: in a sticky folder the kernel (fs.protected_regular) refuses O_CREAT on another
    # user's file, while for a lock reading is enough.
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
            os.fchmod(descriptor, 0o644)
            return descriptor
        return os.open(path, flags)


def _folder() -> Path:
    folder = slots_dir()
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
    return folder


def try_slot(number: int) -> Slot | None:
    """Take slot `number`, or None if someone has it."""
    descriptor = _open(_folder() / f"{number}.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Slot(number=number, descriptor=descriptor)


def take_slot() -> Slot:
    """Take the lowest free slot; `TollgateError` when all sixteen are taken."""
    for number in range(SLOTS):
        slot = try_slot(number)
        if slot is not None:
            return slot
    raise TollgateError(
        f"all {SLOTS} cluster slots of this machine are taken (locks in {_folder()})\n"
        "  fix:     end a cluster with `tollgate local down --name NAME`; `tollgate local status` names yours"
    )


@contextlib.contextmanager
def hold_slot(number: int) -> Iterator[bool]:
    """Hold slot `number` for a moment; yields whether it was free."""
    slot = try_slot(number)
    try:
        yield slot is not None
    finally:
        if slot is not None:
            os.close(slot.descriptor)
