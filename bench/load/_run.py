"""One benchmark: probe, then so many runs, each with its own connections, warm-up and window."""

from __future__ import annotations

import contextlib
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic

import stacks

from ..results import Result, Run
from ._arrivals import Closed, Load, of_traffic
from ._measure import Costs, Window, measure, percentile, watch_of
from ._probe import Facts, one, wait
from ._prompts import Source, Synthetic
from ._recorder import OK, write_raw
from ._session import BIN_SECONDS
from ._steady import Series
from ._wire import Target
from ._workers import Alone, Orders, Several, Snapshot


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
    e2e_p50: float = float("nan")
    e2e_p95: float = float("nan")
    tokens_per_second: float = float("nan")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure.

    `runs` samples of `seconds` each after warm-up; a run lasts at most `patience` times `seconds` in all. `seed`: of
    prompts, lengths and arrivals. `reconnect`: a new connection for every request, so that a Service spreads requests
    and not users. `workers`: processes that share the load. `raw_file`: where to append a line of JSON for every request.
    `request_timeout`, `ready_timeout`: seconds. `context_tokens`: bounds prompt plus answer.
    """

    runs: int = 3
    seconds: float = 30.0
    patience: float = 3.0
    seed: int = 1
    reconnect: bool = False
    request_timeout: float = 600.0
    ready_timeout: float = 120.0
    context_tokens: int | None = None
    max_open: int = 10_000
    workers: int = 1
    raw_file: Path | None = None


class Stopper:
    """Set from anywhere (a signal handler, another thread) to end a benchmark early; what was measured is kept."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def stop(self) -> None:
        """End it."""
        self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()


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
    load: Callable[[int], Load] | None = None,
    source: Callable[[int], Source] | None = None,
) -> Result:
    """Measure the service and return the result; blocks until it is done.

    `release`: the digest of what is measured. `load`, `source`: by run number, instead of what `traffic` says.
    SIGINT and SIGTERM end it early when called from the main thread; the run that was going on is then kept, marked
    invalid. Raises TollgateError when the service cannot be measured at all, InputError for a wrong address.
    """
    stopper = Stopper() if stopper is None else stopper
    began = monotonic()
    server = wait(target, timeout=settings.ready_timeout, say=say)
    sources = source or (lambda number: Synthetic(traffic, settings.seed + number, settings.context_tokens))
    loads = load or (lambda number: of_traffic(traffic, settings.seed + number))
    report = _Report(progress, settings, began)
    # The ramp of a closed loop takes as long as one unloaded answer, and the first answer shows whether any can come.
    report(Progress(phase="probe", run=0, runs=settings.runs, elapsed=0.0, eta=report.eta(0, settings.seconds)))
    alone = one(target, sources(-1)(0), settings.request_timeout)
    say(f"one request alone takes {alone:.2f} s")
    done: list[Run] = []
    with _signals(stopper):
        for number in range(settings.runs):
            if stopper:
                break
            chosen = loads(number)
            if isinstance(chosen, Closed):
                chosen = replace(chosen, ramp_seconds=min(alone, settings.seconds / 3))
            done.append(_one_run(target, chosen, sources(number), settings, costs or Costs(), number, report, stopper))
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


