"""A container's view of the files: this machine's, read-only, with private places and the pod's volumes put in.

Runs between fork and exec, in the child's own mount namespace, so nothing of it is seen outside and nothing of this
machine's tree is changed. Works as root and as the root of a user namespace: a folder in which no mount point can be made
is covered by an empty one that shows the same entries. This is a view, not a prison: pods run with the runner's rights.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_NEW_NAMESPACE = 0x00020000
_BIND, _REC, _PRIVATE, _RDONLY, _REMOUNT = 0x1000, 0x4000, 0x40000, 0x1, 0x20
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_ROOT_OPTIONS = b"size=64m,mode=755"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Mount:
    """`source` appears at `target` (absolute, in the container)."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, kw_only=True)
class View:
    """What a container sees. `base`: an existing empty folder to build on; `mounts`: its volumes and files;
    `private`: folders of this machine that are replaced by the container's own; `kept`: folders that stay as they are, also
    below a private one; `hidden`: folders that look empty; `directory`: where the process starts, made if it is not there.
    """

    base: Path
    mounts: Sequence[Mount] = ()
    private: Mapping[str, Path] = field(default_factory=dict)
    kept: Sequence[Path] = ()
    hidden: Sequence[Path] = ()
    directory: str | None = None


def enter(view: View) -> None:
    """Move the calling process into `view`. Raises OSError."""
    _check(_libc.unshare(_NEW_NAMESPACE), "unshare")
    _mount(None, "/", None, _REC | _PRIVATE)
    # Sources are opened before anything covers them; from here on they are reached by their descriptors.
    kept = [(_open(path), str(path)) for path in view.kept if path.is_dir()]
    private = [(_open(path), target) for target, path in view.private.items()]
    mounts = [(_open(mount.source), mount) for mount in view.mounts]
    root = str(view.base)
    _mount("tmpfs", root, "tmpfs", 0, data=_ROOT_OPTIONS)
    _mirror("/", root, skip=("/dev", "/proc", root))
    _read_only(root)
    # Their own entries below stay writable: they are this machine's, or (the root itself) the container's.
    _mount(None, root, None, _BIND | _REMOUNT)
    os.mkdir(f"{root}/proc")
    _mount("/proc", f"{root}/proc", None, _BIND | _REC)
    _devices(f"{root}/dev")
    # From here on paths mean what they will mean to the container, symbolic links such as /var/run included.
    os.chroot(root)
    os.chdir("/")
    _Places(kept=kept).fill(private, mounts, view)


