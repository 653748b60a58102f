"""Every alert once live: `python benchmarks/alerts.py`. What each is for is made to happen to a stack on an embedded cluster.

The rules are the stack's own, evaluated every second and without their patience (`for`), which promtool proves. An alert counts
as proven when it was quiet before its cause and fires after it. Exits 1 when one does not. Takes about six minutes; the
last ones (no node, slow start, two autoscalers, a renamed metric, a healthy stack) are tests/local/test_monitoring_live.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import httpx2  # noqa: E402

import planner  # noqa: E402
import stacks  # noqa: E402
from benchmarks.scaling import QUICK, Ground, settings_of, stack_of  # noqa: E402
from components.autoscaler import source_of  # noqa: E402
from components.monitoring_rules import Facts, facts_of, rule_file  # noqa: E402

_NODES, _SLOTS = 2, 4
_PATIENCE_SECONDS = 60.0


def rules(facts: Facts) -> dict[str, Any]:
    """The stack's PrometheusRule, evaluated every second and without the patience that a proof does not have."""
    made = rule_file(facts)
    for group in made["groups"]:
        group["interval"] = "1s"
        for one in group["rules"]:
            one.pop("for", None)
    return rule_object(facts.source.namespace, "rules", made)


def rule_object(namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A PrometheusRule of that name."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": metadata, "spec": spec}


def groups(url: str, stack: str) -> list[dict[str, Any]]:
    """What that Prometheus has of the stack's rules."""
    with urllib.request.urlopen(f"{url}/api/v1/rules", timeout=5) as answer:
        found = json.load(answer)["data"]["groups"]
    return [one for one in found if one["name"].startswith(f"tollgate-{stack}-")]


def firing(ground: Ground) -> set[str]:
    """Names of the stack's alerts that fire now; of one with several objectives, speeds or resources also `name objective`
    and `name objective speed`."""
    found = set()
    for group in groups(ground.prometheus_url, ground.name):
        for rule in group["rules"]:
            if rule["type"] == "alerting" and rule["state"] == "firing":
                of = [rule["labels"][key] for key in ("objective", "resource", "speed") if key in rule["labels"]]
                found |= {" ".join([rule["name"], *of[:number]]) for number in range(len(of) + 1)}
    return found


@dataclass(frozen=True)
class Cause:
    """What is done, in words, and the alerts that it must set off. `keeps_quiet`: what has to be done before, so that they
    are quiet. `fleet`: to a fleet of simulators, not to an engine."""

    words: str
    alerts: tuple[str, ...]
    happens: Callable[[Ground, Facts], contextlib.AbstractContextManager[None]]
    keeps_quiet: Callable[[Ground], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext()
    fleet: bool = False


@contextlib.contextmanager
def _load(ground: Ground, clients: int, tokens: int) -> Iterator[None]:
    """So many clients, each with one request open, for as long as the block runs."""
    over, url = threading.Event(), f"{ground.url()}/v1/chat/completions"
    body = {"model": ground.values["model"], "max_tokens": tokens, "min_tokens": tokens,
            "messages": [{"role": "user", "content": "a question of a few words"}]}  # fmt: skip

    def ask() -> None:
        with httpx2.Client(timeout=60, trust_env=False) as client:
            while not over.is_set():
                with contextlib.suppress(httpx2.HTTPError):
                    client.post(url, json=body)
                # Errors come at once.
                over.wait(0.05)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(clients)]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        over.set()
        for one in threads:
            one.join(65)


@contextlib.contextmanager
def _too_many(ground: Ground, facts: Facts) -> Iterator[None]:
    ground.kubectl("scale", "deploy", "engine", f"--replicas={_NODES}")
    ground.until(lambda: ground.ready() == _NODES, "all replicas")
    with _load(ground, clients=60, tokens=16):
        yield
    ground.kubectl("scale", "deploy", "engine", "--replicas=1")


@contextlib.contextmanager
def _changed(ground: Ground, patch: list[dict[str, Any]], clients: int, tokens: int) -> Iterator[None]:
    """Other pods of the engine, and load on them."""
    ground.kubectl("patch", "deploy", "engine", "--type=json", "-p", json.dumps(patch))
    ground.kubectl("rollout", "status", "deploy/engine", "--timeout=60s")
    with _load(ground, clients, tokens):
        yield
    ground.kubectl("rollout", "undo", "deploy/engine")
    ground.kubectl("rollout", "status", "deploy/engine", "--timeout=60s")


