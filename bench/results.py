"""What one benchmark measured: the contract between the benchmark (writes it) and the gate (judges it).

A `Result` holds several `Run`s. One run is one sample: percentiles are taken within a run, statistics over runs.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

import stacks

Metric = Annotated[float, Field(allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(_Frozen):
    """One sample.

    A request belongs to the steady window when it ended within it (ok, failed) or was still in flight when it closed
    (cut). In a steady state those that end in a window are a fair sample of all, however long each takes.

    `metrics`: by the names of `stacks.OBJECTIVES`, plus at least `e2e_mean_seconds`, `e2e_p50_seconds`, `e2e_p99_seconds`,
    `ttft_mean_seconds`, `output_tokens_per_second`; only what was measured (a stream-less run has no `itl_…`).
    `sent == ok + failed + cut` always holds; `errors` are the failed ones by kind (`http_503`, `truncated`, `timeout`…).
    `valid`: False when the client was the bottleneck, the run was too short to be representative, or it was interrupted;
    `invalid_because` then says which, in one sentence. An invalid run never passes a gate.
    `client`: what the client saw of itself (`cpu_share` of one core, `loop_delay_p99_seconds`, `schedule_lag_p99_seconds`,
    `retries`, `connections`). `series`: the run over time from its first request on, warm-up included; `seconds` is the
    end of each step, null where nothing ended in it.
    `histograms`: by metric family (`e2e_seconds`, `ttft_seconds`, `itl_seconds`, `tpot_seconds`), in the mergeable
    form of `bench.load`.
    """

    started: datetime
    seconds: Annotated[float, Field(gt=0)]
    warmup_seconds: Annotated[float, Field(ge=0)]
    sent: Annotated[int, Field(ge=0)]
    ok: Annotated[int, Field(ge=0)]
    failed: Annotated[int, Field(ge=0)]
    cut: Annotated[int, Field(ge=0)]
    errors: dict[str, int] = {}
    metrics: dict[str, Metric]
    valid: bool
    invalid_because: str = ""
    client: dict[str, Metric] = {}
    histograms: dict[str, dict[str, Any]] = {}
    series: dict[str, tuple[Metric | None, ...]] = {}


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
