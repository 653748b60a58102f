"""Putting a starter into a folder, without touching anything that is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import stacks

from ._files import Source, files


def write(folder: Path, *, name: str, project: str | None, source: Source) -> list[str]:
    """Write the starter into `folder`; returns the relative paths written, sorted.

    A file that is there with the same text stays. Raises InputError, before anything is written, where another one is in the
    way.
    """
    wanted = files(name, project=project, source=source)
    folder = folder.absolute()
    new = []
    for path, text in sorted(wanted.items()):
        place = folder / path
        _refuse_detour(folder, place)
        if not place.exists():
            new.append(path)
        elif not place.is_file() or place.read_text(encoding="utf-8", errors="replace") != text:
            raise stacks.InputError(
                where="tollgate init",
                got=f"{place} is there already and differs",
                allowed="a folder without the starter's files",
                fix="name another folder, or move that file away",
            )
    for path in new:
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        stacks.write_whole(place, wanted[path])
    if source.wheel is not None and not (folder / "vendor" / source.wheel.name).exists():
        (folder / "vendor").mkdir(exist_ok=True)
        shutil.copyfile(source.wheel, folder / "vendor" / source.wheel.name)
        new.append(f"vendor/{source.wheel.name}")
    return new


def _refuse_detour(folder: Path, place: Path) -> None:
    """A link on the way would lead out of the folder that was named."""
    for step in (place, *place.parents):
        if step == folder:
            return
        if step.is_symlink():
            raise stacks.InputError(
                where="tollgate init",
                got=f"{step} is a symbolic link",
                allowed="plain files and folders",
                fix="remove the link, or name another folder",
            )
