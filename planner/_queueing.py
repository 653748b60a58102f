"""From step times to what users see: a replica as a queue with load-dependent service, closed or open.

A replica with `slots` is a birth-death process over the number of requests in it. With j of them in service it finishes
j / S(j) per second, S(j) being `Timing.request_seconds`; above `slots` the rest wait. Closed (N users, think time Z):
births (N - j) / Z, the machine-repair model (Reiser and Lavenberg 1980, load-dependent station). Open: births λ.
Quantiles: waiting is zero or exponential as in M/M/c (a log-normal of its mean and variance where everybody waits),
service a log-normal with the spread of the reply length; the two are joined as independent deviations.
Approximations, and named in the plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ._timing import Timing

if TYPE_CHECKING:
    from stacks import Traffic

_Z95 = 1.6448536269514722
# States beyond slots + this many waiting are cut off; a stable queue is not there, an unstable one has no answer.
_MAX_WAITING = 2000


Spread = Literal["even", "random"]


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


def predict(timing: Timing, *, slots: int, replicas: int, traffic: Traffic, spread: Spread = "even") -> Prediction:
    """What `replicas` with `slots` each give for that traffic.

    `spread`: how users (closed) come to replicas: `even`, as a balancer by load does, or `random`, each user for good to
    one replica, as keep-alive connections through a Kubernetes Service do. Open arrivals are split evenly in rate.
    Raises ValueError for less than one slot or replica.
    """
    if slots < 1 or replicas < 1:
        raise ValueError(f"slots and replicas must be at least 1, got {slots} and {replicas}")
    if traffic.arrival == "closed":
        groups = [
            (_closed(timing, slots, users, traffic), count)
            for users, count in _groups(traffic.users or 1, replicas, spread)
        ]
    else:
        rate = (traffic.requests_per_second or 0.0) / replicas
        groups = [(_open(timing, slots, rate, traffic), float(replicas))]
    return _mix(groups, timing, slots, replicas, traffic)


def _groups(users: int, replicas: int, spread: Spread) -> list[tuple[int, float]]:
    """(users on a replica, how many replicas have that many), replicas without users left out."""
    if spread == "even" or replicas == 1:
        low, more = divmod(users, replicas)
        return [(n, float(count)) for n, count in ((low + 1, more), (low, replicas - more)) if n and count]
    share = 1.0 / replicas
    groups = []
    for n in range(1, users + 1):
        logarithm = (
            math.lgamma(users + 1) - math.lgamma(n + 1) - math.lgamma(users - n + 1)
            + n * math.log(share) + (users - n) * math.log1p(-share)
        )  # fmt: skip
        count = replicas * math.exp(logarithm)
        if count > 1e-4:
            groups.append((n, count))
        elif groups:
            break
    return groups


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """One replica in its steady state. `wait_chance`: share of requests that wait at all."""

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
    if think == 0:
        busy = min(users, slots)
        rate = busy / _service(timing, traffic, busy)
        waiting = max(0, users - slots)
        return _State(
            rate=rate,
            running=float(busy),
            waiting=float(waiting),
            wait_mean=waiting / rate,
            # As many departures as are ahead, each 1 / rate apart on average with the spread of one service.
            wait_variance=waiting * (traffic.output_tokens.cv / rate) ** 2,
            wait_chance=1.0 if waiting else 0.0,
            saturated=False,
        )
    rates = [0.0] + [j / _service(timing, traffic, j) for j in range(1, min(users, slots) + 1)]
    return _birth_death([(users - j) / think for j in range(users)], rates, slots)


def _open(timing: Timing, slots: int, rate: float, traffic: Traffic) -> _State:
    rates = [0.0] + [j / _service(timing, traffic, j) for j in range(1, slots + 1)]
    if rate >= rates[-1]:
        return _State(
            rate=rates[-1],
            running=float(slots),
            waiting=math.inf,
            wait_mean=math.inf,
            wait_variance=math.inf,
            wait_chance=1.0,
            saturated=True,
        )
    state = _birth_death([rate] * (slots + _MAX_WAITING), rates, slots)
    # Kingman: (variance of arrivals + variance of service) / 2 against the exponential's 1. Replies of one length
    # (cv 0) wait half as long as exponential ones, scheduled arrivals of them not at all.
    arrivals = 1.0 if traffic.arrival == "poisson" else 0.0
    factor = (arrivals + traffic.output_tokens.cv**2) / 2
    return _State(
        rate=state.rate,
        running=state.running,
        waiting=state.waiting * factor,
        wait_mean=state.wait_mean * factor,
        wait_variance=state.wait_variance * factor**2,
        wait_chance=state.wait_chance if factor else 0.0,
        saturated=False,
    )


def _birth_death(births: list[float], rates: list[float], slots: int) -> _State:
    """Steady state of the chain; weights are scaled down as they grow so that nothing overflows."""
    top = len(rates) - 1
    weights = [1.0]
    largest = 1.0
    for j, birth in enumerate(births):
        weights.append(weights[-1] * birth / rates[min(j + 1, top)])
        largest = max(largest, weights[-1])
        if weights[-1] > 1e250:
            weights = [weight / 1e250 for weight in weights]
            largest /= 1e250
        elif j > slots and weights[-1] < 1e-12 * largest:
            break
    total = sum(weights)
    rate = sum(weight * rates[min(j, top)] for j, weight in enumerate(weights)) / total
    running = sum(weight * min(j, slots) for j, weight in enumerate(weights)) / total
    waiting = sum(weight * max(0, j - slots) for j, weight in enumerate(weights)) / total
    # What an arrival finds: the states by their rate of arrivals.
    seen = [weight * birth for weight, birth in zip(weights, births, strict=False)]
    arrivals = sum(seen)
    late = [(j - slots + 1, weight / arrivals) for j, weight in enumerate(seen) if j >= slots]
    mean = sum(weight * ahead for ahead, weight in late) / rates[-1]
    square = sum(weight * ahead * (ahead + 1) for ahead, weight in late) / rates[-1] ** 2
    return _State(
        rate=rate,
        running=running,
        waiting=waiting,
        wait_mean=mean,
        wait_variance=max(0.0, square - mean**2),
        wait_chance=sum(weight for _, weight in late),
        saturated=False,
    )


@dataclass(frozen=True, slots=True)
class _Latency:
    mean: float
    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class _Row:
    """What the users of one group of replicas see; `share` of all completed requests."""

    share: float
    wait: _Latency
    ttft: _Latency
    e2e: _Latency
    itl: _Latency


def _join(wait: _Latency, part: _Latency) -> _Latency:
    """Sum of two independent times: means and medians add, upward deviations of p95 from the mean add as squares.

    Never below the exact value where one of the two does not vary; a p95 of waiting below its mean (few wait, but
    long) counts as its mean.
    """
    if wait.p95 == 0 and wait.mean == 0:
        return part
    mean = wait.mean + part.mean
    if not math.isfinite(mean):
        return wait
    late = math.hypot(max(0.0, wait.p95 - wait.mean), max(0.0, part.p95 - part.mean))
    return _Latency(mean, wait.p50 + part.p50, mean + late)


def _waiting(state: _State) -> _Latency:
    if state.saturated:
        return _Latency(math.inf, math.inf, math.inf)
    if state.wait_chance >= 1.0 or state.wait_mean == 0:
        return _spread(state.wait_mean, state.wait_variance)
    scale = state.wait_mean / state.wait_chance
    return _Latency(
        state.wait_mean,
        scale * max(0.0, math.log(state.wait_chance / 0.5)),
        scale * max(0.0, math.log(state.wait_chance / 0.05)),
    )


def _spread(mean: float, variance: float) -> _Latency:
    """Mean and quantiles of the log-normal with that mean and variance."""
    if variance <= 0 or mean <= 0:
        return _Latency(mean, mean, mean)
    sigma2 = math.log1p(variance / mean**2)
    middle = math.exp(math.log(mean) - sigma2 / 2)
    return _Latency(mean, middle, middle * math.exp(_Z95 * math.sqrt(sigma2)))


def _mix(groups: list[tuple[_State, float]], timing: Timing, slots: int, replicas: int, traffic: Traffic) -> Prediction:
    """The fleet's mixture of its replicas' states, weighed by the requests each completes."""
    prompt, output = traffic.prompt_tokens, traffic.output_tokens
    total = sum(state.rate * count for state, count in groups)
    rows: list[_Row] = []
    for state, count in groups:
        running = max(1.0, state.running)
        service = state.running / state.rate  # Little's law for those in service
        first = min(service, first_token_seconds(timing, traffic, running))
        step = (service - first) / max(1.0, output.mean - 1)
        wait = _waiting(state)
        ttft = _join(wait, _spread(first, (first * prompt.cv) ** 2))
        e2e = _join(wait, _spread(service, (step * output.mean * output.cv) ** 2))
        # The 95th percentile of gaps: a late step, and another's prompt in it where more than 1 step in 20 has one.
        late = timing.decode_step_seconds(running, prompt.mean + output.mean)
        if (running - 1) / max(1.0, output.mean) > 0.05:
            late += timing.prefill_seconds(prompt.mean, 1)
        gap = _Latency(step, step, max(step, late))
        rows.append(_Row(state.rate * count / total, wait, ttft, e2e, gap))

    shares = [row.share for row in rows]

    def mean(values: list[_Latency]) -> float:
        if len(values) == 1:
            return values[0].mean
        return sum(share * value.mean for share, value in zip(shares, values, strict=True))

    def quantile(values: list[float], beyond: float) -> float:
        """The value that all but `beyond` of the requests stay under, a group's own quantile standing for the group."""
        if len(values) == 1:
            return values[0]
        ordered = sorted(zip(values, shares, strict=True), reverse=True)
        for value, share in ordered:
            beyond -= share
            if beyond < 0:
                return value
        return ordered[-1][0]

    ttfts, e2es, gaps = [r.ttft for r in rows], [r.e2e for r in rows], [r.itl for r in rows]
    return Prediction(
        requests_per_second=total,
        capacity=replicas * slots / _service(timing, traffic, slots),
        running=sum(state.running * count for state, count in groups) / replicas,
        waiting=sum(state.waiting * count for state, count in groups) / replicas,
        queue_mean_seconds=mean([row.wait for row in rows]),
        ttft_mean_seconds=mean(ttfts),
        ttft_p50_seconds=quantile([v.p50 for v in ttfts], 0.5),
        ttft_p95_seconds=quantile([v.p95 for v in ttfts], 0.05),
        itl_mean_seconds=mean(gaps),
        itl_p50_seconds=quantile([v.p50 for v in gaps], 0.5),
        itl_p95_seconds=quantile([v.p95 for v in gaps], 0.05),
        e2e_mean_seconds=mean(e2es),
        e2e_p50_seconds=quantile([v.p50 for v in e2es], 0.5),
        e2e_p95_seconds=quantile([v.p95 for v in e2es], 0.05),
        saturated=any(state.saturated for state, _ in groups),
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
