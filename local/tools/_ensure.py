"""Making the tools be there: found, or built once, whoever asks and however often."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

import stacks

from . import _find, _go
from ._table import BY_NAME, DATA, TOOLS, Tool

_NEEDED_BYTES = 10 * 2**30


class Progress(Protocol):
    """What is told while tools are built; called from several threads."""

    def say(self, text: str) -> None:
        """One sentence of what is going on."""

    def building(self, tool: str, compiled: int, packages: int) -> None:
        """`compiled` of `packages` packages; 0 packages: not known."""

    def built(self, tool: str, seconds: float) -> None:
        """One tool is there."""

    def plan(self, weights: dict[str, int]) -> None:
        """What will be built, with its weight in CPU seconds."""


class Silent:
    """No progress at all."""

    def say(self, text: str) -> None: ...
    def building(self, tool: str, compiled: int, packages: int) -> None: ...
    def built(self, tool: str, seconds: float) -> None: ...
    def plan(self, weights: dict[str, int]) -> None: ...


def ensure(names: Iterable[str] | None = None, *, progress: Progress | None = None) -> dict[str, Path]:
    """Name -> program, for these tools (default: all that are not optional), built where they are missing.

    Safe to interrupt (what is finished stays, what is not leaves nothing) and to run twice at once (the second waits).
    Raises TollgateError where one cannot be built.
    """
    progress = progress or Silent()
    wanted = [BY_NAME[name] for name in names if name in BY_NAME] if names is not None else None
    tools = wanted if wanted is not None else [tool for tool in TOOLS if not tool.optional]
    missing = [tool for tool in tools if _find.locate(tool).path is None]
    data = [name for name in DATA if not _find.data_path(name).is_dir()]
    if _find.nft_status().path is None:
        _unpack_nft(progress)
    if missing or data:
        with _locked(_find.cache_dir(), progress):
            # Another process may have built them while this one waited.
            _build([tool for tool in missing if _find.locate(tool).path is None], progress)
    return {tool.name: _find.path(tool.name) for tool in tools}


def _build(missing: list[Tool], progress: Progress) -> None:
    cache = _find.cache_dir()
    if len(missing) > 2 and shutil.disk_usage(cache).free < _NEEDED_BYTES:
        raise _go.no_space(cache)
    go = _go.toolchain(cache, progress.say)
    for name in DATA:
        _fetch(go, cache, name)
    progress.plan({tool.name: tool.seconds for tool in missing})
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=2) as pool:
        work = [pool.submit(_build_one, go, cache, tool, progress, stop) for tool in missing]
        try:
            done, _ = wait(work, return_when=FIRST_EXCEPTION)
            for one in done:
                one.result()
        except BaseException:
            stop.set()
            for one in work:
                one.cancel()
            raise
    if all(_find.locate(tool).path is not None for tool in TOOLS if not tool.optional):
        # Eight gigabytes that nobody needs any more.
        shutil.rmtree(cache / "go-build", ignore_errors=True)


def _build_one(go: Path, cache: Path, tool: Tool, progress: Progress, stop: threading.Event) -> None:
    if stop.is_set():
        return
    began = time.monotonic()
    env, module = _go.environment(go, cache, cgo=tool.cgo), _find.module_dir(tool)
    progress.building(tool.name, 0, 0)
    total = _go.packages(go, tool, module, env)

    def compiled(count: int) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        progress.building(tool.name, count, total)

    log = cache / "logs" / f"{tool.name}.log"
    _go.build(go, tool, module, env, target=_find.built_path(tool), log=log, compiled=compiled)
    progress.built(tool.name, time.monotonic() - began)


def _fetch(go: Path, cache: Path, name: str) -> None:
    wrapper, module, paths = DATA[name]
    target = _find.data_path(name)
    if target.is_dir():
        return
    wrapper_dir = _find.module_dir(next(tool for tool in TOOLS if tool.module == wrapper))
    source = _go.module_folder(go, wrapper_dir, module, _go.environment(go, cache, cgo=False))
    temporary = target.with_name(f".{target.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for index, path in enumerate(paths):
        found = source / path
        files = sorted(found.glob("*.yaml")) if found.is_dir() else [found]
        for file in files:
            if file.name == "kustomization.yaml":
                continue
            # Several folders may use the same file name.
            copy = temporary / (f"{index:02d}-{file.name}" if len(paths) > 1 else file.name)
            shutil.copyfile(file, copy)
            copy.chmod(0o755 if not file.suffix else 0o644)
    temporary.rename(target)


def _unpack_nft(progress: Progress) -> None:
    """nft and its libraries out of the distribution's packages, for users who may not install any."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise stacks.TollgateError(f"nft is not on PATH; kube-proxy needs it\n  fix: {_find.NFT_FIX}")
    progress.say("getting nft (package nftables)")
    target = _find.cache_dir() / "tools" / "nft"
    with tempfile.TemporaryDirectory() as folder:
        names = [
            "nftables",
            "libnftables1",
            "libnftnl11",
            "libmnl0",
            "libjansson4",
            "libxtables12",
            "libedit2",
            "libbsd0",
        ]
        done = subprocess.run(["apt-get", "download", *names], cwd=folder, capture_output=True, text=True)
        packages = sorted(Path(folder).glob("*.deb"))
        if not any(package.name.startswith("nftables") for package in packages):
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise stacks.TollgateError(
                f"nft is not on PATH and could not be downloaded ({reason})\n  fix: {_find.NFT_FIX}"
            )
        for package in packages:
            subprocess.run(["dpkg-deb", "-x", str(package), str(target / "root")], check=True)
    libraries = os.pathsep.join(sorted({str(file.parent) for file in (target / "root").rglob("*.so.*")}))
    wrapper = target / ".nft"
    wrapper.write_text(
        f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{target / "root" / "usr" / "sbin" / "nft"}" "$@"\n'
    )
    wrapper.chmod(0o755)
    wrapper.rename(target / "nft")


@contextlib.contextmanager
def _locked(cache: Path, progress: Progress) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "tools.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            progress.say(f"waiting for process {lock.read().strip() or 'unknown'}, which is building the tools")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