def _one_run(
    target: Target,
    load: Load,
    source: Source,
    settings: Settings,
    costs: Costs,
    number: int,
    report: _Report,
    stopper: Stopper,
) -> Run:
    workers = settings.workers
    orders = [
        Orders(
            target=target,
            load=load.part(worker, workers),
            source=source,
            timeout=settings.request_timeout,
            reconnect=settings.reconnect,
            max_open=settings.max_open,
            number=worker,
            workers=workers,
        )
        for worker in range(workers)
    ]
    started = datetime.now(UTC)
    series = Series(BIN_SECONDS)
    floor: float | None = None
    found: float | None = None
    with Alone(orders[0]) if workers == 1 else Several(orders) as crew:
        while True:
            seen = crew.look()
            elapsed = monotonic() - crew.began
            if floor is None and seen.served:
                floor = elapsed
            series.take(seen.bin_ok, seen.bin_latency, seen.bin_failed)
            guess = None
            if floor is not None:
                found = series.warm_up(elapsed, settings.seconds, floor)
                guess = series.begin(elapsed, floor, min(0.4 * elapsed, elapsed - floor))
            report(_progress(seen, number, settings, report, elapsed, guess))
            over = elapsed >= settings.patience * settings.seconds
            if stopper or seen.done or found is not None or over:
                break
        end = monotonic()
        outcomes = crew.stop()
    length = min(settings.seconds, end - crew.began)
    if seen.done and not stopper:
        # A replay is measured as a whole: what it is slow at is part of it.
        length = end - crew.began
    elif stopper and found is None:
        # Whatever was level until then; all of it when nothing was.
        past = end - crew.began
        begin = series.begin(past, floor, (past - floor) / 2) if floor is not None else 0.0
        length = max(1e-3, min(settings.seconds, past - begin))
    window = Window(
        began=crew.began,
        start=end - length,
        end=end,
        started=started,
        settled=found is not None or seen.done,
        interrupted=bool(stopper) and found is None,
    )
    watch = watch_of(outcomes, window)
    records = outcomes[0].records
    for outcome in outcomes[1:]:
        records.merge(outcome.records)
    if settings.raw_file is not None:
        write_raw(settings.raw_file, records, number, crew.began)
    return measure(records, window, watch, costs, series)


def _progress(
    seen: Snapshot, number: int, settings: Settings, report: _Report, elapsed: float, level: float | None
) -> Progress:
    table = seen.recent
    good = table[table["status"] == OK]
    latency = good["end"] - good["scheduled"]
    first = (good["first"] - good["scheduled"])[good["first"] > 0]
    recent = min(elapsed, max(1.0, 10 * BIN_SECONDS))
    kinds = {int(status) for status in table["status"] if status > 0}
    left = settings.seconds if level is None else max(0.0, settings.seconds - (elapsed - level))
    spread = float(good["end"].max() - good["end"].min()) if len(good) > 1 else 0.0
    return Progress(
        phase="warm-up" if level is None else "measuring",
        run=number + 1,
        runs=settings.runs,
        elapsed=monotonic() - report.began,
        eta=report.eta(number, left),
        rate=float(seen.bin_ok[int((elapsed - recent) / BIN_SECONDS) :].sum()) / recent,
        concurrency=seen.in_flight,
        ok=seen.ok,
        failed=seen.failed,
        errors={seen.kinds[kind - 1]: int((table["status"] == kind).sum()) for kind in sorted(kinds)},
        ttft_p50=percentile(first, 0.5),
        ttft_p95=percentile(first, 0.95),
        e2e_p50=percentile(latency, 0.5),
        e2e_p95=percentile(latency, 0.95),
        tokens_per_second=float(good["tokens_out"].sum()) / spread if spread > 0 else float("nan"),
    )


class _Report:
    """Hands progress on, and guesses how long the rest takes: each run as long as the ones before it took."""

    def __init__(self, progress: Callable[[Progress], None] | None, settings: Settings, began: float) -> None:
        self._progress, self._settings, self.began = progress, settings, began

    def __call__(self, now: Progress) -> None:
        if self._progress is not None:
            self._progress(now)

    def eta(self, number: int, left: float) -> float:
        """Seconds until the end, `left` of them in run `number` (from 0)."""
        return left + (self._settings.runs - number - 1) * self._settings.seconds * 1.3


@contextlib.contextmanager
def _signals(stopper: Stopper) -> Iterator[None]:
    """SIGINT and SIGTERM stop the benchmark instead of the process; the second one acts as it would have."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handler(number: int, _frame: object) -> None:
        if stopper:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)
        stopper.stop()

    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
