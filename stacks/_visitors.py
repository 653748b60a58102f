"""Who may ask a server of this machine's own: its user, and no web page in its user's browser."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def foreign(*, bound: str, host: str, origin: str) -> str:
    """Why a request is not answered, or nothing. `bound`: the address served on; `host`, `origin`: the request's headers.

    Of a server on a loopback address a name that was made to point there is not one (DNS rebinding); of any, a page that comes
    from elsewhere may not send anything (CSRF). A server for other machines goes by other names, and is protected by a key.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        elsewhere = bool(origin) and urlsplit(origin).netloc != host
    except ValueError:
        return "Host or Origin is not an address"
    if _loopback(bound) and not _loopback(name):
        return f"{name or 'No name'} is not a name of this machine"
    if elsewhere:
        return "Requests of web pages are not served"
    return ""


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
