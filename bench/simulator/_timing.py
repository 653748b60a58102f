"""How long the simulated GPU takes: the planner's latency model, or a small one of the same shape.

The planner is asked first. Its model is used wherever it knows the model and the GPU; a name it does not know is
simulated as a model of the size that its name says, on the same roofline, and the log says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ._options import Engine, warn

# Memory bandwidth in bytes/s, dense bf16 FLOP/s and memory in GiB, from NVIDIA's data sheets.
_GPUS: dict[str, tuple[float, float, float]] = {
    "nvidia-l4": (300e9, 121e12, 22.5),
    "nvidia-tesla-t4": (320e9, 65e12, 15.0),
    "nvidia-tesla-v100": (900e9, 125e12, 16.0),
    "nvidia-tesla-a100": (1555e9, 312e12, 39.4),
    "nvidia-a100-80gb": (2039e9, 312e12, 79.2),
    "nvidia-h100-80gb": (3350e9, 989e12, 79.2),
    "nvidia-h200-141gb": (4800e9, 989e12, 140.0),
}


class Timing(Protocol):
    """Seconds of one replica; the planner's `Timing` has this shape."""

    @property
    def load_seconds(self) -> float:
        """From disk to ready."""
        ...

    def prefill_seconds(self, prompt_tokens: int, running: int) -> float:
        """By which that many prompt tokens lengthen a step of `running` requests; with 0, a whole step at least."""
        ...

    def decode_step_seconds(self, running: int, context_tokens: float) -> float:
        """For one token of each of `running` requests with that mean context."""
        ...


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """A dense model on one GPU: decoding is bound by memory bandwidth, prompt processing by arithmetic.

    `step_base`: seconds to read the weights once; `step_per_request`: per further request in the batch;
    `step_per_token`: to read one token's keys and values; `prefill_per_token`: 2 FLOP per parameter at the usual efficiency.
    """

    step_base: float
    step_per_request: float
    step_per_token: float
    prefill_per_token: float
    load_seconds: float

    def prefill_seconds(self, prompt_tokens: int, running: int) -> float:
        """Linear in the tokens; alone, at least one pass over the weights."""
        seconds = prompt_tokens * self.prefill_per_token
        return seconds if running > 0 else max(seconds, self.decode_step_seconds(1, 0))

    def decode_step_seconds(self, running: int, context_tokens: float) -> float:
        """Weights once, and keys and values per request."""
        return self.step_base + running * (self.step_per_request + context_tokens * self.step_per_token)


def bits_per_weight(quantization: str) -> float:
    """Bits per weight by the name of a quantization; unquantized where the name says nothing."""
    name = quantization.lower()
    for pattern, bits in (
        ("q4", 4.85),
        ("awq", 4.3),
        ("gptq", 4.3),
        ("int4", 4.3),
        ("q5", 5.7),
        ("q6", 6.6),
        ("q8", 8.5),
        ("fp8", 8.0),
        ("int8", 8.0),
        ("q3", 3.9),
        ("q2", 3.0),
    ):
        if pattern in name:
            return bits
    return 16.0


def parameters(model: str) -> float:
    """Parameters by the size in a model's name (`gemma3:4b`, `Llama-3.1-70B`); 4e9 where it has none."""
    sizes: list[str] = re.findall(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)b(?![a-z0-9])", model.lower())
    return float(sizes[-1]) * 1e9 if sizes else 4e9


def roofline(*, model: str, quantization: str, gpu: str, share: float = 1.0, tensor: int = 1) -> Roofline:
    """The fallback model. Its efficiencies (0.6 of bandwidth, 0.35 of arithmetic) give 1.8 req/s of 128 tokens for five
    users of Gemma 3 4B on an L4 by Ollama with 8 slots, and 0.5 with 1: the case in `docs/architecture.md`."""
    bandwidth, flops, _ = _GPUS.get(gpu, _GPUS["nvidia-l4"])
    size = parameters(model)
    weights = size * bits_per_weight(quantization) / 8
    ranks = max(1, tensor) * share
    quantized = 1.0 if bits_per_weight(quantization) > 12 else 2.0
    return Roofline(
        step_base=weights / (bandwidth * 0.6 * ranks) + 0.0008,
        step_per_request=quantized * 2 * size / (flops * 0.35 * ranks) * 3,
        step_per_token=140e3 * (size / 4e9) ** 0.5 / (bandwidth * 0.6 * ranks),
        prefill_per_token=2 * size / (flops * 0.35 * ranks),
        load_seconds=1.0 + weights / 2e9,
    )


def mig_share(profile: str | None) -> float:
    """Share of a GPU's compute that a MIG profile has: `2g.20gb` is two of seven."""
    return int(profile[0]) / 7 if profile and profile[0].isdigit() else 1.0


def gpu_gib(gpu: str, profile: str | None) -> float:
    """Memory of the GPU or MIG slice, GiB."""
    match = re.search(r"\.(\d+)gb", profile or "")
    return float(match[1]) * 0.95 if match else _GPUS.get(gpu, _GPUS["nvidia-l4"])[2]


