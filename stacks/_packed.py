"""Reading what was compressed by whoever could write there."""

from __future__ import annotations

import zlib


def unpacked(data: bytes, most: int) -> bytes:
    """What gzip or zlib made `data` of, in one piece. Raises ValueError for anything else, and where that is more than `most`
    bytes: a little of it must not become all of the memory."""
    opened = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        text = opened.decompress(data, most + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(text) > most:
        raise ValueError(f"it unpacks to more than {most} bytes")
    if not opened.eof:
        raise ValueError("it is cut short")
    return text
