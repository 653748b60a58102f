"""From step times to what users see: a replica as a queue with load-dependent service, closed or open.

A replica with `slots` is a birth-death process over the number of requests in it. With j of them in service it finishes
j / S(j) per second, S(j) being `Timing.request_seconds`; above `slots` the rest wait. Closed (N users, think time Z):
births (N - j) / Z, the machine-repair model (Reiser and Lavenberg 1980, load-dependent station). Open: births λ.
Quantiles: waiting is zero, or a Weibull of its mean and variance for those who wait (exponential in M/M/c), service a
log-normal with the spread of the reply length and of the neighbours that a request finds; the two are joined as
independent deviations.
Approximations, and named in the plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from ._timing import Timing

if TYPE_CHECKING:
    from stacks import Traffic

_Z95 = 1.6448536269514722
# States of the chain this much less likely than the likeliest are left out.
_NEGLIGIBLE = 1e-12
# Seconds of mean waiting below which nobody waits.
_NO_WAIT = 1e-9
# The weights of open arrivals are scaled down beyond this, so that nothing overflows.
_HUGE = 1e250


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
    return Station(timing, slots, traffic).predict(replicas, traffic, spread)


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """One replica in its steady state. `wait_chance`: share of requests that wait at all; `service_variance`: of the
    seconds in service for the neighbours that an arrival finds, replies of one length."""

    rate: float
    running: float
    waiting: float
    wait_mean: float
    wait_variance: float
    wait_chance: float
    service_variance: float
    saturated: bool


class _Latency(NamedTuple):
    mean: float
    p50: float
    p95: float


class _Row(NamedTuple):
    """What the users of one replica see, in seconds. `means`: of waiting, TTFT, ITL and end to end; `late`: p50 and p95 of
    the last three."""

    state: _State
    means: tuple[float, float, float, float]
    late: tuple[float, float, float, float, float, float]


class Station:
    """One replica as a queue under requests of one kind (their prefix too), remembering what it has worked out.

    A search asks the same replica again and again with other numbers of users and replicas; the times of a request
    depend on neither.
    """

    def __init__(self, timing: Timing, slots: int, traffic: Traffic) -> None:
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        self.timing, self.slots = timing.with_prefix(traffic.prefix), slots
        self._traffic = traffic
        self._prompt, self._output = traffic.prompt_tokens, traffic.output_tokens
        self._rates: dict[int, float] = {}
        self._closed_rows: dict[int, _Row] = {}

    @property
    def capacity(self) -> float:
        """Requests per second that one replica completes with every slot in use."""
        return self._rate(self.slots)

    def predict(self, replicas: int, traffic: Traffic, spread: Spread = "even") -> Prediction:
        """What so many replicas give. `traffic` may differ from the station's in users and arrivals per second only."""
        if replicas < 1:
            raise ValueError(f"replicas must be at least 1, got {replicas}")
        if traffic.arrival == "closed":
            groups = [(self._closed(users), count) for users, count in _groups(traffic.users or 1, replicas, spread)]
        else:
            groups = [(self._open((traffic.requests_per_second or 0.0) / replicas), float(replicas))]
        return _mix(groups, replicas, self.capacity)

    def _rate(self, running: int) -> float:
        """Requests per second that one replica completes with so many always in work."""
        found = self._rates.get(running)
        if found is None:
            found = running / self.timing.request_seconds(running, self._prompt.mean, self._output.mean)
            self._rates[running] = found
        return found

    def _service(self, running: int) -> float:
        """Seconds from admission to the last token with so many always in work."""
        return running / self._rate(running)

    def _closed(self, users: int) -> _Row:
        row = self._closed_rows.get(users)
        if row is None:
            row = self._closed_rows[users] = self._row(self._closed_state(users))
        return row

    def _closed_state(self, users: int) -> _State:
        if self._traffic.think_seconds:
            return self._thinking(users, self._traffic.think_seconds)
        busy = min(users, self.slots)
        rate = self._rate(busy)
        waiting = users - busy
        return _State(
            rate=rate,
            running=float(busy),
            waiting=float(waiting),
            wait_mean=waiting / rate,
            # As many departures as are ahead, each 1 / rate apart on average with the spread of one service.
            wait_variance=waiting * (self._output.cv / rate) ** 2,
            wait_chance=1.0 if waiting else 0.0,
            service_variance=0.0,
            saturated=False,
        )

    def _thinking(self, users: int, think: float) -> _State:
        """Steady state of the machine-repair chain over 0 … `users` requests, worked out around its likeliest state."""
        slots, last = self.slots, self._rate(min(self.slots, users))

        def ratio(j: int) -> float:
            """Weight of state j over that of j - 1: falls with j, as arrivals thin out and throughput grows."""
            return (users - j + 1) / think / (self._rate(j) if j < slots else last)

        low, high = 0, users
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if ratio(middle) >= 1 else (low, middle - 1)
        states = [(low, 1.0)]
        weight = 1.0
        for j in range(low + 1, users + 1):
            weight *= ratio(j)
            if weight < _NEGLIGIBLE:
                break
            states.append((j, weight))
        weight = 1.0
        for j in range(low, 0, -1):
            weight /= ratio(j)
            if weight < _NEGLIGIBLE:
                break
            states.append((j - 1, weight))
        total = rate = running = waiting = 0.0
        # What an arrival finds: the states by their rate of arrivals.
        arrivals = late = ahead1 = ahead2 = service1 = service2 = 0.0
        for j, weight in states:
            seen = weight * (users - j)
            total += weight
            arrivals += seen
            service = self._service(min(j + 1, slots, users))
            service1 += seen * service
            service2 += seen * service * service
            if j < slots:
                rate += weight * self._rate(j) if j else 0.0
                running += weight * j
            else:
                rate += weight * last
                running += weight * slots
                waiting += weight * (j - slots)
                ahead = j - slots + 1
                late += seen
                ahead1 += seen * ahead
                ahead2 += seen * ahead * (ahead + 1)
        mean = ahead1 / arrivals / last
        return _State(
            rate=rate / total,
            running=running / total,
            waiting=waiting / total,
            wait_mean=mean,
            wait_variance=max(0.0, ahead2 / arrivals / last**2 - mean**2),
            wait_chance=late / arrivals,
            service_variance=max(0.0, service2 / arrivals - (service1 / arrivals) ** 2),
            saturated=False,
        )

    def _open(self, rate: float) -> _Row:
        return self._row(self._open_state(rate))

    def _open_state(self, rate: float) -> _State:
        slots, last = self.slots, self.capacity
        if rate >= last:
            return _State(
                rate=last,
                running=float(slots),
                waiting=math.inf,
                wait_mean=math.inf,
                wait_variance=math.inf,
                wait_chance=1.0,
                service_variance=0.0,
                saturated=True,
            )
        weight = total = 1.0
        running = 0.0
        service1 = self._service(1)
        service2 = service1**2
        for j in range(1, slots + 1):
            weight *= rate / self._rate(j)
            service = self._service(min(j + 1, slots))
            total += weight
            running += weight * j
            service1 += weight * service
            service2 += weight * service * service
            if weight > _HUGE:
                weight, total, running = weight / _HUGE, total / _HUGE, running / _HUGE
                service1, service2 = service1 / _HUGE, service2 / _HUGE
        # Beyond the slots the chain is geometric with ratio rho: its sums are closed.
        rho = rate / last
        tail = weight * rho / (1 - rho)
        total += tail
        service1, service2 = (service1 + tail * service) / total, (service2 + tail * service**2) / total
        chance = weight / (1 - rho) / total
        mean = chance / (1 - rho) / last
        square = 2 * chance / (1 - rho) ** 2 / last**2
        # Kingman: (variance of arrivals + variance of service) / 2 against the exponential's 1. Replies of one length
        # (cv 0) wait half as long as exponential ones, scheduled arrivals of them not at all.
        arrivals = 1.0 if self._traffic.arrival == "poisson" else 0.0
        factor = (arrivals + self._output.cv**2) / 2
        return _State(
            rate=rate,
            running=(running + slots * tail) / total,
            waiting=factor * tail / (1 - rho) / total,
            wait_mean=factor * mean,
            wait_variance=factor**2 * max(0.0, square - mean**2),
            wait_chance=chance if factor else 0.0,
            service_variance=max(0.0, service2 - service1**2),
            saturated=False,
        )

    def _row(self, state: _State) -> _Row:
        timing, prompt, output = self.timing, self._prompt, self._output
        running = max(1.0, state.running)
        service = state.running / state.rate  # Little's law for those in service
        first = min(service, first_token_seconds(timing, self._traffic, running))
        step = (service - first) / max(1.0, output.mean - 1)
        wait = _waiting(state)
        ttft = _join(wait, _spread(first, (first * prompt.cv) ** 2))
        e2e = _join(wait, _spread(service, (step * output.mean * output.cv) ** 2 + state.service_variance))
        # The 95th percentile of gaps: a late step, and another's prompt in it where more than 1 step in 20 has one.
        gap = timing.decode_step_seconds(running, prompt.mean + output.mean)
        if (running - 1) / max(1.0, output.mean) > 0.05:
            gap += timing.prefill_seconds(prompt.mean, 1)
        return _Row(
            state,
            (wait.mean, ttft.mean, step, e2e.mean),
            (ttft.p50, ttft.p95, step, max(step, gap), e2e.p50, e2e.p95),
        )


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
    """Waiting as zero for those who find a slot, and a Weibull through mean and variance of those who do not.

    Exact for M/M/c, whose waiting is exponential (shape 1), and for queues of constant length, where all wait alike.
    """
    if state.saturated:
        return _Latency(math.inf, math.inf, math.inf)
    chance = min(1.0, state.wait_chance)
    if chance <= 0.05 or state.wait_mean < _NO_WAIT:
        return _Latency(state.wait_mean, 0.0, 0.0)
    mean = state.wait_mean / chance
    variance = (state.wait_variance + state.wait_mean**2) / chance - mean**2
    # The usual fit of the shape to the coefficient of variation (Justus et al. 1978), exact at 1; its inverse is what we need.
    inverse = max(0.0, variance / mean**2) ** (1.086 / 2)
    scale = mean / math.gamma(1 + inverse)

    def beyond(share: float) -> float:
        return scale * float(math.log(chance / share) ** inverse) if chance > share else 0.0

    return _Latency(state.wait_mean, beyond(0.5), beyond(0.05))


