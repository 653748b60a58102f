"""Memory of one replica: weights, keys and values per slot, and what the engine takes for itself."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._catalog import CatalogModel, Engine, Gpu, Quantization

if TYPE_CHECKING:
    from stacks import Prefix

# Bytes per element of a KV cache: q8_0 and q4_0 store one f16 scale per block of 32 (llama.cpp's block layout).
KV_BYTES = {"f16": 2.0, "bf16": 2.0, "fp8": 1.0, "q8_0": 34 / 32, "q4_0": 18 / 32}


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one replica over all its ranks.

    `usable_bytes`: what the engine may take. `prefix_bytes`: of a prefix kept once for all who hit it. `kv_bytes_per_slot`:
    one request at the full context, less what it shares. `max_slots`: how many such requests fit beside weights, overhead
    and prefix; 0 where not one does.
    """

    gpu_bytes: float
    usable_bytes: float
    weights_bytes: float
    overhead_bytes: float
    prefix_bytes: float
    kv_bytes_per_slot: float
    max_slots: int

    def held(self, replicas: int) -> int:
        """How many slots each of so many replicas has that share this memory."""
        if replicas == 1:
            return self.max_slots
        free = self.usable_bytes / replicas - self.weights_bytes - self.overhead_bytes - self.prefix_bytes
        return max(0, min(int(free // self.kv_bytes_per_slot), self.max_slots))

    def used_bytes(self, slots: int) -> float:
        """Bytes with every slot at its full context."""
        return self.weights_bytes + self.overhead_bytes + self.prefix_bytes + slots * self.kv_bytes_per_slot


@functools.cache
def weights_bytes(model: CatalogModel, quantization: Quantization) -> float:
    """Bytes of all weights as loaded. A tied head is stored once, at the head's precision; vision stays in 16 bits."""
    linear = (model.attention_parameters + model.expert_parameters) * quantization.linear_bits
    if model.tied:
        outer = model.embedding_parameters * quantization.head_bits
    else:
        outer = model.embedding_parameters * (quantization.embedding_bits + quantization.head_bits)
    return (linear + outer + model.other_parameters * 16) / 8


def kv_bytes(model: CatalogModel, kv_cache: str, tokens: float) -> float:
    """Bytes of keys and values of one sequence of that many tokens: 2 (K and V) × KV heads × head size × layers × tokens.

    Layers with a sliding window keep only the window.
    """
    per_token_and_layer = 2 * model.kv_heads * model.head_dim * KV_BYTES[kv_cache]
    windowed = model.layers - model.full_attention_layers
    kept = model.full_attention_layers * tokens + windowed * min(tokens, model.window or tokens)
    return per_token_and_layer * kept


def memory_for(
    *,
    engine: Engine,
    model: CatalogModel,
    quantization: Quantization,
    gpu: Gpu,
    mig_profile: str | None = None,
    tensor: int = 1,
    pipeline: int = 1,
    kv_cache: str = "f16",
    context_tokens: int = 2048,
    prefix: Prefix | None = None,
) -> Memory:
    """Memory of one replica of `tensor` × `pipeline` ranks, each a GPU or a MIG slice of `gpu`.

    Tensor ranks beyond the number of KV heads each keep a copy of a head. An engine that shares prefixes keeps the
    prefix once for all requests that hit it, which keep only the rest; layers with a window are counted as if they shared
    nothing. So a slot alone needs as much as without a prefix.
    """
    ranks = tensor * pipeline
    per_rank = gpu.mig[mig_profile].memory_bytes if mig_profile else gpu.memory_bytes
    usable = per_rank * engine.memory_utilization * ranks
    weights = weights_bytes(model, quantization)
    overhead = engine.overhead_gb * 1e9 * ranks
    copies = max(1.0, tensor / model.kv_heads)
    per_slot = kv_bytes(model, kv_cache, context_tokens) * copies
    shared = 0.0
    if prefix is not None and engine.shares_prefix:
        # The last token of a prompt is always worked anew: its logits are what the reply begins with.
        tokens = min(prefix.tokens, context_tokens - 1)
        per_token = 2 * model.kv_heads * model.head_dim * KV_BYTES[kv_cache] * copies * model.full_attention_layers
        shared = prefix.hit_rate * per_token * tokens
        per_slot -= shared
    free = usable - weights - overhead - shared
    return Memory(
        gpu_bytes=float(per_rank * ranks),
        usable_bytes=usable,
        weights_bytes=weights,
        overhead_bytes=overhead,
        prefix_bytes=shared,
        kv_bytes_per_slot=per_slot,
        max_slots=max(0, min(int(free // per_slot), engine.max_slots)),
    )
