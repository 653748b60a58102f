"""How long an engine's steps take on a GPU: a roofline of few constants, the same for the planner and the simulator.

One step of an engine runs `b` sequences by one token each and, mixed in, any number of prompt tokens:

    step = overhead + max(weights read / bandwidth, 2 × active parameters × b / FLOP/s)
         + keys and values read / bandwidth + b × cost per sequence + communication between ranks

Prompt tokens add their arithmetic: 2 × active parameters + attention, over the FLOP/s that prefill reaches. The form is
the roofline of Pope et al., "Efficiently Scaling Transformer Inference" (arXiv:2211.05102), sections 2 and 3; the
efficiencies and overheads are the engine's constants in `catalog/engines.yaml`, each with its source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ._catalog import CatalogModel, Engine, Gpu, Quantization, catalog
from ._memory import KV_BYTES, memory_for, weights_bytes

if TYPE_CHECKING:
    from stacks import Prefix, Release

# One hop of activations between pipeline stages, over the network without RDMA. Assumed.
_NETWORK_HOP_SECONDS = 40e-6


# The fields of `Timing` that a step's time is made of.
_SECONDS = (
    "overhead",
    "sequence",
    "weights",
    "expert_weights",
    "arithmetic",
    "kv_per_token",
    "kv_per_window_token",
    "prefill_per_token",
    "prefill_per_token_squared",
    "communication_per_token",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds of one replica's steps.

    `slots`: the most sequences in one step that memory holds at the full context (`max_slots` of the memory model).
    `load_seconds`: weights from disk; `start_seconds`: process start, compilation and graph capture, without the weights.
    The other fields are the terms of the step, already divided by what the hardware reaches. `prefix_tokens` of every
    prompt are found in the prefix cache by `prefix_hit_rate` of the requests (see `with_prefix`).
    """

    slots: int
    load_seconds: float
    start_seconds: float
    overhead: float
    sequence: float
    weights: float
    expert_weights: float
    expert_miss: float
    arithmetic: float
    kv_per_token: float
    kv_per_window_token: float
    window: float
    prefill_per_token: float
    prefill_per_token_squared: float
    communication_per_token: float
    stages: int
    prefix_tokens: float = 0.0
    prefix_hit_rate: float = 0.0

    def with_prefix(self, prefix: Prefix | None) -> Timing:
        """The same replica under prompts that begin alike: what the cache holds need not be worked again."""
        if prefix is None:
            return self
        return replace(self, prefix_tokens=float(prefix.tokens), prefix_hit_rate=float(prefix.hit_rate))

    def shared(self, replicas: int) -> Timing:
        """One of so many replicas that take turns on the same GPU: every step as long as if all were always busy."""
        if replicas == 1:
            return self
        return replace(self, **{name: getattr(self, name) * replicas for name in _SECONDS})

    def decode_step_seconds(self, running: int | float, context_tokens: float) -> float:
        """Seconds of one step in which `running` sequences of that mean context each get one token.

        0 for nobody. `running` may be a mean over time. Under pipeline parallelism the sequences are split over the
        stages in flight, so that each step of one sequence passes all stages with `running` / stages of them.
        """
        if running <= 0:
            return 0.0
        batch = max(1.0, running / self.stages)
        experts = self.expert_weights * (1.0 - self.expert_miss**batch) if self.expert_weights else 0.0
        linear = max(self.weights + experts, self.arithmetic * batch)
        cache = self.kv_per_token * context_tokens + self.kv_per_window_token * min(context_tokens, self.window)
        return self.overhead + linear + batch * (cache + self.communication_per_token) + running * self.sequence

    def prefill_seconds(self, prompt_tokens: int | float, running: int | float = 0) -> float:
        """Seconds by which `prompt_tokens` of prompt lengthen a step that `running` sequences share.

        With `running` 0 nobody shares the pass over the weights: at least one whole step. Tokens that the prefix cache
        holds cost nothing themselves; the others still attend to them.
        """
        if prompt_tokens <= 0:
            return 0.0
        seconds = prompt_tokens * (self.prefill_per_token + prompt_tokens * self.prefill_per_token_squared)
        if self.prefix_hit_rate:
            cached = max(0.0, min(self.prefix_tokens, prompt_tokens - 1))
            saved = cached * (self.prefill_per_token + cached * self.prefill_per_token_squared)
            seconds -= self.prefix_hit_rate * saved
        return seconds if running > 0 else max(seconds, self.decode_step_seconds(1, 0.0))

    def bound_by(self, running: float, context_tokens: float) -> str:
        """Which part of such a step is the longest: `bandwidth`, `compute`, `overhead` or `communication`."""
        batch = max(1.0, running / self.stages)
        experts = self.expert_weights * (1.0 - self.expert_miss**batch) if self.expert_weights else 0.0
        weights, arithmetic = self.weights + experts, self.arithmetic * batch
        cache = self.kv_per_token * context_tokens + self.kv_per_window_token * min(context_tokens, self.window)
        parts = {
            "bandwidth": (weights if weights >= arithmetic else 0.0) + batch * cache,
            "compute": arithmetic if arithmetic > weights else 0.0,
            "overhead": self.overhead + running * self.sequence,
            "communication": batch * self.communication_per_token,
        }
        return max(parts, key=lambda name: parts[name])

    def request_seconds(self, running: float, prompt_tokens: float, output_tokens: float) -> float:
        """Seconds from admission to the last token where `running` requests (this one included) are always in work.

        While a request decodes, the engine also works the prompts of the others, one each per request's lifetime.
        """
        together = max(1.0, running)
        context = prompt_tokens + output_tokens / 2
        steps = max(0.0, output_tokens - 1) * self.decode_step_seconds(together, context)
        # All prompts, and never less than the one pass over the weights that a single one needs.
        prompts = together * self.prefill_seconds(prompt_tokens, 1)
        return max(prompts, self.prefill_seconds(prompt_tokens, 0)) + steps


