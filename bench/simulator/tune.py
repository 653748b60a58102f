"""`--tune`: the system settings that a server of many connections would like, beside what they are."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Setting:
    """`name`, what it is `now`, what is `wanted`, whether it is `enough`, why, and the command that sets it."""

    name: str
    now: str
    wanted: str
    enough: bool
    why: str
    fix: str


def _read(path: str) -> str:
    try:
        return " ".join(Path(path).read_text(encoding="ascii").split())
    except OSError:
        return "unknown"


def settings(read: Callable[[str], str] = _read) -> list[Setting]:
    """All settings; `read` gives the content of a file under /proc/sys, or `unknown`."""

    def least(path: str, wanted: int, why: str) -> Setting:
        now = read(f"/proc/sys/{path}")
        enough = now.isdigit() and int(now) >= wanted
        name = path.replace("/", ".")
        fix = f"sysctl -w {name}={wanted}"
        return Setting(name=name, now=now, wanted=f"at least {wanted}", enough=enough, why=why, fix=fix)

    ports = read("/proc/sys/net/ipv4/ip_local_port_range").split()
    many = len(ports) == 2 and all(p.isdigit() for p in ports) and int(ports[1]) - int(ports[0]) >= 55_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [
        least(
            "net/core/somaxconn", 4096, "connections that wait to be accepted; a burst above it is retried after 1 s"
        ),
        least("net/ipv4/tcp_max_syn_backlog", 4096, "connections that are being opened"),
        Setting(
            name="net.ipv4.ip_local_port_range",
            now=" ".join(ports),
            wanted="1024 65535",
            enough=many,
            why="a load generator has so many connections per source address (it can use several 127.0.0.x)",
            fix='sysctl -w net.ipv4.ip_local_port_range="1024 65535"',
        ),
        Setting(
            name="nofile (ulimit -n)",
            now=f"{soft} (hard {hard})",
            wanted="at least 65536",
            enough=hard >= 65_536 or hard == resource.RLIM_INFINITY,
            why="one file per connection; above it use more processes (--workers)",
            fix="ulimit -n 65536, or LimitNOFILE=65536 in its unit",
        ),
        least("net/ipv4/tcp_tw_reuse", 1, "ports of closed connections can be used again"),
    ]