def _spread(mean: float, variance: float) -> _Latency:
    """Mean and quantiles of the log-normal with that mean and variance."""
    if variance <= 0 or mean <= 0:
        return _Latency(mean, mean, mean)
    sigma2 = math.log1p(variance / mean**2)
    middle = math.exp(math.log(mean) - sigma2 / 2)
    return _Latency(mean, middle, middle * math.exp(_Z95 * math.sqrt(sigma2)))


# The share of requests beyond p50 and p95, in the order of `_Row.late`.
_BEYOND = (0.5, 0.05, 0.5, 0.05, 0.5, 0.05)


def _mix(groups: Sequence[tuple[_Row, float]], replicas: int, capacity: float) -> Prediction:
    """The fleet's mixture of its replicas, weighed by the requests each completes."""
    rates = [row.state.rate * count for row, count in groups]
    total = sum(rates)
    if len(groups) == 1:
        means: Sequence[float] = groups[0][0].means
        late: Sequence[float] = groups[0][0].late
    else:
        shares = [rate / total for rate in rates]
        means = [
            sum([share * value for share, value in zip(shares, values, strict=True)])
            for values in zip(*(row.means for row, _ in groups), strict=True)
        ]
        late = [
            _beyond(values, shares, beyond)
            for values, beyond in zip(zip(*(row.late for row, _ in groups), strict=True), _BEYOND, strict=True)
        ]
    return Prediction(
        requests_per_second=total,
        capacity=replicas * capacity,
        running=sum([row.state.running * count for row, count in groups]) / replicas,
        waiting=sum([row.state.waiting * count for row, count in groups]) / replicas,
        queue_mean_seconds=means[0],
        ttft_mean_seconds=means[1],
        ttft_p50_seconds=late[0],
        ttft_p95_seconds=late[1],
        itl_mean_seconds=means[2],
        itl_p50_seconds=late[2],
        itl_p95_seconds=late[3],
        e2e_mean_seconds=means[3],
        e2e_p50_seconds=late[4],
        e2e_p95_seconds=late[5],
        saturated=any(row.state.saturated for row, _ in groups),
    )


def _beyond(values: Sequence[float], shares: Sequence[float], beyond: float) -> float:
    """The value that all but `beyond` of the requests stay under, a group's own quantile standing for the group."""
    if len(values) == 2:
        upper = 0 if values[0] >= values[1] else 1
        return values[upper if shares[upper] > beyond else 1 - upper]
    ordered = sorted(zip(values, shares, strict=True), reverse=True)
    for value, share in ordered:
        beyond -= share
        if beyond < 0:
            return value
    return ordered[-1][0]


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
