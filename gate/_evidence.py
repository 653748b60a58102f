"""Making evidence of a result, and reading a result back out of evidence."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import stacks
from bench.results import Result

from ._errors import EvidenceBroken
from ._judge import Verdict, judge
from ._keys import load_keys
from ._statements import Subject, statement
from ._store import Entry, Store, location_of, open_store

# What must be the same where evidence was made and where it is used, whatever the pipeline says besides: the simulator's
# numbers never admit real GPUs, and one GPU's never another's.
ALWAYS = ("accelerator", "mig_profile", "simulated")
# test-result v0.1 knows three words; the exact one is in our own part.
_WORDS = {"pass": "PASSED", "fail": "FAILED"}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was recorded. `digest`: of the stored file, the evidence's name everywhere."""

    digest: str
    verdict: str
    entry: Entry


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What a measurement is for.

    `benchmark`: digest of all that defines it (release, traffic, fleet, promise, length); empty for one made by hand.
    `attempt`: 1, and one more whenever what was measured before has expired or takes more runs to settle. `earlier`: digests
    of evidence whose runs count too. `known`: digest of valid evidence of the same, which leaves nothing to measure, and
    `verdict`: what that says.
    """

    benchmark: str = ""
    attempt: int = 1
    earlier: tuple[str, ...] = ()
    known: str | None = None
    verdict: str = ""


def writable(location: str, root: Path) -> Store:
    """The store of that address with a key to sign: made on first use for a folder, given from outside for a bucket."""
    keys = load_keys(root, create=location_of(location).startswith("file://"))
    # Reloaded, because a key made just now is trusted from here on.
    return open_store(location, root, load_keys(root) if keys.signer else keys)


def record(
    stack: stacks.Stack,
    result: Result,
    *,
    release_digest: str,
    root: Path,
    now: datetime,
    measuring: Measuring | None = None,
    against: Result | None = None,
    parts: Mapping[str, str] | None = None,
) -> Evidence:
    """Judge a result against its own stack's promise, sign it and append it to the stack's store.

    `measuring`: what this measurement was made for; the runs of the evidence that it names come along, so that all looks are
    judged as one. `against`: of the baseline, measured in turns with this one. `parts`: what the release is made of (chart,
    rendered values, image), each by name and digest. The same result is recorded once. Raises
    TollgateError when the result is of another release or stack.
    """
    measuring = measuring or Measuring()
    if result.release != release_digest:
        raise stacks.TollgateError(
            f"the benchmark measured release {result.release[:19]}…, but {stack.name} deploys {release_digest[:19]}…"
        )
    if result.stack != stack.name:
        raise stacks.TollgateError(f"the benchmark measured stack {result.stack!r}, not {stack.name!r}")
    criteria = stacks.load_pipeline(root).home(stack.name)
    identity = stacks.digest(without_histograms(result))

    def make(previous: str, entries: list[Entry]) -> Mapping[str, Any] | Entry:
        for entry in entries:
            if entry.kind == "measurement" and entry.facts.get("result_digest") == identity:
                return entry
        looked = [entry for entry in entries if entry.digest in measuring.earlier]
        # The newest of them holds the runs of those before it.
        whole = pool([result_of(looked[-1]), result]) if looked else result
        beside = against_of(looked[-1]) if looked else None
        both = pool([beside, against]) if beside is not None and against is not None else against
        planned = stack.benchmark.runs * (len(looked) + 1) if stack.benchmark is not None else None
        verdict = judge(stack.objectives, criteria, whole, planned_runs=planned)
        measured = without_histograms(whole)
        return statement(
            "measurement",
            stack=stack.name,
            subject=Subject(name=stack.release.name, digest=release_digest),
            previous=previous,
            now=now,
            outer=_outer(verdict, measured),
            parts=[Subject(name=name, digest=digest) for name, digest in (parts or {}).items()],
            facts={
                "result_digest": identity,
                "benchmark": measuring.benchmark,
                "attempt": measuring.attempt,
                "earlier": [entry.digest for entry in looked],
                "planned_runs": planned,
                "release": stack.release.model_dump(mode="json"),
                "objectives": stack.objectives.model_dump(mode="json", exclude_none=True),
                "verdict": verdict.plain(),
                "result": measured,
                "against": without_histograms(both) if both is not None else None,
                "source": _source(root),
                "tools": _tools(result),
                "price_book": _price_book(),
            },
        )

    entry = writable(stack.evidence, root).append(make, now)
    return Evidence(digest=entry.digest, verdict=str(entry.facts["verdict"]["outcome"]), entry=entry)


def pool(results: Sequence[Result]) -> Result:
    """All runs of several results of the same as one. Raises TollgateError where they are not of the same.

    No run can be left out on the way: those that were invalid come along.
    """
    *others, last = results
    for other in others:
        for field in ("release", "stack", "traffic", "replicas"):
            if getattr(other, field) != getattr(last, field):
                raise stacks.TollgateError(f"results of different {field} cannot be judged as one")
        if surroundings(other.environment) != surroundings(last.environment):
            raise stacks.TollgateError("results of different environments cannot be judged as one")
    runs = sorted((run for result in results for run in result.runs), key=lambda run: run.started)
    return last.model_copy(update={"runs": tuple(runs)})


def against_of(entry: Entry) -> Result | None:
    """The baseline that was measured in turns with this evidence, or None. Raises EvidenceBroken where it is not a result."""
    found = entry.facts.get("against")
    return _result(entry, found) if found is not None else None


def result_of(entry: Entry) -> Result:
    """The result that evidence carries, validated again. Raises EvidenceBroken where it is not one."""
    return _result(entry, entry.facts.get("result"))


def _result(entry: Entry, found: object) -> Result:
    try:
        return Result.model_validate(found)
    except ValidationError as error:
        what = error.errors()[0]["msg"]
        raise EvidenceBroken(f"evidence {entry.digest[:19]}…: its result is not one: {what}") from None


def surroundings(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a result's environment that numbers depend on."""
    return {key: environment.get(key) for key in (*ALWAYS, "machine_type")}


