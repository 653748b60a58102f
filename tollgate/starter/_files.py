"""The starter's files as text: the shipped stacks and releases, the pipeline cut to them, and a few texts of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

import stacks

LOCAL = ("local-dev", "local-staging", "local-prod")
GKE = ("dev", "staging", "prod")
# Google's placeholder in the shipped stack files.
_PLACEHOLDER = "my-project"
_HERE = Path(__file__).parent / "files"
_SHIPPED = Path(stacks.__file__).parent


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the starter's `requirements.txt` takes Tollgate from: a pip requirement, and a wheel to carry along, if any."""

    requirement: str | None
    wheel: Path | None = None


def source_of(given: str | None = None) -> Source:
    """`given`, else where this Tollgate was installed from, as pip has recorded it (PEP 610).

    Never a bare name: another project owns `tollgate` on the public index, and would be installed.
    """
    if given is not None:
        path = Path(given)
        if path.suffix == ".whl":
            if not path.is_file():
                raise stacks.InputError(
                    where="--from",
                    got=given,
                    allowed="a wheel that exists, or a pip requirement with @",
                    fix="build it",
                )
            return Source(requirement=f"./vendor/{path.name}", wheel=path)
        if " @ " not in given and "://" not in given:
            raise stacks.InputError(
                where="--from",
                got=given,
                allowed="a wheel, or an address such as git+https://…@COMMIT",
                fix="say where from: the bare name is another project's on the public index",
            )
        return Source(requirement=given if " @ " in given else f"tollgate @ {given}")
    try:
        recorded = json.loads(metadata.distribution("tollgate").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        recorded = {}
    return _recorded(recorded)


def _recorded(record: dict[str, Any]) -> Source:
    url, vcs = str(record.get("url", "")), record.get("vcs_info")
    if isinstance(vcs, dict) and vcs.get("commit_id"):
        parts = urlsplit(url)
        # What pip has recorded may hold a token of whoever installed it.
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        return Source(requirement=f"tollgate @ {vcs.get('vcs', 'git')}+{bare}@{vcs['commit_id']}")
    path = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else None
    if path is not None and path.suffix == ".whl" and path.is_file():
        return Source(requirement=f"./vendor/{path.name}", wheel=path)
    return Source(requirement=None)


def files(name: str, *, project: str | None, source: Source) -> dict[str, str]:
    """Relative path -> text of every file of a starter repository called `name`.

    `project`: of Google Cloud; with one the stages dev, staging and prod come along.
    """
    chosen = [*LOCAL, *(GKE if project else ())]
    found = {
        "Pulumi.yaml": _text("pulumi.yaml").replace("NAME", name),
        "__main__.py": _text("program.txt"),
        ".gitignore": _text("gitignore"),
        "README.md": _text("readme.md").replace("NAME", name),
        "requirements.txt": _requirements(source),
        ".github/workflows/pull-request.yml": _text("pull-request.yml"),
        "stacks/pipeline.yaml": _pipeline(chosen),
    }
    releases = set()
    for stack in chosen:
        text = (_SHIPPED / f"Pulumi.{stack}.yaml").read_text(encoding="utf-8")
        releases.add(str(yaml.safe_load(text)["config"]["tollgate:release"]))
        found[f"stacks/Pulumi.{stack}.yaml"] = text.replace(_PLACEHOLDER, project or _PLACEHOLDER)
    for release in sorted(releases):
        found[f"stacks/releases/{release}.yaml"] = (_SHIPPED / "releases" / f"{release}.yaml").read_text("utf-8")
    for path in sorted((_SHIPPED / "schema").glob("*.json")):
        found[f"stacks/schema/{path.name}"] = path.read_text(encoding="utf-8")
    return found


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _requirements(source: Source) -> str:
    if source.requirement is not None:
        return f"# The Tollgate that this project runs with. Lock what it needs with your own tool.\n{source.requirement}\n"
    return (
        "# Name where your Tollgate comes from; the bare name is another project's on the public index:\n"
        "#   tollgate @ git+https://YOUR-HOST/tollgate@COMMIT\n"
    )


def _pipeline(chosen: list[str]) -> str:
    """The shipped pipeline's stages of these stacks."""
    stages = yaml.safe_load((_SHIPPED / "pipeline.yaml").read_text(encoding="utf-8"))["stages"]
    lines = [
        "# yaml-language-server: $schema=schema/pipeline.json",
        "# The stages in order. A stage with `after` lets a release in only on that stage's passing evidence, by its criteria.",
        "stages:",
    ]
    for stage in (stage for stage in stages if stage["stack"] in chosen):
        lines.append(f"  - stack: {stage['stack']}")
        if "after" in stage:
            lines.append(f"    after: {stage['after']}")
        if "criteria" in stage:
            inner = ", ".join(f"{key}: {json.dumps(value)}" for key, value in stage["criteria"].items())
            lines.append(f"    criteria: {{{inner}}}")
    return "\n".join(lines) + "\n"
