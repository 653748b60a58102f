"""The typed words of the design: release, fleet, traffic, objectives, benchmark, stack, pipeline.

Deliberately not here: whether a combination can work (memory, MIG profiles, quotas). That is the planner's, which knows
the catalog; these models only know what is well-formed.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from ._base import Digest, Image, Model, Name, NonNegative, Positive, Share
from ._fleet import Fleet
from ._ground import Capability, Dns, Gateway, Gke, Serving
from ._scaling import Autoscaling


class Parallelism(Model):
    """How one replica serves many requests.

    `slots`: requests decoded at once per replica (`OLLAMA_NUM_PARALLEL`, `--max-num-seqs`); `auto`: by plan.
    `tensor`, `pipeline`: ranks over which one replica's weights are split. `parallelism: auto` in a release stands for slots
    by plan and one rank per GPU of `accelerator.count`.
    """

    slots: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    tensor: Annotated[int, Field(ge=1, le=64)] = 1
    pipeline: Annotated[int, Field(ge=1, le=64)] = 1


class Accelerator(Model):
    """What one replica asks of a node, in GKE's names (`nvidia-l4`, `nvidia-a100-80gb`); `count` GPUs or MIG slices."""

    gpu: Name
    count: Annotated[int, Field(ge=1, le=64)] = 1
    mig_profile: Annotated[str, Field(pattern=r"^[1-7]g\.[0-9]+gb$")] | None = None


class Release(Model):
    """What is promoted, and nothing else. Its digest (`values.release_digest`) names it everywhere."""

    name: Name
    engine: Name
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z._+-]{0,63}$")]
    image: Image
    model: Name
    source: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")]
    revision: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9._:-]+$")] | None = None
    quantization: Name
    context_tokens: Annotated[int, Field(ge=128, le=10_000_000)]
    parallelism: Parallelism = Parallelism()
    kv_cache: Literal["f16", "bf16", "fp8", "q8_0", "q4_0"] = "f16"
    accelerator: Accelerator
    chart: Name

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, value: object) -> object:
        """`parallelism: auto`: slots by plan, and the weights over all GPUs that a replica asks for on its node."""
        if not isinstance(value, dict) or value.get("parallelism") != "auto":
            return value
        accelerator = value.get("accelerator")
        count = accelerator.get("count", 1) if isinstance(accelerator, dict) else 1
        # Ollama splits layers, vLLM tensors.
        split = "pipeline" if value.get("engine") == "ollama" else "tensor"
        return {**value, "parallelism": {"slots": "auto", split: count}}


class Tokens(Model):
    """Length of prompts or replies: mean in tokens, and coefficient of variation (0: always the mean)."""

    mean: Positive
    cv: NonNegative = 0.0


class Prefix(Model):
    """A beginning that prompts have in common (a system prompt): `tokens` of every prompt, found in the engine's prefix cache
    by `hit_rate` of the requests."""

    tokens: Positive
    hit_rate: Share = 1.0


class Traffic(Model):
    """Who asks what.

    `closed`: `users` people, each waiting for the reply and then `think_seconds` before asking again.
    `poisson`, `constant`: `requests_per_second` arrivals whatever the service does. `prefix`: of `prompt_tokens`; absent:
    no two prompts begin alike.
    """

    arrival: Literal["closed", "poisson", "constant"] = "closed"
    users: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    think_seconds: NonNegative = 0.0
    requests_per_second: Positive | None = None
    prompt_tokens: Tokens
    output_tokens: Tokens
    prefix: Prefix | None = None

    @field_validator("prompt_tokens", "output_tokens", mode="before")
    @classmethod
    def _bare_number(cls, value: object) -> object:
        return {"mean": value} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.arrival == "closed" and self.users is None:
            raise ValueError("arrival 'closed' needs 'users'")
        if self.arrival != "closed" and self.requests_per_second is None:
            raise ValueError(f"arrival '{self.arrival}' needs 'requests_per_second'")
        if self.prefix is not None and self.prefix.tokens >= self.prompt_tokens.mean:
            raise ValueError(f"prefix.tokens must be below the {self.prompt_tokens.mean:g} of prompt_tokens")
        return self


