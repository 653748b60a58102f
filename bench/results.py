"""What one benchmark measured: the contract between the benchmark (writes it) and the gate (judges it).

A `Result` holds several `Run`s. One run is one sample: percentiles are taken within a run, statistics over runs.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

import stacks

Metric = Annotated[float, Field(allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(_Frozen):
    """One sample.

    A request belongs to the steady window when it ended within it (ok, failed) or was still in flight when it closed
    (cut). In a steady state those that end in a window are a fair sample of all, however long each takes.

    `metrics`: by the names of `stacks.OBJECTIVES`, plus at least `e2e_mean_seconds`, `e2e_p50_seconds`, `e2e_p99_seconds`,
    `ttft_mean_seconds`, `output_tokens_per_second`; only what was measured (a stream-less run has no `itl_…`); docs/benchmark.md
    has them all. `warmup`: what came before the steady window, reported apart.
    `sent == ok + failed + cut` always holds; `errors` are the failed ones by kind (`http_503`, `truncated`, `timeout`…).
    `valid`: False when the client was the bottleneck, the run was too short to be representative, or it was interrupted;
    `invalid_because` then says which, in one sentence. An invalid run never passes a gate.
    `warnings`: what else has to be known before it is believed, in sentences; they forbid nothing.
    `client`: what the client saw of itself (`cpu_share` of one core, `core_waited_share` of the time without one,
    `loop_delay_p99_seconds`, `schedule_lag_p99_seconds`, `retries`, `connections`), and of a machine that it shares with the
    service (`machine_pressure_share`, `service_waited_share`, `service_waited_mean_seconds`; Linux only).
    `series`: the run over time from its first request on, warm-up included; `seconds` is the
    end of each step, null where nothing ended in it. The server's side is in it where a Prometheus could be asked.
    `histograms`: by metric family (`e2e_seconds`, `ttft_seconds`, `itl_seconds`, `itl_request_seconds`, `tpot_seconds`,
    `queue_seconds`), in the mergeable form of `bench.load`.
    """

    started: datetime
    seconds: Annotated[float, Field(gt=0)]
    warmup_seconds: Annotated[float, Field(ge=0)]
    warmup: dict[str, Metric] = {}
    sent: Annotated[int, Field(ge=0)]
    ok: Annotated[int, Field(ge=0)]
    failed: Annotated[int, Field(ge=0)]
    cut: Annotated[int, Field(ge=0)]
    errors: dict[str, int] = {}
    metrics: dict[str, Metric]
    valid: bool
    invalid_because: str = ""
    warnings: tuple[str, ...] = ()
    client: dict[str, Metric] = {}
    histograms: dict[str, dict[str, Any]] = {}
    series: dict[str, tuple[Metric | None, ...]] = {}

    @field_validator("started")
    @classmethod
    def _with_offset(cls, started: datetime) -> datetime:
        """Two moments cannot be ordered if one of them is nowhere's."""
        return started if started.tzinfo is not None else started.replace(tzinfo=UTC)


class Result(_Frozen):
    """All runs of one benchmark of one release on one stack.

    `release`: the digest of what was measured. `traffic`: what it was measured with.
    `server`: what the engine said of itself (engine, version, model, slots), or what could be read from its metrics.
    `environment`: accelerator, machine type, region, replicas, simulated (bool) and whatever else must match the target.
    """

    schema_version: Literal[1] = 1
    release: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    stack: str
    url: str
    traffic: stacks.Traffic
    replicas: Annotated[int, Field(ge=1)]
    runs: tuple[Run, ...]
    server: dict[str, str | int | float | bool] = {}
    environment: dict[str, str | int | float | bool] = {}
    tool_version: str


class LimitStep(_Frozen):
    """One rate that was tried, and why it does not hold (empty: it holds)."""

    requests_per_second: Annotated[float, Field(gt=0)]
    because: str
    run: Run


class Limit(_Frozen):
    """How much a service carries, found by bisection: what `tollgate bench --find-limit` writes.

    `highest…`: the highest rate that kept the objectives (0: none did); `lowest_refused…`: the lowest that did not (null:
    none was found); `knee…`: the rate of the greatest power, rate over mean latency. Steps are in the order of trying.
    """

    kind: Literal["limit"] = "limit"
    schema_version: Literal[1] = 1
    release: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    stack: str
    url: str
    traffic: stacks.Traffic
    objectives: stacks.Objectives | None = None
    highest_requests_per_second: float
    lowest_refused_requests_per_second: float | None
    knee_requests_per_second: float
    interrupted: bool = False
    steps: tuple[LimitStep, ...]
    server: dict[str, str | int | float | bool] = {}
    tool_version: str


