"""DSSE envelopes over in-toto statements, signed with ed25519.

Formats: https://github.com/secure-systems-lab/dsse (envelope, pre-authentication encoding) and
https://github.com/in-toto/attestation (Statement v1). An envelope is only accepted in its one canonical form, so that no
byte of a file can change without the file being refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import stacks

from ._errors import EvidenceBroken
from ._keys import Signer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_BYTES = 16_000_000


def seal(statement: Mapping[str, Any], signer: Signer) -> bytes:
    """The envelope of a statement as the canonical bytes that are stored."""
    payload = stacks.canonical_json(statement)
    signature = signer.sign(_pae(payload))
    return stacks.canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": signer.key_id, "sig": base64.b64encode(signature).decode()}],
        }
    )


def unseal(data: bytes, trusted: Mapping[str, Ed25519PublicKey], where: str) -> tuple[dict[str, Any], str]:
    """The statement of an envelope whose signature holds, and the id of the key that signed it.

    Raises EvidenceBroken saying what is wrong, never less.
    """
    from cryptography.exceptions import InvalidSignature

    if len(data) > MAX_BYTES:
        raise EvidenceBroken(f"{where}: larger than any evidence ({len(data)} bytes)")
    if not data.endswith(b"}"):
        raise EvidenceBroken(f"{where}: cut short: its {len(data)} bytes end in the middle")
    try:
        envelope = json.loads(data, parse_constant=_no_constant)
        (signature,) = envelope["signatures"]
        keyid, raw = str(signature["keyid"]), base64.b64decode(signature["sig"], validate=True)
        payload = base64.b64decode(envelope["payload"], validate=True)
        canonical = stacks.canonical_json(envelope) == data and envelope["payloadType"] == PAYLOAD_TYPE
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError) as error:
        raise EvidenceBroken(f"{where}: not an evidence envelope; it was edited ({error})") from None
    if not canonical or base64.b64encode(payload).decode() != envelope["payload"]:
        raise EvidenceBroken(f"{where}: not in the form in which evidence is written; it was edited")
    if base64.b64encode(raw).decode() != signature["sig"]:
        raise EvidenceBroken(f"{where}: the signature is not in the form in which it was written; it was edited")
    public = trusted.get(keyid)
    if public is None:
        raise EvidenceBroken(
            f"{where}: signed by key {keyid[:12]}…, which this project does not trust\n"
            "  fix: if it is yours, copy its .pub file into stacks/keys/ and have that reviewed"
        )
    try:
        public.verify(raw, _pae(payload))
    except InvalidSignature:
        raise EvidenceBroken(f"{where}: the signature does not fit the statement; one of the two was changed") from None
    try:
        statement = json.loads(payload, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise EvidenceBroken(f"{where}: the statement cannot be read ({error})") from None
    if not isinstance(statement, dict):
        raise EvidenceBroken(f"{where}: the statement is no object")
    return statement, keyid


def borrowed(data: bytes, other: bytes, trusted: Mapping[str, Ed25519PublicKey]) -> bool:
    """Whether the signature in one envelope is that of the statement in the other."""
    from cryptography.exceptions import InvalidSignature

    try:
        (signature,) = json.loads(data)["signatures"]
        raw, payload = base64.b64decode(signature["sig"]), base64.b64decode(json.loads(other)["payload"])
        trusted[signature["keyid"]].verify(raw, _pae(payload))
    except (ValueError, KeyError, TypeError, RecursionError, InvalidSignature):
        return False
    return True


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that evidence may carry")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is infinite, which evidence may not be")
    return value


def _pae(payload: bytes) -> bytes:
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
