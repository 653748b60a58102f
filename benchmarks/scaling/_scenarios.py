"""The scenarios: each puts a load on a stack of its own, breaks something or nothing, and says what came of it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._ground import Ground, Sample, Watcher
from ._load import Outcome, ask_at_once, send
from ._metrics import default_hpa, served

# One replica: 4 slots, 200 ms to the first of 16 tokens and 50 ms to each other: 4 requests/s. The promise is three times
# the answer of an idle replica.
SERVICE_SECONDS = 0.2 + 15 * 0.05
SLOTS = 4
PROMISE_SECONDS = 3.0
Stages = Sequence[tuple[float, float, float]]
Make = Callable[..., Ground]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one scenario showed. Seconds throughout; `facts` are what it alone has to say."""

    name: str
    requests: int
    lost: int
    p95: float
    recovered: float
    decided: float
    ready: float
    reversals: int
    replica_seconds: float
    oracle_seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    outcome: Outcome = field(default_factory=lambda: Outcome(answers=()))
    stages: Stages = ()
    oracle: Sequence[int] = ()


def oracle(stages: Stages, *, most: int, least: int = 1, ahead: float = 3.0) -> float:
    """Replica-seconds of whoever knows the load: each moment the fewest that carry it, started a cold start before."""
    return sum(oracle_replicas(stages, most=most, least=least, ahead=ahead)) / 2


def oracle_replicas(stages: Stages, *, most: int, least: int = 1, ahead: float = 3.0) -> list[int]:
    """Of every half second."""
    rates: list[float] = []
    for seconds, start, end in stages:
        steps = max(1, round(seconds * 2))
        rates += [start + (end - start) * (index + 0.5) / steps for index in range(steps)]
    needed = [min(most, max(least, math.ceil(rate * SERVICE_SECONDS / SLOTS))) for rate in rates]
    reach = round(ahead * 2)
    return [max(needed[index : index + reach + 1]) for index in range(len(needed))]


def measure(
    name: str,
    ground: Ground,
    stages: Stages,
    *,
    most: int,
    during: Callable[[float], Mapping[str, Any]] | None = None,
    step: float | None = None,
    least: int = 1,
) -> Report:
    """The load, and `during(began)` beside it; `step`: second at which the load rises, from which recovery counts."""
    outcome: list[Outcome] = []
    facts: dict[str, Any] = {}
    failed: list[BaseException] = []
    watcher, url, model = Watcher(ground), ground.url(ground.entrance), ground.values["model"]

    def load() -> None:
        try:
            outcome.append(send(url, model, stages))
        except BaseException as error:  # noqa: BLE001 - said by the main thread
            failed.append(error)

    with watcher.watching():
        thread = threading.Thread(target=load)
        thread.start()
        if during is not None:
            facts.update(during(watcher.began))
        thread.join(sum(one[0] for one in stages) + 240)
    if failed:
        raise failed[0]
    done = outcome[0]
    if done.lost:
        kinds = Counter(one.status for one in done.answers if not one.ok)
        facts["lost as"] = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    queued = watcher.first(lambda one: one.waiting > 0)
    before = watcher.samples[0].wanted if watcher.samples else 1
    return Report(
        name=name,
        requests=len(done.answers),
        lost=done.lost,
        p95=done.p95(),
        recovered=done.recovered(PROMISE_SECONDS, step or 0.0),
        decided=watcher.first(lambda one: one.wanted > before) - queued,
        ready=watcher.first(lambda one: one.ready >= most) - queued,
        reversals=watcher.reversals(),
        replica_seconds=watcher.replica_seconds(),
        oracle_seconds=oracle(stages, most=most, least=least),
        stages=stages,
        oracle=oracle_replicas(stages, most=most, least=least),
        facts=facts,
        samples=tuple(watcher.samples),
        outcome=done,
    )