def _env(name: str, value: str) -> list[dict[str, Any]]:
    path = "/spec/template/spec/containers/0/env/-"
    return [{"op": "add", "path": path, "value": {"name": name, "value": value}}]


def _errors(ground: Ground, facts: Facts) -> contextlib.AbstractContextManager[None]:
    return _changed(ground, _env("TOLLGATE_SIM_FAULTS", "error=0.9"), clients=8, tokens=4)


def _small_cache(ground: Ground, facts: Facts) -> contextlib.AbstractContextManager[None]:
    # 10 blocks of 16 tokens, for four answers of 90 and their prompts; of modelled pace, since given times know no cache.
    (container,) = ground.get("deploy", "engine")["spec"]["template"]["spec"]["containers"]
    env = [one for one in container["env"] if one["name"] not in ("TOLLGATE_SIM_TTFT", "TOLLGATE_SIM_ITL")]
    args = [*container["args"], "--max-model-len=128", "--num-gpu-blocks-override=10"]
    path = "/spec/template/spec/containers/0"
    patch = [
        {"op": "replace", "path": f"{path}/{name}", "value": value} for name, value in (("env", env), ("args", args))
    ]
    return _changed(ground, patch, clients=8, tokens=90)


@contextlib.contextmanager
def _with(ground: Ground, facts: Facts, **changed: Any) -> Iterator[None]:
    """Other rules, and those of the stack again."""
    ground.apply(rules(dataclasses.replace(facts, **changed)))
    yield
    ground.apply(rules(facts))


def _little(ground: Ground, facts: Facts) -> contextlib.AbstractContextManager[None]:
    source = dataclasses.replace(facts.source, cpus=0.001)
    return _with(ground, facts, source=source, memory_bytes=10e6)


def _expiring(ground: Ground, facts: Facts) -> contextlib.AbstractContextManager[None]:
    return _with(ground, facts, evidence_until=time.time() + 86_400)


def _no_keda(ground: Ground, facts: Facts) -> contextlib.AbstractContextManager[None]:
    return ground.paused("keda-operator")


@contextlib.contextmanager
def _wrong_query(ground: Ground, facts: Facts) -> Iterator[None]:
    def wrong(scaled: dict[str, Any]) -> None:
        for trigger in scaled["spec"]["triggers"]:
            trigger["metadata"]["query"] = "sum(nothing_of_that_name)"

    ground.autoscale(wrong)
    yield
    ground.kubectl("delete", "scaledobject", "engine")


@contextlib.contextmanager
def _unscraped(ground: Ground, facts: Facts) -> Iterator[None]:
    path = "/spec/template/metadata/annotations/prometheus.io~1scrape"
    with _changed(ground, [{"op": "replace", "path": path, "value": "false"}], clients=0, tokens=1):
        yield


@contextlib.contextmanager
def _much(ground: Ground) -> Iterator[None]:
    """As many requests for one token as two cores carry, until the fleet's LowThroughput has gone."""
    url, model = ground.url(), str(ground.values["model"])
    asked = ["--url", url, "--model", model, "--engine", "vllm", "--no-stream", "--concurrency", "16",
             "--prompt-tokens", "4", "--max-tokens", "1", "--runs", "1", "--duration", "120"]  # fmt: skip
    command = [sys.executable, "-m", "tollgate", "bench", "run", *asked]
    client = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ground.until(lambda: "LowThroughput" not in firing(ground), "more than 8,000 requests a second", 110)
        yield
    finally:
        client.kill()
        client.wait(10)


def _late(ground: Ground, facts: Facts) -> contextlib.AbstractContextManager[None]:
    # Two cores cannot be kept so busy that a simulator is late: it answers 50,000 such requests a second.
    return _changed(ground, _env("TOLLGATE_SIM_TTFT", "40ms"), clients=8, tokens=1)


