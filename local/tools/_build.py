"""`ensure`: make what is missing, two builds at a time, so that it can be interrupted and run twice at once.

Nothing is put in its place before it is complete: programs are built aside and renamed. An interrupted run leaves only
Go's build cache, from which the next one continues; the cache is removed once every default tool is there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import Final, TypeVar

import psutil

from stacks import TollgateError

from . import _debian, _files, _find, _go, _locks, _places
from ._compile import Workshop, no_space, put_in_place
from ._jobs import GoJob, OtherJob, Plan, bytes_needed, plan, size
from ._progress import Estimate, Progress, Reporter, Step, display
from ._run import Processes
from ._table import TOOLS, DataFolder, DebianPackages, Tool

_LANES: Final = 2
_J = TypeVar("_J", GoJob, OtherJob)


def ensure(names: Iterable[str] | None = None, *, progress: Progress | None = None) -> dict[str, Path]:
    """Make sure that tools (none named: all default ones) and their data folders are there; returns their programs.

    Costs nothing and prints nothing where all are there. Otherwise builds what is missing, reporting to `progress`
    (none given: rows on a terminal, lines elsewhere, on standard error). Errors: `InputError` for an unknown name,
    `TollgateError` for no space, no connection, a failed build, each with the fix. Ctrl-C, SIGTERM and SIGHUP end the
    builds it started, from the main thread.
    """
    rows = [row for row in TOOLS if not row.optional] if names is None else [_find.tool(name) for name in names]
    todo = plan(rows)
    if todo.jobs:
        weights = {job.name: job.weight for job in todo.jobs}
        estimate = Estimate(weights, assumed=0.9 * min(_LANES, os.cpu_count() or 1))
        if progress is not None:
            _make(todo, Reporter(progress, estimate))
        else:
            with display() as shown:
                _make(todo, Reporter(shown, estimate))
    found = {}
    for row, status in zip(rows, _find.locate_all(tuple(rows)), strict=True):
        if status.path is None:
            raise TollgateError(f"{row.name} was built but is gone again\n  fix: run `tollgate tools build` once more")
        found[row.name] = status.path
    return found


def _make(todo: Plan, report: Reporter) -> None:
    root = _places.cache()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locks.building() as last, _temporary(root) as temporary:
            for job in todo.jobs:
                report(Step(job=job.name, state="queued"))
            processes = Processes()
            with _signals():
                _Run(todo, report, processes, temporary).all()
            if last() and _all_there():
                _remove_build_cache()
    except OSError as error:
        if no_space(str(error)):
            raise TollgateError(_space_message(root, None)) from error
        raise TollgateError(
            f"cannot write the tools' cache folder: {error}\n  fix: make {root} writable, or set TOLLGATE_CACHE"
        ) from error


class _Run:
    """One run over a plan; its methods are called from several threads."""

    def __init__(self, todo: Plan, report: Reporter, processes: Processes, temporary: Path) -> None:
        self.todo, self.report, self.processes, self.temporary = todo, report, processes, temporary
        self.logs = _places.cache() / "logs"

    def all(self) -> None:
        cold = not _go.build_cache().is_dir()
        # An own pool for downloads, one at a time, ahead of the builds: they wait for the network, those for the CPU.
        with ThreadPoolExecutor(_LANES) as lanes, ThreadPoolExecutor(1) as fetcher:
            try:
                toolchain = self._toolchain() if self.todo.needs_go else None
                self._check_space(own_modules=toolchain is not None and toolchain.own)
                shop = Workshop(toolchain, self.processes, self.report, self.temporary, self.logs)
                fetched = {job: fetcher.submit(self._guard, job, shop.fetch) for job in self.todo.builds}

                def build(job: GoJob) -> None:
                    with self._lock(job, job.source.module):
                        left = tuple(row for row in job.tools if not _places.program(row).exists())
                        if left:
                            fetched[job].result()
                            shop.build(job, left)
                    self.report(Step(job=job.name, state="done"))

                builds = list(self.todo.builds)
                if cold and builds:
                    # Alone, as it compiles the standard library, which two at once would both do.
                    self._wait([lanes.submit(self._guard, builds[0], build)], fetched.values())
                    builds = builds[1:]
                futures = [lanes.submit(self._guard, job, build) for job in builds]
                futures += [lanes.submit(self._guard, job, self._other(shop)) for job in self.todo.others]
                self._wait(futures, fetched.values())
                # Only now, as rendering may need a tool of this run.
                self._wait([lanes.submit(self._guard, job, self._other(shop)) for job in self.todo.data], ())
            except BaseException:
                self.processes.stop()
                lanes.shutdown(cancel_futures=True)
                fetcher.shutdown(cancel_futures=True)
                raise

    def _wait(self, futures: Sequence[Future[None]], also: Iterable[Future[None]]) -> None:
        """Until the futures are done or one fails; in slices, since a signal's handler runs only between them."""
        pending: set[Future[None]] = set(futures)
        watched = [*futures, *also]
        while pending:
            with _signals_kept():
                _, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
            failed = [f for f in watched if f.done() and not f.cancelled() and f.exception() is not None]
            # `Stopped` is what the others end with after one has failed: the cause is the one to show.
            failed.sort(key=lambda future: isinstance(future.exception(), _locks.Stopped))
            if failed:
                failed[0].result()

    def _guard(self, job: _J, work: Callable[[_J], None]) -> None:
        try:
            work(job)
        except _locks.Stopped:
            raise
        except Exception as error:
            self.report(Step(job=job.name, state="failed"))
            if no_space(str(error)):
                raise TollgateError(_space_message(_places.cache(), None)) from error
            raise

    def _lock(self, job: GoJob | OtherJob, name: str) -> contextlib.AbstractContextManager[None]:
        def waits(holder: str) -> None:
            self.report(Step(job=job.name, state="waiting", note=f"process {holder}, which is making it"))

        return _locks.held(name, on_wait=waits, stop=self.processes.stopped)

    def _toolchain(self) -> _go.Toolchain:
        found = _go.find()
        if found is not None:
            return found
        first = self.todo.jobs[0]
        with self._lock(first, "go"):
            found = _go.find()
            if found is None:
                self.report(Step(job=first.name, state="fetching", note="the Go toolchain"))
                found = _go.install(self.processes, self.logs / "go.log")
        return found

    def _check_space(self, *, own_modules: bool) -> None:
        root = _places.cache()
        built = _go.build_cache()
        already = size(built) if built.is_dir() else 0
        needed = bytes_needed(self.todo, own_modules=own_modules, already=already)
        if shutil.disk_usage(root).free < needed:
            raise TollgateError(_space_message(root, needed))

    def _other(self, shop: Workshop) -> Callable[[OtherJob], None]:
        def work(job: OtherJob) -> None:
            item = job.item
            place = _places.data_folder(item) if isinstance(item, DataFolder) else _places.folder(item)
            with self._lock(job, item.name):
                if not place.is_dir():
                    self.report(Step(job=job.name, state="fetching"))
                    aside = Path(tempfile.mkdtemp(dir=self.temporary))
                    if isinstance(item, DataFolder):
                        _files.gather(item, shop, aside)
                    elif isinstance(item.source, DebianPackages):
                        _debian.unpack(item.name, item.source, self.processes, aside, place, self.logs)
                    else:
                        _files.script(item, shop, aside)
                    put_in_place(aside, place)
            self.report(Step(job=job.name, state="done"))

        return work


