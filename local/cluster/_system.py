"""The few kernel calls Python 3.11 has no function for: namespaces, mounts, subreaper, death signal."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000

_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 0x80000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36

_CAP_NET_ADMIN: Final = 12
_CAP_SYS_ADMIN: Final = 21

# Looked up once at import: `die_with_parent` runs between fork and exec, where little else is safe.
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def can_administer_network() -> bool:
    """True where this process may add routes and mounts to the namespaces it is in (as root may)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return all(effective >> bit & 1 for bit in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN))
    return False


def become_subreaper() -> None:
    """Make orphaned descendants children of this process instead of init's."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def die_with_parent() -> None:
    """Have the kernel SIGKILL this process when the thread that started it ends; for `preexec_fn`."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def new_user_and_network() -> None:
    """Enter new user and network namespaces, as root of the former; `OSError` where the system forbids it."""
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNET), "unshare(CLONE_NEWUSER|CLONE_NEWNET)")
    # An unprivileged process may write its group map only after giving up setgroups.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def new_mounts() -> None:
    """Enter a new mount namespace: later mounts outside still show up in here, ours never outside."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare(CLONE_NEWNS)")
    _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None), "mount(/, MS_SLAVE)")


def bind_mount(source: Path, target: Path) -> None:
    """Show the file `source` at `target` in this mount namespace."""
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND, None), f"mount {source} on {target}")


def userns_remedy() -> str:
    """The command by which an administrator allows what `new_user_and_network` was refused."""
    knobs = (
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"),
        ("/proc/sys/user/max_net_namespaces", "0", "sysctl -w user.max_net_namespaces=10000"),
    )
    for path, forbids, command in knobs:
        try:
            if Path(path).read_text().strip() == forbids:
                return f"sudo {command}"
        except OSError:
            continue
    return "docker run --cap-add NET_ADMIN --cap-add SYS_ADMIN … (or run tollgate as root outside of the container)"