CAUSES = (
    Cause(
        "60 clients for 8 slots on as many replicas as there may be",
        (
            "HighLatency e2e_p95_seconds",
            "LowThroughput",
            "QueueGrowing",
            "ReplicasAtMax",
            "BudgetBurn e2e_p95_seconds fast",
            "BudgetBurn e2e_p95_seconds slow",
        ),
        _too_many,
    ),
    Cause("nine of ten requests are answered with 500",
          ("HighErrorRate", "BudgetBurn error_rate fast", "BudgetBurn error_rate slow"), _errors),
    Cause(
        "four answers of 90 tokens and their prompts in a cache for 160", ("KvCacheFull", "Preemptions"), _small_cache
    ),
    Cause(
        "CPU and memory asked for put below what a replica uses",
        ("ResourceExhaustion cpu", "ResourceExhaustion memory"),
        _little,
    ),
    Cause("the evidence expires in a day", ("EvidenceExpires",), _expiring),
    Cause("KEDA's operator is stopped", ("KedaDown",), _no_keda),
    Cause("a ScaledObject with a query that gives nothing", ("ScalerFailing",), _wrong_query),
    Cause("the pods no longer ask to be scraped", ("NothingScraped",), _unscraped),
    Cause("a fleet of simulators answers more than 8,000 requests a second, and then nobody sends",
          ("LowThroughput",), lambda *_: contextlib.nullcontext(), _much, fleet=True),
    Cause("simulators of a fleet that take 40 ms", ("HighLatency",), _late, fleet=True),
)  # fmt: skip


def prove(ground: Ground, facts: Facts, cause: Cause) -> list[tuple[str, str, float | None]]:
    """(alert, cause, seconds until it fired); None where it did not, or fired before its cause."""
    with cause.keeps_quiet(ground):
        before = firing(ground)
    missing, found = set(cause.alerts) - before, {}
    began = time.monotonic()
    with cause.happens(ground, facts):
        while missing and time.monotonic() - began < _PATIENCE_SECONDS:
            with contextlib.suppress(OSError):
                for name in missing & firing(ground):
                    found[name] = time.monotonic() - began
                missing -= set(found)
            time.sleep(0.5)
    return [(name, cause.words, found.get(name)) for name in cause.alerts]


def main() -> int:
    """Print a row per alert."""
    from local import cluster

    only = sys.argv[1:]
    failed = False
    with tempfile.TemporaryDirectory() as home:
        os.environ["TOLLGATE_HOME"] = home
        name = f"alerts-{os.getpid()}"
        found = cluster.up(name)
        found.enter()
        try:
            print("| alert | what happens | fires after, s |\n|---|---|--:|", flush=True)
            for fleet in (False, True):
                asked = [
                    cause
                    for cause in CAUSES
                    if cause.fleet is fleet
                    and (not only or set(only) & {one.partition(" ")[0] for one in cause.alerts})
                ]
                if not asked:
                    continue
                with _ground(found.environment(Path(home)), found, fleet=fleet) as (ground, facts):
                    for cause in asked:
                        for alert, words, seconds in prove(ground, facts, cause):
                            failed |= seconds is None
                            shown = "does not" if seconds is None else f"{seconds:.0f}"
                            print(f"| {alert} | {words} | {shown} |", flush=True)
        finally:
            cluster.down(name)
    return int(failed)


@contextlib.contextmanager
def _ground(environment: dict[str, str], found: Any, *, fleet: bool) -> Iterator[tuple[Ground, Facts]]:
    """The stack, its rules in Prometheus. A fleet of simulators answers at once."""
    quick = {**QUICK, "policy": "simulator"} if fleet else QUICK
    slots = 16 if fleet else _SLOTS
    simulated = {"TOLLGATE_SIM_TTFT": "0ms", "TOLLGATE_SIM_ITL": "0ms"} if fleet else None
    ground = Ground(
        environment, found.prometheus_url, "alerts-fleet" if fleet else "alerts",
        settings=settings_of(_NODES, autoscaling=quick), slots=slots,
        simulated=simulated, state_dir=found.state_dir,
    )  # fmt: skip
    ground.deploy()
    stack = stack_of(ground.name, _NODES, slots=slots, autoscaling=stacks.Autoscaling.model_validate(quick))
    plan = planner.plan(stack)
    facts = facts_of(stack, plan, source_of(stack, plan), ground.values)
    ground.apply(rules(facts))
    quiet = {"TollgateAlive", "LowThroughput"} if fleet else {"TollgateAlive"}
    ground.until(lambda: firing(ground) == quiet, "a quiet stack", 60)
    try:
        yield ground, facts
    finally:
        ground.remove()


if __name__ == "__main__":
    sys.exit(main())
