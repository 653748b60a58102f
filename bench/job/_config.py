"""`bench.json`: what a benchmark Job is told."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import stacks

from .. import load as generator


class Against(BaseModel):
    """The service that runs are taken in turns with; each field as in `JobConfig`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    url: str
    engine: Literal["ollama", "vllm", "openai"]
    model: Annotated[str, Field(min_length=1)]
    release: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    stack: str
    replicas: Annotated[int, Field(ge=1)] = 1
    environment: dict[str, str | int | float | bool] = {}
    context_tokens: Annotated[int, Field(ge=2)] | None = None
    cost_per_hour_usd: Annotated[float, Field(ge=0)] | None = None


class JobConfig(BaseModel):
    """One benchmark of one release, as the stack's program writes it.

    `model`: the name by which the engine knows it. `release`: its digest. `result_configmap`: where the result goes;
    empty: nowhere but the log (a run by hand). `cost_per_hour_usd`: of the whole service, for the cost per token.

    `workload`: whose rollout has to be whole before anything is sent, as `apps/v1/deployments/engine` in `namespace`.
    `against`: another service, to be measured in turns with this one, run by run.
    `scenario`: what differs from the plain traffic; `workers`: processes per pod. `pods`: of an Indexed Job that measure
    together, the first of which listens at `coordinator` (host:port) for the others, who must know `token`; it writes
    progress and result into its log for a program to read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    url: str
    engine: Literal["ollama", "vllm", "openai"]
    model: Annotated[str, Field(min_length=1)]
    endpoint: Literal["chat", "generate"] = "chat"
    stream: bool = True
    traffic: stacks.Traffic
    objectives: stacks.Objectives | None = None
    runs: Annotated[int, Field(ge=1, le=100)] = 3
    seconds: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    requests: Annotated[int, Field(ge=1, le=10_000_000)] = 20
    release: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    stack: str
    replicas: Annotated[int, Field(ge=1)] = 1
    environment: dict[str, str | int | float | bool] = {}
    result_configmap: str = ""
    workload: Annotated[str, Field(pattern=r"^([a-z0-9.-]+/[a-z0-9]+/[a-z]+/[a-z0-9-]+)?$")] = ""
    rollout_timeout: Annotated[float, Field(gt=0)] = 900.0
    namespace: str = "default"
    cost_per_hour_usd: Annotated[float, Field(ge=0)] | None = None
    context_tokens: Annotated[int, Field(ge=2)] | None = None
    seed: int = 1
    against: Against | None = None
    reconnect: bool = False
    request_timeout: Annotated[float, Field(gt=0)] = 600.0
    ready_timeout: Annotated[float, Field(gt=0)] = 300.0
    scenario: generator.Scenario = generator.Scenario()
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    api_key: str = Field(default="", repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    insecure: bool = False
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    pods: Annotated[int, Field(ge=1, le=1000)] = 1
    coordinator: str = ""
    token: str = Field(default="", repr=False)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.pods > 1 or self.coordinator) and not (
            self.coordinator.rpartition(":")[2].isdigit() and len(self.token) >= 16
        ):
            raise ValueError("several pods need a coordinator (host:port) and a token of at least 16 characters")
        return self

    def target(self) -> generator.Target:
        """Where to send. Raises InputError for a wrong URL."""
        return generator.Target(
            url=self.url, engine=self.engine, model=self.model, endpoint=self.endpoint, stream=self.stream,
            api_key=self.api_key, headers=self.headers, insecure=self.insecure,
        )  # fmt: skip

    def settings(self) -> generator.Settings:
        """How to measure."""
        return generator.Settings(
            runs=self.runs,
            seconds=self.seconds,
            requests=self.requests,
            seed=self.seed,
            reconnect=self.reconnect,
            request_timeout=self.request_timeout,
            ready_timeout=self.ready_timeout,
            context_tokens=self.context_tokens,
            workers=self.workers,
            max_seconds=self.max_seconds or math.inf,
        )


def load(path: Path) -> JobConfig:
    """Read and check the file. Raises InputError naming the key.

    The service's API key comes from $TOLLGATE_API_KEY, where a Secret puts it: the file is a ConfigMap, which many may read.
    """
    try:
        config = JobConfig.model_validate_json(path.read_bytes())
        key = os.environ.get("TOLLGATE_API_KEY", "")
        return config.model_copy(update={"api_key": key}) if key else config
    except OSError as error:
        raise stacks.InputError(
            where=str(path),
            got=str(error.strerror),
            allowed="a readable JSON file",
            fix="mount the benchmark's ConfigMap",
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise stacks.InputError(
            where=f"{path}, {key}", got=repr(first["input"])[:200], allowed=first["msg"], fix=f"correct {key}"
        ) from None
