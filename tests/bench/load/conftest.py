"""A server of exact timing for each test that asks for one."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import stacks
from bench import load

RELEASE = "sha256:" + "0" * 64


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Start a fake server with these options and give its address."""
    running: list[subprocess.Popen[str]] = []

    def start(*options: object, scheme: str = "http") -> str:
        command = [sys.executable, str(Path(__file__).with_name("fake_server.py")), *map(str, options)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        return f"{scheme}://127.0.0.1:{int(process.stdout.readline())}"

    yield start
    for process in running:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def measured() -> Callable[..., load.Progress]:
    """Run a small benchmark; keyword arguments of Target, Settings and Traffic may be mixed.

    In place of an address, what starts a server and gives its address: for those that a run does not outlive.
    """

    def run(url: str | Callable[[], str], engine: str = "ollama", users: int = 5, **given: object) -> object:
        targets = {k: given.pop(k) for k in list(given) if k in load.Target.__dataclass_fields__}
        settings = {k: given.pop(k) for k in list(given) if k in load.Settings.__dataclass_fields__}
        names = ("costs", "progress", "stopper", "scenario", "crews", "observer", "say")
        calls = {k: given.pop(k) for k in list(given) if k in names}
        asked = {"arrival": "closed", "users": users, "prompt_tokens": 16.0, "output_tokens": 8.0, **given}
        for _ in range(3):
            result = load.run(
                load.Target(url=url if isinstance(url, str) else url(), engine=engine, model="tiny", **targets),
                stacks.Traffic.model_validate(asked),
                load.Settings(**{"runs": 1, "seconds": 0.6, "ready_timeout": 10.0, **settings}),
                release=RELEASE,
                stack="test",
                **calls,
            )
            # A busy machine makes the client late, or the server slower meanwhile; both are said, and nothing can be learnt
            # from such a run.
            spoilt = ("client-bound: its", "client-bound: the client used", "latency changed by")
            if not any(why in one.invalid_because for one in result.runs for why in spoilt):
                break
        return result

    return run


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Key and certificate of 127.0.0.1 in one file."""
    return _made(tmp_path / "both.pem")


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """The same of somebody whom nobody was told to trust."""
    return _made(tmp_path / "stranger.pem")


def _made(file: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return file
