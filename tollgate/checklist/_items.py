"""The lists. Every item is a question with a check of another room behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import gate
import planner
import preview
import stacks
import values
from tollgate import doctor
from tollgate.explain import Live

State = Literal["done", "open", "unknown"]
# A measurement within this share of the plan is what was planned for.
_NEAR = 0.25


@dataclass(frozen=True, kw_only=True)
class Item:
    """`what`: the item, as a sentence that is true when it is done. `said`: what was found; `fix`: empty when done."""

    when: Literal["before", "after"]
    what: str
    state: State
    said: str
    fix: str = ""


Answer = tuple[State, str, str]


def before(
    stack: stacks.Stack, root: Path, findings: Sequence[doctor.Finding], change: preview.Report
) -> Iterator[Item]:
    """Before `pulumi up`. `findings`: the doctor's for this stack; `change`: its preview."""
    checks: list[tuple[str, Callable[[], Answer]]] = [
        ("machine, cluster and cloud have what it needs", lambda: _healthy(findings)),
        ("the plan keeps every promise", lambda: _planned(stack)),
        ("cost and nodes are within the limits", lambda: _affordable(change)),
        ("evidence lets the release in", lambda: _admitted(stack, root)),
        ("there is a release to go back to", lambda: _way_back(stack, root)),
        ("the image cannot change under its name", lambda: _pinned(stack)),
        ("nobody unknown can ask it", lambda: _closed(stack)),
        ("the cluster cannot be deleted by accident", lambda: _protected(stack)),
    ]
    for what, check in checks:
        state, said, fix = _tried(check)
        yield Item(when="before", what=what, state=state, said=said, fix=fix)


def after(stack: stacks.Stack, root: Path, now: Live) -> Iterator[Item]:
    """After `pulumi up`. `now`: what runs."""
    checks: list[tuple[str, Callable[[], Answer]]] = [
        ("every pod is ready", lambda: _ready(stack, now)),
        ("the pods run the release's slots", lambda: _slots(stack, now)),
        ("what was measured passes its own promise", lambda: _measured(stack, root)),
        ("what was measured is what was planned", lambda: _as_planned(stack, root)),
        ("the evidence verifies", lambda: _verifies(stack, root)),
    ]
    for what, check in checks:
        state, said, fix = _tried(check)
        yield Item(when="after", what=what, state=state, said=said, fix=fix)


def _tried(check: Callable[[], Answer]) -> Answer:
    try:
        return check()
    except stacks.InputError as error:
        return "open", f"{error.where}: got {error.got}", error.fix
    except stacks.TollgateError as error:
        first, _, rest = str(error).partition("\n")
        fixes = [
            line.strip().removeprefix("fix:").strip() for line in rest.splitlines() if line.strip().startswith("fix:")
        ]
        return "open", first, fixes[0] if fixes else ""


def _healthy(findings: Sequence[doctor.Finding]) -> Answer:
    bad = [one for one in findings if one.level == "bad"]
    if bad:
        return "open", "; ".join(f"{one.about}: {one.said}" for one in bad), bad[0].fix
    unknown = [one.about for one in findings if one.level == "unknown"]
    if unknown:
        return "unknown", f"could not be looked at: {', '.join(unknown)}", "tollgate doctor"
    return "done", f"{len(findings)} checks of tollgate doctor", ""


def _planned(stack: stacks.Stack) -> Answer:
    plan = planner.plan(stack)
    if plan.unmet:
        return "open", f"not kept: {', '.join(plan.unmet)}; {plan.binds}", f"tollgate plan {stack.name}"
    return "done", f"{plan.nodes_expected} nodes, end-to-end p95 {plan.predicted['e2e_p95_seconds']:.2f} s", ""


def _affordable(change: preview.Report) -> Answer:
    if change.error is not None or change.exit_code in (1, 2):
        return "open", change.error or change.headline, "tollgate preview --offline"
    failed = [one.message for one in change.findings if one.level == "fail"]
    if failed:
        return "open", "; ".join(failed), "spend less, or raise the limit in stacks/preview.yaml and have that reviewed"
    return "done", change.headline, ""


def _admitted(stack: stacks.Stack, root: Path) -> Answer:
    digest = values.release_digest(stack.release)
    admission = gate.check(stack, release_digest=digest, root=root, now=datetime.now(UTC))
    if not admission.gated:
        if stack.benchmark is None:
            return "open", "neither gated nor measured: nothing tells whether it is good", "add tollgate:benchmark"
        return "done", "not gated; it is measured after the deployment", ""
    return "done", f"evidence {str(admission.evidence)[7:19]}, {len(admission.approvals)} approvals", ""


