"""One job of Go: download what it imports, count what is to be compiled, build, put the programs in their places."""

from __future__ import annotations

import json
import re
import tempfile
import time
from pathlib import Path
from typing import Final

from stacks import TollgateError

from . import _go, _places
from ._jobs import GoJob
from ._locks import Stopped
from ._progress import Reporter, Step
from ._run import Processes
from ._table import GoProgram, Tool

# A module proxy that hiccups once must not end a run of 20 minutes.
_PAUSES: Final = (2.0, 6.0)
_NETWORK: Final = re.compile(
    r"dial tcp|no such host|connection (refused|reset|timed out)|i/o timeout|TLS handshake|proxyconnect"
    r"|: (50[0234]|429|403|407) |network is unreachable|unexpected EOF|server misbehaving|certificate"
)
_DOWNLOADING: Final = re.compile(r"go: downloading (\S+) (\S+)")


def no_space(text: str) -> bool:
    """Whether an error text is about a full disk."""
    return "no space left on device" in text.lower()


def put_in_place(aside: Path, place: Path) -> None:
    """Move a complete folder to where it is looked for; on the same file system, so at once or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    aside.chmod(0o755)
    aside.rename(place)


class Workshop:
    """The Go commands of one run; used by several threads."""

    def __init__(
        self, toolchain: _go.Toolchain | None, processes: Processes, report: Reporter, temporary: Path, logs: Path
    ) -> None:
        self._toolchain, self._processes, self._report = toolchain, processes, report
        self._temporary, self._logs = temporary, logs

    def fetch(self, job: GoJob) -> None:
        """Download all modules that the job's packages import."""
        count = 0

        def line(text: str) -> None:
            nonlocal count
            match = _DOWNLOADING.match(text)
            if match:
                count += 1
                self._report(Step(job=job.name, state="fetching", note=f"{match[1].split('/')[-1]} (module {count})"))

        packages = [source.package for source in _sources(job.tools)]
        arguments = ["list", "-deps", *_list_flags(job), "-f", "{{if .Module}}{{end}}", *packages]
        self._go(job.source, arguments, log=self._log(job), on_line=line, what=f"the modules of {job.name}")

    def build(self, job: GoJob, tools: tuple[Tool, ...]) -> None:
        """Build these tools of the job."""
        log = self._log(job)
        packages = [source.package for source in _sources(tools)]
        waiting = self._stale(job, packages, log)
        total, done = len(waiting), 0
        self._report(Step(job=job.name, state="compiling" if total else "linking", done=0, total=total))

        def line(text: str) -> None:
            # -v names each package as its compilation begins; anything else is not in the set.
            nonlocal done
            if text in waiting:
                waiting.discard(text)
                done += 1
                self._report(Step(job=job.name, state="compiling" if waiting else "linking", done=done, total=total))

        out = Path(tempfile.mkdtemp(dir=self._temporary))
        began = time.monotonic()
        arguments = ["build", "-v", *job.source.flags, "-o", f"{out}/", *packages]
        self._go(job.source, arguments, log=log, on_line=line, what=job.name)
        for tool, source in zip(tools, _sources(tools), strict=True):
            aside = Path(tempfile.mkdtemp(dir=self._temporary))
            (aside / "bin").mkdir()
            program = aside / "bin" / tool.name
            (out / program_name(source.package)).rename(program)
            program.chmod(0o755)
            made = {"package": source.package, "flags": source.flags, "go": self.toolchain.version}
            (aside / "build.json").write_text(json.dumps({**made, "seconds": round(time.monotonic() - began)}))
            put_in_place(aside, _places.folder(tool))

    @property
    def toolchain(self) -> _go.Toolchain:
        assert self._toolchain is not None, "planned without Go"
        return self._toolchain

    def module_folder(self, module: str, dependency: str, name: str) -> Path:
        """Where the files of a dependency of a wrapper module lie, downloaded where needed."""
        answer = Path(tempfile.mkdtemp(dir=self._temporary)) / "module.json"
        source = GoProgram(module=module, package="")
        log = self._logs / f"{name}.log"
        self._go(source, ["mod", "download", "-json", dependency], log=log, on_line=None, what=name, output=answer)
        folder = json.loads(answer.read_text()).get("Dir")
        if not isinstance(folder, str):
            raise TollgateError(f"the Go module {dependency} could not be downloaded for {name}\n  log: {log}")
        return Path(folder)

    def run(self, command: list[str | Path], *, what: str, output: Path) -> None:
        """Run another program for a job, its standard output to a file."""
        log = self._logs / f"{what}.log"
        environment = self.toolchain.environment(cgo=False, temporary=self._temporary)
        code = self._processes.run(command, cwd=self._temporary, environment=environment, log=log, output=output)
        if code != 0:
            raise TollgateError(f"making {what} failed:\n{_go.last_lines(log)}\n  log: {log}")

    def _stale(self, job: GoJob, packages: list[str], log: Path) -> set[str]:
        """The packages that are not in the build cache yet."""
        answer = Path(tempfile.mkdtemp(dir=self._temporary)) / "stale"
        form = "{{if .Stale}}{{.ImportPath}}{{end}}"
        arguments = ["list", "-deps", *_list_flags(job), "-f", form, *packages]
        self._go(job.source, arguments, log=log, on_line=None, what=job.name, output=answer)
        return set(answer.read_text().split())

    def _log(self, job: GoJob) -> Path:
        return self._logs / f"{job.tools[0].name}.log"

    def _go(
        self,
        source: GoProgram,
        arguments: list[str],
        *,
        log: Path,
        on_line: object,
        what: str,
        output: Path | None = None,
    ) -> None:
        for pause in (*_PAUSES, None):
            start = log.stat().st_size if log.exists() else 0
            code = self._processes.run(
                [self.toolchain.go, *arguments],
                cwd=_places.MODULES / source.module,
                environment=self.toolchain.environment(cgo=source.cgo, temporary=self._temporary),
                log=log,
                on_line=on_line if callable(on_line) else None,
                output=output,
            )
            if code == 0:
                return
            with log.open("rb") as file:
                file.seek(start)
                text = file.read().decode(errors="replace")
            if no_space(text):
                raise OSError(28, "No space left on device")
            offline = bool(_NETWORK.search(text))
            if not offline or pause is None:
                break
            if self._processes.stopped.wait(pause):
                raise Stopped
        raise TollgateError(failure(what, text, log, offline=offline))


def failure(what: str, text: str, log: Path, *, offline: bool) -> str:
    """The message for a failed Go command: the end of what it said, its log, and what to do."""
    said = "\n".join(f"    {line[:300]}" for line in text.strip().splitlines()[-12:])
    if offline:
        return (
            f"{what} needs Go modules that cannot be downloaded:\n{said}\n  log: {log}\n"
            "  fix: check the connection, or set GOPROXY to a module proxy that can be reached; a second run continues"
        )
    return f"building {what} failed:\n{said}\n  log: {log}"


def program_name(package: str) -> str:
    """What `go build` calls the program of a package: the last path element that is not a major version."""
    parts = package.split("/")
    return parts[-2] if re.fullmatch(r"v[2-9]\d*|v1\d+", parts[-1]) and len(parts) > 1 else parts[-1]


def _sources(tools: tuple[Tool, ...]) -> list[GoProgram]:
    return [tool.source for tool in tools if isinstance(tool.source, GoProgram)]


def _list_flags(job: GoJob) -> tuple[str, ...]:
    return job.source.flags