class _Places:
    """Knows where a mount point may be made: on file systems of the container's own, never in this machine's tree."""

    def __init__(self, *, kept: Sequence[tuple[int, str]]) -> None:
        self._kept = kept
        self._devices = {os.stat("/").st_dev, os.stat("/dev").st_dev}
        self._own: list[str] = []
        self._covers = 0

    def fill(self, private: Sequence[tuple[int, str]], mounts: Sequence[tuple[int, Mount]], view: View) -> None:
        """Put in everything of `view`, outer folders before inner ones."""
        for hidden in view.hidden:
            if hidden.is_dir() and not any(_below(one, str(hidden)) for _, one in self._kept):
                _mount("tmpfs", str(hidden), "tmpfs", _RDONLY)
        for handle, target in private:
            self._put(handle, target, read_only=False)
        for handle, path in self._kept:
            if any(_below(path, one) for one in self._own):
                os.makedirs(path, exist_ok=True)
            _mount(f"/proc/self/fd/{handle}", path, None, _BIND | _REC)
        for handle, mount in sorted(mounts, key=lambda one: os.path.normpath(one[1].target).count("/")):
            self._put(handle, os.path.normpath("/" + mount.target), read_only=mount.read_only)
        if view.directory:
            self._point(os.path.normpath("/" + view.directory), folder=True)
            os.chdir(view.directory)

    def _put(self, handle: int, target: str, *, read_only: bool) -> None:
        self._point(target, folder=stat.S_ISDIR(os.fstat(handle).st_mode))
        _mount(f"/proc/self/fd/{handle}", target, None, _BIND)
        if read_only:
            _mount(None, target, None, _BIND | _REMOUNT | _RDONLY, tolerate=True)
        self._own.append(os.path.realpath(target))

    def _point(self, target: str, *, folder: bool) -> None:
        """Make sure that something stands at `target` that can be mounted on."""
        if os.path.isdir(target) if folder else os.path.isfile(target):
            return
        parent = os.path.dirname(target)
        while not os.path.isdir(parent):
            parent = os.path.dirname(parent)
        real = os.path.realpath(parent)
        if not self._writable(real):
            self._covers += 1
            self._cover(real, f"/.covered-{self._covers}")
        os.makedirs(target if folder else os.path.dirname(target), exist_ok=True)
        if not folder:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))

    def _writable(self, folder: str) -> bool:
        if os.stat(folder).st_dev in self._devices:
            return True
        return any(_below(folder, one) for one in self._own) and not any(_below(folder, one) for _, one in self._kept)

    def _cover(self, folder: str, aside: str) -> None:
        """Put an empty folder of ours over `folder` that shows the same entries."""
        os.makedirs(aside, exist_ok=True)
        _mount(folder, aside, None, _BIND | _REC)
        _mount("tmpfs", folder, "tmpfs", 0, data=_ROOT_OPTIONS)
        self._devices.add(os.stat(folder).st_dev)
        try:
            _mirror(aside, folder)
        except PermissionError:
            # A folder that this user may not list looks empty to the container too.
            return


def join(pid: int) -> None:
    """Move the calling process into the view of a running container's process. Raises OSError."""
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    root = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY)
    _check(_libc.setns(namespace, _NEW_NAMESPACE), "setns")
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")


def require(program: str, path: str) -> None:
    """Raises OSError, worded as container runtimes do, when `program` cannot be started here."""
    if shutil.which(program, path=path) is None:
        where = "no such file or directory" if "/" in program else "executable file not found in $PATH"
        raise OSError(f'exec: "{program}": {where}')


def _devices(folder: str) -> None:
    """The few devices that every container has, a memory folder of its own, and the GPUs' where there are any."""
    os.mkdir(folder)
    _mount("tmpfs", folder, "tmpfs", 0, data=_ROOT_OPTIONS)
    names = [*_DEVICES, *(name for name in os.listdir("/dev") if name.startswith(("nvidia", "dri", "kfd")))]
    for name in names:
        _copy(f"/dev/{name}", f"{folder}/{name}")
    for name in ("pts", "ptmx"):
        _copy(f"/dev/{name}", f"{folder}/{name}")
    for name, to in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{to}", f"{folder}/{name}")
    os.mkdir(f"{folder}/shm", 0o1777)
    os.chmod(f"{folder}/shm", 0o1777)


def _mirror(source: str, target: str, skip: Sequence[str] = ()) -> None:
    for entry in os.scandir(source):
        if entry.path not in skip and not os.path.lexists(os.path.join(target, entry.name)):
            _copy(entry.path, os.path.join(target, entry.name))


def _copy(source: str, target: str) -> None:
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.mkdir(target)
    elif os.path.lexists(source):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    else:
        return
    _mount(source, target, None, _BIND | _REC, tolerate=True)


def _read_only(folder: str) -> None:
    """Everything mounted at and below `folder`. Where the kernel cannot, pods can write what their user may write."""
    attributes = (ctypes.c_uint64 * 4)(_RDONLY, 0, 0, 0)
    _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(folder), _AT_RECURSIVE, attributes, ctypes.sizeof(attributes))


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _open(path: Path) -> int:
    return os.open(path, os.O_PATH)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, *, data: bytes | None = None, tolerate: bool = False
) -> None:
    done = _libc.mount(_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), data)
    if not tolerate:
        _check(done, f"mount on {target}")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _check(done: int, what: str) -> None:
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
