"""`python -m components.evaluate STACK…`: what a program would make, as JSON, without engine, credentials or cluster.

One line per stack: {"stack", "resources": [{"type", "name", "inputs", "parent", "protect", "ignore"}], "plan", "release",
"error", "input_error"}. Run it inside a checkout: it evaluates that checkout's code and files, which is how `preview`
compares two commits. TOLLGATE_DAYS, a JSON object of stack -> shares of its traffic through a day, makes the plan one of that
day. What the price book lacks stops a deployment, not an evaluation: the preview then says that it is unpriced.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import json
import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar, cast

import pulumi

import components
import planner
import stacks

from . import _light

Resource = dict[str, Any]
_T = TypeVar("_T")
DAYS_VARIABLE = "TOLLGATE_DAYS"
# Evaluate with the SDKs as they are: the second try of a program that could not be evaluated lightly.
_WHOLE = "--whole"


# What our programs ask of Google. The answers are put into other resources' inputs; none of them bears on a price.
_ASKED: dict[str, dict[str, Any]] = {
    "gcp:organizations/getProject:getProject": {"number": "0"},
    "gcp:container/getCluster:getCluster": {"endpoint": "unknown", "masterAuths": [{"clusterCaCertificate": ""}]},
}


class _Recorder(pulumi.runtime.Mocks):
    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        return f"{args.name}-id", dict(args.inputs)

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[Any, Any]:  # type: ignore[override]
        return dict(_ASKED.get(args.token, {}))


class _Monitor(pulumi.runtime.mocks.MockMonitor):
    """Sees what plain mocks do not: parents, protection and what is ignored."""

    def __init__(self) -> None:
        super().__init__(_Recorder())
        self.recorded: list[Resource] = []

    def RegisterResource(self, request: Any) -> Any:
        answer = super().RegisterResource(request)  # type: ignore[no-untyped-call]
        if request.type != "pulumi:pulumi:Stack":
            inputs = _plain(pulumi.runtime.rpc.deserialize_properties(request.object))
            self.recorded.append(
                {
                    "type": request.type,
                    "name": request.name,
                    "inputs": _light.camel(inputs) if request.type.startswith("gcp:") else inputs,
                    "parent": _named(request.parent),
                    "protect": bool(request.protect),
                    "ignore": list(request.ignoreChanges),
                }
            )
        return answer


class _Here(ThreadPoolExecutor):
    """Runs what is asked of it at once: what stands in for the engine waits for nothing, and a thread is waited for."""

    def submit(self, work: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        done: Future[_T] = Future()
        try:
            done.set_result(work(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - whoever waits for it raises it
            done.set_exception(error)
        return done


def _named(urn: str) -> str | None:
    """`type::name` of a URN, None for the stack itself."""
    if not urn:
        return None
    kind, name = urn.split("::", 3)[2:]
    kind = kind.rpartition("$")[2]
    return None if kind == "pulumi:pulumi:Stack" else f"{kind}::{name}"


def evaluate(stack: str, root: Path) -> list[Resource]:
    """The resources that the stack's program registers, in a stable order. Raises what the program raises."""
    monitor = _Monitor()
    loop = asyncio.new_event_loop()
    loop.set_default_executor(_Here())
    asyncio.set_event_loop(loop)
    # preview=True: unknown outputs stay unknown, and nothing is recorded as evidence.
    pulumi.runtime.set_mocks(_Recorder(), project="tollgate", stack=stack, preview=True, monitor=monitor)
    own = root / "__main__.py"
    # The program's own `deploy`, told not to ask the gate: there is no switch outside of this process that would do that.
    asked, components.deploy = components.deploy, functools.partial(components.deploy, enforce=False)

    def program() -> None:
        if own.is_file():
            runpy.run_path(str(own), run_name="__main__")
        else:
            components.deploy(stack, root)

    try:
        # Runs the program and waits until every resource has been registered.
        pulumi.runtime.test(program)()  # type: ignore[no-untyped-call]
    except SystemExit as stop:
        # The program has told its user and left; here the reason is wanted.
        raise (stop.__context__ or stacks.TollgateError(f"the program left with {stop.code}")) from None
    finally:
        components.deploy = asked
    return sorted(monitor.recorded, key=lambda resource: (resource["type"], resource["name"], str(resource["parent"])))


