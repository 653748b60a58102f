"""How many requests a deployed engine works at once, turned on the Deployment itself and turned back afterwards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import stacks

from ._kubectl import Kubectl

_OLLAMA, _FLAG = "OLLAMA_NUM_PARALLEL", "--max-num-seqs"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where it stands in the first container: `env` or `args`, at that index; `joined`: as FLAG=VALUE in one word."""

    kind: Literal["env", "args"]
    index: int
    joined: bool = False
    value: int | None = None


class Knob:
    """`OLLAMA_NUM_PARALLEL` of Ollama, `--max-num-seqs` of everything else, on a Deployment.

    A context manager: leaving it gives the Deployment the value back that it had, whatever happened; `unsettled` then says why
    its pods are not all there again, which is no reason to lose what was measured. Raises InputError where the Deployment does
    not set it.
    """

    def __init__(self, kubectl: Kubectl, deployment: str, engine: str) -> None:
        self._kubectl, self._name = kubectl, deployment
        self._before = kubectl.get("deployment", deployment)["spec"]
        self.what = _OLLAMA if engine == "ollama" else _FLAG
        self.place = find(
            self._before["template"]["spec"]["containers"][0], self.what, f"{kubectl.namespace}/{deployment}"
        )
        self._turned = False
        self.unsettled = ""

    @property
    def replicas(self) -> int:
        """How many there are to be."""
        return int(self._before.get("replicas", 1))

    def __enter__(self) -> Knob:
        return self

    def __exit__(self, *error: object) -> None:
        if self._turned:
            self._patch(self.place.value)
            try:
                self._wait(180.0)
            except stacks.TollgateError as failure:
                self.unsettled = str(failure)

    def turn(self, value: int, seconds: float = 600.0) -> None:
        """Set it and wait until only pods that have it are left. Raises TollgateError when that takes too long."""
        self._turned = True
        self._patch(value)
        self._wait(seconds)

    def _patch(self, value: int | None) -> None:
        patch = [{"op": "replace", "path": path(self.place), "value": text(self.place, self.what, value)}]
        self._kubectl.run("patch", "deployment", self._name, "--type=json", "-p", json.dumps(patch))

    def _wait(self, seconds: float) -> None:
        self._kubectl.run(
            "rollout", "status", f"deployment/{self._name}", f"--timeout={seconds:.0f}s", seconds=seconds + 30
        )


def find(container: dict[str, Any], what: str, where: str) -> Place:
    """Where a container sets it. Raises InputError."""
    for index, entry in enumerate(container.get("env") or []):
        if entry.get("name") == what and str(entry.get("value", "")).isdigit():
            return Place(kind="env", index=index, value=int(entry["value"]))
    args = container.get("args") or []
    for index, word in enumerate(args):
        if word.startswith(f"{what}=") and word.partition("=")[2].isdigit():
            return Place(kind="args", index=index, joined=True, value=int(word.partition("=")[2]))
        if word == what and index + 1 < len(args) and args[index + 1].isdigit():
            return Place(kind="args", index=index + 1, value=int(args[index + 1]))
    raise stacks.InputError(
        where=f"Deployment {where}", got=f"no {what}", allowed=f"a first container that sets {what}",
        fix="deploy the stack by Tollgate, or set it once",
    )  # fmt: skip


def path(place: Place) -> str:
    """The JSON pointer to it."""
    end = "/value" if place.kind == "env" else ""
    return f"/spec/template/spec/containers/0/{place.kind}/{place.index}{end}"


def text(place: Place, what: str, value: int | None) -> str:
    """What stands there for that value."""
    return f"{what}={value}" if place.joined else str(value)