def _all_there() -> bool:
    rows: tuple[Tool, ...] = tuple(row for row in TOOLS if not row.optional)
    return not plan(rows).jobs


def _remove_build_cache() -> None:
    """Gigabytes that are of no use once the programs are there; renamed first, so that no half of it is ever used."""
    doomed = Path(tempfile.mkdtemp(dir=_places.cache() / "tmp", prefix=f"{os.getpid()}-"))
    for folder in (_go.build_cache(), _go.module_cache()):
        if folder.is_dir():
            folder.rename(doomed / folder.name)
    _find.remove(doomed)


def _space_message(root: Path, needed: int | None) -> str:
    free = shutil.disk_usage(root).free
    need = f", {needed / 1e9:.1f} GB are needed (most of it only while building)" if needed else ""
    return (
        f"no space left for the tools in {root}: {free / 1e9:.1f} GB free{need}\n"
        "  fix: free some space, or set TOLLGATE_CACHE to a folder on a larger disk; a second run continues"
    )


@contextlib.contextmanager
def _temporary(root: Path) -> Iterator[Path]:
    """A folder for this run's unfinished work; those of runs that were killed are removed."""
    parent = root / "tmp"
    parent.mkdir(exist_ok=True)
    for left in parent.iterdir():
        owner = left.name.split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            _find.remove(left)
    mine = Path(tempfile.mkdtemp(dir=parent, prefix=f"{os.getpid()}-"))
    try:
        yield mine
    finally:
        _find.remove(mine)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exit that cleans up, as Ctrl-C does; only the main thread may."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            with contextlib.suppress(ValueError):
                before[number] = signal.signal(number, leave)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Let signals wait for the end of the block: an exception inside of `wait` can leave a future's lock held, and the thread
    that has to end it waiting for ever. Only the main thread may."""
    seen: list[int] = []
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with contextlib.suppress(ValueError):
                before[number] = signal.signal(number, lambda caught, _: seen.append(caught))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if seen:
        signal.raise_signal(seen[0])
