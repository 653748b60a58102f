"""What the commands of `batch` share: where batches lie, and from words to endpoints with slots, prices and expectations."""

from __future__ import annotations

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
            per_hour += found.per_hour
            expected += found.rate
        else:
            known = planned = False
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
                fixed=concurrency is not None, model=model, api_key=api_key, headers=tuple(headers), ca_file=ca_file,
                insecure=insecure,
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
    queue: batch.Queue, found: Chosen, prices: batch.Prices, until: float | None, budget: float | None
) -> list[str]:
    """What the plan says before anything is measured: expectations, and promises that cannot be kept."""
    if found.expected is None:
        return []
    counts = queue.counts()
    seconds = counts.left / found.expected
    why = "by the plan, nothing is measured yet"
    eta = batch.Eta(seconds=seconds, low=seconds / 2, high=seconds * 2, sustained=found.expected, because=why)
    cost = prices.cost((queue.info().busy + seconds) / 3600, counts.tokens_in, counts.tokens_out)
    spent = prices.cost(queue.info().busy / 3600, counts.tokens_in, counts.tokens_out)
    said = [
        f"by the plan {found.expected:,.2f} requests/s: about {batch.span(seconds)}"
        + (f" and {cost:,.2f} $" if prices.known else "")
    ]
    left = until - time.time() if until is not None else None
    return said + [
        f"WARNING: {words}"
        for words in batch.warnings(
            eta, left=counts.left, deadline=left, budget=budget, cost=cost, prices=prices, spent=spent
        )
    ]


def prices(settings: Mapping[str, Any], per_hour: float | None) -> batch.Prices:
    """As given at submission; dollars per hour by the plans of the stacks where they were not."""
    known = dict(settings.get("prices") or {})
    if known.get("per_hour") is None:
        known["per_hour"] = per_hour
    return batch.Prices(**known)


def as_settings(given: batch.Prices) -> dict[str, Any]:
    """To be stored with the batch."""
    return asdict(given)
