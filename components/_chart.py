"""Where the engine finds a chart: relative to the program, so that the state and every preview are the same in any checkout."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from tempfile import mkdtemp

import stacks


def chart_at(chart: Path, root: Path | None) -> str:
    """The chart's folder as a Helm release names it: relative to `root`, the program's folder, or as it is without one.

    A chart that lies elsewhere, as with an installed Tollgate, is copied below `.tollgate/charts`, in a folder named after
    what is in it: another version is another name, which a preview shows. Raises TollgateError where that cannot be written.
    """
    if root is None:
        return str(chart)
    if not chart.is_relative_to(root):
        chart = _copied(chart, root / ".tollgate" / "charts")
    return f"./{chart.relative_to(root)}"


def _copied(chart: Path, folder: Path) -> Path:
    contents = hashlib.sha256()
    for path in sorted(one for one in chart.rglob("*") if one.is_file()):
        contents.update(f"{path.relative_to(chart)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    target = folder / f"{chart.name}-{contents.hexdigest()[:12]}"
    if target.is_dir():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: another process may be copying the same.
        part = Path(mkdtemp(dir=folder))
        try:
            shutil.copytree(chart, part / "chart")
            (part / "chart").rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        if not target.is_dir():
            raise stacks.TollgateError(
                f"the chart {chart.name} cannot be put into {folder}: {error.strerror}"
            ) from error
    return target
