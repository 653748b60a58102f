"""kubectl, and nothing else, is how this machine talks to a cluster: contexts, plugins and credentials are then the user's."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import stacks

_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Kubectl:
    """`environment`: of the process (PATH, KUBECONFIG). `context`: of the kubeconfig; empty: the current one."""

    environment: Mapping[str, str] = field(repr=False)
    namespace: str
    context: str = ""

    def command(self, *arguments: str) -> list[str]:
        """The whole command line. Raises InputError where there is no kubectl."""
        program = shutil.which("kubectl", path=self.environment.get("PATH"))
        if program is None:
            raise stacks.InputError(
                where="kubectl", got="not on PATH", allowed="kubectl", fix="install it, or run `tollgate tools build`"
            )
        where = ["--context", self.context] if self.context else []
        return [program, *where, "-n", self.namespace, *arguments]

    def run(self, *arguments: str, given: str = "", seconds: float = _SECONDS) -> str:
        """Standard output. Raises TollgateError with what kubectl said when it fails or takes longer than `seconds`."""
        try:
            done = subprocess.run(
                self.command(*arguments), input=given, env=dict(self.environment), capture_output=True, text=True,
                timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise stacks.TollgateError(f"kubectl {' '.join(arguments)}: no answer within {seconds:.0f} s") from error
        if done.returncode:
            said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise stacks.TollgateError(f"kubectl {' '.join(arguments[:3])}: {said}")
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get … -o json`."""
        return dict(json.loads(self.run("get", *arguments, "-o", "json")))

    def create(self, objects: Sequence[Mapping[str, Any]]) -> None:
        """Create all of them."""
        self.run("create", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def follow(self, *arguments: str) -> subprocess.Popen[str]:
        """A running `kubectl logs -f …`, line by line; its errors are among its lines."""
        return subprocess.Popen(
            self.command("logs", "-f", *arguments), env=dict(self.environment), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
