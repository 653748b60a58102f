"""AIConfigurator as the latency source: measured kernels of A100, H100 and H200, where its program is installed.

It is an optional dependency (`pip install 'tollgate[aiconfigurator]'`, several hundred MB; or `aiconfigurator` in an environment
of its own, on PATH): its program is asked for a handful of steps, through which the linear form of `Timing` is laid.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from stacks import InputError, Release, TollgateError

from ._catalog import catalog
from ._check import resolve
from ._timing import Timing, timing

_SYSTEMS = {
    "nvidia-tesla-a100": "a100_sxm",
    "nvidia-a100-80gb": "a100_sxm",
    "nvidia-h100-80gb": "h100_sxm",
    "nvidia-h200-141gb": "h200_sxm",
}
# Models whose configuration it ships, under the names it knows them by; others it would have to download.
_MODELS = {
    "llama-3.1-8b-instruct": "meta-llama/Meta-Llama-3.1-8B",
    "llama-3.3-70b-instruct": "meta-llama/Meta-Llama-3.1-70B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "qwen3-235b-a22b": "Qwen/Qwen3-235B-A22B",
    "mixtral-8x7b-instruct-v0.1": "mistralai/Mixtral-8x7B-v0.1",
}
_WEIGHTS = {"bf16": "bfloat16", "fp8": "fp8", "awq-int4": "int4_wo", "gptq-int4": "int4_wo"}
_REPLY = 64
_TIMEOUT = 300.0


def aiconfigurator_timing(release: Release, *, program: str | None = None) -> Timing:
    """The latency model of a vLLM release from AIConfigurator's measured kernels; memory and loading stay ours.

    Raises InputError where it has no data for the engine, GPU, MIG slice or model, or is not installed.
    """
    release = resolve(release)
    base = timing(release)
    gpu = catalog().gpu(release.accelerator.gpu)
    model = catalog().model(release.model)
    quantization = catalog().quantization(release.quantization)
    found = program or _program()
    for where, got, allowed in (
        ("engine", release.engine if release.engine != "vllm" else "", "vllm"),
        ("accelerator.gpu", gpu.id if gpu.id not in _SYSTEMS else "", ", ".join(_SYSTEMS)),
        ("accelerator.mig_profile", release.accelerator.mig_profile or "", "whole GPUs"),
        ("model", model.id if model.id not in _MODELS else "", ", ".join(_MODELS)),
        ("aiconfigurator", "" if found else "not installed", "the program `aiconfigurator`, on PATH or beside Python"),
    ):
        if got:
            fix = (
                "leave --aiconfigurator out: the planner's own model covers it"
                if where != "aiconfigurator"
                else "pip install 'tollgate[aiconfigurator]', or leave --aiconfigurator out"
            )
            raise InputError(where=where, got=got, allowed=f"{allowed} (AIConfigurator)", fix=fix)
    fixed = [
        str(found), "cli", "estimate", "--backend", "vllm", "--model-path", _MODELS[model.id],
        "--system", _SYSTEMS[gpu.id], "--tp-size", str(release.parallelism.tensor),
        "--pp-size", str(release.parallelism.pipeline), "--gemm-quant-mode", _WEIGHTS[quantization.id],
    ]  # fmt: skip
    many = min(64, base.slots)
    with ThreadPoolExecutor(2) as pool:
        alone, crowd, longer, prompt = pool.map(
            lambda ask: _ask(fixed, *ask),
            [
                ("static_gen", 256, 1, "TPOT"),
                ("static_gen", 256, many, "TPOT"),
                ("static_gen", 1792, many, "TPOT"),
                ("static_ctx", 1024, 1, "TTFT"),
            ],
        )
    # seconds(b, context) = fixed + b × (each + context × cache), through the three points.
    cache = max(0.0, (longer - crowd) / many / (1792 - 256))
    context = 256 + _REPLY / 2
    each = max(0.0, (crowd - alone - (many - 1) * context * cache) / max(1, many - 1))
    return replace(
        base,
        overhead=0.0,
        sequence=0.0,
        weights=max(0.0, alone - each - context * cache),
        expert_weights=0.0,
        arithmetic=0.0,
        kv_per_token=cache,
        kv_per_window_token=0.0,
        communication_per_token=each,
        prefill_per_token=prompt / 1024,
        prefill_per_token_squared=0.0,
        stages=1,
    )


def _program() -> str | None:
    beside = Path(sys.executable).with_name("aiconfigurator")
    return shutil.which("aiconfigurator") or (str(beside) if beside.is_file() else None)


def _ask(fixed: list[str], mode: str, prompt: int, batch: int, word: str) -> float:
    """Seconds that it gives for one step (TPOT) or one prompt (TTFT)."""
    command = [
        *fixed, "--estimate-mode", mode, "--isl", str(prompt), "--osl", str(_REPLY), "--batch-size", str(batch),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TollgateError(f"aiconfigurator did not answer: {error}") from error
    value = re.search(rf"{word}:\s+([0-9.]+) ms", done.stdout)
    if value is None:
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        raise TollgateError(f"aiconfigurator gave no {word} (exit code {done.returncode}): {tail[0]}")
    return float(value[1]) / 1e3
