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

    `metrics`: by the names of `stacks.OBJECTIVES`, plus at least `e2e_mean_seconds`, `e2e_p50_seconds`, `e2e_p99_seconds`,
    `ttft_mean_seconds`, `output_tokens_per_second`; only what was measured (a stream-less run has no `itl_…`).
    `requests`: how many were sent within the steady window; `sent == ok + failed + cut` always holds.
    `valid`: False when the client was the bottleneck, the run was too short to be representative, or it was interrupted;
    `invalid_because` then says which, in one sentence. An invalid run never passes a gate.
    `histograms`: by metric family (`e2e_seconds`, `ttft_seconds`, `itl_seconds`), in the mergeable form of `bench.load`.
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
