"""A container's view of the files: this machine's, with the pod's volumes where the pod wants them.

Runs between fork and exec, in the child's own mount namespace, so nothing of it is seen outside and nothing of this machine's
tree is changed. Works as root and as the root of a user namespace: a folder in which no mount point can be made is covered
by an empty one that shows the same entries.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NEW_NAMESPACE = 0x00020000
_BIND, _REC, _PRIVATE, _RDONLY, _REMOUNT = 0x1000, 0x4000, 0x40000, 0x1, 0x20
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Mount:
    """`source` appears at `target` (absolute, in the container)."""

    source: Path
    target: str
    read_only: bool = False


def enter(base: Path, mounts: Sequence[Mount]) -> None:
    """Move the calling process into a view of its own. `base`: an existing empty folder. Raises OSError."""
    _check(_libc.unshare(_NEW_NAMESPACE), "unshare")
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("tmpfs", str(base), "tmpfs", 0)
    root = str(base)
    _mirror("/", root, skip=str(base))
    # From here on paths mean what they will mean to the container, symbolic links such as /var/run included.
    os.chroot(root)
    os.chdir("/")
    for index, mount in enumerate(mounts):
        target = os.path.normpath("/" + mount.target)
        _point(target, mount.source.is_dir(), f"/.covered-{index}")
        _mount(str(mount.source), target, None, _BIND)
        if mount.read_only:
            _mount(None, target, None, _BIND | _REMOUNT | _RDONLY, tolerate=True)


def join(pid: int) -> None:
    """Move the calling process into the view of a running container's process. Raises OSError."""
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    root = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY)
    _check(_libc.setns(namespace, _NEW_NAMESPACE), "setns")
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")


def _point(target: str, folder: bool, aside: str) -> None:
    """Make sure that something stands at `target` that can be mounted on."""
    if os.path.isdir(target) if folder else os.path.isfile(target):
        return
    parent = os.path.dirname(target)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    # Everything below the root of our own is this machine's tree: never written to, only covered.
    if os.path.realpath(parent) != "/":
        _cover(os.path.realpath(parent), aside)
    os.makedirs(target if folder else os.path.dirname(target), exist_ok=True)
    if not folder:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))


def _cover(folder: str, aside: str) -> None:
    """Put an empty folder of ours over `folder` that shows the same entries."""
    os.makedirs(aside, exist_ok=True)
    _mount(folder, aside, None, _BIND | _REC)
    _mount("tmpfs", folder, "tmpfs", 0)
    try:
        _mirror(aside, folder)
    except PermissionError:
        # A folder that this user may not list looks empty to the container too.
        return


def _mirror(source: str, target: str, skip: str = "") -> None:
    for entry in os.scandir(source):
        there = os.path.join(target, entry.name)
        if os.path.lexists(there) or entry.path == skip:
            continue
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), there)
            continue
        if entry.is_dir(follow_symlinks=False):
            os.mkdir(there)
        else:
            os.close(os.open(there, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(entry.path, there, None, _BIND | _REC, tolerate=True)


def _mount(source: str | None, target: str, kind: str | None, flags: int, *, tolerate: bool = False) -> None:
    done = _libc.mount(_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), None)
    if not tolerate:
        _check(done, f"mount on {target}")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _check(done: int, what: str) -> None:
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
