"""The ways to serve a model: every engine, quantization, GPU, slice and split that holds it, whatever is asked of it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from ._catalog import Catalog, CatalogModel, Engine, Gpu, Quantization, catalog
from ._check import knee
from ._memory import Memory, memory_for
from ._timing import Timing, build


@dataclass(frozen=True, kw_only=True, eq=False)
class Way:
    """A configuration of one replica on one kind of machine, for requests of `context_tokens`."""

    engine: Engine
    quantization: Quantization
    gpu: Gpu
    mig_profile: str | None
    tensor: int
    pipeline: int
    timing: Timing
    context_tokens: int

    @functools.cached_property
    def slots(self) -> int:
        """As `parallelism.slots: auto` would choose."""
        return knee(self.timing, self.context_tokens / 2)


@functools.lru_cache(maxsize=256)
def ways_of(
    model_id: str,
    engine_names: tuple[str, ...] | None,
    quantization_names: tuple[str, ...] | None,
    gpu_names: tuple[str, ...] | None,
    mig: bool,
    kv_cache: str,
    context_tokens: int,
) -> tuple[Way, ...]:
    """The ways to serve a model; they depend on neither traffic nor promise, so that the next question finds them."""
    known = catalog()
    model = known.model(model_id)
    engines = [known.engine(name) for name in engine_names or _searched(known)]
    gpus = [known.gpu(name) for name in gpu_names or known.gpus]
    # Of quantizations alike in size and arithmetic (AWQ and GPTQ) one stands for all, unless the search names them.
    alike = {
        (q.linear_bits, q.head_bits, q.arithmetic, q.engines): q.id
        for q in reversed(list(known.quantizations.values()))
    }
    quantizations = [known.quantization(name) for name in quantization_names or sorted(alike.values())]
    found = []
    for engine in engines:
        for quantization in quantizations:
            if engine.id not in quantization.engines:
                continue
            for gpu in gpus:
                for profile, tensor, pipeline in _splits(engine, gpu, model, known, mig):
                    way = _way(engine, quantization, gpu, model, profile, tensor, pipeline, kv_cache, context_tokens)
                    if way is not None:
                        found.append(way)
    return tuple(found)


def _splits(
    engine: Engine, gpu: Gpu, model: CatalogModel, known: Catalog, mig: bool
) -> Iterable[tuple[str | None, int, int]]:
    largest = max((m.gpus for m in known.machines.values() if m.gpu == gpu.id), default=0)
    if mig:
        for profile in gpu.mig.values():
            if profile.bandwidth_share < 1:  # one slice of the whole card is the card with less
                yield profile.name, 1, 1
    tensor = 1
    while tensor <= largest:
        if model.heads % tensor == 0 and (tensor == 1 or engine.id != "ollama"):
            yield None, tensor, 1
            if tensor == largest and engine.id != "ollama":
                yield None, tensor, 2
        tensor *= 2


def _way(
    engine: Engine,
    quantization: Quantization,
    gpu: Gpu,
    model: CatalogModel,
    profile: str | None,
    tensor: int,
    pipeline: int,
    kv_cache: str,
    context_tokens: int,
) -> Way | None:
    def memory(stages: int) -> Memory:
        return memory_for(
            engine=engine,
            model=model,
            quantization=quantization,
            gpu=gpu,
            mig_profile=profile,
            tensor=tensor,
            pipeline=stages,
            kv_cache=kv_cache,
            context_tokens=context_tokens,
        )

    if pipeline > 1 and memory(1).max_slots > 0:
        return None  # a second machine per replica only where one cannot hold it
    held = memory(pipeline).max_slots
    if held < 1:
        return None
    timing = build(
        engine=engine,
        model=model,
        quantization=quantization,
        gpu=gpu,
        mig_profile=profile,
        tensor=tensor,
        pipeline=pipeline,
        kv_cache=kv_cache,
        slots=held,
    )
    return Way(
        engine=engine,
        quantization=quantization,
        gpu=gpu,
        mig_profile=profile,
        tensor=tensor,
        pipeline=pipeline,
        timing=timing,
        context_tokens=context_tokens,
    )


def _searched(known: Catalog) -> list[str]:
    return [engine.id for engine in known.engines.values() if engine.searched]
