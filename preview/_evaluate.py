"""Programs evaluated, not deployed: each commit by its own code, in a child process, without credentials or state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stacks

_LIMIT_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one stack's program would register: `resources` as {"type", "name", "inputs"}, or why it could not."""

    stack: str
    resources: tuple[Mapping[str, Any], ...] = ()
    error: str | None = None


def evaluate(root: Path, names: Sequence[str]) -> dict[str, Evaluation]:
    """Evaluate the program of the checkout at `root` for these stacks. Raises TollgateError when it cannot even start."""
    if not names:
        return {}
    env = {key: value for key, value in os.environ.items() if not key.startswith("PULUMI_")}
    # The checkout's own rooms come first, so that a base commit is evaluated by the code it had.
    env["PYTHONPATH"] = str(root)
    command = [sys.executable, "-m", "components.evaluate", *names]
    try:
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise stacks.TollgateError(f"evaluating {', '.join(names)} took more than {_LIMIT_SECONDS} s") from None
    found: dict[str, Evaluation] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            entry = json.loads(line)
            found[entry["stack"]] = Evaluation(
                stack=entry["stack"], resources=tuple(entry["resources"]), error=entry["error"]
            )
    missing = [name for name in names if name not in found]
    if missing:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise stacks.TollgateError(f"evaluating {', '.join(missing)} failed: {last}")
    return found


@contextmanager
def checkout(root: Path, ref: str) -> Iterator[Path]:
    """The project as it is at a commit, in a temporary git worktree that is removed afterwards."""
    top = Path(_git(root, "rev-parse", "--show-toplevel").strip())
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").strip()
    except stacks.TollgateError:
        raise stacks.InputError(
            where="--base",
            got=ref,
            allowed="a commit, branch or tag of this repository",
            fix="git fetch it, or name another",
        ) from None
    with tempfile.TemporaryDirectory(prefix="tollgate-base-") as folder:
        tree = Path(folder) / "tree"
        _git(root, "worktree", "add", "--detach", "--quiet", str(tree), commit)
        try:
            yield tree / root.relative_to(top)
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise stacks.TollgateError("git is not installed; a preview against a base commit needs it") from None
    if done.returncode != 0:
        raise stacks.TollgateError(f"git {arguments[0]} failed: {done.stderr.strip() or 'no reason given'}")
    return done.stdout
