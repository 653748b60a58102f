"""What the catalog's YAML must look like, and its compiled form. Run `python -m planner._schema` after an edit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from stacks import InputError

from ._catalog import COMPILED, CatalogModel, checksum, sources

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(gt=0, le=1)]
# Nothing that is counted here is near it; what is longer becomes no float.
_Count = Annotated[int, Field(ge=1, le=10**15)]
_Text = Annotated[str, Field(min_length=3)]
_Date = Annotated[str, Field(pattern=r"^20\d\d-\d\d(-\d\d)?$")]
_T = TypeVar("_T")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MigEntry(_Entry):
    """One MIG profile of a GPU."""

    count: Annotated[int, Field(ge=1, le=7)]
    memory_mib: _Count
    bandwidth_share: _Share
    compute_share: _Share


class GpuEntry(_Entry):
    """A GPU; instances of a profile may not add up to more than the card."""

    name: _Text
    aliases: tuple[str, ...] = ()
    memory_mib: _Count
    bandwidth_gb_per_second: _Positive
    tflops: dict[Literal["f32", "f16", "bf16", "fp8", "int8"], _Positive]
    link_gb_per_second: _Positive
    hop_microseconds: _Positive
    mig: dict[Annotated[str, Field(pattern=r"^[1-7]g\.[0-9]+gb$")], MigEntry]
    source: _Text
    as_of: _Date

    @model_validator(mode="after")
    def _slices_fit(self) -> Self:
        for name, profile in self.mig.items():
            for what, total, limit in (
                ("memory", profile.count * profile.memory_mib, self.memory_mib),
                ("bandwidth", profile.count * profile.bandwidth_share, 1.0),
                ("compute", profile.count * profile.compute_share, 1.0),
            ):
                if total > limit:
                    raise ValueError(f"{profile.count} x {name} have more {what} ({total:g}) than the GPU ({limit:g})")
        if "bf16" not in self.tflops or "f16" not in self.tflops:
            raise ValueError("tflops needs f16 and bf16")
        return self


class MachineEntry(_Entry):
    """A machine type."""

    gpu: str | None
    gpus: Annotated[int, Field(ge=0, le=16)]
    vcpus: _Count
    memory_gb: _Positive
    network_gbps: _Positive
    regions: str

    @model_validator(mode="after")
    def _gpu_and_count(self) -> Self:
        if (self.gpu is None) != (self.gpus == 0):
            raise ValueError("gpu and gpus must both be there or both be absent")
        return self


class MachinesFile(_Entry):
    """`machines.yaml`: one source and date for all; `regions` are lists that machines name."""

    source: _Text
    as_of: _Date
    regions: dict[str, tuple[Annotated[str, Field(pattern=r"^[a-z]+-[a-z]+[0-9]+$")], ...]]
    machines: dict[str, MachineEntry]

    @model_validator(mode="after")
    def _regions_known(self) -> Self:
        for name, machine in self.machines.items():
            if machine.regions not in self.regions:
                raise ValueError(f"{name}: regions is {machine.regions}, not one of {', '.join(self.regions)}")
        return self


class ModelEntry(_Entry):
    """A model; its published parameter count must follow from its architecture within 1 %."""

    aliases: tuple[str, ...]
    layers: _Count
    hidden: _Count
    heads: _Count
    kv_heads: _Count
    head_dim: _Count
    intermediate: _Count
    vocabulary: _Count
    tied: bool
    max_context: _Count
    parameters: _Count
    other_parameters: Annotated[int, Field(ge=0)] = 0
    window: _Count | None = None
    full_attention_layers: _Count | None = None
    experts: _Count = 1
    experts_per_token: _Count = 1
    source: _Text
    as_of: _Date

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if (self.window is None) != (self.full_attention_layers is None):
            raise ValueError("window and full_attention_layers go together")
        if (self.full_attention_layers or 0) > self.layers or self.experts_per_token > self.experts:
            raise ValueError("more full-attention layers than layers, or more active experts than experts")
        model = CatalogModel(**compile_model(self, "x"), id="x")
        counted = (
            model.attention_parameters
            + model.expert_parameters
            + model.embedding_parameters * (1 if self.tied else 2)
            + self.other_parameters
        )
        # In whole numbers, of which none is too large.
        if 100 * abs(counted - self.parameters) > self.parameters:
            raise ValueError(f"parameters is {self.parameters}, the architecture gives {counted}")
        return self


class BitsEntry(_Entry):
    """Bits per weight."""

    linear: _Positive
    embedding: _Positive
    head: _Positive


class QuantizationEntry(_Entry):
    """A quantization of the weights."""

    aliases: tuple[str, ...] = ()
    bits: BitsEntry
    arithmetic: Literal["f16", "bf16", "fp8", "int8"]
    engines: tuple[str, ...]
    source: _Text
    as_of: _Date


class Constant(_Entry):
    """A number and how far it can be trusted."""

    value: _NonNegative
    kind: Literal["measured", "fitted", "assumed"]
    source: _Text


class EngineEntry(_Entry):
    """The constants of an engine; `version` and `image`: what a release drawn up by the planner names.

    `kv_caches`: the types it has. `quantizations`: what it serves beside those that name it in `quantizations.yaml`.
    `searched`: whether a search over engines looks at it without being told to.
    """

    version: str
    image: str
    as_of: _Date
    shares_prefix: bool
    kv_caches: Annotated[tuple[Literal["f16", "bf16", "fp8", "q8_0", "q4_0"], ...], Field(min_length=1)]
    quantizations: tuple[str, ...] = ()
    searched: bool = True
    max_slots: _Count
    memory_utilization: Constant
    overhead_gb: Constant
    bandwidth_efficiency: Constant
    compute_efficiency: Constant
    step_overhead_seconds: Constant
    logit_seconds: Constant
    sequence_seconds: Constant
    disk_gb_per_second: Constant
    start_seconds: Constant

    @model_validator(mode="after")
    def _shares(self) -> Self:
        for name in ("memory_utilization", "bandwidth_efficiency", "compute_efficiency"):
            if not 0 < getattr(self, name).value <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1")
        return self


def compile_catalog(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Validate the YAML files and return the compiled form. Raises InputError naming the file and the key."""
    gpus = _read(dict[str, GpuEntry], files, "gpus.yaml")
    machines = _read(MachinesFile, files, "machines.yaml")
    quantizations = _read(dict[str, QuantizationEntry], files, "quantizations.yaml")
    engines = _read(dict[str, EngineEntry], files, "engines.yaml")
    for name in files:
        if name.startswith("engines/"):
            # One file each for the engines that came later: adding one touches nothing else here.
            engines |= _read(dict[str, EngineEntry], files, name)
    _check_served(quantizations, engines)
    models: dict[str, Any] = {}
    taken: dict[str, str] = {}
    for name in files:
        if not name.startswith("models/"):
            continue
        family = name.removeprefix("models/").removesuffix(".yaml")
        for key, entry in _read(dict[str, ModelEntry], files, name).items():
            models[key] = compile_model(entry, family)
            for alias in (key, *entry.aliases):
                if taken.setdefault(alias.lower(), key) != key:
                    raise _bad(name, f"{key}.aliases", alias, f"a name that {taken[alias.lower()]} does not have")
    for key, machine in machines.machines.items():
        if machine.gpu is not None and machine.gpu not in gpus:
            raise _bad("machines.yaml", key, machine.gpu, ", ".join(gpus))
    return {
        "checksum": checksum(files),
        "gpus": {key: _gpu(entry) for key, entry in gpus.items()},
        "machines": {key: _machine(entry, machines) for key, entry in machines.machines.items()},
        "models": models,
        "quantizations": {key: _quantization(key, entry, engines) for key, entry in quantizations.items()},
        "engines": {key: _engine(entry) for key, entry in engines.items()},
    }


