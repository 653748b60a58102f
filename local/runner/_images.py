"""Which local command stands for which image. Anything that is not in the table is refused, never guessed."""

from __future__ import annotations

import py_compile
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stacks
from local import tiny, tools

_PROJECT = Path(__file__).resolve().parents[2]
_CLIENT = Path(__file__).resolve().parent / "shims" / "ollama_client.py"
# Where a container finds its image's programs; first on its PATH.
BIN = "/.tollgate/bin"
# How values/ollama.yaml.j2 names the model that it will pull.
MODEL_VARIABLE = "TOLLGATE_MODEL"


class UnknownImage(Exception):
    """No local command stands for the image; the message names the images that are known."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """`entrypoint`: in place of the image's own. `programs`: first words of a pod's `command` that mean that entrypoint.

    `arguments`: used where the pod gives none. `shims`: name -> text of small programs for hooks, probes and scripts;
    `compiled`: Python files that they run, put beside them; `made`: name -> what writes a file beside them.
    `kept`: folders of this machine that the programs need.
    """

    entrypoint: tuple[str, ...]
    programs: tuple[tuple[str, ...], ...] = ()
    arguments: tuple[str, ...] = ()
    shims: Mapping[str, str] = field(default_factory=dict)
    compiled: tuple[Path, ...] = ()
    made: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[Path, ...] = ()

    def command(self, command: Sequence[str], args: Sequence[str]) -> list[str]:
        """The local command for what a pod asks: its `command` replaces the entrypoint, its `args` the arguments."""
        if not command:
            return [*self.entrypoint, *(args or self.arguments)]
        for program in self.programs:
            if tuple(command[: len(program)]) == program:
                return [*self.entrypoint, *command[len(program) :], *args]
        return [*command, *args]


_PYTHON = {"PYTHONPATH": str(_PROJECT), "PYTHONUNBUFFERED": "1"}
_PYTHON_SHIM = '#!/bin/sh\nexec "$TOLLGATE_PYTHON" "$@"\n'
_PYTHONS = {"python": _PYTHON_SHIM, "python3": _PYTHON_SHIM}
_SIMULATOR = (sys.executable, "-m", "bench.simulator")
_OLLAMA_SHIM = """#!/bin/sh
# The server is the simulator; everything else a client that starts quickly.
case "${1-serve}" in serve|start) exec "$TOLLGATE_PYTHON" -m bench.simulator ollama "$@";; esac
exec "$TOLLGATE_PYTHON" -I -S "${0%/*}/ollama_client.pyc" "$@"
"""
_VLLM_SHIM = '#!/bin/sh\nexec "$TOLLGATE_PYTHON" -m bench.simulator vllm "$@"\n'
_OLLAMA_PROGRAMS = (("ollama",), ("/bin/ollama",), ("/usr/bin/ollama",))

IMAGES: dict[str, Image] = {
    "ollama/ollama": Image(
        entrypoint=(*_SIMULATOR, "ollama"),
        # `ollama pull` as a pod's command is the client, in the shims.
        programs=tuple((*program, "serve") for program in _OLLAMA_PROGRAMS),
        arguments=("serve",),
        shims={"ollama": _OLLAMA_SHIM},
        compiled=(_CLIENT,),
        environment=_PYTHON,
    ),
    "vllm/vllm-openai": Image(
        entrypoint=(*_SIMULATOR, "vllm"),
        programs=(
            ("vllm",),
            ("python3", "-m", "vllm.entrypoints.openai.api_server"),
            ("python", "-m", "vllm.entrypoints.openai.api_server"),
        ),
        shims={"vllm": _VLLM_SHIM, **_PYTHONS},
        environment=_PYTHON,
    ),
    "ghcr.io/tollgate/bench": Image(
        entrypoint=(sys.executable, "-m", "bench"), shims=dict(_PYTHONS), environment=_PYTHON
    ),
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


def find(image: str, env: Sequence[Mapping[str, Any]] = ()) -> Image:
    """The image's entry; for Ollama the real one where it has been built and `env`, the container's own, asks for the tiny
    model that it can run. Raises UnknownImage."""
    name = repository(image)
    if name == "haproxy":
        return _haproxy()
    if name not in IMAGES:
        known = ", ".join(sorted([*IMAGES, "haproxy"]))
        raise UnknownImage(f'image "{image}" has no local command; the pod runner knows {known}')
    if name == "ollama/ollama" and {"name": MODEL_VARIABLE, "value": tiny.NAME} in env:
        return _real_ollama() or IMAGES[name]
    return IMAGES[name]


def _haproxy() -> Image:
    """The real one, where it has been built. Raises UnknownImage."""
    try:
        program = tools.path("haproxy").resolve()
    except stacks.TollgateError:
        raise UnknownImage('image "haproxy" has no local command here: tollgate tools build --with haproxy') from None
    # The image's entry point runs the program that its arguments name.
    shim = f'#!/bin/sh\nexec {shlex.quote(str(program))} "$@"\n'
    return Image(entrypoint=(), shims={"haproxy": shim}, kept=(program.parents[1],))


# Its registry alone is not real: what is pulled there is made here.
_REAL_OLLAMA_SHIM = """#!/bin/sh
here="${{0%/*}}"
if [ "$1 $2" = "pull {model}" ]; then set -- create {model} -f "$here/Modelfile"; fi
exec {program} "$@"
"""


def _real_ollama() -> Image | None:
    try:
        program = tools.path("ollama").resolve()
    except stacks.TollgateError:
        return None
    return Image(
        entrypoint=(str(program),),
        programs=_OLLAMA_PROGRAMS,
        arguments=("serve",),
        shims={
            "ollama": _REAL_OLLAMA_SHIM.format(model=tiny.NAME, program=shlex.quote(str(program))),
            # A random model seldom ends by itself: who names no limit, as `ollama run` to load it, would wait for long.
            "Modelfile": f"FROM {BIN}/tiny.gguf\nPARAMETER num_predict 64\n",
        },
        made={"tiny.gguf": tiny.write},
        environment={"OLLAMA_HOST": "$(POD_IP):11434"},
        kept=(program.parent,),
    )


def needed_folders() -> tuple[Path, ...]:
    """What the local commands need of this machine wherever it lies: this project, the interpreter and its libraries."""
    return tuple(dict.fromkeys(Path(place) for place in (_PROJECT, sys.prefix, sys.base_prefix)))


def write_shims(image: Image, folder: Path) -> Path | None:
    """The image's programs as files in a folder of their own below `folder`; None where it has none."""
    if not image.shims:
        return None
    place = folder / stacks.digest(dict(image.shims)).removeprefix("sha256:")[:16]
    place.mkdir(parents=True, exist_ok=True)
    for program, text in image.shims.items():
        target = place / program
        if not target.is_file() or target.read_text() != text:
            temporary = target.with_name(f".{program}.new")
            temporary.write_text(text)
            temporary.chmod(0o755)
            temporary.replace(target)
    for source in image.compiled:
        # A main program is compiled anew at every start, unless it comes compiled.
        target = place / f"{source.stem}.pyc"
        if not target.is_file() or target.stat().st_mtime < source.stat().st_mtime:
            py_compile.compile(str(source), cfile=str(target), dfile=source.name, doraise=True)
    for program, make in image.made.items():
        if not (target := place / program).is_file():
            temporary = target.with_name(f".{program}.new")
            make(temporary)
            temporary.replace(target)
    return place
