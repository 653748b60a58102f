"""What the page shows, as data: read anew at every question, written nowhere."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gate
import planner
import stacks
import values
from bench import batch

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
        found["gate"], found["why"] = _gate(stack, digest, root)
        entry = gate.newest(stack, root, digest)
        found["measured"] = entry.facts["verdict"]["outcome"] if entry else None
        found["evidence"] = {"digest": entry.digest[7:19], "at": entry.signed_at.isoformat()} if entry else None
    except stacks.TollgateError as error:
        found["error"] = str(error)
    return found


def _gate(stack: stacks.Stack, digest: str, root: Path) -> tuple[str, str]:
    try:
        admission = gate.check(stack, release_digest=digest, root=root, now=datetime.now(UTC))
    except gate.GateRefused as error:
        return "closed", str(error).splitlines()[0]
    return ("open" if admission.gated else "not gated"), ""


def _history(root: Path, query: Query) -> list[dict[str, Any]]:
    stack = query.get("stack", "")
    stacks.stack_path(stack, root)
    return [{**vars(event), "at": event.at.isoformat()} for event in gate.history(stack, root)]


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


def _results(root: Path, _query: Query) -> list[dict[str, Any]]:
    """Every measurement in the stores of the pipeline, the newest first: medians over its valid runs."""
    names = [stage.stack for stage in stacks.load_pipeline(root).stages]
    places = dict.fromkeys(stacks.load_stack(name, root).evidence for name in names)
    found = []
    for place in places:
        for entry in gate.open_store(place, root, gate.load_keys(root)).entries():
            if entry.kind != "measurement":
                continue
            result = gate.result_of(entry)
            runs = [run for run in result.runs if run.valid]
            medians = {name: _median([run.metrics[name] for run in runs if name in run.metrics]) for name in _METRICS}
            found.append(
                {"stack": entry.stack, "release": entry.release_name, "evidence": entry.digest[7:19], "runs": len(runs),
                 "at": entry.signed_at.isoformat(), "verdict": entry.facts["verdict"]["outcome"], **medians}
            )  # fmt: skip
    return sorted(found, key=lambda one: str(one["at"]), reverse=True)[:200]


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
