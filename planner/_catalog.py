"""The catalog as the planner's functions see it, read from its compiled form where that is up to date.

`catalog/*.yaml` is the source. `catalog/compiled.json` is a cache of it, committed so that a process that only needs a
latency starts without a YAML parser; it carries a checksum of the YAML files and is ignored as soon as they differ.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("catalog")
COMPILED = FOLDER / "compiled.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class MigProfile:
    """One MIG instance: how many fit one GPU, its memory, and its shares of the GPU's bandwidth and compute."""

    name: str
    count: int
    memory_bytes: int
    bandwidth_share: float
    compute_share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU in GKE's name. `flops`: dense FLOP/s by arithmetic; `link`: bytes/s, one way, between GPUs of a machine;
    `hop`: seconds of one small all-reduce over it."""

    id: str
    name: str
    aliases: tuple[str, ...]
    memory_bytes: int
    bandwidth: float
    flops: Mapping[str, float]
    link: float
    hop: float
    mig: Mapping[str, MigProfile]
    source: str
    as_of: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A machine type: its GPUs (`gpu` None: a CPU machine), vCPUs, memory in GB, network in Gbit/s.

    `regions`: where it can be had; empty: nearly everywhere, the price book knows.
    """

    id: str
    gpu: str | None
    gpus: int
    vcpus: int
    memory_gb: float
    network_gbps: float
    regions: tuple[str, ...]
    source: str
    as_of: str


