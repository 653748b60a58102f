"""The routes and the address that make a slot's ranges local to this network namespace.

`dummy` interfaces need a module that many kernels lack; a `local` route on the loopback device makes a whole range
bindable and reachable without one. The range of Services needs a preferred source address besides: without it,
a connection to a Service would leave from the Service's own address, and its answers would go nowhere.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ._layout import SLOTS, Addresses

_LOCAL_TABLE = 255


def _loopback(ip: Any) -> int:
    return int(ip.link_lookup(ifname="lo")[0])


def _routes(addresses: Addresses) -> list[dict[str, Any]]:
    shared: dict[str, Any] = {"type": "local", "table": _LOCAL_TABLE, "scope": "host", "family": socket.AF_INET}
    return [
        {**shared, "dst": addresses.pod_cidr},
        {**shared, "dst": addresses.service_cidr, "prefsrc": addresses.source},
    ]


def add(addresses: Addresses) -> None:
    """Make the slot's ranges local; what is there already stays. `OSError` without the right to."""
    try:
        with IPRoute() as ip:
            lo = _loopback(ip)
            ip.link("set", index=lo, state="up")
            _unless(errno.EEXIST, ip.addr, "add", index=lo, address=addresses.source, prefixlen=32)
            for route in _routes(addresses):
                ip.route("replace", oif=lo, **route)
    except NetlinkError as error:
        raise OSError(error.code, f"adding routes for {addresses.pod_cidr}: {error}") from error


def remove(addresses: Addresses) -> None:
    """Take away what `add` added; what is gone already is fine."""
    with IPRoute() as ip:
        lo = _loopback(ip)
        for route in reversed(_routes(addresses)):
            _unless(errno.ESRCH, ip.route, "del", oif=lo, **route)
        _unless(errno.EADDRNOTAVAIL, ip.addr, "del", index=lo, address=addresses.source, prefixlen=32)


def _unless(harmless: int, call: Any, *args: Any, **kwargs: Any) -> None:
    try:
        call(*args, **kwargs)
    except NetlinkError as error:
        if error.code != harmless:
            raise


def slots_with_traces() -> set[int]:
    """The slots of which this network namespace has a route or an address, whoever made them."""
    owned: dict[str, int] = {}
    for number in range(SLOTS):
        addresses = Addresses(slot=number)
        for cidr in (addresses.pod_cidr, addresses.service_cidr):
            owned[cidr.split("/")[0]] = number
        owned[addresses.source] = number
    found = set()
    with IPRoute() as ip:
        for route in ip.get_routes(table=_LOCAL_TABLE, family=socket.AF_INET):
            number = owned.get(str(route.get_attr("RTA_DST")), -1)
            if number >= 0:
                found.add(number)
    return found