class Objectives(Model):
    """What is promised. A field that is absent is not promised; an empty promise is refused.

    Every field is named after the metric of `bench.Run.metrics` that it limits; see `OBJECTIVES` for the direction.
    """

    ttft_p95_seconds: Positive | None = None
    itl_p95_seconds: Positive | None = None
    e2e_p95_seconds: Positive | None = None
    error_rate: Share | None = None
    requests_per_second: Positive | None = None
    goodput: Share | None = None
    cost_per_million_tokens_usd: Positive | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if all(value is None for value in self.__dict__.values()):
            raise ValueError("promise at least one objective, for example e2e_p95_seconds")
        return self

    def items(self) -> tuple[tuple[str, float], ...]:
        """The promised (metric, limit) pairs, in the order of the fields."""
        return tuple((name, float(value)) for name, value in self if value is not None)


# metric -> (whether the limit is an upper or a lower bound, unit, words for people)
OBJECTIVES: dict[str, tuple[Literal["at most", "at least"], str, str]] = {
    "ttft_p95_seconds": ("at most", "s", "time to first token, p95"),
    "itl_p95_seconds": ("at most", "s", "inter-token latency, p95"),
    "e2e_p95_seconds": ("at most", "s", "end-to-end latency, p95"),
    "error_rate": ("at most", "", "error rate"),
    "requests_per_second": ("at least", "req/s", "sustained rate"),
    "goodput": ("at least", "", "goodput"),
    "cost_per_million_tokens_usd": ("at most", "$/M tokens", "cost per million output tokens"),
}


class Benchmark(Model):
    """The load a stack is measured with after deployment: its traffic, `runs` times, `seconds` each.

    `against`: a stack of the same cluster that runs the baseline; each run here is then followed by one there, so that the
    comparison of the two is not one of two times. `image`: of the load generator.
    """

    runs: Annotated[int, Field(ge=1, le=100)] = 5
    seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    against: Name | None = None
    image: Image = "ghcr.io/tollgate/bench:0.1.0"


class Promotion(Model):
    """Written by `tollgate promote` into the stack that took a release over."""

    source: Name = Field(alias="from")
    release: Digest
    evidence: Digest
    at: datetime

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Stack(Model):
    """One environment: `stacks/Pulumi.<name>.yaml`, its release loaded.

    `cluster`: the embedded cluster, the kubeconfig's context, or the GKE clusters without their `-<region>`, by target; see
    `Gke.names` for others. `has`: what an existing cluster offers beside Kubernetes itself.
    """

    name: Name
    target: Literal["gke", "kubernetes", "local"]
    release: Release
    fleet: Fleet
    traffic: Traffic
    objectives: Objectives
    benchmark: Benchmark | None = None
    evidence: str = "file://.tollgate/evidence"
    cluster: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,200}$")] = "default"
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    project: str | None = None
    has: tuple[Capability, ...] = ()
    gke: Gke = Gke()
    serving: Serving = Serving()
    gateway: Gateway | None = None
    autoscaling: Autoscaling = Autoscaling()
    dns: Dns | None = None
    promotion: Promotion | None = None

    @property
    def simulated(self) -> bool:
        """Whether what answers is our simulator, whose numbers say nothing about a GPU."""
        return self.target == "local" or self.serving.simulate

    @model_validator(mode="after")
    def _stands(self) -> Self:
        self._scales()
        if self.dns is not None:
            if self.gateway is None or not self.gateway.external:
                raise ValueError("dns names the gateways of the regions: set gateway.external to true")
            self.dns.weights_of(self.fleet.regions)
        if self.target != "gke" and len(self.fleet.regions) > 1:
            raise ValueError(f"fleet.regions names {len(self.fleet.regions)}; target {self.target} is one cluster")
        elsewhere = sorted(set(self.gke.names) - set(self.fleet.regions))
        if elsewhere:
            raise ValueError(f"gke.names has {elsewhere[0]}, which is none of the fleet's regions")
        unnamed = [region for region in self.fleet.regions if region not in self.gke.names]
        if self.gke.adopt and len(self.fleet.regions) > 1 and unnamed:
            raise ValueError(f"gke.adopt over several regions: name the existing cluster of {unnamed[0]} in gke.names")
        if self.target == "gke" and not self.project:
            raise ValueError("target gke needs tollgate:project, the Google Cloud project")
        return self

    def _scales(self) -> None:
        proxy = self.gateway is not None and self.gateway.kind == "proxy"
        if self.autoscaling.replicas_min == 0 and not proxy:
            raise ValueError(
                "autoscaling.replicas_min is 0, but nothing holds requests while nobody serves: set gateway.kind to proxy"
            )
        if self.autoscaling.policy == "simulator" and not self.simulated:
            raise ValueError("autoscaling.policy simulator is for a fleet of simulators: choose queue-and-slots")


