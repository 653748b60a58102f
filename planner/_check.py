"""Whether a release can run at all, and on this fleet: what the typed models cannot know without the catalog."""

from __future__ import annotations

from stacks import Fleet, InputError, Prefix, Release, Traffic

from ._catalog import Catalog, Gpu, catalog
from ._memory import Memory, memory_for
from ._timing import Timing, timing

# `auto` takes the fewest slots that reach this share of the throughput of as many as memory holds: beyond it, more
# slots only make every reply slower. An assumption of ours, not a measured optimum.
_KNEE = 0.95


def memory_of(release: Release, prefix: Prefix | None = None) -> Memory:
    """Memory of one replica of a release. Raises InputError for names the catalog does not know."""
    known = catalog()
    gpu = known.gpu(release.accelerator.gpu)
    _check_profile(release, gpu)
    return memory_for(
        engine=known.engine(release.engine),
        model=known.model(release.model),
        quantization=known.quantization(release.quantization),
        gpu=gpu,
        mig_profile=release.accelerator.mig_profile,
        tensor=release.parallelism.tensor,
        pipeline=release.parallelism.pipeline,
        kv_cache=release.kv_cache,
        context_tokens=release.context_tokens,
        prefix=prefix,
    )


def resolve(release: Release) -> Release:
    """The release with `parallelism.slots` as a number.

    It depends on the release alone, never on fleet, traffic or objectives, so that its digest is the same on every
    stack: the fewest slots that reach 95 % of the decoding throughput that as many as fit in memory would have, at half
    the context. Raises InputError where not one slot fits.
    """
    if release.parallelism.slots != "auto":
        return release
    check_release(release)
    slots = knee(timing(release), release.context_tokens / 2)
    return release.model_copy(update={"parallelism": release.parallelism.model_copy(update={"slots": slots})})


def knee(timing: Timing, context_tokens: float) -> int:
    """The fewest slots with 95 % of the decoding throughput at `timing.slots`; throughput grows with the slots."""

    def throughput(slots: int) -> float:
        return slots / timing.decode_step_seconds(slots, context_tokens)

    low, high = 1, timing.slots
    goal = _KNEE * throughput(high)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if throughput(middle) >= goal else (middle + 1, high)
    return low


def check(release: Release, fleet: Fleet, prefix: Prefix | None = None) -> None:
    """Refuse what cannot work. Raises InputError naming the field, what was given and what would do.

    `prefix`: of the traffic; where the engine shares it, more slots fit.
    """
    check_release(release, prefix)
    known = catalog()
    gpu = known.gpu(release.accelerator.gpu)
    machine = known.machine(fleet.machine_type)
    fitting = [m.id for m in known.machines.values() if m.gpu == gpu.id and m.gpus >= _gpus_per_node(release)]
    if machine.gpu != gpu.id:
        raise InputError(
            where="fleet.machine_type",
            got=f"{machine.id} with {machine.gpu or 'no GPU'}",
            allowed=", ".join(fitting),
            fix=f"the release asks for {gpu.id}: choose a machine that has it",
        )
    if machine.gpus < _gpus_per_node(release):
        raise InputError(
            where="accelerator.count",
            got=f"{release.accelerator.count} GPUs on {machine.id}, which has {machine.gpus}",
            allowed=f"at most {machine.gpus}" + (f", or {', '.join(fitting)}" if fitting else ""),
            fix="choose a larger machine type, or split over more nodes with parallelism.pipeline",
        )
    elsewhere = [region for region in fleet.regions if machine.regions and region not in machine.regions]
    if elsewhere:
        raise InputError(
            where="fleet.regions",
            got=f"{', '.join(elsewhere)} with {machine.id}",
            allowed=", ".join(machine.regions),
            fix=f"choose a region that offers {machine.id}, or add it to planner/catalog/machines.yaml",
        )
    needed = nodes_per_replica(release)
    if fleet.nodes.max < needed:
        raise InputError(
            where="fleet.nodes.max",
            got=str(fleet.nodes.max),
            allowed=f"at least {needed}",
            fix=f"one replica spans {needed} nodes",
        )


def check_lengths(traffic: Traffic, context_tokens: int) -> None:
    """Whether a mean prompt and its reply fit the context. Raises InputError."""
    asked = traffic.prompt_tokens.mean + traffic.output_tokens.mean
    if asked > context_tokens:
        raise InputError(
            where="context_tokens",
            got=f"{context_tokens} for {traffic.prompt_tokens.mean:g} tokens in and {traffic.output_tokens.mean:g} out",
            allowed=f"at least {asked:g}",
            fix="raise it, or plan for shorter prompts and replies",
        )


