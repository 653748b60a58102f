"""`tollgate tune`: try how many requests a deployed engine should work at once, and write the best into its release."""

from __future__ import annotations

import math
import random
import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import stacks
from bench import load as generator
from bench import matrix as cells
from bench import report as reports
from bench import results
from bench.pods import Knob

from . import _benching as benching
from ._saying import Json, machine

_DEPLOYMENT = "engine"
_TUNED = "# tuned: "


def tune(
    name: Annotated[str, typer.Argument(metavar="STACK", help="A stack that is deployed.")],
    values: Annotated[str, typer.Option(help="Slots to try.")] = "1,2,4,8",
    runs: Annotated[int, typer.Option(min=1, max=20, help="Samples of each.")] = 2,
    duration: Annotated[float, typer.Option(min=1, help="Seconds of each sample, after warm-up.")] = 20.0,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Users; default: the stack's, or enough to fill twice the most slots.")
    ] = None,
    pods: Annotated[int, typer.Option(min=0, help="Send from so many pods of the cluster instead.")] = 0,
    cluster: Annotated[str | None, typer.Option(help="Another embedded cluster, or context, than the stack's.")] = None,
    seed: Annotated[int, typer.Option(help="Of prompts, lengths and the order of trying.")] = 1,
    write: Annotated[
        bool, typer.Option("--write/--dry-run", help="Write the best value into the release's file.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Try OLLAMA_NUM_PARALLEL (or --max-num-seqs) on STACK's own deployment, with its own traffic, and keep the best.

    The deployment gets its old value back. The release's file gets the best one, with the measurements beside it
    (stacks/releases/NAME.tuning.json); the next `pulumi up` deploys it, measures it, and makes the evidence for it.
    """
    stack, console = stacks.load_stack(name), Console(stderr=as_json)
    tried = _possible(stack, benching.numbers("--values", values), console)
    place = benching.place(None, None, cluster, stack)
    if place.kubectl is None:
        raise AssertionError("a stack's own place is in a cluster")
    subject = benching.subject(
        stack, place, from_pods=pods > 0, engine=None, model=None, endpoint="chat", costs=generator.Costs()
    )
    settings = generator.Settings(
        runs=1, seconds=duration, seed=seed, reconnect=True, context_tokens=stack.release.context_tokens
    )
    # One rollout for each value, in random order: what changes with the hour must not look like an effect of slots.
    order = random.Random(seed).sample(tried, len(tried))
    found: dict[int, list[results.Run]] = {value: [] for value in tried}
    stopper = generator.Stopper()
    with Knob(place.kubectl, _DEPLOYMENT, stack.release.engine) as knob:
        users = concurrency or stack.traffic.users or 2 * max(tried) * knob.replicas
        traffic = stack.traffic.model_copy(
            update={"arrival": "closed", "users": users, "requests_per_second": None, "think_seconds": 0.0}
        )
        measuring = benching.Measuring(
            subject=subject, traffic=traffic, settings=settings, scenario=generator.Scenario(), console=console, pods=pods,
            observer=benching.observer(subject, None, console),
        )  # fmt: skip
        console.print(f"{knob.what} of {stack.namespace}/{_DEPLOYMENT} is {knob.place.value}; {users} users")
        for value in order:
            began = time.monotonic()
            knob.turn(value)
            console.print(f"{value} slots: rolled out in {time.monotonic() - began:.0f} s", highlight=False)
            for number in range(runs):
                once = replace(measuring, settings=replace(settings, seed=seed + number))
                with reports.live(console) as (progress, _):
                    result = once.run(progress=progress if console.is_terminal else lambda _: None, stopper=stopper)
                if stopper or not result.runs:
                    raise stacks.TollgateError("interrupted; the deployment has its old value, nothing was written")
                found[value].append(result.runs[0])
                console.print(f"{value} slots: {_words(result.runs[0])}", soft_wrap=True, highlight=False)
    if knob.unsettled:
        console.print(f"the old value is set again, but: {knob.unsettled}", style="yellow", soft_wrap=True)
    tuning = _concluded(stack, knob.what, subject.release, found, users)
    if tuning.analysis is not None:
        reports.show_analysis(tuning.analysis, console, what="slots")
    best(tuning)
    files = _written(stack, tuning) if write else ()
    if as_json:
        machine({**tuning.model_dump(mode="json"), "written": [str(path) for path in files]})
    if write:
        for path in files:
            console.print(f"written: {path}", soft_wrap=True)
        console.print(f"the next `pulumi up -s {name}` deploys and measures it", soft_wrap=True)


def _possible(stack: stacks.Stack, values: tuple[int, ...], console: Console) -> tuple[int, ...]:
    """Those that fit the memory by the planner; the others are said. Raises InputError when none is left."""
    import planner

    kept, because = [], ""
    for value in dict.fromkeys(values):
        parallelism = stack.release.parallelism.model_copy(update={"slots": value})
        try:
            planner.check(
                stack.release.model_copy(update={"parallelism": parallelism}), stack.fleet, stack.traffic.prefix
            )
        except stacks.InputError as error:
            because = str(error)
            console.print(f"{value} slots: not tried, {because}", style="yellow", soft_wrap=True)
        else:
            kept.append(value)
    if len(kept) < 2:
        raise stacks.InputError(
            where="--values", got=", ".join(map(str, values)), allowed="at least two that fit the memory",
            fix=f"name others ({because})" if because else "name more",
        )  # fmt: skip
    return tuple(kept)


def _words(run: results.Run) -> str:
    if not run.valid:
        return f"does not count, {run.invalid_because}"
    tail = run.metrics.get("e2e_p95_seconds", math.nan)
    return f"{run.metrics['requests_per_second']:.2f} requests/s, end to end p95 {reports.milliseconds(tail)}"


def _concluded(
    stack: stacks.Stack, what: str, release: str, found: dict[int, list[results.Run]], users: int
) -> results.Tuning:
    """Each sample is a rate known to within the chance of its count; a broken promise rules a value out."""
    samples, lost = [], []
    for value, runs in found.items():
        for run in runs:
            if not run.valid:
                lost.append(f"a sample with {value} slots does not count: {run.invalid_because}")
                continue
            metrics = run.metrics
            samples.append(
                cells.Sample(
                    level=value, batch=1, rate=metrics["requests_per_second"], spread=1 / math.sqrt(max(1, run.ok)),
                    freedom=float(max(2, min(30, run.ok - 1))), error_rate=metrics["error_rate"], seconds=run.seconds,
                    latency=metrics["e2e_mean_seconds"], p95=metrics["e2e_p95_seconds"],
                    refused=_broken(run, stack.objectives),
                )
            )  # fmt: skip
    slim = {
        str(value): tuple(run.model_copy(update={"series": {}, "histograms": {}}) for run in runs)
        for value, runs in found.items()
    }
    return results.Tuning(
        stack=stack.name, release=release, setting=what, users=users, at=datetime.now(UTC), runs=slim,
        analysis=cells.analyse(samples, what="slots", lost=lost), tool_version=generator.tool_version(),
    )  # fmt: skip


def best(tuning: results.Tuning) -> results.Level:
    """The value to be written. Raises TollgateError where the samples give no reason to write any."""
    found = tuning.analysis
    if found is None:
        raise stacks.TollgateError("no sample counts; nothing was written")
    chosen = next(level for level in found.levels if level.workers == found.optimal_workers)
    if found.scenario == "unknown":
        raise stacks.TollgateError(
            f"only samples with {chosen.workers} slots count, which decides nothing; nothing was written"
        )
    if chosen.refused:
        raise stacks.TollgateError(
            f"no value can be recommended ({chosen.workers} is the best of them, but {chosen.refused}); nothing was written"
        )
    return chosen


def _broken(run: results.Run, objectives: stacks.Objectives) -> str:
    """Which promise about latency this sample breaks; how much the fleet carries is for the planner."""
    for metric, limit in objectives.items():
        value = run.metrics.get(metric)
        if metric.endswith("_seconds") and value is not None and value > limit:
            return f"{metric} {value:.3g}, promised at most {limit:g}"
    return ""


def _written(stack: stacks.Stack, tuning: results.Tuning) -> tuple[Path, Path]:
    """The value into the release's YAML with a line that says why, and all samples beside it."""
    folder = stacks.project_root() / "stacks" / "releases"
    beside = folder / f"{stack.release.name}.tuning.json"
    benching.written(beside, tuning.model_dump_json(indent=1) + "\n")
    path = folder / f"{stack.release.name}.yaml"
    benching.written(path, tuned(path.read_text(), tuning, beside.name, tensor=stack.release.parallelism.tensor))
    return path, beside


def tuned(text: str, tuning: results.Tuning, evidence: str, *, tensor: int = 1) -> str:
    """The release's YAML with the best value; everything else of it stays as it is. `tensor`: ranks, which have to be
    written out where the file says only `parallelism: auto`."""
    level = best(tuning)
    kept = re.sub(rf"^{re.escape(_TUNED)}.*\n", "", text, flags=re.MULTILINE)
    note = (
        f"{_TUNED}{level.workers} of {', '.join(tuning.runs)} on {tuning.stack}, {tuning.at:%F}: {level.requests_per_second:.3g} "
        f"requests/s ({level.low:.3g} to {level.high:.3g}); {evidence} {stacks.digest(tuning.model_dump(mode='json'))[:19]}\n"
    )
    changed, count = re.subn(
        r"^parallelism:(.*(?:\n[ ]+.*)*)",
        lambda found: _parallelism(found[0], level.workers, tensor),
        kept,
        count=1,
        flags=re.MULTILINE,
    )
    if not count:
        changed = f"{kept.rstrip()}\nparallelism: {{slots: {level.workers}}}\n"
    return changed.replace("\nparallelism:", f"\n{note}parallelism:", 1)


def _parallelism(section: str, slots: int, tensor: int) -> str:
    if re.search(r"\bslots:", section):
        return re.sub(r"(\bslots:\s*)(\d+|auto)", rf"\g<1>{slots}", section)
    if "{" in section:
        return section.replace("{", f"{{slots: {slots}, ", 1).replace(", }", "}")
    if section.strip().endswith("auto"):
        return (
            f"parallelism: {{slots: {slots}, tensor: {tensor}}}" if tensor > 1 else f"parallelism: {{slots: {slots}}}"
        )
    return re.sub(r"\n( +)", rf"\n\g<1>slots: {slots}\n\g<1>", section, count=1)
