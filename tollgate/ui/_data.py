"""What the page shows, as data: read anew at every question, written nowhere."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gate
import planner
import stacks
import values
from bench import batch
from tollgate.commands import evidence

# Of a question's numbers: below, or above, no slider goes.
_BOUNDS = {
    "users": (1, 100_000),
    "rate": (0.01, 100_000),
    "prompt": (1, 1_000_000),
    "output": (1, 1_000_000),
    "latency": (0.01, 3600),
    "budget": (0.01, 1_000_000),
}
_METRICS = ("requests_per_second", "e2e_p95_seconds", "ttft_p95_seconds", "error_rate", "output_tokens_per_second")
Query = Mapping[str, str]


def answer(root: Path, path: str, query: Query) -> Any:
    """The answer to `/api/<path>`. Raises InputError for a question that is none, TollgateError where there is no answer."""
    known: dict[str, Callable[[Path, Query], Any]] = {
        "pipeline": _pipeline,
        "history": _history,
        "plan": _plan,
        "results": _results,
        "compare": _compare,
        "batches": _batches,
    }
    if path not in known:
        raise stacks.InputError(where="address", got=path[:80], allowed=", ".join(known), fix="ask for one of these")
    return known[path](root, query)


def _pipeline(root: Path, _query: Query) -> list[dict[str, Any]]:
    pipeline = stacks.load_pipeline(root)
    return [_stage(root, stage) for stage in pipeline.stages]


def _stage(root: Path, stage: stacks.Stage) -> dict[str, Any]:
    found: dict[str, Any] = {"stack": stage.stack, "after": stage.after, "error": None}
    try:
        stack = stacks.load_stack(stage.stack, root)
        digest = values.release_digest(stack.release)
        found |= {"target": stack.target, "release": stack.release.name, "digest": digest[7:19]}
        found |= _gate(stack, digest, root)
        entry = gate.newest(stack, root, digest)
        found["measured"] = entry.facts["verdict"]["outcome"] if entry else None
        found["evidence"] = _evidence(entry) if entry else None
    except stacks.TollgateError as error:
        found["error"] = str(error)
    return found


def _gate(stack: stacks.Stack, digest: str, root: Path) -> dict[str, Any]:
    """`admitted`: on what evidence of the stage before, how judged, and how many approvals are in force."""
    try:
        admission = gate.check(stack, release_digest=digest, root=root, now=datetime.now(UTC))
    except gate.GateRefused as error:
        return {"gate": "closed", "why": str(error).splitlines()[0], "admitted": None}
    if admission.verdict is None:
        return {"gate": "not gated", "why": "", "admitted": None}
    judged = _judged(admission.verdict.plain()["criteria"])
    admitted = {"digest": str(admission.evidence)[7:19], "approvals": len(admission.approvals), "criteria": judged}
    return {"gate": "open", "why": "", "admitted": admitted}


def _evidence(entry: gate.Entry) -> dict[str, Any]:
    verdict = entry.facts["verdict"]
    return {
        "digest": entry.digest[7:19], "at": entry.signed_at.isoformat(), "runs": verdict["runs"],
        "criteria": _judged(verdict["criteria"]),
    }  # fmt: skip


def _judged(criteria: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "metric": stacks.OBJECTIVES[line["metric"]][2] if line["metric"] in stacks.OBJECTIVES else line["metric"],
            "needed": line["needed"], "measured": _known(line.get("measured")), "outcome": line["outcome"], "why": line["why"],
        }
        for line in criteria
    ]  # fmt: skip


def _history(root: Path, query: Query) -> list[dict[str, Any]]:
    """Of one stack, or of all stages; the newest first."""
    names = [stage.stack for stage in stacks.load_pipeline(root).stages]
    if "stack" in query:
        stacks.stack_path(query["stack"], root)
        names = [query["stack"]]
    found = []
    for name in names:
        try:
            events = gate.history(name, root)
        except stacks.InputError:
            # A stack that cannot be read says so in the pipeline.
            continue
        found += [{"stack": name, **vars(event), "at": event.at.isoformat()} for event in events]
    return sorted(found, key=lambda one: str(one["at"]), reverse=True)[:500]


def _plan(root: Path, query: Query) -> dict[str, Any]:
    """The stack's release for other users, lengths, a latency and a budget; `budget`: of the fleet, USD per hour."""
    stack = stacks.load_stack(query.get("stack", ""), root)
    given = {name: _number(query, name) for name in _BOUNDS if query.get(name)}
    traffic = stack.traffic.model_dump()
    traffic |= {
        f"{name}_tokens": {**traffic[f"{name}_tokens"], "mean": given[name]}
        for name in ("prompt", "output")
        if name in given
    }
    if stack.traffic.arrival == "closed" and "users" in given:
        traffic["users"] = int(given["users"])
    elif stack.traffic.arrival != "closed" and "rate" in given:
        traffic["requests_per_second"] = given["rate"]
    objectives = stack.objectives.model_dump()
    if "latency" in given:
        objectives["e2e_p95_seconds"] = given["latency"]
    hourly = planner.price_book().hourly(stack.fleet.machine_type, region=stack.fleet.regions[0], spot=stack.fleet.spot)
    most = 5000 if "budget" not in given or not hourly else max(1, min(5000, int(given["budget"] / float(hourly))))
    plan = planner.plan_for(
        release=stack.release,
        fleet=stack.fleet.model_copy(update={"nodes": stacks.Nodes(min=1, max=most)}),
        traffic=stacks.Traffic.model_validate(traffic),
        objectives=stacks.Objectives.model_validate(objectives),
        cap="the budget",
    )
    return {
        "stack": stack.name, "release": stack.release.name, "arrival": stack.traffic.arrival, "slots": plan.slots,
        "asked": {"users": traffic["users"], "rate": traffic["requests_per_second"], "prompt": traffic["prompt_tokens"]["mean"],
                  "output": traffic["output_tokens"]["mean"], "latency": objectives["e2e_p95_seconds"],
                  "budget": given.get("budget")},
        "nodes": plan.nodes_expected, "machine_type": plan.machine_type, "kept": plan.feasible,
        "unmet": [stacks.OBJECTIVES[name][2] for name in plan.unmet], "binds": plan.binds,
        "usd_per_hour": round(plan.cost_per_hour_expected_usd, 4), "usd_per_month": round(plan.cost_per_month_usd, 2),
        "usd_per_million_tokens": _finite(plan.cost_per_million_tokens_usd),
        "e2e_p95_seconds": _finite(plan.predicted["e2e_p95_seconds"]),
        "ttft_p95_seconds": _finite(plan.predicted["ttft_p95_seconds"]),
        "requests_per_second": _finite(plan.predicted["requests_per_second"]),
    }  # fmt: skip