def planned(stack: stacks.Stack, day: Sequence[float] = ()) -> dict[str, Any]:
    """The plan in plain words and numbers; `nodes_expected`, tokens and requests are means over the day where one is given."""
    peak = planner.plan(stack)
    hours = [_hour(stack, share) for share in day] or [peak]
    wanted = ("e2e_p95_seconds", "ttft_p95_seconds", "itl_p95_seconds")

    def mean(values: list[float]) -> str:
        return str(round(Decimal(sum(values)) / len(values), 6))

    served = [
        (plan.predicted if plan is not None else {"output_tokens_per_second": 0.0, "requests_per_second": 0.0})
        for plan in hours
    ]
    return {
        "nodes_peak": peak.nodes_expected,
        "nodes_expected": mean([plan.nodes_expected if plan is not None else stack.fleet.nodes.min for plan in hours]),
        "output_tokens_per_second_peak": str(round(Decimal(peak.predicted["output_tokens_per_second"]), 6)),
        "output_tokens_per_second": mean([one["output_tokens_per_second"] for one in served]),
        "requests_per_second": mean([one["requests_per_second"] for one in served]),
        "predicted": {name: _finite(peak.predicted[name]) for name in wanted},
        # A cost that stands on a price which is not known is no cost.
        "unmet": [name for name in peak.unmet if not name.startswith("cost_") or _book_has(stack)],
        "binds": peak.binds,
        "slots": peak.slots,
    }


def _hour(stack: stacks.Stack, share: float) -> planner.Plan | None:
    """The plan at that share of the traffic; None where nobody asks."""
    traffic = stack.traffic
    if share <= 0:
        return None
    if traffic.users is not None and traffic.arrival == "closed":
        scaled = traffic.model_copy(update={"users": max(1, round(traffic.users * share))})
    else:
        scaled = traffic.model_copy(update={"requests_per_second": (traffic.requests_per_second or 0.0) * share})
    return planner.plan(stack.model_copy(update={"traffic": scaled}))


def _finite(value: float) -> float | None:
    return round(value, 6) if value < float("inf") else None


_lacking: set[tuple[str, str, bool]] = set()


def _book_has(stack: stacks.Stack) -> bool:
    fleet = stack.fleet
    return not any((region, fleet.machine_type, fleet.spot) in _lacking for region in fleet.regions)


def _placeholders(stack: stacks.Stack) -> None:
    """Rows for what the price book lacks, so that the program runs; nothing that leaves this process is made of them."""
    prices = cast(dict[tuple[str, str], planner.Price], planner.price_book().prices)
    fleet, one = stack.fleet, Decimal(1)
    for region in fleet.regions:
        key = (region, fleet.machine_type)
        known = prices.get(key)
        if known is None:
            known = dataclasses.replace(
                next(iter(prices.values())), region=region, machine_type=fleet.machine_type, on_demand=one, spot=None
            )
            _lacking.add((*key, False))
        if fleet.spot and known.spot is None:
            known = dataclasses.replace(known, spot=one)
            _lacking.add((*key, True))
        prices[key] = known


def _read_once() -> None:
    """Several components of a stack, and all stacks, read the same files, which stay as they are while this process lives."""
    for name in ("load_pipeline", "load_release", "load_stack"):
        setattr(stacks, name, functools.cache(getattr(stacks, name)))


def _plain(value: Any) -> Any:
    """What JSON can carry; unknown values become null."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool) or value is None else None


def main(arguments: list[str]) -> int:
    """Print one JSON line per stack; exit code 2 when one of them could not be evaluated."""
    failed = False
    again: list[str] = []
    names = [name for name in arguments if name != _WHOLE]
    light = _WHOLE not in arguments
    # Of a program that fails, every resource that waits for the failed one would tell its whole story.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if light:
        _light.install()
        _read_once()
    # A short life in which little becomes garbage.
    gc.disable()
    days = json.loads(os.environ.get(DAYS_VARIABLE, "{}"))
    for name in names:
        line: dict[str, Any] = {"stack": name, "resources": [], "error": None, "input_error": False}
        try:
            root = stacks.project_root()
            stack = stacks.load_stack(name, root)
            _placeholders(stack)
            line["resources"] = evaluate(name, root)
            line["plan"] = planned(stack, days.get(name, ()))
            line["release"] = stack.release.model_dump(mode="json")
        except Exception as error:  # noqa: BLE001 - whatever a program raises is the answer for its stack
            if light and not isinstance(error, stacks.TollgateError):
                again.append(name)
                continue
            line["error"] = str(error) or type(error).__name__
            line["input_error"] = isinstance(error, stacks.InputError)
            failed = True
        print(json.dumps(line, sort_keys=True), flush=True)
    if again:
        failed = subprocess.run([sys.executable, "-m", __spec__.name, _WHOLE, *again]).returncode != 0 or failed
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
