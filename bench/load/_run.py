"""One benchmark: probe, then so many runs, each with its own connections, warm-up and window."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic

import stacks

from ..results import Result, Run
from ._arrivals import Closed, Load, Open
from ._crew import Crew, Crews, Local
from ._machine import Machine
from ._measure import Costs, Window, measure, percentile
from ._observe import Observer
from ._part import Span
from ._probe import Facts, one, wait
from ._prompts import Source
from ._raw import RawFile
from ._recorder import OK
from ._scenario import Scenario
from ._session import BIN_SECONDS
from ._steady import Series, sustained
from ._stop import Stopper, stopped_by_signals
from ._wire import Target
from ._workers import Orders, Snapshot


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a benchmark is, a few times a second. Seconds throughout; nan where nothing is known yet.

    `phase`: probe, warm-up, measuring, done. `eta`: until the whole benchmark ends, as far as can be told.
    The rate is of the last second or so, the percentiles of the last few hundred answers.
    """

    phase: str
    run: int
    runs: int
    elapsed: float
    eta: float
    rate: float = 0.0
    concurrency: int = 0
    ok: int = 0
    failed: int = 0
    errors: dict[str, int] | None = None
    ttft_p50: float = float("nan")
    ttft_p95: float = float("nan")
    itl_p50: float = float("nan")
    itl_p95: float = float("nan")
    e2e_p50: float = float("nan")
    e2e_p95: float = float("nan")
    tokens_per_second: float = float("nan")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure.

    `runs` samples of `seconds` each after warm-up, of up to 5 times as long where fewer than `requests` end in that time or
    an answer takes longer; a run lasts at most `patience` times that in all. A batch, a replay or a schedule that ends is
    measured to its end, but for at most `max_seconds`. `seed`: of prompts, lengths and arrivals. `reconnect`: a new
    connection for every request, so that a Service spreads requests and not users. `workers`: processes that share the
    load. `raw_file`: where to keep a record of every request (see `RawFile`). `request_timeout`, `ready_timeout`: seconds.
    `context_tokens`: bounds prompt plus answer.
    """

    runs: int = 3
    seconds: float = 30.0
    requests: int = 20
    patience: float = 3.0
    max_seconds: float = math.inf
    seed: int = 1
    reconnect: bool = False
    request_timeout: float = 600.0
    ready_timeout: float = 120.0
    context_tokens: int | None = None
    max_open: int = 10_000
    workers: int = 1
    raw_file: Path | None = None


# A window is stretched no further than this many times what was asked for.
_LONGEST = 5.0


def tool_version() -> str:
    """The version of this package, for `Result.tool_version`."""
    try:
        return version("tollgate")
    except PackageNotFoundError:
        return "0.1.0"


def run(
    target: Target,
    traffic: stacks.Traffic,
    settings: Settings,
    *,
    release: str,
    stack: str,
    replicas: int = 1,
    costs: Costs | None = None,
    environment: Facts | None = None,
    progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
    stopper: Stopper | None = None,
    scenario: Scenario | None = None,
    crews: Crews | None = None,
    observer: Observer | None = None,
) -> Result:
    """Measure the service and return the result; blocks until it is done.

    `release`: the digest of what is measured. `scenario`: what differs from the plain `traffic`. `crews`: who sends,
    instead of `settings.workers` processes of this machine. `observer`: adds the server's side to each run.
    SIGINT and SIGTERM end it early when called from the main thread; the run that was going on is then kept, marked
    invalid. Raises TollgateError when the service cannot be measured at all, InputError for a wrong address.
    """
    stopper = Stopper() if stopper is None else stopper
    scenario = Scenario() if scenario is None else scenario
    began = monotonic()
    loads = scenario.loads(traffic, settings.seed)
    sources = scenario.sources(traffic, settings.seed, settings.context_tokens)
    server = wait(target, timeout=settings.ready_timeout, say=say)
    report = _Report(progress, settings, began)
    # The ramp of a closed loop takes as long as one unloaded answer, and the first answer shows whether any can come.
    report(Progress(phase="probe", run=0, runs=settings.runs, elapsed=0.0, eta=report.eta(0, settings.seconds)))
    alone = one(target, sources(-1)(0), settings.request_timeout)
    say(f"one request alone takes {_short(alone)}")
    done: list[Run] = []
    machine = Machine(target)
    crews = crews or (lambda _, load, source: Local(orders(target, load, source, settings)))
    with stopped_by_signals(stopper), _raw(settings.raw_file) as raw:
        for number in range(settings.runs):
            if stopper:
                break
            load, source = loads(number), sources(number)
            if isinstance(load, Closed):
                load = replace(load, ramp_seconds=min(alone, settings.seconds / 3))
            sending = _Sending(
                settings=settings, costs=costs or Costs(), number=number, report=report, stopper=stopper,
                load=load, raw=raw, observer=observer, machine=machine,
            )  # fmt: skip
            done.append(sending.run(crews(number, load, source)))
    return Result(
        release=release,
        stack=stack,
        url=target.url,
        traffic=traffic,
        replicas=replicas,
        runs=tuple(done),
        server=server,
        environment={"client_machine": platform.machine(), **(environment or {})},
        tool_version=tool_version(),
    )


def orders(
    target: Target, load: Load, source: Source, settings: Settings, *, first: int = 0, of: int | None = None
) -> list[Orders]:
    """What each process of this machine does: those from number `first` on, of so many in all (default: no others)."""
    of = settings.workers if of is None else of
    return [
        Orders(
            target=target,
            load=load.part(worker, of),
            source=source,
            timeout=settings.request_timeout,
            reconnect=settings.reconnect,
            max_open=settings.max_open,
            number=worker,
            workers=of,
        )
        for worker in range(first, first + settings.workers)
    ]


@dataclass(kw_only=True)
class _Sending:
    """One run: watch the load until there is enough of it, then measure."""

    settings: Settings
    costs: Costs
    number: int
    report: _Report
    stopper: Stopper
    load: Load
    raw: RawFile | None
    observer: Observer | None
    machine: Machine
    length: float = 0.0
    floor: float | None = None
    found: float | None = None
    sent: float | None = None
    finished: bool = False

    def run(self, crew: Crew) -> Run:
        series = Series(BIN_SECONDS)
        with crew:
            started = datetime.now(UTC)
            if self.observer is not None:
                self.observer.begin()
            self.machine.look()
            self._watch(crew, series)
            elapsed = monotonic() - crew.began
            crew.stop()
            window = self._window(crew.began, elapsed, series, started)
            part, watch = crew.measure(window.span, self.costs.objectives)
            if self.raw is not None:
                crew.keep(self.raw, self.number)
            more = {}
            if isinstance(self.load, Closed) and self.load.requests is not None:
                more = sustained(series, self.sent or elapsed, self.floor, part.early)
            run = measure(part, window, watch, self.costs, series, more)
            span = window.span
            seen = self.machine.between(span.began + span.start, span.began + span.end)
            run = run.model_copy(update={"client": {**run.client, **seen}, "warnings": self.machine.warnings(seen)})
            if self.observer is not None:
                run = self.observer.end(run, monotonic() - crew.began)
        return run

    def _watch(self, crew: Crew, series: Series) -> None:
        settings, whole = self.settings, _ends(self.load)
        longest = _LONGEST * settings.seconds
        while True:
            seen = crew.look()
            self.machine.look()
            elapsed = monotonic() - crew.began
            if self.floor is None and seen.served:
                self.floor = elapsed
            if self.sent is None and seen.all_sent:
                self.sent = elapsed
            self.finished = seen.done
            series.take(seen.bin_ok, seen.bin_latency, seen.bin_failed)
            guess = None
            if self.floor is not None:
                if not whole:
                    self.length = series.window(elapsed, settings.seconds, settings.requests)
                    self.found = series.warm_up(elapsed, self.length, self.floor) if self.length <= longest else None
                guess = series.begin(elapsed, self.floor, min(0.4 * elapsed, elapsed - self.floor))
            left = _left(self.load, elapsed, seen) if whole else None
            length = min(max(self.length, settings.seconds), longest)
            limit = settings.max_seconds if whole else settings.patience * length
            self.report(_progress(seen, self.number, length, self.report, elapsed, guess, left))
            if self.stopper or self.finished or self.found is not None or elapsed >= limit:
                return

    def _window(self, began: float, elapsed: float, series: Series, started: datetime) -> Window:
        length = min(self.length if self.found is not None else self.settings.seconds, elapsed)
        whole = _ends(self.load)
        if whole:
            # Measured to its end: what it is slow at is part of it.
            length = elapsed
        elif self.stopper and self.found is None:
            # Whatever was level until then; all of it when nothing was.
            begin = series.begin(elapsed, self.floor, (elapsed - self.floor) / 2) if self.floor is not None else 0.0
            length = max(1e-3, min(self.settings.seconds, elapsed - begin))
        return Window(
            span=Span(began=began, start=elapsed - length, end=elapsed),
            started=started,
            settled=self.found is not None or whole,
            interrupted=bool(self.stopper) and self.found is None and not self.finished,
            whole=whole,
        )


def _ends(load: Load) -> bool:
    if isinstance(load, Closed):
        return load.requests is not None
    return bool(load.moments) or load.seconds < math.inf


def _left(load: Load, elapsed: float, seen: Snapshot) -> float:
    """Seconds until a load that ends has ended, at the pace so far."""
    if isinstance(load, Open):
        return max(0.0, (load.moments[-1] if load.moments else load.seconds) - elapsed)
    ended = seen.ok + seen.failed
    return elapsed / ended * max(0, (load.requests or 0) - ended) if ended else math.nan


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"


@contextlib.contextmanager
def _raw(path: Path | None) -> Iterator[RawFile | None]:
    if path is None:
        yield None
        return
    with RawFile(path) as file:
        yield file


def _progress(
    seen: Snapshot,
    number: int,
    length: float,
    report: _Report,
    elapsed: float,
    level: float | None,
    ends: float | None,
) -> Progress:
    table = seen.recent
    good = table[table["status"] == OK]
    latency = good["end"] - good["scheduled"]
    first = (good["first"] - good["scheduled"])[good["first"] > 0]
    recent = min(elapsed, max(1.0, 10 * BIN_SECONDS))
    kinds = {int(status) for status in table["status"] if status > 0}
    left = length if level is None else max(0.0, length - (elapsed - level))
    if ends is not None:
        left = ends
    spread = float(good["end"].max() - good["end"].min()) if len(good) > 1 else 0.0
    return Progress(
        phase="warm-up" if level is None else "measuring",
        run=number + 1,
        runs=report.runs,
        elapsed=monotonic() - report.began,
        eta=report.eta(number, left),
        rate=float(seen.bin_ok[int((elapsed - recent) / BIN_SECONDS) :].sum()) / recent,
        concurrency=seen.in_flight,
        ok=seen.ok,
        failed=seen.failed,
        errors={seen.kinds[kind - 1]: int((table["status"] == kind).sum()) for kind in sorted(kinds)},
        ttft_p50=percentile(first, 0.5),
        ttft_p95=percentile(first, 0.95),
        itl_p50=percentile(seen.gaps, 0.5),
        itl_p95=percentile(seen.gaps, 0.95),
        e2e_p50=percentile(latency, 0.5),
        e2e_p95=percentile(latency, 0.95),
        tokens_per_second=float(good["tokens_out"].sum()) / spread if spread > 0 else float("nan"),
    )


class _Report:
    """Hands progress on, and guesses how long the rest takes: each run as long as the ones before it took."""

    def __init__(self, progress: Callable[[Progress], None] | None, settings: Settings, began: float) -> None:
        self._progress, self._settings, self.began, self.runs = progress, settings, began, settings.runs

    def __call__(self, now: Progress) -> None:
        if self._progress is not None:
            self._progress(now)

    def eta(self, number: int, left: float) -> float:
        """Seconds until the end, `left` of them in run `number` (from 0)."""
        return left + (self._settings.runs - number - 1) * self._settings.seconds * 1.3
