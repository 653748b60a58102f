"""DNS of the cluster's Services for who follows them as they change: a hosts file is read once, at a program's start.

As a cluster's own does, it answers for `NAME.NAMESPACE.svc.cluster.local`: a Service's address, a headless one's ready endpoints.
Only over UDP and only for these names; nobody's `/etc/resolv.conf` names it, so programs that do not ask for it never meet it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import Callable, Sequence
from typing import cast

_HEADER = struct.Struct("!6H")
_DOMAIN = ".svc.cluster.local"
_A, _ANY, _INTERNET = 1, 255, 1
# Response, authoritative; the question's own "recursion desired" is put beside it.
_FLAGS, _RECURSION_DESIRED, _TRUNCATED = 0x8400, 0x0100, 0x0200
_NO_SUCH_NAME, _NOT_IMPLEMENTED, _REFUSED = 3, 4, 5
# What HAProxy is told to accept (components/gateway.py), and more than fits into most networks' packets.
_MOST_BYTES = 8192
_SECONDS = 1

# A Service as "name.namespace" -> its addresses; None where there is no such Service.
Lookup = Callable[[str], Sequence[str] | None]


def reply(query: bytes, lookup: Lookup) -> bytes | None:
    """The answer to one packet; None for what is no question, which gets none."""
    try:
        number, flags, questions, *_ = _HEADER.unpack_from(query)
        name, end = _name(query, _HEADER.size)
        kind, family = struct.unpack_from("!2H", query, end)
    except (struct.error, IndexError, UnicodeDecodeError):
        return None
    if flags & 0x8000 or questions != 1:
        return None
    question = query[_HEADER.size : end + 4]
    addresses: Sequence[str] = ()
    code = 0
    if flags & 0x7800:
        code = _NOT_IMPLEMENTED
    elif not name.endswith(_DOMAIN):
        code = _REFUSED
    elif (found := lookup(name.removesuffix(_DOMAIN))) is None:
        code = _NO_SUCH_NAME
    elif kind in (_A, _ANY) and family == _INTERNET:
        addresses = found
    room = (_MOST_BYTES - _HEADER.size - len(question)) // 16
    truncated = _TRUNCATED if len(addresses) > room else 0
    records = [
        # The name is that of the question, at byte 12.
        struct.pack("!HHHIH4s", 0xC00C, _A, _INTERNET, _SECONDS, 4, ipaddress.IPv4Address(one).packed)
        for one in addresses[:room]
    ]
    head = _HEADER.pack(
        number, _FLAGS | flags & (_RECURSION_DESIRED | 0x7800) | truncated | code, 1, len(records), 0, 0
    )
    return head + question + b"".join(records)


def _name(packet: bytes, at: int) -> tuple[str, int]:
    """The name at that byte, in lower case without its last dot, and where it ends. Raises IndexError."""
    labels = []
    while size := packet[at]:
        if size > 63 or at + size >= len(packet):
            raise IndexError(at)
        labels.append(packet[at + 1 : at + 1 + size].decode("ascii"))
        at += 1 + size
    return ".".join(labels).lower(), at + 1


class _Server(asyncio.DatagramProtocol):
    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        answer = reply(data, self._lookup)
        if answer is not None:
            self._transport.sendto(answer, address)


async def serve(lookup: Lookup, address: str, port: int) -> None:
    """Answer on that address until cancelled."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Server(lookup), local_addr=(address, port)
    )
    try:
        await asyncio.Event().wait()
    finally:
        transport.close()
