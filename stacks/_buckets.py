"""Object storage by obstore, for every room that keeps something there: the gate its evidence, a batch its inputs.

Credentials come from the environment, as each cloud's own tools read them. The words of an address's query are those of
Pulumi's own state URLs, so that one set of settings serves both.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ._errors import InputError, TollgateError

BUCKET_SCHEMES = ("s3://", "gs://")


def obstore() -> Any:
    """The library. Raises TollgateError with the fix where it is not installed."""
    try:
        found = import_module("obstore")
        import_module("obstore.store")
        import_module("obstore.exceptions")
    except ImportError:
        raise TollgateError("a bucket needs the package obstore\n  fix: pip install obstore") from None
    return found


def bucket_failures() -> tuple[type[BaseException], ...]:
    """What obstore raises where a bucket cannot be used."""
    return (obstore().exceptions.BaseError, OSError, ValueError)


def bucket_words(error: BaseException) -> str:
    """The first line of what obstore says; the rest is its inner workings."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def bucket(location: str, *, where: str, allowed: str) -> Any:
    """The obstore store of `s3://bucket/prefix` or `gs://bucket/prefix`, with what its query says: `endpoint`, `region`,
    `disableSSL`, `s3ForcePathStyle`. Nothing is asked of the bucket yet. `where`, `allowed`: for the InputError raised for an
    address that is none."""
    parts = urlsplit(location)
    options = dict(parse_qsl(parts.query))
    settings: dict[str, Any] = {"client_options": {"timeout": "20s", "connect_timeout": "5s"}}
    settings["retry_config"] = {"max_retries": 3}
    plain = options.pop("disableSSL", "false") == "true"
    settings["client_options"]["allow_http"] = plain
    if parts.scheme == "s3":
        endpoint = options.pop("endpoint", os.environ.get("AWS_ENDPOINT_URL"))
        settings["virtual_hosted_style_request"] = options.pop("s3ForcePathStyle", "false") != "true" and not endpoint
        if endpoint:
            named = "://" in endpoint
            settings["endpoint"] = endpoint if named else f"{'http' if plain else 'https'}://{endpoint}"
            settings["client_options"]["allow_http"] = settings["endpoint"].startswith("http://")
        if "region" in options:
            settings["region"] = options.pop("region")
        options.pop("awssdk", None)
    if options or not parts.netloc:
        got = next(iter(options), location)
        raise InputError(where=where, got=got, allowed=allowed, fix="correct the address")
    try:
        return obstore().store.from_url(f"{parts.scheme}://{parts.netloc}{parts.path}", **settings)
    except bucket_failures() as error:
        raise InputError(where=where, got=location, allowed=allowed, fix=bucket_words(error)) from None
