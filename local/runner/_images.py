"""Which local command stands for which image. Anything that is not in the table is refused, never guessed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]
SHIMS = Path(__file__).resolve().parent / "shims"


@dataclass(frozen=True, kw_only=True)
class Image:
    """`entrypoint`: in place of the image's own. `programs`: first words of a pod's `command` that mean that entrypoint.

    `arguments`: used where the pod gives none. `shims`: whether hooks and probes find the image's program on PATH.
    """

    entrypoint: tuple[str, ...]
    programs: tuple[tuple[str, ...], ...] = ()
    arguments: tuple[str, ...] = ()
    shims: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, command: Sequence[str], args: Sequence[str]) -> list[str]:
        """The local command for what a pod asks: its `command` replaces the entrypoint, its `args` the arguments."""
        if not command:
            return [*self.entrypoint, *(args or self.arguments)]
        for program in self.programs:
            if tuple(command[: len(program)]) == program:
                return [*self.entrypoint, *command[len(program) :], *args]
        return [*command, *args]


_PYTHON = {"PYTHONPATH": str(_PROJECT), "PYTHONUNBUFFERED": "1"}
_SIMULATOR = (sys.executable, "-m", "bench.simulator")

IMAGES: dict[str, Image] = {
    "ollama/ollama": Image(
        entrypoint=(*_SIMULATOR, "ollama"),
        programs=(("ollama",), ("/bin/ollama",), ("/usr/bin/ollama",)),
        arguments=("serve",),
        shims=True,
        environment=_PYTHON,
    ),
    "vllm/vllm-openai": Image(
        entrypoint=(*_SIMULATOR, "vllm"),
        programs=(("vllm",), ("python3", "-m", "vllm.entrypoints.openai.api_server")),
        environment=_PYTHON,
    ),
    "ghcr.io/tollgate/bench": Image(entrypoint=(sys.executable, "-m", "bench"), environment=_PYTHON),
    "busybox": Image(entrypoint=("/bin/sh",)),
    "registry.k8s.io/pause": Image(
        entrypoint=("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done")
    ),
}


def repository(image: str) -> str:
    """The image's name without tag and digest: `docker.io/library/busybox:1@sha256:…` is `busybox`."""
    name = image.split("@", 1)[0]
    head, _, last = name.rpartition("/")
    name = f"{head}/{last.split(':', 1)[0]}" if head else last.split(":", 1)[0]
    return name.removeprefix("docker.io/").removeprefix("library/")


def find(image: str) -> Image | None:
    """The image's entry, or None where the table does not know it."""
    return IMAGES.get(repository(image))
