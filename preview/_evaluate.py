"""Programs evaluated, not deployed: each commit by its own code, in a child process, without credentials or state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import platformdirs

import stacks

_LIMIT_SECONDS = 120
# What a child may know of this process: enough to start Python, and none of its tokens.
_PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "VIRTUAL_ENV", "SYSTEMROOT", "LD_LIBRARY_PATH")
_PASSED_PREFIXES = ("PYTHON",)
DAYS_VARIABLE = "TOLLGATE_DAYS"
_CHILD = Path(__file__).with_name("_child.py")
# Files that no program reads.
_IDLE_FOLDERS = ("docs", "tests", "benchmarks", ".github", ".ci", "local/tools")
_IDLE_ENDINGS = (".md", ".png", ".txt")
_IDLE_FILES = ("stacks/preview.yaml", "Makefile", "LICENSE", ".gitignore")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one stack's program would register, with the plan and the release, or why it could not. See components.evaluate."""

    stack: str
    resources: tuple[Mapping[str, Any], ...] = ()
    plan: Mapping[str, Any] | None = None
    release: Mapping[str, Any] | None = None
    error: str | None = None
    input_error: bool = False


Days = Mapping[str, Sequence[float]]


def evaluate(root: Path, names: Sequence[str], days: Days | None = None) -> dict[str, Evaluation]:
    """Evaluate the program of the checkout at `root` for these stacks; what cannot be evaluated says why."""
    if not names:
        return {}
    env = {key: value for key, value in os.environ.items() if key in _PASSED or key.startswith(_PASSED_PREFIXES)}
    # The checkout's own rooms come first, so that a base commit is evaluated by the code it had.
    env["PYTHONPATH"] = str(root)
    env[DAYS_VARIABLE] = json.dumps({name: list(shares) for name, shares in (days or {}).items()})
    # -P: that script's own folder is no place to import from.
    command = [sys.executable, "-P", str(_CHILD), str(_kept()), "components.evaluate", *names]
    try:
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=_LIMIT_SECONDS)
        said, why = done.stdout, (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    except subprocess.TimeoutExpired as stopped:
        # Always bytes on a time-out, whatever was asked for.
        said = stopped.stdout.decode(errors="replace") if isinstance(stopped.stdout, bytes) else ""
        why = f"it took more than {_LIMIT_SECONDS} s"
    found: dict[str, Evaluation] = {}
    for line in said.splitlines():
        entry = _read(line)
        if entry is not None and entry.stack in names:
            found[entry.stack] = entry
    missing = {name: Evaluation(stack=name, error=f"the program ended: {why}") for name in names if name not in found}
    return {**found, **missing}


def _kept() -> Path:
    """Where compiled code lies between runs: in the user's cache, beside the tools."""
    given = os.environ.get("TOLLGATE_CACHE")
    return (Path(given).expanduser().absolute() if given else platformdirs.user_cache_path("tollgate")) / "preview"


def _read(line: str) -> Evaluation | None:
    """A line of the child's; None for what a program printed itself."""
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
        return Evaluation(
            stack=str(entry["stack"]),
            resources=tuple(entry["resources"]),
            plan=entry.get("plan"),
            release=entry.get("release"),
            error=None if entry["error"] is None else str(entry["error"]),
            input_error=bool(entry.get("input_error")),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def evaluate_both(
    root: Path, names: Sequence[str], base: str | None, days: Callable[[Path], Days]
) -> tuple[dict[str, Evaluation], dict[str, Evaluation | None], list[str]]:
    """The stacks at head and where this checkout left `base` (None: from nothing), side by side on two cores; and all names.

    Stacks that nothing between the two commits can have changed are evaluated once. A stack without a file at the base has
    None there. `names` empty: every stack of either. Raises InputError for a base that does not exist.
    """
    here = stacks.stack_names(root)
    if base is None:
        wanted = list(names) or here
        half = -(-len(wanted) // 2)
        with ThreadPoolExecutor(max_workers=2) as pool:
            # One side only: a core for each half of it.
            parts = [pool.submit(evaluate, root, part, days(root)) for part in (wanted[:half], wanted[half:])]
            return {name: one for part in parts for name, one in part.result().items()}, dict.fromkeys(wanted), wanted
    with ThreadPoolExecutor(max_workers=2) as pool:
        # Before git has made the base: on two cores head and base then take as long as one of them.
        now = pool.submit(evaluate, root, [name for name in names or here if name in here], days(root))
        commit = left(root, base)
        with checkout(root, commit) as folder:
            there = stacks.stack_names(folder)
            wanted = list(names) or sorted({*here, *there})
            touched = _touched(root, folder, commit, wanted)
            old = pool.submit(
                evaluate, folder, [name for name in wanted if name in there and name in touched], days(folder)
            )
            after, before = now.result(), old.result()
    found: dict[str, Evaluation | None] = {
        name: before.get(name) if name in touched else after.get(name) for name in wanted
    }
    return after, found, wanted


def _touched(root: Path, folder: Path, base: str, names: Sequence[str]) -> set[str]:
    """The stacks that may differ: by their own file, by a release that they name; all, by any code or the pipeline."""
    changed = _git(root, "diff", "--name-only", "--relative", base, "--", ".").splitlines()
    changed += _git(root, "ls-files", "--others", "--exclude-standard", "--", ".").splitlines()
    releases, own = set(), set()
    for name in changed:
        path = PurePosixPath(name)
        if path.parent == PurePosixPath("stacks/releases") and path.suffix == ".yaml":
            releases.add(path.stem)
        elif path.parent == PurePosixPath("stacks") and name.startswith("stacks/Pulumi."):
            own.add(path.name.removeprefix("Pulumi.").removesuffix(".yaml"))
        elif not (
            name in _IDLE_FILES
            # A chart's digest is over all of its files.
            or (name.endswith(_IDLE_ENDINGS) and not name.startswith("charts/"))
            or name.startswith(tuple(f"{one}/" for one in _IDLE_FOLDERS))
        ):
            return set(names)
    if _text(root / "stacks/preview.yaml") != _text(folder / "stacks/preview.yaml"):
        # A day's shape may have changed.
        return set(names)
    for name in names:
        text = "".join(_text(where / "stacks" / f"Pulumi.{name}.yaml") for where in (root, folder))
        if any(release in text for release in releases):
            own.add(name)
    return own


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


@contextmanager
def checkout(root: Path, ref: str) -> Iterator[Path]:
    """The project as it is at a commit, in a temporary git worktree that is removed afterwards."""
    top = _top(root)
    commit = _commit(root, ref)
    with tempfile.TemporaryDirectory(prefix="tollgate-base-") as folder:
        tree = Path(folder) / "tree"
        _git(root, "worktree", "add", "--detach", "--quiet", str(tree), commit)
        try:
            found = tree / root.relative_to(top)
            if not (found / "stacks").is_dir():
                raise stacks.InputError(
                    where="--base",
                    got=f"{ref}, which has no stacks/",
                    allowed="a commit of this project",
                    fix="name another",
                )
            yield found
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def left(root: Path, ref: str) -> str:
    """The commit that HEAD and `ref` last shared: what `ref` has had since is not this checkout's doing.

    `ref` itself, where they share none that is here (a shallow clone). Raises InputError for one that does not exist.
    """
    commit = _commit(root, ref)
    try:
        return _git(root, "merge-base", "HEAD", commit).strip() or commit
    except stacks.TollgateError:
        return commit


def _top(root: Path) -> Path:
    try:
        return Path(_git(root, "rev-parse", "--show-toplevel").strip())
    except stacks.TollgateError:
        raise stacks.InputError(
            where="--base", got=f"{root}, which is in no git repository", allowed="a clone with that commit",
            fix="run this in one, or leave --base out and use --offline",
        ) from None  # fmt: skip


def _commit(root: Path, ref: str) -> str:
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}").strip()
    except stacks.TollgateError:
        _top(root)
        raise stacks.InputError(
            where="--base",
            got=ref,
            allowed="a commit, branch or tag of this repository",
            fix="git fetch it, or name another",
        ) from None


def _git(root: Path, *arguments: str) -> str:
    # Hooks and filters of the user's belong to a checkout of theirs, not to this one.
    command = ["git", "-c", "core.hooksPath=/dev/null", *arguments]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise stacks.TollgateError("git is not installed; a preview against a base commit needs it") from None
    if done.returncode != 0:
        raise stacks.TollgateError(f"git {arguments[0]} failed: {done.stderr.strip() or 'no reason given'}")
    return done.stdout