def without_histograms(result: Result) -> dict[str, Any]:
    """What evidence carries of a result: everything but histograms and courses over time, of which it has the digests."""
    plain = result.model_dump(mode="json")
    for run in plain["runs"]:
        left_out = {**run["histograms"], **({"series": run["series"]} if run["series"] else {})}
        # What is a digest already stays one: looks are pooled from evidence.
        run["histograms"] = {
            name: found if isinstance(found, dict) and set(found) == {"digest"} else {"digest": stacks.digest(found)}
            for name, found in left_out.items()
        }
        run["series"] = {}
    return plain


def _outer(verdict: Verdict, measured: Mapping[str, Any]) -> dict[str, Any]:
    by_outcome: dict[str, list[str]] = {"pass": [], "fail": [], "inconclusive": []}
    for line in verdict.criteria:
        by_outcome.setdefault(line.outcome, []).append(line.metric)
    traffic = stacks.digest(measured["traffic"]).removeprefix("sha256:")
    return {
        "result": _WORDS.get(verdict.outcome, "WARNED"),
        "configuration": [{"name": "traffic", "digest": {"sha256": traffic}}],
        "passedTests": by_outcome["pass"],
        "warnedTests": by_outcome["inconclusive"],
        "failedTests": by_outcome["fail"],
    }


def _tools(result: Result) -> dict[str, str]:
    return {
        "bench": result.tool_version,
        "python": platform.python_version(),
        "cryptography": version("cryptography"),
        "scipy": version("scipy"),
    }


def _price_book() -> dict[str, str]:
    import planner

    book = planner.price_book()
    rows = {
        f"{region} {name}": [str(price.on_demand), str(price.spot)] for (region, name), price in book.prices.items()
    }
    return {"source": book.source, "as_of": book.as_of, "digest": stacks.digest(rows)}


def _source(root: Path) -> dict[str, str | bool]:
    """Commit of the project, and whether files differed from it; empty outside of a repository."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "dirty": bool(changes.strip())}