class Cell(_Frozen):
    """One batch of so many requests by so many workers, each with one request at a time. `vram_bytes`: of the model, or
    the most that the GPUs had in use; null where nobody tells."""

    batch: Annotated[int, Field(ge=1)]
    workers: Annotated[int, Field(ge=1)]
    run: Run
    vram_bytes: float | None = None


class Level(_Frozen):
    """What all cells of one worker count (or of one setting of the engine) together say: sustained requests/s with its
    95 % interval; `refused`: why it cannot be chosen (errors, a broken promise), or nothing."""

    workers: int
    requests_per_second: float
    low: float
    high: float
    error_rate: float
    e2e_p95_seconds: float | None = None
    refused: str = ""


class Forecast(_Frozen):
    """How long a batch of so many requests would take with the best worker count; seconds, with a 90 % interval."""

    requests: int
    seconds: float
    low: float
    high: float


class Analysis(_Frozen):
    """`scenario`: whether workers help, don't help, or hurt, and how sure that is (unknown: there was one number of them only,
    and both confidences are 0); `optimal`: the fewest workers within
    5 % of the best rate, and how sure. `warnings`: why not to trust it further, in sentences."""

    scenario: Literal["workers help", "workers do not help", "workers hurt", "unknown"]
    confidence: Annotated[float, Field(ge=0, le=1)]
    because: str
    optimal_workers: int
    optimal_confidence: Annotated[float, Field(ge=0, le=1)]
    levels: tuple[Level, ...]
    forecasts: tuple[Forecast, ...] = ()
    warnings: tuple[str, ...] = ()


class Matrix(_Frozen):
    """Batch sizes × workers: what `tollgate bench matrix` writes. `subject`: the digest of everything that a cell depends
    on; a file of another subject is not continued. `analysis`: null until there are enough cells."""

    kind: Literal["matrix"] = "matrix"
    schema_version: Literal[1] = 1
    subject: str
    release: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    stack: str
    url: str
    traffic: stacks.Traffic
    batches: tuple[int, ...]
    workers: tuple[int, ...]
    cells: tuple[Cell, ...] = ()
    analysis: Analysis | None = None
    server: dict[str, str | int | float | bool] = {}
    tool_version: str


class Tuning(_Frozen):
    """A setting of a deployed engine, tried: what `tollgate tune` leaves beside the release that it writes the best value
    into. `setting`: `OLLAMA_NUM_PARALLEL` or `--max-num-seqs`; `runs`: the samples, by value; in `analysis` the value stands
    for workers."""

    kind: Literal["tuning"] = "tuning"
    schema_version: Literal[1] = 1
    stack: str
    release: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    setting: str
    users: int
    at: datetime
    runs: dict[str, tuple[Run, ...]]
    analysis: Analysis | None
    tool_version: str


_KINDS: dict[str, type[Result | Limit | Matrix | Tuning]] = {"limit": Limit, "matrix": Matrix, "tuning": Tuning}


def read(path: Path) -> Result | Limit | Matrix | Tuning:
    """A file of `--json`, of whichever kind. Raises InputError when it is none."""
    try:
        given = json.loads(path.read_bytes())
        kind = str(given.get("kind", "")) if isinstance(given, dict) else ""
        return _KINDS.get(kind, Result).model_validate(given)
    except (OSError, ValueError, RecursionError) as error:
        raise stacks.InputError(
            where=str(path), got=str(error).splitlines()[0], allowed="a file that --json wrote", fix="name another"
        ) from error


def schema() -> str:
    """The JSON Schema of all kinds of file, as text."""
    anything: TypeAdapter[Result | Limit | Matrix | Tuning] = TypeAdapter(Result | Limit | Matrix | Tuning)
    made = anything.json_schema()
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Tollgate benchmark files, version 1"}
    return json.dumps({**head, **made}, indent=1, sort_keys=True)


class Pair(_Frozen):
    """What one benchmark Job leaves: its result, and that of the service that it was measured in turns with, if any."""

    result: Result
    against: Result | None = None


def read_pair(text: str) -> Pair:
    """A Job's result: a bare `Result`, or a `Pair`. Raises TollgateError for anything else: the pod wrote it."""
    try:
        found = json.loads(text)
        if isinstance(found, dict) and "result" in found:
            return Pair.model_validate(found)
        return Pair(result=Result.model_validate(found))
    except (ValueError, RecursionError) as error:
        what = " ".join(str(error).split())[:300]
        raise stacks.TollgateError(f"the benchmark Job left no result: {what}") from None