def compile_model(entry: ModelEntry, family: str) -> dict[str, Any]:
    """The compiled form of one model, without its id."""
    compiled = entry.model_dump()
    if compiled["full_attention_layers"] is None:
        compiled["full_attention_layers"] = entry.layers
    return {**compiled, "family": family}


def _gpu(entry: GpuEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "aliases": entry.aliases,
        "memory_bytes": entry.memory_mib * 2**20,
        "bandwidth": entry.bandwidth_gb_per_second * 1e9,
        "flops": {key: value * 1e12 for key, value in entry.tflops.items()},
        "link": entry.link_gb_per_second * 1e9,
        "hop": entry.hop_microseconds / 1e6,
        "mig": {
            name: {
                "count": profile.count,
                "memory_bytes": profile.memory_mib * 2**20,
                "bandwidth_share": profile.bandwidth_share,
                "compute_share": profile.compute_share,
            }
            for name, profile in entry.mig.items()
        },
        "source": entry.source,
        "as_of": entry.as_of,
    }


def _machine(entry: MachineEntry, file: MachinesFile) -> dict[str, Any]:
    regions = sorted(file.regions[entry.regions])
    return {**entry.model_dump(), "regions": regions, "source": file.source, "as_of": file.as_of}


def _check_served(quantizations: Mapping[str, QuantizationEntry], engines: Mapping[str, EngineEntry]) -> None:
    for key, quantization in quantizations.items():
        for engine in quantization.engines:
            if engine not in engines:
                raise _bad("quantizations.yaml", f"{key}.engines", engine, ", ".join(engines))
    for key, entry in engines.items():
        for served in entry.quantizations:
            if served not in quantizations:
                raise _bad("engines", f"{key}.quantizations", served, ", ".join(quantizations))