class Criteria(Model):
    """What an edge of the pipeline asks of the evidence.

    `confidence`: of the one-sided bounds over runs. `max_evidence_age_hours`: older is stale.
    `headroom`: measured capacity × fleet at max must carry the target's traffic this many times.
    `max_regression`: largest accepted worsening against the baseline, per metric, as a share (0.1: 10 %); of a metric that
    is a share itself (error rate, goodput) in points (0.01: one in a hundred requests more).
    `min_requests`: answered in every run; fewer have no 95th percentile. `looks`: how often a release may be measured until
    it passes; the permitted error is divided among them. `soak_hours`: since it first passed. `approvals`: signed ones, each
    by another key. `match`: what must be the same besides accelerator, slice and whether the engine is simulated.
    """

    min_runs: Annotated[int, Field(ge=2, le=100)] = 3
    min_requests: Annotated[int, Field(ge=20, le=1_000_000)] = 50
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    looks: Annotated[int, Field(ge=1, le=10)] = 1
    max_evidence_age_hours: Positive = 168.0
    soak_hours: NonNegative = 0.0
    headroom: Positive = 1.0
    max_regression: dict[str, Positive] = Field(default_factory=dict)
    approvals: Annotated[int, Field(ge=0, le=10)] = 0
    match: tuple[Literal["machine_type", "region", "target"], ...] = ("machine_type",)

    @field_validator("max_regression")
    @classmethod
    def _known_metric(cls, value: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(value) - set(OBJECTIVES))
        if unknown:
            raise ValueError(f"unknown metric {unknown[0]!r}; allowed: {', '.join(OBJECTIVES)}")
        return value


class Stage(Model):
    """A stack's place in the pipeline; `after` names the stage whose evidence lets a release in (absent: ungated).

    `criteria`: of the edge into it; those of a stage without `after` judge what it measures itself. `digests_only`: no image
    of this stack may be named by tag alone, whatever its own file says.
    """

    stack: Name
    after: Name | None = None
    criteria: Criteria = Criteria()
    digests_only: bool = False


class Pipeline(Model):
    """`stacks/pipeline.yaml`: the stages in order. A stage may only come after one that stands before it: no cycles.

    A stage may name several stacks (`stack: [prod-us, prod-eu]`): the same edge into each of them, one stage per stack here.
    """

    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]

    @field_validator("stages", mode="before")
    @classmethod
    def _fan_out(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        found: list[object] = []
        for stage in value:
            several = stage.get("stack") if isinstance(stage, dict) else None
            if isinstance(several, list):
                if not several:
                    raise ValueError("a stage needs at least one stack")
                found += [{**stage, "stack": stack} for stack in several]
            else:
                found.append(stage)
        return found

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        seen: set[str] = set()
        for stage in self.stages:
            if stage.stack in seen:
                raise ValueError(f"stack {stage.stack!r} stands twice")
            if stage.after is not None and stage.after not in seen:
                raise ValueError(f"stack {stage.stack!r} comes after {stage.after!r}, which does not stand before it")
            seen.add(stage.stack)
        return self

    def stage(self, stack: str) -> Stage | None:
        """The stage of that stack, or None where the pipeline does not name it."""
        return next((stage for stage in self.stages if stage.stack == stack), None)

    def consumers(self, stack: str) -> tuple[Stage, ...]:
        """The stages that take releases from that stack."""
        return tuple(stage for stage in self.stages if stage.after == stack)

    def min_requests(self, stack: str) -> int:
        """How many requests each run has to answer for every stage that judges what the stack measures."""
        return max([self.home(stack).min_requests, *(stage.criteria.min_requests for stage in self.consumers(stack))])

    def home(self, stack: str) -> Criteria:
        """The criteria that judge what a stack measures on itself: its consumer's (the first one's), else its own."""
        consumers, own = self.consumers(stack), self.stage(stack)
        if own is not None and "criteria" in own.model_fields_set and own.after is None:
            return own.criteria
        return consumers[0].criteria if consumers else own.criteria if own is not None else Criteria()
