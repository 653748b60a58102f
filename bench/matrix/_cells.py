"""Measuring the cells, so that what has been measured once need not be again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import stacks

from ..results import Cell, Matrix, Result
from ._analysis import analyse, sample_of


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`batches` × `workers`. `subject`: everything else that a cell depends on. `forecasts`: requests to extrapolate to."""

    batches: tuple[int, ...]
    workers: tuple[int, ...]
    subject: dict[str, Any]
    forecasts: tuple[int, ...]
    seed: int = 1

    def __post_init__(self) -> None:
        for name, values in (("--batches", self.batches), ("--workers", self.workers)):
            if not values or min(values) < 1 or len(set(values)) != len(values):
                raise stacks.InputError(
                    where=name,
                    got=",".join(map(str, values)),
                    allowed="different whole numbers from 1 on",
                    fix="correct it",
                )

    @property
    def order(self) -> tuple[tuple[int, int], ...]:
        """All (batch, workers), shuffled: what changes with the hour must not look like an effect of workers."""
        cells = [(batch, workers) for batch in self.batches for workers in self.workers]
        random.Random(self.seed).shuffle(cells)
        return tuple(cells)

    @property
    def digest(self) -> str:
        """Of the subject: cells of another one are not comparable."""
        return stacks.digest(self.subject)


def load(path: Path, plan: Plan) -> Matrix | None:
    """The matrix so far; None where there is no file. Raises InputError for a file of something else."""
    if not path.exists():
        return None
    try:
        found = Matrix.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise stacks.InputError(
            where=str(path), got=str(error).splitlines()[0], allowed="a matrix, or no file", fix="name another file"
        ) from error
    if found.subject != plan.digest:
        raise stacks.InputError(
            where=str(path), got="a matrix of another service, model, prompt or setting", allowed="one of the same",
            fix="name another file, or remove it to begin anew",
        )  # fmt: skip
    return found


def measure(
    plan: Plan,
    path: Path,
    cell: Callable[[int, int], Result],
    *,
    stack: str,
    release: str,
    traffic: stacks.Traffic,
    say: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
) -> Matrix:
    """Measure what is missing and keep the file up to date, with a log beside it (`….log`).

    `cell(batch, workers)` gives a result of one run. A cell that does not count (client-bound, interrupted) is said and
    is measured again by the next call; a failing one raises TollgateError, and what was measured before it is kept.
    """
    before = load(path, plan)
    done = {(one.batch, one.workers): one for one in (before.cells if before is not None else ())}
    log = path.with_suffix(path.suffix + ".log")
    lost: list[str] = []
    server: dict[str, Any] = dict(before.server) if before is not None else {}
    url, version = (before.url, before.tool_version) if before is not None else (str(plan.subject.get("url", "")), "")

    def note(text: str) -> None:
        with log.open("a") as file:
            file.write(f"{datetime.now(UTC):%FT%TZ} {text}\n")
        say(text)

    def state() -> Matrix:
        return Matrix(
            subject=plan.digest, release=release, stack=stack, url=url, traffic=traffic,
            batches=plan.batches, workers=plan.workers, cells=tuple(done[key] for key in sorted(done)),
            analysis=_analysis(tuple(done.values()), plan, lost), server=server, tool_version=version,
        )  # fmt: skip

    wanted = plan.order
    kept = [key for key in wanted if key in done]
    if kept:
        note(f"{len(kept)} of {len(wanted)} cells are measured already")
    for number, (batch, workers) in enumerate(wanted, 1):
        if (batch, workers) in done:
            continue
        if stopped():
            note(f"stopped; {len(wanted) - len(done)} cells are left, the same command goes on with them")
            break
        result = cell(batch, workers)
        server, url, version = dict(result.server), result.url, result.tool_version
        if not result.runs or not result.runs[0].valid:
            because = result.runs[0].invalid_because if result.runs else "interrupted"
            lost.append(f"the cell of {batch} requests by {workers} workers does not count: {because}")
            note(f"[{number}/{len(wanted)}] {lost[-1]}")
            continue
        run = result.runs[0]
        # Series and histograms of every cell would make the file large and nobody looks at them.
        kept_run = run.model_copy(update={"series": {}, "histograms": {}})
        done[batch, workers] = Cell(batch=batch, workers=workers, run=kept_run, vram_bytes=_vram(result))
        _write(path, state())
        note(f"[{number}/{len(wanted)}] {batch} requests by {workers} workers: {_words(done[batch, workers])}")
    final = state()
    _write(path, final)
    return final


def _analysis(cells: Sequence[Cell], plan: Plan, lost: Sequence[str]) -> Any:
    samples, short = [], list(lost)
    for one in cells:
        sample = sample_of(one)
        if sample is not None:
            samples.append(sample)
        else:
            short.append(
                f"the cell of {one.batch} requests by {one.workers} workers was too short to know a sustained rate"
            )
    starved = [one for one in cells if one.run.warnings]
    if starved:
        worst = starved[-1].run.warnings[0]
        short.append(
            f"{len(starved)} of {len(cells)} cells were measured while the machine was short of cores: {worst}"
        )
    return analyse(samples, forecasts=plan.forecasts, lost=short)


def _vram(result: Result) -> float | None:
    seen = result.runs[0].metrics.get("gpu_memory_bytes_max")
    told = result.server.get("vram_bytes")
    return seen if seen is not None else float(told) if isinstance(told, int | float) else None


def _words(cell: Cell) -> str:
    metrics = cell.run.metrics
    rate = metrics.get("sustained_requests_per_second")
    words = (
        f"{rate:.2f} requests/s sustained" if rate else f"{metrics['requests_per_second']:.2f} requests/s (too short)"
    )
    return f"{words}, {metrics['error_rate']:.2%} errors, {cell.run.ok} answers in {cell.run.seconds:.1f} s"


def _write(path: Path, matrix: Matrix) -> None:
    """All or nothing: whoever is interrupted here loses one cell at most."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stacks.write_whole(path, matrix.model_dump_json(indent=1) + "\n")