def kv_bytes_per_token(model: str, kv_cache: str) -> float:
    """Bytes of keys and values of one token: 140 kB for a 4B model at 16 bits, growing with the square root of the size."""
    width = 0.5 if kv_cache in ("q8_0", "fp8", "fp8_e4m3", "fp8_e5m2") else 0.25 if kv_cache.startswith("q4") else 1.0
    return float(140e3 * (parameters(model) / 4e9) ** 0.5 * width)


def gpu_blocks(engine: Engine) -> int:
    """Blocks of the KV cache: what the weights leave of `gpu_memory_utilization`, at least one request's worth."""
    least = -(-engine.context_tokens // engine.block_tokens) + 1
    if engine.num_gpu_blocks:
        return max(least, engine.num_gpu_blocks)
    planned = None if engine.sim.fixed else _planned_blocks(engine)
    if planned is None:
        weights = parameters(engine.source) * bits_per_weight(engine.quantization) / 8
        gib = gpu_gib(engine.gpu.name, engine.gpu.mig_profile) * engine.tensor
        free = gib * 2**30 * engine.gpu_memory_utilization - weights - 1.5e9
        planned = int(free / (kv_bytes_per_token(engine.source, engine.kv_cache) * engine.block_tokens))
    return max(least, planned)


def _names(model: str) -> Iterator[str]:
    """The names by which the planner may know `model`, the fullest first."""
    yield model
    plain = model.lower().removesuffix(":latest")
    yield plain
    base, _, tag = plain.partition(":")
    size = re.match(r"\d+(?:\.\d+)?b", tag)
    if size:
        yield f"{base}:{size[0]}"
    if "/" in plain:
        yield plain.rpartition("/")[2]


def _parts(engine: Engine, model: str) -> tuple[Any, dict[str, Any]] | None:
    """The planner and the arguments of its `timing_for`; None where it does not know the model or the GPU."""
    import planner

    known = planner.catalog()
    cache = {"auto": "bf16", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8"}.get(engine.kv_cache, engine.kv_cache)
    quantization = engine.quantization or quantization_of(model, engine.dialect)
    for name in _names(model):
        if name.lower() not in known.names:
            continue
        arguments = {
            "engine": engine.dialect,
            "model": name,
            "quantization": quantization,
            "gpu": engine.gpu.name,
            "mig_profile": engine.gpu.mig_profile,
            "tensor": engine.tensor,
            "kv_cache": cache,
            "context_tokens": engine.context_tokens,
        }
        return planner, arguments
    return None


def _planned(engine: Engine, model: str) -> Timing | None:
    try:
        found = _parts(engine, model)
        return None if found is None else found[0].timing_for(**found[1])
    except Exception as error:
        import stacks

        if not isinstance(error, stacks.TollgateError | KeyError):
            raise
        warn(f"simulator: the planner cannot time {model} ({str(error).splitlines()[0]}); a rougher model is used")
        return None


def _planned_blocks(engine: Engine) -> int | None:
    try:
        found = _parts(engine, engine.source)
        if found is None:
            return None
        planner, arguments = found
        known = planner.catalog()
        memory = planner.memory_for(
            engine=known.engine("vllm"),
            model=known.model(arguments["model"]),
            quantization=known.quantization(arguments["quantization"]),
            gpu=known.gpu(engine.gpu.name),
            mig_profile=engine.gpu.mig_profile,
            tensor=engine.tensor,
            kv_cache=arguments["kv_cache"],
            context_tokens=engine.context_tokens,
        )
    except Exception as error:
        import stacks

        if not isinstance(error, stacks.TollgateError | KeyError):
            raise
        return None
    usable = memory.gpu_bytes * engine.gpu_memory_utilization
    free = usable - memory.weights_bytes - memory.overhead_bytes
    return int(free / (memory.kv_bytes_per_slot / engine.context_tokens * engine.block_tokens))


def quantization_of(model: str, dialect: str) -> str:
    """The quantization a model's name implies: Ollama's default tag is q4_K_M."""
    match = re.search(
        r"(q\d(?:_[0-9k](?:_[sml])?)?|fp16|bf16|f16|awq|gptq|fp8|int8|int4)", model.lower().replace("-", "_")
    )
    if match:
        return match[1].replace("_", "-")
    return "q4-k-m" if dialect == "ollama" else "bf16"


def timing_of(engine: Engine, model: str) -> Timing:
    """The latency model of `model` on this engine's GPU: the planner's, or the rougher one of this module."""
    planned = _planned(engine, model)
    if planned is not None:
        return planned
    quantization = engine.quantization or quantization_of(model, engine.dialect)
    return roofline(
        model=model,
        quantization=quantization,
        gpu=engine.gpu.name,
        share=mig_share(engine.gpu.mig_profile),
        tensor=engine.tensor,
    )
