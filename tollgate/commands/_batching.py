"""What the commands of `batch` share: where batches lie, and from words to endpoints with slots, prices and expectations."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

import stacks
from bench import batch

from . import _benching as benching

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def default_store() -> str:
    """`TOLLGATE_BATCHES`, else the project's state folder, else one here."""
    given = os.environ.get("TOLLGATE_BATCHES")
    if given:
        return given
    try:
        root = stacks.project_root()
    except stacks.TollgateError:
        root = Path.cwd()
    return str(root / ".tollgate" / "batches")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The endpoints of a batch with what is known of them: dollars per hour and requests per second by their plans, where they
    are stacks."""

    endpoints: list[batch.EndpointSettings]
    per_hour: float | None = None
    expected: float | None = None


@dataclass(frozen=True, kw_only=True)
class Typical:
    """What an input is like on average: tokens of prompt (a quarter of its characters) and of answer, where it says."""

    prompt_tokens: float = 128.0
    output_tokens: float = 128.0
    extra: Mapping[str, Any] = field(default_factory=dict)


def typical(queue: batch.Queue) -> Typical:
    """Of the first few hundred inputs."""
    rows = queue.sample()
    bodies = [orjson.loads(row) for row in rows]
    sizes = [len(row) for row in rows]
    limits = [
        float(limit)
        for body in bodies
        if isinstance(body, dict)
        for limit in [body.get("max_tokens") or body.get("max_completion_tokens") or 0]
        if isinstance(limit, int) and limit > 0
    ]
    return Typical(
        prompt_tokens=max(1.0, sum(sizes) / len(sizes) / 4),
        output_tokens=sum(limits) / len(limits) if limits else 128.0,
    )


def chosen(
    given: Iterable[Mapping[str, Any]], *, api_key: str, headers: Sequence[tuple[str, str]], ca_file: str, insecure: bool,
    concurrency: int | None, share: float | None, like: Typical,
) -> Chosen:  # fmt: skip
    """The endpoints, resolved now: a stack's address may have changed since the batch was submitted."""
    endpoints, per_hour, expected = [], 0.0, 0.0
    known, planned = True, True
    for one in given:
        where, slots, model = str(one["where"]), one.get("slots"), one.get("model")
        url = where
        if not where.startswith(("http://", "https://")):
            found = _stack(where, like)
            url, slots, model = found.url, slots or found.slots, model or found.model
            hourly: float | None = one.get("per_hour", found.per_hour)
            expected += found.rate
        else:
            hourly, planned = one.get("per_hour"), False
        known = known and hourly is not None
        per_hour += hourly or 0.0
        slots = concurrency or slots
        if share is not None and slots is None:
            raise stacks.InputError(
                where="--share", got=f"a share of {where}, whose slots are not known", allowed="a stack, or URL,slots=N",
                fix=f"write --endpoint {where},slots=N",
            )  # fmt: skip
        capped = max(1, int(slots * share)) if share is not None and slots is not None else None
        endpoints.append(
            batch.EndpointSettings(
                url=url, slots=capped or slots, weight=one.get("weight", 1.0), most=capped or one.get("most", 1024),
                fixed=concurrency is not None, model=model, per_hour=hourly, api_key=api_key,
                headers=tuple(headers), ca_file=ca_file, insecure=insecure,
            )
        )  # fmt: skip
    return Chosen(
        endpoints=endpoints, per_hour=per_hour if known else None,
        expected=expected * (share or 1.0) if planned and expected else None,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Planned:
    url: str
    slots: int
    model: str
    per_hour: float
    rate: float


def _stack(name: str, like: Typical) -> _Planned:
    """Its address, and what its plan says of a batch that keeps all slots busy."""
    import planner

    stack = stacks.load_stack(name)
    where = benching.place(None, None, None, stack)
    if not where.url:
        raise stacks.InputError(
            where=f"--endpoint {name}", got="no address outside its cluster", allowed="a LoadBalancer, or a URL",
            fix="give the URL by which it is reached from here",
        )  # fmt: skip
    plan = planner.plan(stack)
    slots = plan.slots * plan.replicas_expected
    busy = stacks.Traffic(
        arrival="closed", users=slots, prompt_tokens=stacks.Tokens(mean=like.prompt_tokens),
        output_tokens=stacks.Tokens(mean=like.output_tokens),
    )  # fmt: skip
    rate = planner.plan_for(release=stack.release, fleet=stack.fleet, traffic=busy).predicted["requests_per_second"]
    return _Planned(
        url=where.url, slots=slots, model=stack.release.source, per_hour=plan.cost_per_hour_expected_usd, rate=rate
    )


def deadline(text: str | None) -> float | None:
    """`8h`, `90m`, `2d`, or a moment as 2030-01-31T08:00, in epoch seconds. Raises InputError."""
    if not text:
        return None
    try:
        if text[-1] in _UNITS:
            return time.time() + float(text[:-1]) * _UNITS[text[-1]]
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise stacks.InputError(
            where="--deadline", got=text, allowed="8h, 90m, 2d, or 2030-01-31T08:00", fix="correct it"
        ) from None


def extra(given: Sequence[str], priority: int | None) -> dict[str, Any]:
    """`KEY=JSON` pairs as keys of every body. Raises InputError."""
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise stacks.InputError(where="--set", got=text, allowed="KEY=VALUE", fix="put an = after the key")
        try:
            found[key] = orjson.loads(value)
        except orjson.JSONDecodeError:
            found[key] = value
    if priority is not None:
        # vLLM's own key: with --scheduling-policy priority, requests with a higher number wait for those with a lower one.
        found["priority"] = priority
    return found


def at_once(
    queue: batch.Queue,
    like: Typical,
    expected: float | None,
    prices: batch.Prices,
    until: float | None,
    budget: float | None,
) -> list[str]:
    """What is known before anything is measured, by the plan and by the inputs: expectations, promises that cannot be kept."""
    counts, busy = queue.counts(), queue.info().busy
    by_tokens = prices.per_million_in is not None or prices.per_million_out is not None
    if not counts.left or (expected is None and (not by_tokens or prices.per_hour is not None)):
        # Nobody knows how long it takes, and hours cost.
        return []
    seconds = counts.left / expected if expected is not None else math.nan
    more = prices.cost(
        0.0 if math.isnan(seconds) else seconds / 3600,
        counts.left * like.prompt_tokens,
        counts.left * like.output_tokens,
    )
    spent = prices.cost(busy / 3600, counts.tokens_in, counts.tokens_out)
    cost = spent + more
    words = [f"{expected:,.2f} requests/s by the plan, about {batch.span(seconds)}"] if expected is not None else []
    if prices.known:
        lengths = " by the length of the inputs and their max_tokens" if by_tokens else ""
        words.append(f"about {more:,.2f} ${lengths}")
    said = ["expected: " + "; ".join(words)]
    why = "nothing is measured yet"
    eta = batch.Eta(seconds=seconds, low=seconds / 2, high=seconds * 2, sustained=expected or 0.0, because=why)
    left = until - time.time() if until is not None else None
    return said + [
        f"WARNING: {words}"
        for words in batch.warnings(
            eta, left=counts.left, deadline=left, budget=budget, cost=cost, prices=prices, spent=spent
        )
    ]


def prices(settings: Mapping[str, Any], per_hour: float | None) -> batch.Prices:
    """As given at submission; dollars per hour of the endpoints, by their plans where they are stacks, where they were not."""
    known = dict(settings.get("prices") or {})
    if known.get("per_hour") is None:
        known["per_hour"] = per_hour
    return batch.Prices(**known)


def hourly(endpoints: Iterable[Mapping[str, Any]]) -> float | None:
    """Dollars of all of them; None where that is not known of every one."""
    total = None
    for one in endpoints:
        found = one.get("per_hour")
        if found is None and not str(one["where"]).startswith(("http://", "https://")):
            import planner

            try:
                found = planner.plan(stacks.load_stack(str(one["where"]))).cost_per_hour_expected_usd
            except stacks.TollgateError:
                # It was there at submission; what it answered is there still.
                return None
        if found is None:
            return None
        total = (total or 0.0) + float(found)
    return total


def told(queue: batch.Queue, given: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """The same at submission, as far as it can be told: a stack may not be up yet."""
    like = typical(queue)
    try:
        found = chosen(
            given, api_key="", headers=(), ca_file="", insecure=False, concurrency=None, share=None, like=like
        )
    except stacks.TollgateError:
        found = Chosen(endpoints=[])
    return at_once(
        queue, like, found.expected, prices(settings, found.per_hour), settings.get("deadline"), settings.get("budget")
    )


def as_settings(given: batch.Prices) -> dict[str, Any]:
    """To be stored with the batch."""
    return asdict(given)
