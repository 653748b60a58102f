"""The one edit that the gate makes: release and promotion record in a stack's file, everything else as it was."""

from __future__ import annotations

import fcntl
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import stacks


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is written: the release by name and digest, where it came from, and on what evidence."""

    release_name: str
    release: str
    source: str
    evidence: str
    at: datetime


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """One promotion at a time in this checkout; others wait."""
    folder = root / ".tollgate"
    folder.mkdir(exist_ok=True)
    with (folder / "promotion.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def edited(text: str, record: Record, where: str) -> str:
    """The file's text with that record; the same text where it says so already (whenever that was written)."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    try:
        document = yaml.load(text)
        config = document["config"]
        present = config.get("tollgate:promotion") or {}
    except (YAMLError, KeyError, TypeError, AttributeError) as error:
        raise stacks.InputError(
            where=where, got=type(error).__name__, allowed="a stack file with `config:`", fix="repair the file"
        ) from None
    wanted = {"from": record.source, "release": record.release, "evidence": record.evidence}
    if config.get("tollgate:release") == record.release_name and wanted.items() <= dict(present).items():
        return text
    config["tollgate:release"] = record.release_name
    config["tollgate:promotion"] = {**wanted, "at": f"{record.at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    written = io.StringIO()
    yaml.dump(document, written)
    return written.getvalue()


def write(path: Path, record: Record) -> bool:
    """Replace the file by its edited text, at once or not at all. False when it said so already."""
    before = path.read_text(encoding="utf-8")
    after = edited(before, record, path.name)
    if after == before:
        return False
    stacks.write_whole(path, after)
    return True
