"""The scenarios: each puts a load on a stack of its own, breaks something or nothing, and says what came of it."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._ground import Ground, Sample, Watcher
from ._load import Outcome, ask_at_once, send

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


def oracle(stages: Stages, *, most: int, least: int = 1, ahead: float = 3.0) -> float:
    """Replica-seconds of whoever knows the load: each moment the fewest that carry it, started a cold start before."""
    rates: list[float] = []
    for seconds, start, end in stages:
        steps = max(1, round(seconds * 2))
        rates += [start + (end - start) * (index + 0.5) / steps for index in range(steps)]
    needed = [min(most, max(least, math.ceil(rate * SERVICE_SECONDS / SLOTS))) for rate in rates]
    reach = round(ahead * 2)
    return sum(max(needed[index : index + reach + 1]) for index in range(len(needed))) / 2


def measure(
    name: str,
    ground: Ground,
    stages: Stages,
    *,
    most: int,
    during: Callable[[float], Mapping[str, Any]] | None = None,
    step: float | None = None,
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
        oracle_seconds=oracle(stages, most=most),
        facts=facts,
        samples=tuple(watcher.samples),
        outcome=done,
    )


def _up(ground: Ground) -> Ground:
    ground.deploy()
    ground.autoscale()
    path = ("scaledobject", "engine")

    def taken() -> bool:
        conditions = (ground.get(*path).get("status") or {}).get("conditions") or []
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    ground.until(taken, "KEDA takes the ScaledObject over", 60)
    return ground


PROXY = {"kind": "proxy", "replicas": 1}
# More than any queue: as if it had no limit.
UNLIMITED = {**PROXY, "headroom": 1000}
_STEP: Stages = [(4, 1, 1), (30, 24, 24), (6, 1, 1)]


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
    return measure("ramp", _up(make("ramp", most=8)), [(5, 1, 1), (30, 1, 20), (10, 20, 20)], most=8)


def burst(make: Make) -> Report:
    """Much for a short time: over before new replicas are there."""
    return measure("burst", _up(make("burst", most=6)), [(4, 2, 2), (3, 25, 25), (25, 2, 2)], most=6, step=4.0)


def flapping(make: Make) -> Report:
    """A load that changes faster than the cooldown."""
    stages = [(4.0, 12.0, 12.0), (4.0, 1.0, 1.0)] * 5
    made = measure("flapping", _up(make("flap", most=6, cooldown=15)), stages, most=6)
    return _with(made, cooldowns=math.ceil(sum(one[0] for one in stages) / 15))


def down(make: Make) -> Report:
    """10 -> 1 while streams run: each replica that is taken away finishes what it has."""
    ground = _up(make("down", most=10, simulated={"TOLLGATE_SIM_ITL": "200ms"}))
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
    ground = _up(make("loss", most=6))

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


def spot(make: Make) -> Report:
    """A spot node is taken away in the middle of streams: its node is drained as GKE does it, within its 30 s of notice."""
    ground = _up(make("spot", most=4))

    def during(began: float) -> Mapping[str, Any]:
        _until(began + 12)
        (pod, *_) = ground.get("pods", "-l", "app.kubernetes.io/instance=engine")["items"]
        node = pod["spec"]["nodeName"]
        ground.kubectl("cordon", node)
        ground.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=25", "--wait=false")
        return {"taken": node}

    return measure("spot node taken", ground, [(30, 8, 8)], most=4, during=during)


def rollout(make: Make) -> Report:
    """A new release of the chart while requests come."""
    ground = _up(make("rollout", most=4))

    def during(began: float) -> Mapping[str, Any]:
        _until(began + 12)
        before, started = ground.wanted(), time.monotonic()
        ground.install(podLabels={"rollout": "second"})
        return {"seconds": f"{time.monotonic() - started:.0f}", "replicas before": before, "after": ground.wanted()}

    return measure("rollout under load", ground, [(40, 8, 8)], most=4, during=during)


def nodes_short(make: Make) -> Report:
    """The maximum is reached and nodes are short: pods are Pending, then nodes come."""
    ground = _up(make("nodes", most=5, nodes=2))

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
    ground = _up(make("keda", most=5))

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
}
# A day in 90 seconds: quiet, a rise, a peak with a burst on it, and back.
DAY: Stages = [(8, 1, 1), (16, 1, 14), (12, 14, 14), (4, 22, 22), (12, 14, 6), (14, 6, 1), (16, 1, 1)]
POLICIES = ("queue-and-slots", "queue", "cpu")


def compare(make: Make, policy: str, stages: Stages = DAY) -> Report:
    """One policy on the day that all are compared on."""
    ground = _up(make(f"policy-{policy}", most=8, policy=policy))
    return measure(policy, ground, stages, most=8)
