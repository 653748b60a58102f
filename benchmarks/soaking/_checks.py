"""Evidence and promotion in the middle of it all, by the command line: what must hold holds, what must be refused is refused."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import gate

from ._place import Disk

SOURCE, TARGET, STRICT = "local-dev", "local-staging", "local-strict"
_REFUSED = 3
_LIMIT_SECONDS = 180
# Nobody has this one in stacks/keys.
_STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@dataclass
class Checks:
    """How often each thing was asked, and what was not as it must be."""

    asked: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Gate:
    """The gate of the project at `root`, whose evidence lies on `disk`."""

    def __init__(self, root: Path, environment: Mapping[str, str], disk: Disk) -> None:
        self.root, self.disk, self.done = root, disk, Checks()
        self._environment = dict(environment)
        # One at a time: a full disk is no answer to whether a release may pass.
        self._lock = threading.Lock()

    def tollgate(self, *arguments: str, root: Path | None = None, **extra: str) -> tuple[int, str]:
        """Exit code and all that was said."""
        done = subprocess.run(
            [sys.executable, "-m", "tollgate", *arguments],
            cwd=root or self.root,
            env={**self._environment, **extra},
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=False,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def look(self, now: float) -> None:
        """Everything once; `now`, in seconds of the run, for the messages."""
        with self._lock:
            self._lets_in(now)
            self._refuses_here(now)
            self._refuses_elsewhere(now)

    def full_disk(self, now: float) -> list[str]:
        """Statements on a full disk: each whole or not at all. What was wrong, in words."""
        with self._lock:
            wrong = self.done.wrong
            before, already = len(wrong), self._names()
            approve = ("approve", TARGET, "--why", f"soak at {now:.0f} s", "--days", "1", "--by", "soak")
            self.disk.fill()
            try:
                self._ask("a statement on a full disk is refused", now, approve, code=1, says="cannot be written")
                self._ask("evidence on a full disk verifies", now, ("evidence", "verify"))
                self._expect("a full disk leaves nothing half-written", now, self._names() == already, self._names())
            finally:
                self.disk.free()
            self._ask("the statement is made once there is room", now, approve)
            self._expect("it is one more", now, len(self._names()) == len(already) + 1, self._names())
            self._ask("evidence verifies", now, ("evidence", "verify"))
            return wrong[before:]

    # ------------------------------------------------------------------ one question each

    def _lets_in(self, now: float) -> None:
        path = self._file(TARGET)
        before = path.read_text()
        if "tollgate:promotion" in before:
            raise AssertionError("the promotion of the look before was not undone")
        try:
            self._ask("evidence verifies", now, ("evidence", "verify"))
            self._ask("the gate is closed before a promotion", now, ("gate", TARGET), code=_REFUSED)
            self._ask("the good release is promoted", now, ("promote", SOURCE, TARGET))
            self._ask("and then let in", now, ("gate", TARGET))
            path.write_text(path.read_text().replace("gemma-3-4b-ollama-8", "gemma-3-4b-ollama-1"))
            self._ask("an edit after the promotion is refused", now, ("gate", TARGET), code=_REFUSED)
        finally:
            path.write_text(before)

    def _refuses_here(self, now: float) -> None:
        before = self._file(STRICT).read_text()
        self._ask("a release that fails is refused", now, ("promote", SOURCE, STRICT), code=_REFUSED, says="fail")
        self._expect("a refusal changes nothing", now, self._file(STRICT).read_text() == before, STRICT)

    def _refuses_elsewhere(self, now: float) -> None:
        promote, verify = ("promote", SOURCE, TARGET), ("evidence", "verify")
        with self._copy() as root:
            path = root / "stacks" / "releases" / "gemma-3-4b-ollama-8.yaml"
            path.write_text(path.read_text().replace("slots: 8", "slots: 7"))
            self._ask("another release than was measured is refused", now, promote, code=_REFUSED, root=root)
        with self._copy() as root:
            store = root / ".tollgate" / "evidence"
            last = sorted(store.glob("*.json"))[-1]
            payload = json.loads(last.read_bytes())["payload"]
            (store / f"{int(last.stem) + 1:06d}.json").write_bytes(signed_by_a_stranger(base64.b64decode(payload)))
            self._ask("a stranger's signature is refused", now, verify, code=_REFUSED, root=root)
            self._ask("no promotion by a stranger's signature", now, promote, code=_REFUSED, root=root)
        with self._copy() as root:
            first = min((root / ".tollgate" / "evidence").glob("*.json"))
            first.chmod(0o600)
            first.write_bytes(first.read_bytes().replace(b'"payload":"ey', b'"payload":"eY', 1))
            self._ask("a changed statement is refused", now, verify, code=_REFUSED, root=root)
            self._ask("no promotion by a changed statement", now, promote, code=_REFUSED, root=root)
        with self._copy() as root:
            max((root / ".tollgate" / "evidence").glob("*.json")).unlink()
            self._ask("a statement that is cut off is missed", now, verify, code=_REFUSED, root=root)

    def _ask(
        self, what: str, now: float, command: Sequence[str], *, code: int = 0, says: str = "", root: Path | None = None
    ) -> None:
        got, said = self.tollgate(*command, root=root)
        self._expect(what, now, got == code and says in said, f"exit code {got}: {said[-400:]}")

    def _expect(self, what: str, now: float, true: bool, got: object) -> None:
        self.done.asked[what] += 1
        if not true:
            self.done.wrong.append(f"gate at {now:.0f} s: not so: {what} ({got})")

    # ------------------------------------------------------------------ files

    def _file(self, stack: str) -> Path:
        return self.root / "stacks" / f"Pulumi.{stack}.yaml"

    def _names(self) -> list[str]:
        """All that lies in the store but what fills it."""
        return sorted(path.name for path in self.disk.path.iterdir() if path.name != ".ballast")

    @contextmanager
    def _copy(self) -> Iterator[Path]:
        """The project with its evidence, keys and witness, to be tampered with."""
        root = self.root.with_name("forged")
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("pulumi*", ".ballast"))
        try:
            yield root
        finally:
            shutil.rmtree(root)


def signed_by_a_stranger(payload: bytes) -> bytes:
    """An envelope with a sound signature by a key that nobody trusts."""
    return gate.seal(json.loads(payload), gate.LocalKey(_STRANGER))
