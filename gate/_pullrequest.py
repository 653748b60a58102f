"""A promotion as a pull request: a branch with the one edit, and a body with the reasons. The working tree is not touched."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import stacks

from ._promotion import Decision, decide, enter
from ._stackfile import edited, locked


@dataclass(frozen=True, kw_only=True)
class PullRequest:
    """`branch` points at `commit`, one above HEAD; `commit` is None where the file says so already."""

    branch: str
    commit: str | None
    title: str
    body: str


def propose(source: str, target: str, root: Path, *, release_digest: str, now: datetime) -> PullRequest:
    """Decide as `promote` does, but put the edit on a branch of its own. Raises GateRefused, InputError, TollgateError.

    The edit is made to the file as it is in HEAD. The same decision made twice gives the same branch.
    """
    with locked(root):
        decision = decide(source, target, root, release_digest=release_digest, now=now)
        branch = f"promote/{target}/{decision.release_name}-{release_digest[7:15]}"
        path = stacks.stack_path(target, root)
        name = _git(root, "ls-files", "--full-name", "--", str(path)).strip()
        if not name:
            raise stacks.TollgateError(f"{path.name} is not committed\n  fix: git add it and commit, then promote")
        text = _git(root, "show", f"HEAD:{name}")
        tip = _git(root, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}", fails=True).strip()
        if tip:
            text = _git(root, "show", f"{tip}:{name}")
        after = edited(text, decision.record(now), path.name)
        title = f"Promote {decision.release_name} from {source} to {target}"
        enter(decision, root, now)
        body = _body(decision, title)
        if after == text:
            return PullRequest(branch=branch, commit=tip or None, title=title, body=body)
        return PullRequest(
            branch=branch, commit=_commit(root, branch, tip, name, after, f"{title}\n\n{body}"), title=title, body=body
        )


def _commit(root: Path, branch: str, tip: str, name: str, text: str, message: str) -> str:
    """A commit of that one file upon HEAD (or the branch's own tip), by an index of its own."""
    parent = tip or _git(root, "rev-parse", "HEAD").strip()
    with tempfile.TemporaryDirectory() as folder:
        env = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        mode = _git(root, "ls-tree", parent, "--", name, top=True).split(" ", 1)[0]
        blob = _git(root, "hash-object", "-w", "--stdin", given=text).strip()
        _git(root, "read-tree", parent, env=env)
        _git(root, "update-index", "--cacheinfo", f"{mode},{blob},{name}", env=env)
        tree = _git(root, "write-tree", env=env).strip()
    commit = _git(root, "commit-tree", tree, "-p", parent, "-F", "-", given=message).strip()
    # Moves the branch only from where it was seen: of two at once, one fails instead of losing the other's commit.
    _git(root, "update-ref", f"refs/heads/{branch}", commit, tip or "0" * 40)
    return commit


def _git(
    root: Path,
    *arguments: str,
    given: str | None = None,
    env: dict[str, str] | None = None,
    fails: bool = False,
    top: bool = False,
) -> str:
    where = Path(_git(root, "rev-parse", "--show-toplevel").strip()) if top else root
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=where,
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **(env or {})},
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise stacks.TollgateError(f"git {arguments[0]} cannot be run: {error}") from None
    if done.returncode != 0 and not fails:
        raise stacks.TollgateError(f"git {arguments[0]} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout if done.returncode == 0 else ""


def _body(decision: Decision, title: str) -> str:
    """Markdown: what enters, the verdict's lines, the evidence, approvals in force."""
    verdict = decision.verdict
    rows = ["| criterion | needed | measured | bound | at | outcome |", "|---|---|---|---|---|---|"]
    for line in verdict.criteria:
        numbers = ["" if value is None else f"{value:.4g}" for value in (line.measured, line.bound)]
        at = "" if line.confidence is None else f"{line.confidence * 100:.4g} %"
        outcome = line.outcome if line.outcome == "pass" else f"**{line.outcome}**: {line.why}"
        rows.append(f"| {line.metric} | {line.needed} | {numbers[0]} | {numbers[1]} | {at} | {_cell(outcome)} |")
    parts = [
        f"{title}: {verdict.outcome}, {verdict.runs} runs.",
        "\n".join(rows),
        f"- release `{decision.release}`\n- evidence `{decision.entry.digest}`, signed {decision.entry.facts['signed_at']}"
        f"\n- baseline {'`' + decision.baseline + '`' if decision.baseline else 'none: the first promotion'}"
        + "".join(f"\n- approval `{digest}`" for digest in decision.approvals),
        f"After the merge: `pulumi up -s {decision.target.name}`, which verifies all of this again.",
    ]
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