@dataclass(frozen=True, kw_only=True, eq=False)
class CatalogModel:
    """A model's architecture. `other_parameters`: outside the text model (vision); `experts`: 1 for dense models.

    `full_attention_layers` of `layers` see the whole context; the others only the last `window` tokens.
    """

    id: str
    aliases: tuple[str, ...]
    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    max_context: int
    parameters: int
    other_parameters: int
    window: int | None
    full_attention_layers: int
    experts: int
    experts_per_token: int
    source: str
    as_of: str

    @cached_property
    def attention_parameters(self) -> int:
        """Query, key, value and output projections of all layers."""
        return self.layers * self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)

    @cached_property
    def expert_parameters(self) -> int:
        """Gate, up and down projections of all experts (of the one MLP where the model is dense) of all layers."""
        return self.layers * self.experts * 3 * self.hidden * self.intermediate

    @cached_property
    def embedding_parameters(self) -> int:
        """The input embedding; the output head has as many, its own where `tied` is false."""
        return self.vocabulary * self.hidden

    @cached_property
    def active_parameters(self) -> float:
        """Parameters multiplied per token: attention, the chosen experts and the head (the embedding is a look-up)."""
        return (
            self.attention_parameters
            + self.expert_parameters * self.experts_per_token / self.experts
            + self.embedding_parameters
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Quantization:
    """Bits per weight (group scales included) and the arithmetic the products run in."""

    id: str
    aliases: tuple[str, ...]
    linear_bits: float
    embedding_bits: float
    head_bits: float
    arithmetic: str
    engines: tuple[str, ...]
    source: str
    as_of: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """An engine's constants of the latency and memory model; `sources`: constant -> (kind, source).

    `shares_prefix`: whether keys and values of a prompt prefix that requests have in common are kept once for all.
    `kv_caches`: the types it has. `searched`: whether a search over engines looks at it without being told to.
    """

    id: str
    version: str
    image: str
    as_of: str
    shares_prefix: bool
    kv_caches: tuple[str, ...]
    searched: bool
    max_slots: int
    memory_utilization: float
    overhead_gb: float
    bandwidth_efficiency: float
    compute_efficiency: float
    step_overhead_seconds: float
    logit_seconds: float
    sequence_seconds: float
    disk_gb_per_second: float
    start_seconds: float
    sources: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """Everything the planner knows, by id; `names` maps every known name of a model (lower case) to its id."""

    gpus: Mapping[str, Gpu]
    machines: Mapping[str, Machine]
    models: Mapping[str, CatalogModel]
    quantizations: Mapping[str, Quantization]
    engines: Mapping[str, Engine]
    names: Mapping[str, str]

    def gpu(self, name: str, *, where: str = "accelerator.gpu") -> Gpu:
        """By GKE's name or an alias. Raises InputError naming the known ones."""
        for gpu in self.gpus.values():
            if name == gpu.id or name.lower() in gpu.aliases:
                return gpu
        raise _unknown(where, name, self.gpus, "use one of GKE's names")

    def quantization(self, name: str, *, where: str = "quantization") -> Quantization:
        """By id or an alias. Raises InputError naming the known ones."""
        wanted = name.lower().replace("_", "-")
        for quantization in self.quantizations.values():
            if wanted == quantization.id or wanted in quantization.aliases:
                return quantization
        raise _unknown(where, name, self.quantizations, "name one of these")

    def machine(self, name: str, *, where: str = "fleet.machine_type") -> Machine:
        """By name. Raises InputError naming the known ones."""
        if name in self.machines:
            return self.machines[name]
        raise _unknown(where, name, self.machines, "name one of these")

    def engine(self, name: str, *, where: str = "engine") -> Engine:
        """By name. Raises InputError naming the known ones."""
        if name in self.engines:
            return self.engines[name]
        raise _unknown(where, name, self.engines, "name one of these")

    def model(self, name: str, *, where: str = "model") -> CatalogModel:
        """By any of its known names, whatever the case. Raises InputError naming the known ones."""
        found = self.names.get(name.lower())
        if found is None:
            raise _unknown(where, name, self.models, "name one of these, or add it under planner/catalog/models")
        return self.models[found]


def find_model(name: str) -> CatalogModel:
    """The model of that name: its id, its Ollama tag or its Hugging Face repository. Raises InputError if unknown."""
    return catalog().model(name)


@functools.cache
def catalog() -> Catalog:
    """The shipped catalog."""
    return parse(_compiled())


def sources() -> dict[str, bytes]:
    """The catalog's YAML files by name relative to its folder."""
    return {str(path.relative_to(FOLDER)): path.read_bytes() for path in sorted(FOLDER.rglob("*.yaml"))}


def checksum(files: Mapping[str, bytes]) -> int:
    """Tells the YAML files of one compiled form from those of another. Not a signature: both lie in one folder."""
    value = 0
    for name, content in files.items():
        value = zlib.crc32(content, zlib.crc32(name.encode(), value))
    return value


def _compiled() -> dict[str, Any]:
    files = sources()
    try:
        loaded: dict[str, Any] = json.loads(COMPILED.read_bytes())
    except (OSError, ValueError):
        loaded = {}
    if loaded.get("checksum") == checksum(files):
        return loaded
    from ._schema import compile_catalog

    return compile_catalog(files)


def parse(raw: Mapping[str, Any]) -> Catalog:
    """The typed catalog of a compiled form (see `_schema.compile_catalog`), which has been validated before."""
    gpus = {}
    for key, entry in raw["gpus"].items():
        mig = {name: MigProfile(name=name, **profile) for name, profile in entry["mig"].items()}
        gpus[key] = Gpu(**{**entry, "id": key, "aliases": tuple(entry["aliases"]), "mig": mig})
    models = {k: CatalogModel(**{**v, "id": k, "aliases": tuple(v["aliases"])}) for k, v in raw["models"].items()}
    names = {name.lower(): key for key, model in models.items() for name in (key, *model.aliases)}
    return Catalog(
        gpus=gpus,
        machines={
            key: Machine(id=key, **{**entry, "regions": tuple(entry["regions"])})
            for key, entry in raw["machines"].items()
        },
        models=models,
        quantizations={
            key: Quantization(
                **{**entry, "id": key, "aliases": tuple(entry["aliases"]), "engines": tuple(entry["engines"])}
            )
            for key, entry in raw["quantizations"].items()
        },
        engines={
            key: Engine(
                id=key,
                **{
                    **entry,
                    "kv_caches": tuple(entry["kv_caches"]),
                    "sources": {k: tuple(v) for k, v in entry["sources"].items()},
                },
            )
            for key, entry in raw["engines"].items()
        },
        names=names,
    )


def _unknown(where: str, got: str, known: Mapping[str, object], fix: str) -> Exception:
    from stacks import InputError  # late: pydantic and YAML cost more than a whole simulator start

    return InputError(where=where, got=got, allowed=", ".join(known), fix=fix)
