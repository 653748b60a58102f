"""The one way in which anything is made into bytes before it is hashed or signed."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces, so that equal values have equal bytes; NaN raises ValueError.

    Numbers are written as Python writes them (shortest form that reads back the same), as RFC 8785 asks for doubles
    of ordinary size.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """`sha256:<64 hex>` of the canonical JSON."""
    return "sha256:" + hashlib.sha256(canonical_json(value)).hexdigest()
