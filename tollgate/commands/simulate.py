"""`tollgate simulate`: a stand-in for vLLM or Ollama on this machine, or the settings that one would like."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

import stacks
from bench.simulator import OptionError, ollama_from, vllm_from

_MODEL = {"ollama": "gemma3:4b", "vllm": "google/gemma-3-4b-it"}
_VERSION = {"ollama": "0.17.4", "vllm": "0.32.0"}
_PORT = {"ollama": 11434, "vllm": 8000}


def simulate(
    flags: Annotated[list[str] | None, typer.Argument(help="After `--`: further flags of `vllm serve`.")] = None,
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
    output_tokens: Annotated[float | None, typer.Option(min=0, help="Mean natural length of an answer.")] = None,
    load_time: Annotated[str | None, typer.Option(help="To load a model; default: by its size.")] = None,
    cold_start: Annotated[str | None, typer.Option(help="Until the server listens.")] = None,
    throttle_after: Annotated[str | None, typer.Option(help="Busy time after which the GPU slows down.")] = None,
    throttle_factor: Annotated[float | None, typer.Option(help="To which share of its speed.")] = None,
    faults: Annotated[
        str | None, typer.Option(help="error=0.01,disconnect=0.01,slow=0.1,slow_factor=5,slow_replica=0.1,oom=0.")
    ] = None,
    restart: Annotated[str | None, typer.Option(help="Come back so long after an out-of-memory kill.")] = None,
    grace: Annotated[str | None, typer.Option(help="For streams to finish after SIGTERM.")] = None,
    workers: Annotated[str | None, typer.Option(help="Processes on the same address; auto: one per core.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    http2: Annotated[bool, typer.Option("--http2", help="HTTP/2 as well, in clear and by ALPN.")] = False,
    certificate: Annotated[str | None, typer.Option(help="PEM file: serve TLS.")] = None,
    private_key: Annotated[str | None, typer.Option(help="PEM file of its key.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Ask clients for it.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="/metrics on a port of its own (Ollama has none).")
    ] = None,
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
    if flags and chosen != "vllm":
        raise stacks.InputError(
            where="further flags", got=" ".join(flags), allowed="with vllm", fix="set OLLAMA_… in the environment"
        )
    given = {
        "TTFT": ttft, "ITL": itl, "JITTER": jitter, "SPEED": speed, "LOAD_SECONDS": load_time, "COLD_START": cold_start,
        "THROTTLE_AFTER": throttle_after, "THROTTLE_FACTOR": throttle_factor, "FAULTS": faults, "WORKERS": workers,
        "SEED": seed, "CERTIFICATE": certificate, "PRIVATE_KEY": private_key, "API_KEY": api_key, "RESTART": restart,
        "GRACE": grace, "METRICS_PORT": metrics_port, "OUTPUT_TOKENS": output_tokens, "HTTP2": 1 if http2 else None,
    }  # fmt: skip
    env = {f"TOLLGATE_SIM_{name}": str(value) for name, value in given.items() if value is not None}
    accelerator = gpu or (loaded.accelerator.gpu if loaded else None)
    if accelerator:
        env["TOLLGATE_ACCELERATOR"] = accelerator
    if loaded and loaded.accelerator.mig_profile and not gpu:
        env["TOLLGATE_GPU_PARTITION"] = loaded.accelerator.mig_profile
    parallel = loaded.parallelism.slots if loaded else "auto"
    size = slots or (parallel if isinstance(parallel, int) else None)
    tokens = context or (loaded.context_tokens if loaded else None)
    name = model or (loaded.source if loaded else _MODEL[chosen])
    env["TOLLGATE_SIM_VERSION"] = loaded.version if loaded else _VERSION[chosen]
    at = port or _PORT[chosen]
    if chosen == "ollama":
        words = ["serve"]
        env |= {"OLLAMA_HOST": f"{host}:{at}", "TOLLGATE_SIM_MODELS": name}
        env |= {"OLLAMA_NUM_PARALLEL": str(size)} if size else {}
        env |= {"OLLAMA_CONTEXT_LENGTH": str(tokens)} if tokens else {}
        env |= {"OLLAMA_KV_CACHE_TYPE": loaded.kv_cache} if loaded else {}
    else:
        words = ["serve", name, "--host", host, "--port", str(at)]
        words += ["--max-num-seqs", str(size)] if size else []
        words += ["--max-model-len", str(tokens)] if tokens else []
        words += _release_flags(loaded) if loaded else []
        words += flags or []
    full = os.environ | env
    try:
        if chosen == "ollama":
            ollama_from(full, version="")
        else:
            vllm_from(words, full, version="")
    except OptionError as error:
        raise _named(str(error)) from None
    # The same process as in a pod: without the libraries of this command line it starts with a quarter of the memory.
    os.execve(sys.executable, [sys.executable, "-m", "bench.simulator", chosen, *words], full)


def _named(message: str) -> stacks.InputError:
    """`NAME: got …; allowed: …` with the name as this command has it."""
    name, _, rest = message.partition(": ")
    got, _, allowed = rest.partition("; allowed: ")
    if name.startswith("TOLLGATE_SIM_"):
        name = "--" + name.removeprefix("TOLLGATE_SIM_").lower().replace("_", "-")
    return stacks.InputError(
        where=name, got=got.removeprefix("got "), allowed=allowed or "see --help", fix="correct it and start again"
    )


def _release_flags(release: Any) -> list[str]:
    """What a release says about vLLM beyond slots and context."""
    quantization = release.quantization
    words = ["--tensor-parallel-size", str(release.parallelism.tensor)]
    return words + (["--quantization", quantization] if quantization else [])


def _tune() -> None:
    from bench.simulator.tune import settings

    console = Console(soft_wrap=True, highlight=False)
    for setting in settings():
        state = "[green]enough[/]" if setting.enough else f"[bold red]wanted: {setting.wanted}[/]"
        console.print(f"{setting.name} = {setting.now}  {state}")
        console.print(f"    {setting.why}", style="dim")
        if not setting.enough:
            console.print(f"    {setting.fix}")
