"""Where the signing key may be: a file, a variable, Cloud KMS, any program; and that none of it leaks or is believed blindly."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import gate
import stacks

KEY_NAME = "projects/p/locations/global/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1"


def pem(key: Any) -> bytes:
    private: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private


def public_pem(key: Any) -> bytes:
    public: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public


def trust(root: Path, key: Any, name: str = "ci") -> None:
    (root / "stacks" / "keys").mkdir(exist_ok=True)
    (root / "stacks" / "keys" / f"{name}.pub").write_bytes(public_pem(key))


@pytest.fixture
def key(world: Any) -> Ed25519PrivateKey:
    made = Ed25519PrivateKey.generate()
    trust(world.root, made)
    return made


def signed_by(world: Any) -> str:
    world.record()
    (event,) = gate.history("local-dev", world.root)
    return event.by


def test_a_key_in_the_environment_signs(world: Any, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_SIGNING_KEY", pem(key).decode())
    assert signed_by(world) == "ci"
    assert not (world.root / ".tollgate" / "keys").exists()


def test_a_key_in_a_file_signs(world: Any, key: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.key"
    path.write_bytes(pem(key))
    monkeypatch.setenv("TOLLGATE_SIGNING_KEY", f"file:{path}")
    assert signed_by(world) == "ci"


def test_a_key_file_that_is_not_there_is_wrong_input(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_SIGNING_KEY", "file:nowhere.key")
    with pytest.raises(stacks.InputError, match=r"(?s)TOLLGATE_SIGNING_KEY.*nowhere\.key"):
        world.record()


SIGN = """
import sys
from cryptography.hazmat.primitives.serialization import load_pem_private_key
key = load_pem_private_key(open(sys.argv[1], 'rb').read(), None)
sys.stdout.buffer.write(key.sign(sys.stdin.buffer.read()))
"""


def by_program(world: Any, monkeypatch: pytest.MonkeyPatch, key: Any, script: str = SIGN) -> None:
    (world.root / "private.pem").write_bytes(pem(key))
    (world.root / "sign.py").write_text(script)
    monkeypatch.setenv("TOLLGATE_SIGNING_KEY", f"exec:ci {sys.executable} sign.py private.pem")


def test_a_program_signs(world: Any, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    by_program(world, monkeypatch, key)
    assert signed_by(world) == "ci"


def test_a_program_may_answer_in_base64(world: Any, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "import base64; print(base64.b64encode(key.sign(sys.stdin.buffer.read())).decode())"
    by_program(world, monkeypatch, key, SIGN.rpartition("sys.stdout")[0] + answer)
    assert signed_by(world) == "ci"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import sys; sys.exit('no card in the reader')", "failed: no card in the reader"),
        ("print('hello there!')", "something that is no signature"),
        ("import sys; sys.stdout.buffer.write(bytes(64))", "does not fit the public key; nothing was written"),
        ("", "does not fit the public key"),
    ],
)
def test_a_program_that_does_not_sign_writes_nothing(
    world: Any, key: Any, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    by_program(world, monkeypatch, key, script)
    with pytest.raises(stacks.TollgateError, match=said):
        world.record()
    assert world.files() == []


def test_a_program_with_another_key_than_it_says_is_found_out(
    world: Any, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_program(world, monkeypatch, Ed25519PrivateKey.generate())
    with pytest.raises(stacks.TollgateError, match="does not fit the public key; nothing was written"):
        world.record()


@pytest.mark.parametrize("address", ["exec:", "exec:ci", "exec:nobody true", "exec:ci 'unclosed"])
def test_a_program_that_is_not_named_well_is_wrong_input(
    world: Any, key: Any, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("TOLLGATE_SIGNING_KEY", address)
    with pytest.raises(stacks.InputError, match="exec:NAME COMMAND"):
        world.record()


class _Kms(BaseHTTPRequestHandler):
    """As much of Cloud KMS as signing uses."""

    key: Any
    says: bytes | None = None

    def do_GET(self) -> None:
        self._answer({"pem": public_pem(self.key).decode(), "algorithm": "EC_SIGN_ED25519"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = base64.b64decode(asked["data"])
        signature = self.says if self.says is not None else self.key.sign(message)
        self._answer({"signature": base64.b64encode(signature).decode()})

    def _answer(self, content: dict[str, str]) -> None:
        allowed = self.headers["Authorization"] == "Bearer canary-token" and KEY_NAME in self.path
        body = json.dumps(content if allowed else {"error": {"message": "permission denied"}}).encode()
        self.send_response(200 if allowed else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def kms(world: Any, key: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Kms]]:
    handler = type("Handler", (_Kms,), {"key": key})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDKMS", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", "canary-token")
    monkeypatch.setenv("TOLLGATE_SIGNING_KEY", f"gcpkms://{KEY_NAME}")
    yield handler
    server.shutdown()
    server.server_close()


def test_cloud_kms_signs(world: Any, kms: type[_Kms]) -> None:
    assert signed_by(world) == "ci"
    world.promote()
    assert world.check().gated


def test_who_only_verifies_asks_no_kms(world: Any, kms: type[_Kms], monkeypatch: pytest.MonkeyPatch) -> None:
    world.record()
    world.promote()
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDKMS", "http://127.0.0.1:9/")
    assert world.check().gated
    with pytest.raises(stacks.TollgateError, match="Cloud KMS does not answer"):
        world.record(world.result(world.slow))


def test_cloud_kms_without_permission_says_so_and_the_token_is_in_no_message(
    world: Any, kms: type[_Kms], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_OAUTH_ACCESS_TOKEN", "canary-other")
    with pytest.raises(stacks.TollgateError, match=r"Cloud KMS refuses \(403\): permission denied") as caught:
        world.record()
    assert "canary" not in str(caught.value)


def test_a_signature_that_was_mixed_up_on_the_way_is_not_written(world: Any, kms: type[_Kms]) -> None:
    kms.says = bytes(64)
    with pytest.raises(stacks.TollgateError, match="does not fit the public key; nothing was written"):
        world.record()
    assert world.files() == []


def test_a_kms_key_of_another_algorithm_is_wrong_input(world: Any, kms: type[_Kms]) -> None:
    kms.key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(stacks.InputError, match="EC_SIGN_ED25519"):
        world.record()


def test_a_kms_address_without_the_version_is_wrong_input(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_SIGNING_KEY", "gcpkms://projects/p/locations/l/keyRings/r/cryptoKeys/k")
    with pytest.raises(stacks.InputError, match="name the version of the key"):
        world.record()
