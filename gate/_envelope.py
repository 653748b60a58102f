"""DSSE envelopes over in-toto statements, signed with ed25519.

Formats: https://github.com/secure-systems-lab/dsse (envelope, pre-authentication encoding) and
https://github.com/in-toto/attestation (Statement v1, test-result v0.1). An envelope is only accepted in its one canonical
form, so that no byte of a file can change without the file being refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

import stacks

from ._errors import EvidenceBroken

PAYLOAD_TYPE = "application/vnd.in-toto+json"
KEY_VARIABLE = "TOLLGATE_SIGNING_KEY"
_MAX_BYTES = 16_000_000


class Signer(Protocol):
    """What signs: a key in a file or a variable here, a key management service elsewhere."""

    @property
    def key_id(self) -> str:
        """Names the key in the envelope."""

    def sign(self, message: bytes) -> bytes:
        """The raw ed25519 signature, 64 bytes."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Who signs, and whose signatures are believed (key id -> public key)."""

    signer: Signer | None
    trusted: Mapping[str, Ed25519PublicKey]


class LocalKey:
    """An ed25519 private key in memory."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key()

    @property
    def key_id(self) -> str:
        return key_id(self.public)

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def key_id(public: Ed25519PublicKey) -> str:
    """SHA-256 of the raw public key, in hex."""
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()


def load_keys(root: Path, *, create: bool = False) -> Keys:
    """The project's keys.

    Trusted: every `stacks/keys/*.pub` (committed, reviewed), and this checkout's own `.tollgate/keys/evidence.pub`.
    Signer: `TOLLGATE_SIGNING_KEY` (PEM), else `.tollgate/keys/evidence.key`, made on first use when `create` is set.
    Raises InputError for a key that cannot be read.
    """
    own = root / ".tollgate" / "keys"
    signer: LocalKey | None = None
    if os.environ.get(KEY_VARIABLE):
        signer = LocalKey(_private(os.environ[KEY_VARIABLE].encode(), f"${KEY_VARIABLE}"))
    elif (own / "evidence.key").is_file():
        signer = LocalKey(_private((own / "evidence.key").read_bytes(), ".tollgate/keys/evidence.key"))
    elif create:
        signer = _create(own)
    trusted: dict[str, Ed25519PublicKey] = {}
    for path in sorted([*(root / "stacks" / "keys").glob("*.pub"), own / "evidence.pub"]):
        if path.is_file():
            public = _public(path)
            trusted[key_id(public)] = public
    return Keys(signer=signer, trusted=trusted)


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


def unseal(data: bytes, trusted: Mapping[str, Ed25519PublicKey], where: str) -> dict[str, Any]:
    """The statement of an envelope whose signature holds. Raises EvidenceBroken saying what is wrong, never less."""
    if len(data) > _MAX_BYTES:
        raise EvidenceBroken(f"{where}: larger than any evidence ({len(data)} bytes)")
    try:
        envelope = json.loads(data, parse_constant=_no_constant)
        (signature,) = envelope["signatures"]
        keyid, raw = str(signature["keyid"]), base64.b64decode(signature["sig"], validate=True)
        payload = base64.b64decode(envelope["payload"], validate=True)
        canonical = stacks.canonical_json(envelope) == data and envelope["payloadType"] == PAYLOAD_TYPE
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError) as error:
        raise EvidenceBroken(f"{where}: not an evidence envelope, cut short or edited ({error})") from None
    if not canonical or base64.b64encode(payload).decode() != envelope["payload"]:
        raise EvidenceBroken(f"{where}: not in the form in which evidence is written; it was edited")
    if base64.b64encode(raw).decode() != signature["sig"]:
        raise EvidenceBroken(f"{where}: the signature is not in the form in which it was written; it was edited")
    public = trusted.get(keyid)
    if public is None:
        raise EvidenceBroken(
            f"{where}: signed by key {keyid[:12]}…, which this project does not trust; add its .pub file to stacks/keys/"
        )
    try:
        public.verify(raw, _pae(payload))
    except InvalidSignature:
        raise EvidenceBroken(f"{where}: the signature does not fit the statement; one of the two was changed") from None
    statement = json.loads(payload, parse_constant=_no_constant)
    if not isinstance(statement, dict):
        raise EvidenceBroken(f"{where}: the statement is no object")
    return statement


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that evidence may carry")


def _pae(payload: bytes) -> bytes:
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _private(pem: bytes, where: str) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        # What was got is a secret: it is not repeated.
        raise stacks.InputError(
            where=where,
            got="something else",
            allowed="an unencrypted ed25519 private key in PEM",
            fix="openssl genpkey -algorithm ed25519",
        )
    return key


def _public(path: Path) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise stacks.InputError(
            where=str(path.name),
            got="something else",
            allowed="an ed25519 public key in PEM",
            fix="openssl pkey -in evidence.key -pubout",
        )
    return key


def _create(folder: Path) -> LocalKey:
    folder.mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        handle = os.open(folder / "evidence.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        # Another process was first; its key is the project's.
        return LocalKey(_private((folder / "evidence.key").read_bytes(), ".tollgate/keys/evidence.key"))
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "evidence.pub").write_bytes(public)
    return LocalKey(key)
