"""A batch as people ask for it: how far, how fast, until when, at what price, and what is in the way."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ._forecast import Eta, span
from ._model import Counts, Info
from ._progress import Progress, finite
from ._queue import Queue


@dataclass(frozen=True, kw_only=True)
class Status:
    """What is known now. `eta`, `spent`, `cost`, `endpoints`, `errors`, `trouble`, `warnings`: as the runner that was heard of
    last said (see `Progress`), empty where none is at work. `runners`: how many are."""

    info: Info
    counts: Counts
    eta: Eta
    runners: int
    spent: float = math.nan
    cost: float = math.nan
    endpoints: Mapping[str, Mapping[str, Any]]
    errors: Mapping[str, int]
    trouble: str = ""
    warnings: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """For scripts; null where nothing is known."""
        eta = {name: finite(getattr(self.eta, name)) for name in self.eta.__dataclass_fields__}
        return {
            "id": self.info.id, "state": self.info.state, "reason": self.info.reason, "total": self.counts.total,
            "ok": self.counts.ok, "failed": self.counts.failed, "left": self.counts.left,
            "tokens_in": self.counts.tokens_in, "tokens_out": self.counts.tokens_out, "created": self.info.created,
            "ended": self.info.ended or None, "busy_seconds": self.info.busy, "runners": self.runners, "eta": eta,
            "spent_usd": finite(self.spent), "projected_usd": finite(self.cost), "endpoints": dict(self.endpoints),
            "errors": dict(self.errors), "trouble": self.trouble, "warnings": list(self.warnings),
        }  # fmt: skip


def status(queue: Queue) -> Status:
    """Read it from the queue; disturbs no runner."""
    info, counts = queue.info(), queue.counts()
    alive = sorted((runner for runner in queue.runners() if runner.alive), key=lambda runner: runner.seen)
    reports = [runner.report for runner in alive if runner.report]
    endpoints: dict[str, dict[str, Any]] = {}
    errors: dict[str, int] = {}
    for report in reversed(reports):
        for code, number in report["errors"].items():
            errors[code] = errors.get(code, 0) + number
        for name, found in report["endpoints"].items():
            known = endpoints.setdefault(name, {})
            for key, value in found.items():
                if not isinstance(value, int | float) or isinstance(value, bool):
                    known[key] = value
                elif key == "usd_hours":
                    known[key] = max(known.get(key, 0.0), value)
                else:
                    known[key] = known.get(key, 0) + value
    newest = reports[0] if reports else {}
    eta: dict[str, Any] = {key: math.nan if value is None else value for key, value in newest.get("eta", {}).items()}
    return Status(
        info=info, counts=counts, eta=Eta(**eta) if eta else Eta(because="nobody works on it"), runners=len(alive),
        spent=_number(newest.get("spent")), cost=_number(newest.get("cost")), endpoints=endpoints, errors=errors,
        trouble=newest.get("trouble", ""), warnings=newest.get("warnings", ()),
    )  # fmt: skip


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def of_progress(info: Info, progress: Progress) -> Status:
    """The same from a runner in this process."""
    part = f" ({progress.part})" if progress.part else ""
    info = replace(info, id=f"{info.id}{part}", state=progress.state)
    return Status(
        info=info, counts=progress.counts, eta=progress.eta, runners=1, spent=progress.spent, cost=progress.cost,
        endpoints=progress.endpoints, errors=progress.errors, trouble=progress.trouble, warnings=progress.warnings,
    )  # fmt: skip


def text(found: Status, *, state: str = "", width: int = 80) -> list[str]:
    """As lines for a terminal or a log, of at most `width` columns unless a word is longer."""
    folded = []
    for line in _lines(found, state or found.info.state):
        label = 11 if line.startswith("  ") and not line.startswith("    ") else 6
        folded += textwrap.wrap(
            line, max(40, width), subsequent_indent=" " * label, break_long_words=False, break_on_hyphens=False,
            drop_whitespace=True, initial_indent="",
        )  # fmt: skip
    return folded


def _lines(found: Status, state: str) -> list[str]:
    counts, eta = found.counts, found.eta
    failed = f", {counts.failed:,} failed" if counts.failed else ""
    share = 100 * counts.done / counts.total if counts.total else 100.0
    lines = [f"{found.info.id}  {state}  {counts.done:,} of {counts.total:,} ({share:.1f} %){failed}"]
    if found.info.reason and state == "paused":
        lines.append(f"  paused   {found.info.reason}")
    if counts.left and found.runners and state == "running":
        sustained = f", {_rate(eta.sustained)} sustained over {span(eta.steady_seconds)}" if eta.sustained else ""
        lines.append(f"  rate     {_rate(eta.rate)} now{sustained}")
        lines.append(f"  left     {_left(eta)}")
    elif counts.left and state == "running":
        lines.append(f"  nobody works on it: tollgate batch run {found.info.id}")
    lines.append(f"  tokens   {counts.tokens_in:,} in, {counts.tokens_out:,} out")
    if math.isfinite(found.spent):
        more = f", {found.cost:,.2f} $ projected" if math.isfinite(found.cost) and counts.left else ""
        lines.append(f"  cost     {found.spent:,.2f} $ so far{more}")
    for name, one in sorted(found.endpoints.items()):
        words = f": {one['words']}" if one["words"] else ""
        lines.append(f"  {name}  {one['state']}, {one['in_flight']} in flight of {one['limit']}{words}")
        usd = (one.get("usd_hours") or 0.0) + (one.get("usd_tokens") or 0.0)
        rate = f" at {_rate(one['rate'])}" if one.get("rate") else ""
        lines.append(
            f"      {one['ok']:,} answered{rate}, {one['failed']:,} failed, {one['tokens_out']:,} tokens"
            + (f", {usd:,.2f} $" if usd else "")
        )
    if found.errors:
        lines.append("  failures " + ", ".join(f"{code} {number:,}" for code, number in sorted(found.errors.items())))
    if found.trouble:
        lines.append(f"  STOPPED  {found.trouble}; goes on by itself when that is over")
    return [*lines, *(f"  WARNING  {words}" for words in found.warnings)]


def _rate(rate: float) -> str:
    return f"{rate:,.1f}/s" if rate >= 1 else f"{rate * 60:,.1f}/min" if rate >= 1 / 60 else f"{rate * 3600:,.1f}/h"


def _left(eta: Eta) -> str:
    if not math.isfinite(eta.seconds):
        return f"unknown: {eta.because}"
    interval = f"{span(eta.seconds)} ({span(eta.low)} to {span(eta.high)})"
    end = time.strftime("%a %H:%M", time.localtime(time.time() + eta.seconds))
    return f"{interval}, until {end}" if eta.certain else f"perhaps {interval}: {eta.because}"
