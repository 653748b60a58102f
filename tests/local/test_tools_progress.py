"""What a person sees while tools are built."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from local.tools._progress import Estimate, Lines, Reporter, Screen, State, Step, duration


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Step(job="a", state="compiling", done=412, total=1190), "compiling 412/1,190 packages"),
        (Step(job="a", state="fetching", note="grpc (module 3)"), "downloading grpc (module 3)"),
        (Step(job="a", state="linking"), "linking"),
        (Step(job="a", state="done", seconds=125), "done in 2 min 05 s"),
        (Step(job="a", state="waiting", note="process 7"), "waits for process 7"),
    ],
)
def test_a_step_says_what_goes_on_and_how_far(step: Step, words: str) -> None:
    assert step.words == words


def test_a_duration_is_in_seconds_below_a_minute() -> None:
    assert [duration(s) for s in (0, 59.4, 60, 3599)] == ["0 s", "59 s", "1 min 00 s", "59 min 59 s"]


def test_a_log_gets_at_most_one_line_in_ten_seconds_for_each_job_but_every_end() -> None:
    lines: list[str] = []
    clock = Clock()
    shown = Lines(lines.append, clock)

    def show(state: State, done: int = 0) -> None:
        shown.show(Step(job="helm", state=state, done=done, total=9))

    show("queued")
    assert lines == []
    show("fetching")
    show("compiling", 1)
    clock.time += 9.9
    show("compiling", 2)
    assert len(lines) == 1
    clock.time += 0.2
    show("compiling", 3)
    assert lines[-1] == "helm: compiling 3/9 packages"
    show("done")
    assert len(lines) == 3
    shown.show(Step(job="etcd", state="fetching"))
    assert len(lines) == 4


def test_the_estimate_goes_by_what_is_assumed_first_and_then_by_what_was_measured() -> None:
    clock = Clock()
    estimate = Estimate({"a": 100.0, "b": 300.0}, assumed=2.0, now=clock)
    assert estimate.left() == 200
    estimate.note(Step(job="a", state="done"))
    assert estimate.left() == 150
    clock.time += 100
    assert estimate.left() == 300
    estimate.note(Step(job="b", state="compiling", done=50, total=100))
    assert estimate.left() == pytest.approx((300 - 135) / 2.35)


def test_reports_carry_the_jobs_own_time_and_what_is_left() -> None:
    steps: list[Step] = []
    report = Reporter(steps.append, Estimate({"a": 10.0}, assumed=1.0))
    report(Step(job="a", state="queued"))
    report(Step(job="a", state="compiling", done=1, total=2))
    report(Step(job="a", state="done"))
    assert [step.left for step in steps] == [10, pytest.approx(5.5), 0]
    assert steps[-1].seconds < 60


def test_a_terminal_shows_a_row_for_each_job() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=100)
    screen = Screen(console)
    with screen as progress:
        progress(Step(job="helm", state="compiling", done=3, total=9, left=80.0))
        progress(Step(job="etcd", state="queued"))
        progress(Step(job="kwok", state="done", seconds=3.0))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "compiling 3/9 packages" in text
    assert "waits for its turn" in text
    assert "1 of 3" in text
    assert "about 1 min 20 s left" in text