def _up(ground: Ground, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Ground:
    ground.deploy()
    ground.autoscale(change)
    path = ("scaledobject", "engine")

    def taken() -> bool:
        conditions = (ground.get(*path).get("status") or {}).get("conditions") or []
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    ground.until(taken, "KEDA takes the ScaledObject over", 60)
    return ground


PROXY = {"kind": "proxy", "replicas": 1}
# More than any queue: as if it had no limit.
UNLIMITED = {**PROXY, "headroom": 1000}
_STEP: Stages = [(4, 1, 1), (22, 24, 24), (4, 1, 1)]


def step(make: Make) -> Report:
    """1 -> 10 replicas at once; what no slot is free for waits in the gateway."""
    ground = _up(make("step", most=10, gateway=PROXY))
    return measure("step 1→10", ground, _STEP, most=10, step=4.0)


def step_fewest(make: Make) -> Report:
    """The same, where the gateway gives each request at once to the replica with the fewest, which queues it."""
    ground = _up(make("step-fewest", most=10, gateway=UNLIMITED))
    return measure("step 1→10, queued at the replicas", ground, _STEP, most=10, step=4.0)


def step_service(make: Make) -> Report:
    """The same without a gateway: the Service chooses by chance."""
    return measure("step 1→10, no gateway", _up(make("step-service", most=10)), _STEP, most=10, step=4.0)


def ramp(make: Make) -> Report:
    """The load grows evenly."""
    return measure("ramp", _up(make("ramp", gateway=PROXY, most=8)), [(4, 1, 1), (26, 1, 20), (8, 20, 20)], most=8)


def burst(make: Make) -> Report:
    """Much for a short time: over before new replicas are there."""
    return measure(
        "burst", _up(make("burst", gateway=PROXY, most=6)), [(4, 2, 2), (3, 25, 25), (25, 2, 2)], most=6, step=4.0
    )


def flapping(make: Make) -> Report:
    """A load that changes faster than the cooldown."""
    stages = [(4.0, 12.0, 12.0), (4.0, 1.0, 1.0)] * 4
    made = measure("flapping", _up(make("flap", gateway=PROXY, most=6, cooldown=15)), stages, most=6)
    return _with(made, cooldowns=math.ceil(sum(one[0] for one in stages) / 15))


def down(make: Make) -> Report:
    """10 -> 1 while streams run: each replica that is taken away finishes what it has."""
    ground = _up(make("down", gateway=PROXY, most=10, simulated={"TOLLGATE_SIM_ITL": "200ms"}))
    return measure("10→1", ground, [(12, 9, 9), (25, 1, 1)], most=10)


def zero(make: Make) -> Report:
    """0 -> 1: requests are held at the gateway until a replica serves."""
    ground = _up(make("zero", most=2, least=0, gateway=PROXY))

    def asleep() -> bool:
        pods = [one["metadata"]["name"] for one in ground.get("pods")["items"]]
        return ground.wanted() == 0 and not [name for name in pods if name.startswith("engine")]

    slept = ground.until(asleep, "nobody serves", 90)
    watcher = Watcher(ground)
    with watcher.watching():
        done = ask_at_once(ground.url("gateway"), ground.values["model"], 8)
    return Report(
        name="0→1",
        requests=len(done.answers),
        lost=done.lost,
        p95=done.p95(),
        recovered=max(one.done for one in done.answers),
        decided=watcher.first(lambda one: one.wanted > 0),
        ready=watcher.first(lambda one: one.ready > 0),
        reversals=watcher.reversals(),
        replica_seconds=watcher.replica_seconds(),
        oracle_seconds=sum(one.latency for one in done.answers) / SLOTS,
        facts={"asleep after": f"{slept:.0f} s", "first answer": f"{min(one.ttft for one in done.answers):.1f} s"},
        samples=tuple(watcher.samples),
        outcome=done,
    )


def metric_loss(make: Make) -> Report:
    """Prometheus is away: KEDA holds what there is, and the service goes on."""
    ground = _up(make("loss", gateway=PROXY, most=6))

    def during(began: float) -> Mapping[str, Any]:
        _until(began + 14)
        before = ground.wanted()
        with ground.paused("prometheus"):
            _until(began + 30)
            held = ground.wanted()
            conditions = ground.get("scaledobject", "engine")["status"]["conditions"]
            said = [one["message"] for one in conditions if one["type"] in ("Ready", "Fallback")]
        return {"before": before, "while blind": held, "KEDA says": "; ".join(said)}

    return measure("metric loss", ground, [(12, 12, 12), (28, 1, 1)], most=6, during=during)


# Of its 30 s of notice GKE's kubelet gives pods that are not the system's 15: SIGTERM, and SIGKILL after them.
_SPOT_GRACE_SECONDS = 15


def spot(make: Make) -> Report:
    """A spot node is taken away in the middle of streams, as GKE does it: a taint, SIGTERM with its grace, and no node."""
    ground = _up(make("spot", gateway=PROXY, most=4, simulated={"TOLLGATE_SIM_ITL": "100ms"}))

    def during(began: float) -> Mapping[str, Any]:
        _until(began + 14)
        pods = {
            one["metadata"]["name"]: one
            for one in ground.get("pods", "-l", "app.kubernetes.io/instance=engine")["items"]
        }
        busiest = f'topk(1, sum by (pod) (vllm:num_requests_running{{namespace="{ground.name}"}}))'
        ground.until(lambda: ground.number(busiest) > 0, "streams", 20)
        (most,) = ground.ask(busiest)
        name, streams = most["metric"]["pod"], float(most["value"][1])
        node, address = pods[name]["spec"]["nodeName"], pods[name]["status"]["podIP"]
        ground.kubectl("taint", "node", node, "cloud.google.com/impending-node-termination=:NoSchedule")
        ground.kubectl("delete", "pod", name, f"--grace-period={_SPOT_GRACE_SECONDS}", "--wait=false")
        noticed = time.monotonic()
        _until(noticed + _SPOT_GRACE_SECONDS)
        # The machine is gone: its processes with it, whatever they still do.
        ground.kubectl("delete", "node", node, "--wait=false")
        gone = ground.until(lambda: not _answers_at(address), "the node's pod is gone", 30)
        return {
            "streams on it at the notice": f"{streams:.0f}",
            "node gone after": f"{_SPOT_GRACE_SECONDS + gone:.0f} s",
        }

    return measure("spot node taken", ground, [(36, 5, 5)], most=4, during=during)


def _answers_at(address: str) -> bool:
    try:
        with socket.create_connection((address, 8000), timeout=1):
            return True
    except OSError:
        return False


def rollout(make: Make) -> Report:
    """A new release of the chart while requests come."""
    ground = _up(make("rollout", gateway=PROXY, most=4))

    def during(began: float) -> Mapping[str, Any]:
        _until(began + 12)
        before, started = ground.wanted(), time.monotonic()
        ground.install(podLabels={"rollout": "second"})
        return {"seconds": f"{time.monotonic() - started:.0f}", "replicas before": before, "after": ground.wanted()}

    return measure("rollout under load", ground, [(40, 8, 8)], most=4, during=during)


def nodes_short(make: Make) -> Report:
    """The maximum is reached and nodes are short: pods are Pending, then nodes come."""
    ground = _up(make("nodes", gateway=PROXY, most=5, nodes=2))

    def during(began: float) -> Mapping[str, Any]:
        ground.until(lambda: len(_pending(ground)) > 0, "a Pending pod", 40)
        shown = len(_pending(ground))
        _until(began + 15)
        ground.apply(*ground.nodes)
        came = ground.until(lambda: not _pending(ground), "no Pending pod", 40)
        return {"Pending": shown, "gone after new nodes": f"{came:.1f} s"}

    return measure("nodes short", ground, [(35, 14, 14)], most=5, during=during)


def _pending(ground: Ground) -> list[str]:
    pods = ground.get("pods", "-l", "app.kubernetes.io/instance=engine")["items"]
    return [one["metadata"]["name"] for one in pods if not one["spec"].get("nodeName")]


def keda_down(make: Make) -> Report:
    """KEDA and the API server are restarted under load: the number stays, requests go on, and then it is scaled again."""
    ground = _up(make("keda", gateway=PROXY, most=5))

    def during(began: float) -> Mapping[str, Any]:
        _until(began + 3)
        with ground.paused("keda-operator"):
            _until(began + 14)
            blind = ground.wanted()
        ground.kill("kube-apiserver")
        back = ground.until(lambda: _answers(ground), "the API server", 60)
        grown = ground.until(lambda: ground.wanted() > blind, "scaled again", 60)
        return {"while KEDA is away": blind, "API server back": f"{back:.1f} s", "scaled again": f"{grown:.1f} s"}

    return measure("KEDA and API server away", ground, [(40, 12, 12)], most=5, during=during)


def _answers(ground: Ground) -> bool:
    try:
        ground.wanted()
    except (RuntimeError, ValueError):
        return False
    return True


def _until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _with(report: Report, **facts: Any) -> Report:
    return dataclasses.replace(report, facts={**report.facts, **facts})


# A fleet that answers at once is sized by its CPU and by what it adds to an answer. Its policy waits for minutes: here for
# seconds, 60 times as short, and a replica has 15 thousandths of a CPU for its own, or two cores could not fill eight.
_SHORTER = 60
_FLEET_CPUS = 0.015


def fleet(make: Make) -> Report:
    """The policy `simulator`: up by half at CPU > 75 % for 5 min or p99 > 15 ms for 2, down at CPU < 40 % for 10; min 3."""
    most = 8
    quick = {"TOLLGATE_SIM_TTFT": "1ms", "TOLLGATE_SIM_ITL": "0ms"}
    ground = make("fleet", most=most, least=3, policy="simulator", gateway=PROXY, simulated=quick)
    ground.deploy()
    ground.record(_shorten)
    ground.autoscale(lambda one: [_shorten(trigger["metadata"], "query") for trigger in one["spec"]["triggers"]])
    where = f'{{namespace="{ground.name}"}}'
    seen: list[tuple[float, float]] = []

    def during(began: float) -> Mapping[str, Any]:
        while time.monotonic() < began + sum(one[0] for one in _FLEET):
            cpu, added = (ground.number(f"{name}{where}") for name in _FLEET_READS)
            # Without a request in the window there is no percentile.
            seen.append((cpu, 0.0 if math.isnan(added) else added))
            time.sleep(1)
        cpus = [one[0] for one in seen]
        return {
            "CPU": f"{min(cpus):.0%} to {max(cpus):.0%}",
            "most p99": f"{max(one[1] for one in seen) * 1000:.0f} ms",
            "windows": f"{_SHORTER} times as short, {_FLEET_CPUS:g} CPU per replica",
        }

    report = measure("fleet of simulators", ground, _FLEET, most=most, least=3, during=during)
    numbers = [number for number, _ in itertools.groupby(one.wanted for one in report.samples)]
    # What so little CPU carries nobody knows before: there is no oracle of it.
    report = dataclasses.replace(report, oracle=(), oracle_seconds=math.nan)
    return _with(report, replicas=" → ".join(map(str, numbers)))


_FLEET: Stages = [(5, 2, 2), (20, 60, 60), (45, 2, 2)]
_FLEET_READS = ("tollgate:cpu_utilisation:ratio", "tollgate:added_latency_seconds:p99")


def _shorten(rule: dict[str, Any], key: str = "expr") -> None:
    """Every range of minutes in a query as seconds, at least four scrapes, or there is no rate; and the CPU of a replica."""
    text = re.sub(r"\[(\d+)m\]", lambda found: f"[{max(4, round(int(found[1]) * 60 / _SHORTER))}s]", rule[key])
    if rule.get("record") == _FLEET_READS[0]:
        text = re.sub(r"/ [0-9.]+$", f"/ {_FLEET_CPUS:g}", text)
    rule[key] = text


SCENARIOS: dict[str, Callable[[Make], Report]] = {
    "step": step,
    "step-fewest": step_fewest,
    "step-service": step_service,
    "ramp": ramp,
    "burst": burst,
    "zero": zero,
    "down": down,
    "flapping": flapping,
    "metric-loss": metric_loss,
    "spot": spot,
    "rollout": rollout,
    "nodes-short": nodes_short,
    "keda-down": keda_down,
    "fleet": fleet,
}
# What is run only by its name.
EXTRA = ("step-service",)
# A day in a minute: quiet, a rise, a peak with a burst on it, and back.
DAY: Stages = [(5, 1, 1), (11, 1, 14), (9, 14, 14), (4, 22, 22), (8, 14, 6), (9, 6, 1), (10, 1, 1)]
POLICIES = ("queue-and-slots", "queue", "hpa")


def compare(make: Make, policy: str, stages: Stages = DAY) -> Report:
    """One policy on the day that all are compared on."""
    if policy == "hpa":
        ground = make("policy-hpa", most=8, gateway=PROXY)
        ground.deploy()
        with served(ground, ground.node_address):
            ground.apply(default_hpa(ground, 8))
            ground.until(lambda: _measured(ground), "the HPA reads CPU", 60)
            report = measure("default HPA, 80 % of the requested CPU", ground, stages, most=8)
            status = ground.get("hpa", "engine").get("status") or {}
        return _with(report, **{"CPU it read at the end": f"{_cpu_of(status)} % of the request"})
    ground = _up(make(f"policy-{policy}", most=8, policy=policy, gateway=PROXY))
    return measure(policy, ground, stages, most=8)


def _cpu_of(status: Mapping[str, Any]) -> int | None:
    for one in status.get("currentMetrics") or ():
        found = ((one.get("resource") or {}).get("current") or {}).get("averageUtilization")
        if found is not None:
            return int(found)
    return None


def _measured(ground: Ground) -> bool:
    return _cpu_of(ground.get("hpa", "engine").get("status") or {}) is not None
