"""Signing keys that never leave where they are kept: Google Cloud KMS, or any program that signs.

Both stand behind `gate._keys.Signer`. Every signature is verified before it is used, so that one that was cut or mixed up on
the way is an error here and not evidence that nobody can read.

- `gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V`, an asymmetric signing key of algorithm
  EC_SIGN_ED25519. Calls `publicKey` and `asymmetricSign` of https://cloud.google.com/kms/docs/reference/rest. The token is
  `GOOGLE_OAUTH_ACCESS_TOKEN`, else gcloud's; `CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDKMS` names another endpoint, as for gcloud.
- `exec:NAME COMMAND…`: the command gets the message on its standard input and writes the 64 bytes of an ed25519 signature,
  raw or in base64, to its standard output. NAME is the public key, `stacks/keys/NAME.pub`. For a hardware token, Vault's
  transit engine, or another cloud's service. (AWS KMS signs no more than 4,096 bytes, which is less than a statement has.)
"""

from __future__ import annotations

import base64
import binascii
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stacks

from ._keys import key_id, read_public

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_GOOGLE = "https://cloudkms.googleapis.com/"
# asymmetricSign takes no more.
_GOOGLE_BYTES = 65_536
_SECONDS = 30.0


class RemoteKey:
    """A public key here, and somebody else who signs. `where` is for messages."""

    def __init__(self, public: Ed25519PublicKey, sign: Callable[[bytes], bytes], where: str) -> None:
        self._public, self._sign, self._where = public, sign, where

    @property
    def key_id(self) -> str:
        return key_id(self._public)

    def sign(self, message: bytes) -> bytes:
        """Raises TollgateError where no signature comes, or one that does not fit the public key."""
        from cryptography.exceptions import InvalidSignature

        signature = self._sign(message)
        try:
            self._public.verify(signature, message)
        except InvalidSignature:
            raise stacks.TollgateError(
                f"{self._where}: the signature does not fit the public key; nothing was written"
            ) from None
        return signature


def google(address: str) -> RemoteKey:
    """The key version of that `gcpkms://` address. Raises InputError or TollgateError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    name = address.removeprefix("gcpkms://")
    parts = name.split("/")
    if parts[::2] != ["projects", "locations", "keyRings", "cryptoKeys", "cryptoKeyVersions"] or not all(parts):
        raise stacks.InputError(
            where="$TOLLGATE_SIGNING_KEY",
            got=address,
            allowed="gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V",
            fix="name the version of the key, too",
        )
    try:
        public = load_pem_public_key(str(_ask(f"{name}/publicKey").get("pem", "")).encode())
    except ValueError:
        public = None
    if not isinstance(public, Ed25519PublicKey):
        raise stacks.InputError(
            where=address,
            got="a key of another algorithm",
            allowed="EC_SIGN_ED25519",
            fix="gcloud kms keys create … --purpose=asymmetric-signing --default-algorithm=ec-sign-ed25519",
        )

    def sign(message: bytes) -> bytes:
        if len(message) > _GOOGLE_BYTES:
            raise stacks.TollgateError(
                f"{address}: signs {_GOOGLE_BYTES} bytes at most, this statement has {len(message)}\n"
                "  fix: fewer runs in one benchmark, or a key of another kind"
            )
        found = _ask(f"{name}:asymmetricSign", {"data": base64.b64encode(message).decode()})
        return _decoded(str(found.get("signature", "")).encode(), address)

    return RemoteKey(public, sign, address)


def _ask(path: str, content: dict[str, str] | None = None) -> dict[str, Any]:
    import httpx2

    endpoint = os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDKMS") or _GOOGLE
    try:
        answer = httpx2.request(
            "POST" if content is not None else "GET",
            f"{endpoint.rstrip('/')}/v1/{path}",
            json=content,
            headers={"Authorization": f"Bearer {_token()}"},
            timeout=_SECONDS,
        )
        found = answer.json()
    except (httpx2.HTTPError, ValueError) as error:
        raise stacks.TollgateError(f"Cloud KMS does not answer: {error}; nothing was signed") from None
    if answer.status_code != 200 or not isinstance(found, dict):
        why = found.get("error", {}).get("message", "") if isinstance(found, dict) else ""
        raise stacks.TollgateError(f"Cloud KMS refuses ({answer.status_code}): {why or 'no reason given'}")
    return found


def _token() -> str:
    if given := os.environ.get("GOOGLE_OAUTH_ACCESS_TOKEN"):
        return given
    command = ["gcloud", "auth", "print-access-token"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        raise stacks.TollgateError(
            "no access token for Cloud KMS\n  fix: gcloud auth login, or set GOOGLE_OAUTH_ACCESS_TOKEN"
        ) from None
    return done.stdout.strip()


def program(address: str, root: Path) -> RemoteKey:
    """The signer of that `exec:` address. Raises InputError or TollgateError."""
    name, _, rest = address.removeprefix("exec:").strip().partition(" ")
    path = root / "stacks" / "keys" / f"{name}.pub"
    try:
        command = shlex.split(rest)
    except ValueError:
        command = []
    if not command or not path.is_file():
        raise stacks.InputError(
            where="$TOLLGATE_SIGNING_KEY",
            got=f"exec:{name} …" if command else "exec: without a command",
            allowed="exec:NAME COMMAND…, with the public key in stacks/keys/NAME.pub",
            fix="put the signer's public key there, and have that reviewed",
        )

    def sign(message: bytes) -> bytes:
        try:
            done = subprocess.run(command, input=message, capture_output=True, cwd=root, timeout=_SECONDS, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            raise stacks.TollgateError(f"the signer {command[0]} cannot be run: {error}") from None
        if done.returncode != 0:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise stacks.TollgateError(f"the signer {command[0]} failed: {''.join(last) or done.returncode}")
        found = done.stdout
        return found if len(found) == 64 else _decoded(found.strip(), f"the signer {command[0]}")

    return RemoteKey(read_public(path), sign, f"the signer {command[0]}")


def _decoded(text: bytes, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise stacks.TollgateError(f"{where}: answered with something that is no signature") from None
