"""Reading stack, release and pipeline files: one clear error with file, line and key, or a typed model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ._base import Model
from ._errors import InputError
from ._models import Pipeline, Release, Stack
from ._yaml import line_of, read_mapping, repeatable

_PREFIX = "tollgate:"
_M = TypeVar("_M", bound=Model)


def project_root(start: Path | None = None) -> Path:
    """The nearest folder at or above `start` (default: the working folder) that holds `Pulumi.yaml` and `stacks/`.

    Raises InputError outside of any project.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "Pulumi.yaml").is_file() and (folder / "stacks").is_dir():
            return folder
    raise InputError(
        where="working folder",
        got=str(here),
        allowed="a folder in or below one that has Pulumi.yaml and stacks/",
        fix="cd into your Tollgate project",
    )


def stack_names(root: Path | None = None) -> list[str]:
    """The names of all stacks of the project, sorted."""
    folder = (root or project_root()) / "stacks"
    return sorted(path.name.removeprefix("Pulumi.").removesuffix(".yaml") for path in folder.glob("Pulumi.*.yaml"))


def release_names(root: Path | None = None) -> list[str]:
    """The names of all release files of the project, sorted."""
    return sorted(path.stem for path in ((root or project_root()) / "stacks" / "releases").glob("*.yaml"))


def load_release(name: str, root: Path | None = None) -> Release:
    """Read `stacks/releases/<name>.yaml`. Raises InputError naming file, line and key."""
    root = root or project_root()
    path = root / "stacks" / "releases" / f"{name}.yaml"
    if name not in release_names(root):
        raise InputError(
            where="release",
            got=name,
            allowed=", ".join(release_names(root)) or "none exists yet",
            fix=f"name one of these, or write stacks/releases/{name}.yaml",
        )
    given = read_mapping(path, root)
    if "name" in given:
        # The name in evidence and approvals is the file's: another one would be a disguise.
        raise InputError(
            where=f"{_shown(path, root)}, name",
            got=repr(given["name"])[:80],
            allowed="no name",
            fix="remove it: it is the file's",
        )
    return _parse(Release, {"name": name, **given}, path, root)


def load_stack(name: str, root: Path | None = None) -> Stack:
    """Read `stacks/Pulumi.<name>.yaml` and the release it names. Raises InputError naming file, line and key."""
    root = root or project_root()
    path = stack_path(name, root)
    config = read_mapping(path, root).get("config", {})
    if not isinstance(config, dict):
        raise InputError(
            where=f"{_shown(path, root)}, config",
            got=type(config).__name__,
            allowed="a mapping",
            fix="see the README",
        )
    own = {key.removeprefix(_PREFIX): value for key, value in config.items() if str(key).startswith(_PREFIX)}
    release = own.get("release")
    if not isinstance(release, str):
        raise InputError(
            where=f"{_shown(path, root)}, {_PREFIX}release",
            got=repr(release),
            allowed=", ".join(release_names(root)),
            fix="name a file of stacks/releases without .yaml",
        )
    given = {"namespace": name, **own, "name": name, "release": load_release(release, root)}
    return _parse(Stack, given, path, root, prefix=_PREFIX)


def load_pipeline(root: Path | None = None) -> Pipeline:
    """Read `stacks/pipeline.yaml`. Raises InputError naming file, line and key."""
    root = root or project_root()
    path = root / "stacks" / "pipeline.yaml"
    pipeline = _parse(Pipeline, read_mapping(path, root), path, root)
    known = stack_names(root)
    for stage in pipeline.stages:
        if stage.stack not in known:
            raise InputError(
                where=f"{_shown(path, root)}, stages",
                got=stage.stack,
                allowed=", ".join(known),
                fix=f"write stacks/Pulumi.{stage.stack}.yaml or remove the stage",
            )
    return pipeline


def stack_path(name: str, root: Path | None = None) -> Path:
    """Where that stack's file is. Raises InputError when there is none."""
    root = root or project_root()
    known = stack_names(root)
    if name not in known:
        raise InputError(
            where="stack",
            got=name,
            allowed=", ".join(known),
            fix=f"name one of these, or write stacks/Pulumi.{name}.yaml",
        )
    return root / "stacks" / f"Pulumi.{name}.yaml"


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root))


def _parse(model: type[_M], given: dict[str, Any], path: Path, root: Path, prefix: str = "") -> _M:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _explain(error, model, path, root, prefix) from None


def _explain(error: ValidationError, model: type[Model], path: Path, root: Path, prefix: str) -> InputError:
    """The first of pydantic's findings in our form; the others are counted."""
    first, *others = error.errors(include_url=False)
    keys = [str(part) for part in first["loc"] if not str(part).startswith(("constrained-", "function-", "literal["))]
    key = prefix + ".".join(keys) if keys else "the whole file"
    wanted = ["config", prefix + keys[0], *keys[1:]] if prefix and keys else keys
    at = line_of(path, wanted)
    line = f", line {at}" if at is not None else ""
    got = "nothing" if first["type"] == "missing" else repeatable(keys, first["input"])
    allowed = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    fix = f"set {key}" if first["type"] == "missing" else f"correct {key}"
    if first["type"] == "extra_forbidden":
        parent: Any = model
        for part in keys[:-1]:
            field = getattr(parent, "model_fields", {}).get(part)
            parent = field.annotation if field is not None else None
        names = ", ".join(sorted(getattr(parent, "model_fields", {})))
        allowed, fix = (f"one of {names}" if names else "only known keys"), f"remove or rename {key}"
    if others:
        fix += f" ({len(others)} more finding{'s' if len(others) > 1 else ''} after it)"
    return InputError(where=f"{_shown(path, root)}{line}, {key}", got=got, allowed=allowed, fix=fix)
