"""Files that Go modules ship beside their programs: a script, Stage documents, CRDs and roles."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from stacks import TollgateError

from . import _find
from ._compile import Workshop
from ._table import DataFolder, ModuleFile, Tool


def script(tool: Tool, shop: Workshop, into: Path) -> None:
    """Copy a module's script to `into/bin/<tool>`, executable."""
    assert isinstance(tool.source, ModuleFile)
    source = tool.source
    file = shop.module_folder(source.module, source.dependency, tool.name) / source.file
    if not file.is_file():
        raise TollgateError(f"{source.dependency} has no {source.file}, which {tool.name} is made from")
    (into / "bin").mkdir()
    place = into / "bin" / tool.name
    shutil.copyfile(file, place)
    place.chmod(0o755)


def gather(data: DataFolder, shop: Workshop, into: Path) -> None:
    """Copy or render a data folder's files."""
    module = shop.module_folder(data.module, data.dependency, data.name)
    for index, folder in enumerate(data.copy):
        for file in documents(module / folder):
            # Numbered, since several folders may use the same file name.
            shutil.copyfile(file, into / f"{index:02d}-{file.name}")
    for name, kustomization, kinds in data.render:
        rendered = into / f".{name}"
        kubectl = _find.locate(_find.tool("kubectl")).path
        assert kubectl is not None, "the plan adds kubectl for data folders that are rendered"
        shop.run([kubectl, "kustomize", module / kustomization], what=data.name, output=rendered)
        text = rendered.read_text()
        rendered.unlink()
        (into / name).write_text(of_kinds(text, kinds) if kinds else text)
    if not any(into.rglob("*.yaml")):
        raise TollgateError(f"the Go module {data.dependency} has none of the files that {data.name} is made of")


def documents(folder: Path) -> Iterable[Path]:
    """The YAML files of objects in a folder: without kustomizations."""
    return [file for file in sorted(folder.glob("*.yaml")) if file.name != "kustomization.yaml"]


def of_kinds(text: str, kinds: tuple[str, ...]) -> str:
    """The documents of these kinds, in the order of `kinds` (an account before what binds it)."""
    every: list[dict[str, Any]] = [document for document in yaml.safe_load_all(text) if document]
    chosen = sorted((d for d in every if d.get("kind") in kinds), key=lambda d: kinds.index(d["kind"]))
    return yaml.safe_dump_all(chosen, sort_keys=False)
