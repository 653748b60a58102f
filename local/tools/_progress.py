"""What a build reports while it goes on, and how that is shown on a terminal or in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Literal, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

State = Literal["queued", "waiting", "fetching", "compiling", "linking", "done", "failed"]

_LINE_SECONDS: Final = 10.0
# Compiling is most of a build; the rest is for linking, which reports nothing on its way.
_COMPILING_SHARE: Final = 0.9


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where one job is: `done` of `total` packages, `seconds` since the job began; `left`: estimate for the whole run."""

    job: str
    state: State
    done: int = 0
    total: int = 0
    note: str = ""
    seconds: float = 0.0
    left: float | None = None

    @property
    def words(self) -> str:
        """The state for a person: `compiling 412/1,190 packages`."""
        match self.state:
            case "queued":
                return "waits for its turn"
            case "waiting":
                return f"waits for {self.note}"
            case "fetching":
                return f"downloading {self.note}".rstrip()
            case "compiling":
                return f"compiling {self.done:,}/{self.total:,} packages"
            case "linking":
                return "linking"
            case "failed":
                return "failed"
            case "done":
                return f"done in {duration(self.seconds)}"


Progress = Callable[[Step], None]


def duration(seconds: float) -> str:
    """`8 s`, `2 min 05 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


class Estimate:
    """How long the whole run still takes, from the jobs' weights (CPU seconds) and how much of each is done.

    Not thread-safe: `Reporter` locks. The first minute has too little behind it, so it goes by `assumed` CPU seconds per
    second.
    """

    def __init__(self, weights: dict[str, float], *, assumed: float, now: Callable[[], float] = time.monotonic) -> None:
        self._weights = weights
        self._shares = dict.fromkeys(weights, 0.0)
        # Part of a job was there before the run (an interrupted one continues): it must not count as speed.
        self._assumed, self._now, self._began = assumed, now, now()

    def note(self, step: Step) -> None:
        """Take a step into account."""
        if step.state == "done":
            self._shares[step.job] = 1.0
        elif step.state == "linking":
            self._shares[step.job] = _COMPILING_SHARE
        elif step.state == "compiling" and step.total:
            self._shares[step.job] = _COMPILING_SHARE * step.done / step.total

    def left(self) -> float:
        """Seconds."""
        behind = sum(self._weights[job] * share for job, share in self._shares.items())
        ahead = sum(self._weights.values()) - behind
        gone = self._now() - self._began
        speed = behind / gone if gone > 60 and behind > 30 else self._assumed
        return ahead / speed


class Reporter:
    """Stands between the builders' threads and one `Progress`: adds times, and calls it from one thread at a time."""

    def __init__(self, progress: Progress, estimate: Estimate) -> None:
        self._progress, self._estimate = progress, estimate
        self._lock = threading.Lock()
        self._began: dict[str, float] = {}

    def __call__(self, step: Step) -> None:
        with self._lock:
            now = time.monotonic()
            seconds = 0.0 if step.state in ("queued", "waiting") else now - self._began.setdefault(step.job, now)
            self._estimate.note(step)
            self._progress(replace(step, seconds=seconds, left=self._estimate.left()))


class Display(Protocol):
    """A `Progress` that has to be opened and closed."""

    def __enter__(self) -> Progress: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Lines:
    """For logs: a line when a job begins and ends, and at most one every 10 s for each in between."""

    def __init__(self, write: Callable[[str], None] | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._write = write or (lambda line: print(line, file=sys.stderr, flush=True))
        self._now = now
        self._last: dict[str, float] = {}

    def __enter__(self) -> Progress:
        return self.show

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, step: Step) -> None:
        """Print the step, unless it is too soon for another line."""
        if step.state == "queued":
            return
        last = self._last.get(step.job)
        if step.state not in ("done", "failed") and last is not None and self._now() - last < _LINE_SECONDS:
            return
        self._last[step.job] = self._now()
        left = f" (all: about {duration(step.left)} left)" if step.left and step.state != "failed" else ""
        self._write(f"{step.job}: {step.words}{left}")


class Screen:
    """For terminals: one row a job, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._steps: dict[str, Step] = {}
        self._heard: dict[str, float] = {}
        self._began = time.monotonic()
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=False)

    def __enter__(self) -> Progress:
        self._live.start()
        return self.show

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, step: Step) -> None:
        """Take the step for the next redraw."""
        self._heard[step.job] = time.monotonic()
        self._steps[step.job] = step

    def _draw(self) -> Table:
        table = Table.grid(padding=(0, 2))
        steps = dict(self._steps)
        styles = {"done": "green", "failed": "red", "queued": "dim", "waiting": "yellow"}
        for step in steps.values():
            running = step.state in ("fetching", "compiling", "linking")
            took = duration(step.seconds + time.monotonic() - self._heard[step.job]) if running else ""
            table.add_row(step.job, Text(step.words, style=styles.get(step.state, "cyan")), Text(took, style="dim"))
        finished = sum(step.state == "done" for step in steps.values())
        left = min((step.left for step in steps.values() if step.left is not None), default=None)
        total = f"{finished} of {len(steps)} · {duration(time.monotonic() - self._began)}"
        table.add_row("", Text(total + (f" · about {duration(left)} left" if left else ""), style="bold"))
        return table


def display() -> Display:
    """The display that fits standard error."""
    console = Console(stderr=True)
    return Screen(console) if console.is_terminal else Lines()