def _quantization(key: str, entry: QuantizationEntry, engines: Mapping[str, EngineEntry]) -> dict[str, Any]:
    return {
        "aliases": entry.aliases,
        "linear_bits": entry.bits.linear,
        "embedding_bits": entry.bits.embedding,
        "head_bits": entry.bits.head,
        "arithmetic": entry.arithmetic,
        "engines": (*entry.engines, *(name for name, engine in engines.items() if key in engine.quantizations)),
        "source": entry.source,
        "as_of": entry.as_of,
    }


def _engine(entry: EngineEntry) -> dict[str, Any]:
    constants = {name: value for name, value in entry if isinstance(value, Constant)}
    return {
        "version": entry.version,
        "image": entry.image,
        "as_of": entry.as_of,
        "shares_prefix": entry.shares_prefix,
        "kv_caches": entry.kv_caches,
        "searched": entry.searched,
        "max_slots": entry.max_slots,
        **{name: constant.value for name, constant in constants.items()},
        "sources": {name: (constant.kind, constant.source) for name, constant in constants.items()},
    }


def _read(form: type[_T], files: Mapping[str, bytes], name: str) -> _T:
    if name not in files:
        raise _bad(name, "the file", "nothing", "the catalog's file")
    try:
        loaded = yaml.load(files[name], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _bad(name, "syntax", str(error).partition("\n")[0], "valid YAML") from error
    try:
        return TypeAdapter(form).validate_python(loaded)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise _bad(name, key, repr(first["input"])[:200], first["msg"].removeprefix("Value error, ")) from None


def _bad(name: str, key: str, got: str, allowed: str) -> InputError:
    return InputError(where=f"planner/catalog/{name}, {key}", got=got, allowed=allowed, fix="correct the catalog")


def write() -> None:
    """Write the compiled form beside the YAML files, one entry per line so that a change can be read in a diff."""
    compiled = compile_catalog(sources())
    text = json.dumps(compiled, separators=(",", ":"), ensure_ascii=False)
    COMPILED.write_text(re.sub(r'(?<=\}),(?="[^"]+":\{")', ",\n", text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