def timing(release: Release) -> Timing:
    """The latency model of one replica of a release. Raises InputError for names the catalog does not know."""
    return timing_for(
        engine=release.engine,
        model=release.model,
        quantization=release.quantization,
        gpu=release.accelerator.gpu,
        mig_profile=release.accelerator.mig_profile,
        tensor=release.parallelism.tensor,
        pipeline=release.parallelism.pipeline,
        kv_cache=release.kv_cache,
        context_tokens=release.context_tokens,
    )


def timing_for(
    *,
    engine: str,
    model: str,
    quantization: str,
    gpu: str,
    mig_profile: str | None = None,
    tensor: int = 1,
    pipeline: int = 1,
    kv_cache: str = "f16",
    context_tokens: int = 2048,
) -> Timing:
    """The same by parts, as an engine in a pod knows them: `model` by any of its names, `gpu` in GKE's name.

    Raises InputError for names the catalog does not know.
    """
    known = catalog()
    served, weights, card = known.model(model), known.quantization(quantization), known.gpu(gpu)
    memory = memory_for(
        engine=known.engine(engine),
        model=served,
        quantization=weights,
        gpu=card,
        mig_profile=mig_profile,
        tensor=tensor,
        pipeline=pipeline,
        kv_cache=kv_cache,
        context_tokens=context_tokens,
    )
    return build(
        engine=known.engine(engine),
        model=served,
        quantization=weights,
        gpu=card,
        slots=memory.max_slots,
        mig_profile=mig_profile,
        tensor=tensor,
        pipeline=pipeline,
        kv_cache=kv_cache,
    )


def build(
    *,
    engine: Engine,
    model: CatalogModel,
    quantization: Quantization,
    gpu: Gpu,
    slots: int,
    mig_profile: str | None = None,
    tensor: int = 1,
    pipeline: int = 1,
    kv_cache: str = "f16",
) -> Timing:
    """The terms of the step for entries of a catalog (see the module's docstring); `slots`: that memory holds."""
    profile = gpu.mig[mig_profile] if mig_profile else None
    bandwidth = gpu.bandwidth * engine.bandwidth_efficiency * tensor * (profile.bandwidth_share if profile else 1.0)
    peak = gpu.flops.get(quantization.arithmetic, gpu.flops["bf16"])
    flops = peak * engine.compute_efficiency * tensor * (profile.compute_share if profile else 1.0)

    linear_bytes = quantization.linear_bits / 8
    shared = model.attention_parameters * linear_bytes + model.embedding_parameters * quantization.head_bits / 8
    mlp = model.expert_parameters * linear_bytes
    dense = model.experts == 1
    kv = 2 * model.kv_heads * model.head_dim * KV_BYTES[kv_cache] * max(1.0, tensor / model.kv_heads) / bandwidth
    windowed = model.layers - model.full_attention_layers
    # The head is computed for the last token of a prompt only.
    prompt_parameters = model.active_parameters - model.embedding_parameters
    # Scores and their product with the values: 2 × 2 FLOP per head element and pair of tokens, half of them causal.
    attention = 2 * model.heads * model.head_dim * model.full_attention_layers / flops
    reduce_bytes = 2 * 2 * model.hidden * 2.0 * (tensor - 1) / tensor  # two all-reduces, ring, 16-bit activations
    hops = (2 * model.layers * gpu.hop if tensor > 1 else 0.0) + (pipeline - 1) * _NETWORK_HOP_SECONDS
    stages = 1 if engine.id == "ollama" else pipeline
    return Timing(
        slots=slots,
        load_seconds=weights_bytes(model, quantization) / (engine.disk_gb_per_second * 1e9),
        start_seconds=engine.start_seconds,
        overhead=engine.step_overhead_seconds + hops,
        sequence=engine.sequence_seconds + engine.logit_seconds * model.vocabulary,
        weights=(shared + (mlp if dense else 0.0)) / bandwidth,
        expert_weights=0.0 if dense else mlp / bandwidth,
        expert_miss=1.0 - model.experts_per_token / model.experts,
        arithmetic=2 * model.active_parameters / flops,
        kv_per_token=kv * model.full_attention_layers,
        kv_per_window_token=kv * windowed,
        window=float(model.window or 0),
        prefill_per_token=2 * prompt_parameters / flops / stages,
        prefill_per_token_squared=attention / stages,
        communication_per_token=model.layers * reduce_bytes / gpu.link,
        stages=stages,
    )
