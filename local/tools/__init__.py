"""Every program the embedded cluster and Pulumi need: found on PATH where it fits, else built and kept.

Deliberately not here: starting any of them (`local.cluster` does), and choosing versions at run time. The versions are
those of the Go modules beside this file, and a build is found again by its content (`_places.key`).
"""

from __future__ import annotations

from pathlib import Path

from stacks import TollgateError

from . import _find, _places
from ._build import ensure
from ._find import ToolStatus
from ._locks import building_alone
from ._progress import Progress, Step
from ._table import TOOLS

__all__ = [
    "Progress",
    "Step",
    "ToolStatus",
    "bin_dir",
    "cache_dir",
    "clean",
    "data",
    "ensure",
    "names",
    "path",
    "status",
]


def path(name: str) -> Path:
    """The program to run for a tool; `TollgateError` with the fix where it is neither on PATH nor built."""
    tool = _find.tool(name)
    found = _find.locate(tool).path
    if found is not None:
        return found
    build = f"tollgate tools build --with {name}" if tool.optional else "tollgate tools build"
    wanted = f" (on PATH, {tool.on_path.wanted} would do)" if tool.on_path else ""
    raise TollgateError(f"{name} is not there yet: it {tool.purpose}{wanted}\n  fix: {build}")


def data(name: str) -> Path:
    """A folder of YAML files that came with a tool's module, to be used in the order of their names.

    `kwok-stages` (Stages of nodes and pods that become ready at once), `keda-crds`, `keda-rbac` (service
    account, roles and bindings).

    `TollgateError` with the fix where it has not been made yet.
    """
    folder = _places.data_folder(_find.data_folder(name))
    if not folder.is_dir():
        raise TollgateError(f"the files {name} are not there yet\n  fix: tollgate tools build")
    return folder


def bin_dir() -> Path:
    """One folder to put on PATH: a link for each tool that is there, brought up to date by this call."""
    return _find.sync_links()


def status() -> list[ToolStatus]:
    """Every tool in the order of the table: version, origin, path. Well under a second once versions have been asked."""
    return _find.locate_all()


def cache_dir() -> Path:
    """Where everything of the tools lies: `TOLLGATE_CACHE`, else the user's cache folder for `tollgate`."""
    return _places.cache()


def names(*, optional: bool = False) -> list[str]:
    """The tools built by default, or with `optional=True` those built only when asked for."""
    return [tool.name for tool in TOOLS if tool.optional == optional]


def clean(*, everything: bool = False) -> list[Path]:
    """Remove builds no longer in the table, logs and build caches (or the whole cache); returns what was removed.

    Raises `TollgateError` while another process builds.
    """
    with building_alone():
        return _find.remove_old(everything=everything)
