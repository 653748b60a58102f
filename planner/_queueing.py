"""From step times to what users see: a replica as a queue with load-dependent service, closed or open.

A replica with `slots` is a birth-death process over the number of requests in it. With j of them in service it finishes
j / S(j) per second, S(j) being `Timing.request_seconds`; above `slots` the rest wait. Closed (N users, think time Z):
births (N - j) / Z, the machine-repair model (Reiser and Lavenberg 1980, load-dependent station). Open: births λ.
Quantiles come from the mean and variance of waiting and service, matched by a log-normal (a normal for small spread);
waiting time of open arrivals is zero or exponential, as in M/M/c. Both are approximations, and named in the plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._timing import Timing

if TYPE_CHECKING:
    from stacks import Traffic

_Z = {0.5: 0.0, 0.95: 1.6448536269514722}
# States beyond slots + this many waiting are cut off; a stable queue is not there, an unstable one has no answer.
_MAX_WAITING = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What one fleet gives. Seconds; `inf` latencies where arrivals exceed capacity (`saturated`).

    `requests_per_second`: completed, of the whole fleet; `capacity`: the most it can complete. `running`, `waiting`:
    mean requests per replica in service and in the queue.
    """

    requests_per_second: float
    capacity: float
    running: float
    waiting: float
    queue_mean_seconds: float
    ttft_mean_seconds: float
    ttft_p50_seconds: float
    ttft_p95_seconds: float
    itl_mean_seconds: float
    itl_p50_seconds: float
    itl_p95_seconds: float
    e2e_mean_seconds: float
    e2e_p50_seconds: float
    e2e_p95_seconds: float
    saturated: bool


def predict(timing: Timing, *, slots: int, replicas: int, traffic: Traffic) -> Prediction:
    """What `replicas` with `slots` each give for that traffic, spread evenly over them.

    Raises ValueError for less than one slot or replica.
    """
    if slots < 1 or replicas < 1:
        raise ValueError(f"slots and replicas must be at least 1, got {slots} and {replicas}")
    if traffic.arrival == "closed":
        users = traffic.users or 1
        low, more = divmod(users, replicas)
        # `more` replicas have one user more than the others; users see the mixture.
        parts = [(low + 1, more), (low, replicas - more)]
        shares = [(n, count) for n, count in parts if n and count]
        states = [(_closed(timing, slots, n, traffic), n, count) for n, count in shares]
    else:
        rate = (traffic.requests_per_second or 0.0) / replicas
        states = [(_open(timing, slots, rate, traffic), 1, replicas)]
    return _mix(states, timing, slots, replicas, traffic)


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """One replica in its steady state."""

    rate: float
    running: float
    waiting: float
    wait_mean: float
    wait_variance: float
    wait_chance: float
    saturated: bool


def _service(timing: Timing, traffic: Traffic, running: float) -> float:
    return timing.request_seconds(running, traffic.prompt_tokens.mean, traffic.output_tokens.mean)


def _closed(timing: Timing, slots: int, users: int, traffic: Traffic) -> _State:
    think = traffic.think_seconds
    rates = [0.0] + [min(j, slots) / _service(timing, traffic, min(j, slots)) for j in range(1, min(users, slots) + 1)]
    top = rates[-1]
    if think == 0:
        waiting = max(0, users - slots)
        # As many departures as are ahead, each 1 / top apart on average with the spread of one service.
        variance = waiting * (_spread(traffic) / top) ** 2
        return _State(
            rate=top,
            running=float(min(users, slots)),
            waiting=float(waiting),
            wait_mean=waiting / top,
            wait_variance=variance,
            wait_chance=1.0 if waiting else 0.0,
            saturated=False,
        )
    births = [(users - j) / think for j in range(users)]
    return _birth_death(births, rates, slots, False)


def _open(timing: Timing, slots: int, rate: float, traffic: Traffic) -> _State:
    rates = [0.0] + [j / _service(timing, traffic, j) for j in range(1, slots + 1)]
    top = max(rates)
    if rate >= rates[-1]:
        return _State(
            rate=top,
            running=float(slots),
            waiting=math.inf,
            wait_mean=math.inf,
            wait_variance=math.inf,
            wait_chance=1.0,
            saturated=True,
        )
    births = [rate] * (slots + _MAX_WAITING)
    # Scheduled arrivals are not random: Kingman's factor (arrival variance + service variance) / 2 shortens the queue.
    arrivals = 1.0 if traffic.arrival == "poisson" else 0.0
    state = _birth_death(births, rates, slots, True)
    factor = (arrivals + _spread(traffic) ** 2) / 2
    return _State(
        rate=state.rate,
        running=state.running,
        waiting=state.waiting * factor,
        wait_mean=state.wait_mean * factor,
        wait_variance=state.wait_variance * factor**2,
        wait_chance=state.wait_chance if factor else 0.0,
        saturated=False,
    )