def _way_back(stack: stacks.Stack, root: Path) -> Answer:
    stage = stacks.load_pipeline(root).stage(stack.name)
    if stage is None or stage.after is None:
        return "done", "not gated: any release can be put back", ""
    now = values.release_digest(stack.release)
    entries = gate.open_store(stack.evidence, root, gate.load_keys(root)).entries()
    earlier = [one for one in entries if one.kind == "promotion" and one.stack == stack.name and one.release != now]
    if not earlier:
        return "unknown", "it is the first release here: nothing to go back to", "plan for taking the stack out of use"
    return "done", f"{earlier[-1].release_name}, by tollgate rollback {stack.name}", ""


def _pinned(stack: stacks.Stack) -> Answer:
    if stack.target == "local":
        return "done", "a local command: nothing is pulled", ""
    named = stacks.by_tag(stack)
    if not named:
        return "done", "every image is named by its digest", ""
    fix = "add @sha256:… as the registry shows it, and serving.digests_only: true"
    return "open", f"named by tag alone: {', '.join(f'{image} ({field})' for field, image in named)}", fix


def _closed(stack: stacks.Stack) -> Answer:
    outside = stack.gateway is not None and stack.gateway.external
    if not outside:
        return "done", "inside of the cluster only", ""
    if stack.serving.api_key:
        return "done", "an API key is asked for", ""
    return "open", "reachable from outside without an API key", "set serving.api_key, and secrets:apiKey"


def _protected(stack: stacks.Stack) -> Answer:
    if stack.target != "gke" or stack.gke.adopt:
        return "done", "the cluster is not this stack's", ""
    if stack.gke.deletion_protection:
        return "done", "gke.deletion_protection", ""
    return "open", "gke.deletion_protection is off", "leave it out, or set it to true"


def _ready(stack: stacks.Stack, now: Live) -> Answer:
    if now.why:
        return "unknown", now.why, f"pulumi up -s {stack.name}"
    missing = [name for name, ready in now.pods.items() if not ready]
    if missing:
        return "open", f"not ready: {', '.join(missing)}", f"{now.asked} describe pod -n {stack.namespace} {missing[0]}"
    if now.unseen:
        return "unknown", f"{len(now.pods)} of {len(now.pods)}; not seen: {now.unseen}", f"{now.asked} get pods"
    return "done", f"{len(now.pods)} of {len(now.pods)}", ""


def _slots(stack: stacks.Stack, now: Live) -> Answer:
    if now.why:
        return "unknown", now.why, f"pulumi up -s {stack.name}"
    slots = str(planner.plan(stack).slots)
    shown = [*now.environment.values(), *(text.partition("=")[2] for text in now.arguments)]
    if slots in shown:
        return "done", slots, ""
    return "open", f"{slots} are planned and no pod says so", f"pulumi up -s {stack.name}"


def _measured(stack: stacks.Stack, root: Path) -> Answer:
    entry, verdict = gate.assess(
        stack, release_digest=values.release_digest(stack.release), root=root, now=datetime.now(UTC)
    )
    if verdict.outcome != "pass":
        return (
            "open",
            f"{verdict.outcome}: {'; '.join(verdict.reasons)}",
            f"tollgate evidence show {entry.digest[7:19]}",
        )
    return "done", f"{verdict.runs} runs, evidence {entry.digest[7:19]}", ""


def _as_planned(stack: stacks.Stack, root: Path) -> Answer:
    entry = gate.newest(stack, root, values.release_digest(stack.release))
    if entry is None:
        return "unknown", "not measured yet", f"pulumi up -s {stack.name}"
    planned = planner.plan(stack).predicted
    far = []
    for metric in ("e2e_p95_seconds", "requests_per_second"):
        found = sorted(run.metrics[metric] for run in gate.result_of(entry).runs if run.valid and metric in run.metrics)
        if found and abs(found[len(found) // 2] / planned[metric] - 1) > _NEAR:
            far.append(
                f"{stacks.OBJECTIVES[metric][2]}: {planned[metric]:.2f} planned, {found[len(found) // 2]:.2f} measured"
            )
    if far:
        return "open", "; ".join(far), f"tollgate plan {stack.name} --from-evidence"
    return "done", f"within {_NEAR:.0%} of the plan", ""


def _verifies(stack: stacks.Stack, root: Path) -> Answer:
    entries = gate.open_store(stack.evidence, root, gate.load_keys(root)).entries()
    if not any(entry.stack == stack.name for entry in entries):
        return "open", f"nothing was signed about {stack.name}", f"pulumi up -s {stack.name}"
    return "done", f"{len(entries)} statements, every signature holds", ""
