"""`tollgate simulate`: a stand-in for vLLM or Ollama on this machine, or the settings that one would like."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import stacks
from bench.simulator import OptionError, ollama_from, vllm_from

_MODEL = {"ollama": "gemma3:4b", "vllm": "google/gemma-3-4b-it"}
_VERSION = {"ollama": "0.17.4", "vllm": "0.32.0"}


def simulate(
    engine: Annotated[str | None, typer.Option(help="ollama or vllm; default: the release's.")] = None,
    release: Annotated[str | None, typer.Option(help="Take model, slots, context and GPU from it.")] = None,
    model: Annotated[str | None, typer.Option(help="The name by which clients ask for it.")] = None,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: the engine's own (11434, 8000).")] = 0,
    gpu: Annotated[str | None, typer.Option(help="Whose latency: nvidia-l4, nvidia-h100-80gb, …")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Requests decoded at once.")] = None,
    context: Annotated[int | None, typer.Option(min=16, help="Tokens of context.")] = None,
    ttft: Annotated[str | None, typer.Option(help="Fixed time to first token, for example 200ms.")] = None,
    itl: Annotated[str | None, typer.Option(help="Fixed time between tokens, for example 20ms.")] = None,
    jitter: Annotated[float | None, typer.Option(min=0, help="Coefficient of variation of both.")] = None,
    speed: Annotated[float | None, typer.Option(min=0.001, help="Everything so many times faster.")] = None,
    load_time: Annotated[str | None, typer.Option(help="To load a model; default: by its size.")] = None,
    cold_start: Annotated[str | None, typer.Option(help="Until the server listens.")] = None,
    throttle_after: Annotated[str | None, typer.Option(help="Busy time after which the GPU slows down.")] = None,
    throttle_factor: Annotated[float | None, typer.Option(help="To which share of its speed.")] = None,
    faults: Annotated[str | None, typer.Option(help="error=0.01,disconnect=0.01,slow=0.1,oom=0.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Processes on the same address.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    certificate: Annotated[str | None, typer.Option(help="PEM file: serve TLS.")] = None,
    private_key: Annotated[str | None, typer.Option(help="PEM file of its key.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Ask clients for it (vLLM).")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Show the system settings and stop.")] = False,
) -> None:
    """Serve a simulated vLLM or Ollama until interrupted."""
    if tune:
        _tune()
        return
    loaded = stacks.load_release(release) if release else None
    chosen = engine or (loaded.engine if loaded else None)
    if chosen not in _MODEL:
        raise stacks.InputError(
            where="--engine", got=str(chosen), allowed="ollama, vllm", fix="name one, or give a --release"
        )
    env = dict(os.environ)
    given = {
        "TTFT": ttft, "ITL": itl, "JITTER": jitter, "SPEED": speed, "LOAD_SECONDS": load_time, "COLD_START": cold_start,
        "THROTTLE_AFTER": throttle_after, "THROTTLE_FACTOR": throttle_factor, "FAULTS": faults, "WORKERS": workers,
        "SEED": seed, "CERTIFICATE": certificate, "PRIVATE_KEY": private_key,
    }  # fmt: skip
    env |= {f"TOLLGATE_SIM_{name}": str(value) for name, value in given.items() if value is not None}
    accelerator = gpu or (loaded.accelerator.gpu if loaded else None)
    if accelerator:
        env["TOLLGATE_ACCELERATOR"] = accelerator
    if loaded and loaded.accelerator.mig_profile and not gpu:
        env["TOLLGATE_GPU_PARTITION"] = loaded.accelerator.mig_profile
    parallel = loaded.parallelism.slots if loaded else "auto"
    size = slots or (parallel if isinstance(parallel, int) else None)
    tokens = context or (loaded.context_tokens if loaded else None)
    name = model or (loaded.source if loaded else _MODEL[chosen])
    version = loaded.version if loaded else _VERSION[chosen]
    try:
        if chosen == "ollama":
            env |= {"OLLAMA_HOST": f"{host}:{port or 11434}", "TOLLGATE_SIM_MODELS": name}
            if size:
                env["OLLAMA_NUM_PARALLEL"] = str(size)
            if tokens:
                env["OLLAMA_CONTEXT_LENGTH"] = str(tokens)
            if loaded:
                env["OLLAMA_KV_CACHE_TYPE"] = loaded.kv_cache
            options = ollama_from(env, version=version)
        else:
            words = ["serve", name, "--host", host, "--port", str(port or 8000)]
            words += ["--max-num-seqs", str(size)] if size else []
            words += ["--max-model-len", str(tokens)] if tokens else []
            words += ["--api-key", api_key] if api_key else []
            if loaded:
                words += [
                    "--tensor-parallel-size",
                    str(loaded.parallelism.tensor),
                    "--quantization",
                    loaded.quantization,
                ]
            options = vllm_from(words, env, version=version)
        from bench.simulator._workers import run

        status = run(options)
    except OptionError as error:
        text, _, rest = str(error).partition(": ")
        raise stacks.InputError(
            where=text, got=rest or text, allowed="see the message", fix="correct the option and start again"
        ) from None
    raise typer.Exit(status)


def _tune() -> None:
    from bench.simulator._tune import settings

    table = Table("setting", "now", "wanted", "why", box=None)
    for setting in settings():
        mark = "" if setting.enough else "[bold red]"
        table.add_row(setting.name, f"{mark}{setting.now}", setting.wanted, setting.why)
    Console().print(table)