def nodes_per_replica(release: Release) -> int:
    """Nodes over which one replica's ranks are spread: ranks / GPUs per node."""
    ranks = release.parallelism.tensor * release.parallelism.pipeline
    return max(1, ranks // release.accelerator.count)


def _gpus_per_node(release: Release) -> int:
    return 1 if release.accelerator.mig_profile else release.accelerator.count


def check_release(release: Release, prefix: Prefix | None = None) -> None:
    """What is wrong with a release on any fleet. Raises InputError."""
    known = catalog()
    engine = known.engine(release.engine)
    model = known.model(release.model)
    quantization = known.quantization(release.quantization)
    _check_profile(release, known.gpu(release.accelerator.gpu))
    if engine.id not in quantization.engines:
        served = [q.id for q in known.quantizations.values() if engine.id in q.engines]
        raise InputError(
            where="quantization",
            got=f"{release.quantization} with {engine.id}",
            allowed=", ".join(served),
            fix=f"choose one that {engine.id} serves",
        )
    if release.kv_cache not in engine.kv_caches:
        raise InputError(
            where="kv_cache",
            got=f"{release.kv_cache} with {engine.id}",
            allowed=", ".join(engine.kv_caches),
            fix=f"choose one that {engine.id} has",
        )
    if release.context_tokens > model.max_context:
        raise InputError(
            where="context_tokens",
            got=str(release.context_tokens),
            allowed=f"at most {model.max_context} for {model.id}",
            fix="lower context_tokens",
        )
    _check_ranks(release, model.heads, model.layers)
    _check_memory(release, known, prefix)


def _check_profile(release: Release, gpu: Gpu) -> None:
    profile = release.accelerator.mig_profile
    if profile is None or profile in gpu.mig:
        return
    raise InputError(
        where="accelerator.mig_profile",
        got=f"{profile} on {gpu.id}",
        allowed=", ".join(gpu.mig) or f"none: {gpu.id} has no MIG",
        fix="choose one of these profiles" if gpu.mig else "remove mig_profile",
    )


def _check_ranks(release: Release, heads: int, layers: int) -> None:
    tensor, pipeline = release.parallelism.tensor, release.parallelism.pipeline
    count, ranks = release.accelerator.count, tensor * pipeline

    def refuse(where: str, got: str, allowed: str, fix: str) -> InputError:
        return InputError(where=where, got=got, allowed=allowed, fix=fix)

    if release.accelerator.mig_profile and ranks * count > 1:
        # One CUDA process sees one MIG slice (vllm#41848).
        got = f"tensor {tensor}, pipeline {pipeline}, count {count} on MIG slices"
        raise refuse(
            "parallelism", got, "1 each", "a replica cannot span MIG slices: use a larger profile or whole GPUs"
        )
    if release.engine == "ollama" and tensor > 1:
        raise refuse(
            "parallelism.tensor", str(tensor), "1", "Ollama splits layers, not tensors: use parallelism.pipeline"
        )
    if heads % tensor:
        dividing = ", ".join(str(n) for n in range(1, 65) if heads % n == 0)
        raise refuse("parallelism.tensor", str(tensor), dividing, f"it must divide the {heads} attention heads")
    if pipeline > layers:
        raise refuse("parallelism.pipeline", str(pipeline), f"1 to {layers}", "it must not exceed the layers")
    if count > ranks or ranks % count:
        allowed = ", ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)
        fix = "count is the GPUs of one node: tensor × pipeline ranks must fill whole nodes"
        raise refuse("accelerator.count", f"{count} GPUs for {ranks} ranks", allowed, fix)
    if tensor > count:
        fix = "tensor ranks exchange data twice per layer and must sit in one node: use pipeline between nodes"
        raise refuse("parallelism.tensor", f"{tensor} over nodes of {count} GPUs", f"at most {count}", fix)


def _check_memory(release: Release, known: Catalog, prefix: Prefix | None) -> None:
    memory = memory_of(release, prefix)
    slots = release.parallelism.slots
    limit = known.engine(release.engine).max_slots
    wanted = 1 if slots == "auto" else slots
    if wanted <= memory.max_slots:
        return
    where = f"{release.accelerator.mig_profile or release.accelerator.gpu} × {ranks_of(release)}"
    if memory.max_slots == 0:
        short = (memory.used_bytes(1) - memory.usable_bytes) / 1e9
        fitting = [
            q.id
            for q in known.quantizations.values()
            if release.engine in q.engines
            and memory_of(release.model_copy(update={"quantization": q.id})).max_slots > 0
        ]
        raise InputError(
            where="quantization",
            got=f"{release.quantization}: {memory.weights_bytes / 1e9:.1f} GB of weights on {where}, "
            f"{short:.1f} GB more than fits with one slot of {release.context_tokens} tokens",
            allowed=", ".join(fitting) or "no quantization in the catalog",
            fix="choose one of these" if fitting else "use more GPUs (parallelism.tensor) or a larger one",
        )
    why = "all that the engine takes" if memory.max_slots == limit else "all that memory holds"
    raise InputError(
        where="parallelism.slots",
        got=f"{slots} of {release.context_tokens} tokens on {where}",
        allowed=f"1 to {memory.max_slots} ({why}), or auto",
        fix="lower the slots or context_tokens, or choose a smaller kv_cache or quantization",
    )


def ranks_of(release: Release) -> int:
    """GPUs or slices of one replica."""
    return release.parallelism.tensor * release.parallelism.pipeline