def _measurements(root: Path) -> list[gate.Entry]:
    """Of every stage's store, the newest first."""
    places = []
    for stage in stacks.load_pipeline(root).stages:
        try:
            places.append(stacks.load_stack(stage.stack, root).evidence)
        except stacks.InputError:
            continue
    keys = gate.load_keys(root)
    entries = [entry for place in dict.fromkeys(places) for entry in gate.open_store(place, root, keys).entries()]
    return sorted((one for one in entries if one.kind == "measurement"), key=lambda one: one.signed_at, reverse=True)


def _results(root: Path, _query: Query) -> list[dict[str, Any]]:
    """Every measurement in the stores of the pipeline, the newest first: medians over its valid runs, `low` and `high` of
    them, and what was promised."""
    return [_result(entry) for entry in _measurements(root)[:200]]


def _result(entry: gate.Entry) -> dict[str, Any]:
    runs = _runs(entry)
    return {
        "stack": entry.stack, "release": entry.release_name, "evidence": entry.digest[7:19],
        "runs": max(map(len, runs.values()), default=0), "at": entry.signed_at.isoformat(),
        "verdict": entry.facts["verdict"]["outcome"], "promised": dict(entry.facts["objectives"]),
        **{name: _median(runs.get(name, [])) for name in _METRICS},
        "low": {name: min(found) for name, found in runs.items()},
        "high": {name: max(found) for name, found in runs.items()},
    }  # fmt: skip


def _runs(entry: gate.Entry) -> dict[str, list[float]]:
    """Metric -> its values in the valid runs."""
    runs = [run.metrics for run in gate.result_of(entry).runs if run.valid]
    names = dict.fromkeys(name for run in runs for name in run)
    return {
        name: [run[name] for run in runs if name in run and math.isfinite(run[name])]
        for name in names
        if any(math.isfinite(run.get(name, math.nan)) for run in runs)
    }


def _compare(root: Path, query: Query) -> dict[str, Any]:
    """Two measurements by the start of their digests: every run of each metric, and what else they differ in."""
    entries = _measurements(root)
    one, two = (_named(entries, query, name) for name in ("one", "two"))
    first, second = _runs(one), _runs(two)
    metrics = []
    for name in [*stacks.OBJECTIVES, *(name for name in _METRICS if name not in stacks.OBJECTIVES)]:
        if name in first and name in second:
            direction, unit, words = stacks.OBJECTIVES.get(name, ("at least", "tokens/s", "output tokens per second"))
            before, after = _median(first[name]), _median(second[name])
            change = _finite(after / before - 1) if before and after is not None else None
            metrics.append(
                {"metric": name, "words": words, "unit": unit, "less_is_better": direction == "at most",
                 "one": first[name], "two": second[name], "medians": [before, after], "change": change}
            )  # fmt: skip
    differs = [
        {"what": what, "one": _short(before), "two": _short(after)}
        for what, before, after, change in evidence.differences(one, two)
        if what not in first and what not in second and not change
    ]
    return {"one": _result(one), "two": _result(two), "metrics": metrics, "differs": differs[:60]}


def _named(entries: Sequence[gate.Entry], query: Query, name: str) -> gate.Entry:
    given = query.get(name, "")
    found = [entry for entry in entries if len(given) >= 8 and entry.digest[7:].startswith(given)]
    if len(found) != 1:
        known = ", ".join(entry.digest[7:19] for entry in entries[:8]) or "none: nothing was measured yet"
        raise stacks.InputError(where=name, got=given[:80], allowed=known, fix="name one of these")
    return found[0]


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text[7:19] if text.startswith("sha256:") else text[:200]


def _known(value: float | None) -> float | None:
    return None if value is None else _finite(value)


def _batches(root: Path, _query: Query) -> list[dict[str, Any]]:
    store = os.environ.get("TOLLGATE_BATCHES") or str(root / ".tollgate" / "batches")
    # A database's address holds a password, and is for `tollgate batch` to use.
    if batch.is_postgres(store) or not Path(store).is_dir():
        return []
    found = []
    for id in batch.ids(store)[:100]:
        with closing(batch.open_queue(store, id)) as queue:
            found.append(batch.status(queue).as_json())
    return found


def _number(query: Query, name: str) -> float:
    low, high = _BOUNDS[name]
    try:
        value = float(query[name])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise stacks.InputError(where=name, got=query[name][:40], allowed=f"{low} to {high}", fix="correct it")
    return value


def _median(found: list[float]) -> float | None:
    return _finite(sorted(found)[len(found) // 2]) if found else None


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