def _birth_death(births: list[float], rates: list[float], slots: int, open_: bool) -> _State:
    """Steady state of the chain; weights are kept relative to the largest so that nothing overflows."""
    top = len(rates) - 1
    weights = [1.0]
    largest = 1.0
    for j, birth in enumerate(births):
        weights.append(weights[-1] * birth / rates[min(j + 1, top)])
        largest = max(largest, weights[-1])
        if weights[-1] > 1e250:
            weights = [weight / 1e250 for weight in weights]
            largest /= 1e250
        elif open_ and j > slots and weights[-1] < 1e-12 * largest:
            break
    total = sum(weights)
    rate = sum(weight * rates[min(j, top)] for j, weight in enumerate(weights)) / total
    running = sum(weight * min(j, slots) for j, weight in enumerate(weights)) / total
    waiting = sum(weight * max(0, j - slots) for j, weight in enumerate(weights)) / total
    # What an arrival finds: by rate of arrivals in each state.
    seen = [weight * birth for weight, birth in zip(weights, births, strict=False)]
    arrivals = sum(seen)
    chance = sum(seen[slots:]) / arrivals
    mean = sum(w * (j - slots + 1) / rates[-1] for j, w in enumerate(seen) if j >= slots) / arrivals
    square = (
        sum(w * (j - slots + 1) * (j - slots + 2) / rates[-1] ** 2 for j, w in enumerate(seen) if j >= slots) / arrivals
    )
    return _State(
        rate=rate,
        running=running,
        waiting=waiting,
        wait_mean=mean,
        wait_variance=max(0.0, square - mean**2),
        wait_chance=chance,
        saturated=False,
    )


def _spread(traffic: Traffic) -> float:
    """Coefficient of variation of the service time, taken as that of the reply length, which dominates it."""
    return traffic.output_tokens.cv


def _mix(
    states: list[tuple[_State, int, int]], timing: Timing, slots: int, replicas: int, traffic: Traffic
) -> Prediction:
    """The fleet's mixture of its replicas' states, by the requests each completes."""
    prompt, output = traffic.prompt_tokens.mean, traffic.output_tokens.mean
    total = sum(state.rate * count for state, _, count in states)
    capacity = replicas * slots / _service(timing, traffic, slots)
    mean = {"queue": 0.0, "ttft": 0.0, "itl": 0.0, "e2e": 0.0, "running": 0.0, "waiting": 0.0}
    second = dict(mean)
    step_worst = prefill_worst = 0.0
    for state, _, count in states:
        share = state.rate * count / total
        running = max(1.0, state.running)
        first = first_token_seconds(timing, traffic, running)
        service = _service(timing, traffic, running)
        step = (service - first) / max(1.0, output - 1)
        prompts = timing.prefill_seconds(prompt, 1)
        values = {
            "queue": (state.wait_mean, state.wait_variance),
            "ttft": (state.wait_mean + first, state.wait_variance + (first * traffic.prompt_tokens.cv) ** 2),
            "itl": (step, 0.0),
            "e2e": (state.wait_mean + service, state.wait_variance + (step * output * _spread(traffic)) ** 2),
        }
        for name, (value, variance) in values.items():
            mean[name] += share * value
            second[name] += share * (variance + value * value)
        mean["running"] += state.running * count / replicas
        mean["waiting"] += state.waiting * count / replicas
        step_worst = max(step_worst, timing.decode_step_seconds(running, prompt + output))
        # A step in which another's prompt is worked: more than 1 in 20 where many run and replies are short.
        prefill_worst = max(prefill_worst, prompts if (running - 1) / max(1.0, output) > 0.05 else 0.0)
    if any(state.saturated for state, _, _ in states):
        mean.update(queue=math.inf, ttft=math.inf, e2e=math.inf)
        second.update(queue=math.inf, ttft=math.inf, e2e=math.inf)

    def quantile(name: str, q: float) -> float:
        return lognormal_quantile(mean[name], max(0.0, second[name] - mean[name] ** 2), q)

    return Prediction(
        requests_per_second=total,
        capacity=capacity,
        running=mean["running"],
        waiting=mean["waiting"],
        queue_mean_seconds=mean["queue"],
        ttft_mean_seconds=mean["ttft"],
        ttft_p50_seconds=quantile("ttft", 0.5),
        ttft_p95_seconds=quantile("ttft", 0.95),
        itl_mean_seconds=mean["itl"],
        itl_p50_seconds=mean["itl"],
        itl_p95_seconds=max(mean["itl"], step_worst + prefill_worst),
        e2e_mean_seconds=mean["e2e"],
        e2e_p50_seconds=quantile("e2e", 0.5),
        e2e_p95_seconds=quantile("e2e", 0.95),
        saturated=any(state.saturated for state, _, _ in states),
    )


def first_token_seconds(timing: Timing, traffic: Traffic, running: float) -> float:
    """From admission to the first token beside `running` requests in all.

    Users who ask again at once and get replies of one length move in step: all prompts are worked together. Otherwise
    a prompt waits half a step on average and shares the next.
    """
    prompt = traffic.prompt_tokens.mean
    in_step = traffic.arrival == "closed" and traffic.think_seconds == 0 and traffic.output_tokens.cv == 0
    if running <= 1:
        return timing.prefill_seconds(prompt, 0)
    if in_step:
        return max(running * timing.prefill_seconds(prompt, 1), timing.prefill_seconds(prompt, 0))
    return 1.5 * timing.decode_step_seconds(running, prompt) + timing.prefill_seconds(prompt, 1)


def lognormal_quantile(mean: float, variance: float, q: float) -> float:
    """The q-quantile (0.5 or 0.95) of the log-normal with that mean and variance."""
    if variance <= 0 or not math.isfinite(mean) or mean <= 0:
        return mean
    if not math.isfinite(variance):
        return math.inf
    sigma2 = math.log1p(variance / mean**2)
    return math.exp(math.log(mean) - sigma2 / 2 + _Z[q] * math.sqrt(sigma2))
