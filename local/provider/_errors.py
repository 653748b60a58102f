"""What can go wrong between the plugin and the API server, and words for it.

ProviderError        shown to the user as it is, by the engine
├── ApiError         an answer of the API server that is not success (`.status`, `.reason`, `.causes`)
├── Unreachable      no answer within the bounded retries
├── NoSuchKind       the API server does not serve this group, version and kind
├── NotReady         the object exists, but did not become ready (time-out, or it failed)
└── Cancelled        the engine asked to stop

They never leave this process as exceptions, only as gRPC statuses, so they do not derive from `stacks.TollgateError`:
importing that room (and pydantic with it) would double the start-up time of every Pulumi command.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any


class ProviderError(Exception):
    """A failure whose message is meant for the user."""


class ApiError(ProviderError):
    """The API server said no."""

    def __init__(self, status: int, document: dict[str, Any], *, action: str) -> None:
        self.status = status
        self.reason = str(document.get("reason", ""))
        details = document.get("details") or {}
        self.causes: list[dict[str, Any]] = list(details.get("causes") or [])
        self.retry_after = float(details.get("retryAfterSeconds") or 0)
        self.kind = str(details.get("kind", ""))
        self.detail = str(document.get("message") or f"HTTP {status}")
        super().__init__(f"{action}: {self.detail}")

    def is_immutable(self) -> bool:
        """Whether the server refused because a field cannot be changed in place (the wordings of Kubernetes' validation)."""
        text = self.detail
        return self.status == 422 and (
            "immutable" in text
            or "may not change fields other than" in text
            or ("updates to" in text and "forbidden" in text.lower())
            or "may not be changed" in text
            or "cannot change" in text
        )

    def conflicts(self) -> list[tuple[str, str]]:
        """(manager, field) for each conflict of a server-side apply."""
        found = []
        for cause in self.causes:
            if cause.get("reason") == "FieldManagerConflict":
                words = str(cause.get("message", ""))
                manager = words.split('"')[1] if words.count('"') >= 2 else words
                found.append((manager, str(cause.get("field", ""))))
        return found


class Unreachable(ProviderError):
    """The API server did not answer."""


class NoSuchKind(ProviderError):
    """The API server does not serve this kind (its CustomResourceDefinition may not be there yet)."""


class NotReady(ProviderError):
    """The object is there and did not become ready."""


class Cancelled(ProviderError):
    """The engine asked to stop."""


class Redactor:
    """Takes known secret values out of text."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        found: set[str] = set()
        for value in values:
            # Shorter ones would black out half of every message, and say nothing by themselves.
            if len(value) >= 4:
                encoded = base64.b64encode(value.encode()).decode()
                found |= {value, encoded, encoded.rstrip("=")}
                found |= {line for line in value.splitlines() if len(line) >= 8}
        self._values = sorted(found, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, "[secret]")
        return text
