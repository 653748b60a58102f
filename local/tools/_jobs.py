"""What a run has to do: missing tools grouped into jobs, one `go build` for programs that share all but their package."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import _find, _places
from ._table import DATA, TOOLS, DataFolder, DebianPackages, GoProgram, ModuleFile, Tool

# Measured: what a cold build of the default tools leaves in Go's build cache, with the programs themselves.
_ALL_BYTES: Final = 11_000_000_000
# Measured: Go's module cache after it.
_ALL_MODULE_BYTES: Final = 5_700_000_000
_LEAST_BYTES: Final = 300_000_000


@dataclass(frozen=True, kw_only=True)
class GoJob:
    """Programs of one module built together."""

    tools: tuple[Tool, ...]

    @property
    def source(self) -> GoProgram:
        """The first program's; all but `package` is the same for all."""
        source = self.tools[0].source
        assert isinstance(source, GoProgram)
        return source

    @property
    def name(self) -> str:
        return self.tools[0].name if len(self.tools) == 1 else f"{self.source.module} ({len(self.tools)} programs)"

    @property
    def weight(self) -> float:
        return sum(tool.weight for tool in self.tools)


@dataclass(frozen=True, kw_only=True)
class OtherJob:
    """One tool that is not compiled, or one data folder."""

    item: Tool | DataFolder

    @property
    def name(self) -> str:
        return self.item.name

    @property
    def weight(self) -> float:
        return 2.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The jobs in the order of the table; `data` after all others, as it may need a tool."""

    builds: tuple[GoJob, ...]
    others: tuple[OtherJob, ...]
    data: tuple[OtherJob, ...]

    @property
    def jobs(self) -> tuple[GoJob | OtherJob, ...]:
        return (*self.builds, *self.others, *self.data)

    @property
    def needs_go(self) -> bool:
        return any(
            isinstance(job, GoJob) or not isinstance(job.item, Tool) or isinstance(job.item.source, ModuleFile)
            for job in self.jobs
        )


def plan(rows: Iterable[Tool]) -> Plan:
    """What is missing of these tools and their data folders; a renderer for the data (kubectl) is added where needed."""
    wanted = [row for row in TOOLS if row in set(rows)]
    data = [
        folder
        for folder in DATA
        if any(folder.name in row.data for row in wanted) and not _places.data_folder(folder).is_dir()
    ]
    if any(folder.render for folder in data) and not any(row.name == "kubectl" for row in wanted):
        wanted.append(_find.tool("kubectl"))
    missing = [row for row, status in zip(wanted, _find.locate_all(tuple(wanted)), strict=True) if status.path is None]
    groups: dict[tuple[object, ...], list[Tool]] = {}
    for row in missing:
        source = row.source
        if isinstance(source, GoProgram):
            groups.setdefault((source.module, source.cgo, source.flags), []).append(row)
    return Plan(
        builds=tuple(GoJob(tools=tuple(group)) for group in groups.values()),
        others=tuple(OtherJob(item=row) for row in missing if isinstance(row.source, ModuleFile | DebianPackages)),
        data=tuple(OtherJob(item=folder) for folder in data),
    )


def bytes_needed(plan: Plan, *, own_modules: bool, already: int) -> int:
    """Space that the jobs will take at their peak; `already`: what an interrupted run left in Go's build cache."""
    share = sum(job.weight for job in plan.builds) / sum(row.weight for row in TOOLS if not row.optional)
    total = share * (_ALL_BYTES + (_ALL_MODULE_BYTES if own_modules else 0))
    return max(_LEAST_BYTES, int(total) - already)


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.lstat().st_size
        except OSError:  # Removed meanwhile by another build.
            continue
    return total
