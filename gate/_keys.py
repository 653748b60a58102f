"""Who signs, and whose signatures are believed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import stacks

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_VARIABLE = "TOLLGATE_SIGNING_KEY"
OWN = Path(".tollgate") / "keys"


class Signer(Protocol):
    """What signs: a key in a file or a variable here, a key management service elsewhere."""

    @property
    def key_id(self) -> str:
        """Names the key in the envelope: SHA-256 of the raw public key, in hex."""

    def sign(self, message: bytes) -> bytes:
        """The raw ed25519 signature, 64 bytes."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """`signer`: None where this machine may only verify. `trusted`: key id -> public key, with its file's name."""

    signer: Signer | None
    trusted: Mapping[str, Ed25519PublicKey]
    names: Mapping[str, str]


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
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()


def load_keys(root: Path, *, create: bool = False) -> Keys:
    """The project's keys.

    Trusted: every `stacks/keys/*.pub` (committed, so reviewed). Only while there is none, this checkout's own
    `.tollgate/keys/evidence.pub`: otherwise whoever has a checkout could sign what the project then believes.
    Signer: `TOLLGATE_SIGNING_KEY` (PEM, `file:PATH`, `gcpkms://…` or `exec:NAME COMMAND…`), else
    `.tollgate/keys/evidence.key`, made on first use when `create` is set. It is only reached for when something is signed.
    Raises InputError for a key that cannot be read.
    """
    own = root / OWN
    signer: Signer | None = None
    if given := os.environ.get(KEY_VARIABLE):
        signer = _given(given, root)
    elif (own / "evidence.key").is_file():
        signer = LocalKey(_private((own / "evidence.key").read_bytes(), ".tollgate/keys/evidence.key"))
    elif create:
        signer = _create(own)
    committed = sorted((root / "stacks" / "keys").glob("*.pub"))
    trusted: dict[str, Ed25519PublicKey] = {}
    names: dict[str, str] = {}
    for path in committed or [own / "evidence.pub"]:
        if path.is_file():
            public = read_public(path)
            trusted[key_id(public)] = public
            names[key_id(public)] = path.stem if committed else "this checkout"
    return Keys(signer=signer, trusted=trusted, names=names)


def _given(given: str, root: Path) -> Signer:
    if given.startswith(("gcpkms://", "exec:")):
        # Imported here: most never ask another machine for a signature.
        from . import _kms

        return Later(lambda: _kms.google(given) if given.startswith("gcpkms://") else _kms.program(given, root))
    if given.startswith("file:"):
        path = root / given.removeprefix("file:")
        try:
            return LocalKey(_private(path.read_bytes(), given))
        except OSError as error:
            raise stacks.InputError(
                where=f"${KEY_VARIABLE}", got=f"{given} ({error.strerror})", allowed="a readable file", fix="name it"
            ) from None
    return LocalKey(_private(given.encode(), f"${KEY_VARIABLE}"))


class Later:
    """A signer that is looked for when it is first used: who only verifies needs no credentials of it."""

    def __init__(self, find: Callable[[], Signer]) -> None:
        self._find = find
        self._found: Signer | None = None

    def _signer(self) -> Signer:
        self._found = self._found or self._find()
        return self._found

    @property
    def key_id(self) -> str:
        return self._signer().key_id

    def sign(self, message: bytes) -> bytes:
        return self._signer().sign(message)


def _private(pem: bytes, where: str) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
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


def read_public(path: Path) -> Ed25519PublicKey:
    """An ed25519 public key in PEM. Raises InputError for anything else."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise stacks.InputError(
            where=f"{path.parent.name}/{path.name}",
            got="something else",
            allowed="an ed25519 public key in PEM",
            fix="openssl pkey -in evidence.key -pubout",
        )
    return key


def _create(folder: Path) -> LocalKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder.mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    # Written aside and linked: another process sees a whole key or none, and the first one to link wins.
    aside = folder / f".evidence-{os.getpid()}"
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
    try:
        (folder / "evidence.key").hardlink_to(aside)
    except FileExistsError:
        key = _private((folder / "evidence.key").read_bytes(), ".tollgate/keys/evidence.key")
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    finally:
        aside.unlink()
    aside.write_bytes(public)
    aside.replace(folder / "evidence.pub")
    return LocalKey(key)
