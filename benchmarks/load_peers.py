"""The other load generators, each told to do what ours does: who of them is here (`python benchmarks/load_peers.py`).

They are looked for on PATH, or in the folders of TOLLGATE_PEERS (with colons between), since they cannot live in one
environment: guidellm, aiperf, inference-perf and mlcommons' inference-endpoint are Python of several versions, vllm-bench is
Rust. `docs/benchmark.md` says how each was got.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

STARTING_SECONDS = 90.0
# Requests/s that each is known to reach about, of those that want to be told a number of requests: not streamed, streamed.
_ABOUT = {"vllm-bench": (9000, 9000), "inference-perf": (600, 400), "inference-endpoint": (2000, 800)}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """`tokenizer`: a folder; `out`: an empty one; `requests`: for those that count instead of timing."""

    url: str
    connections: int
    tokens: int
    seconds: float
    stream: bool
    tokenizer: Path
    out: Path
    requests: int


def find(name: str) -> str | None:
    """The program, or None."""
    folders = os.environ.get("TOLLGATE_PEERS", "").split(":")
    return shutil.which(name, path=os.pathsep.join([*filter(None, folders), os.environ.get("PATH", "")]))


def tokenizer(folder: Path) -> None:
    """A tokenizer of whole words, because theirs would be fetched from the network; written as what it is, JSON."""
    words = [a + b + c + d for a in "bcdfgmp" for b in "aeiou" for c in "lmnrst" for d in "aeiou"]
    vocabulary = {"<unk>": 0, "</s>": 1, **{word: number for number, word in enumerate(words, 2)}}
    made: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(made))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>", "model_max_length": 100_000,
        "chat_template": "{% for m in messages %}{{ m['content'] }} {% endfor %}",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text('{"model_type":"gpt2","vocab_size":1052}')


def _guidellm(ask: Ask) -> list[str]:
    endpoint = f"kind=openai_http,target={ask.url},model=tiny,request_format=/v1/chat/completions"
    return [
        "run", "--backend", f"{endpoint},stream={str(ask.stream).lower()}",
        "--profile", f"kind=concurrent,streams={ask.connections}",
        "--constraint", f"kind=max_duration,seconds={ask.seconds:.0f}",
        "--tokenizer", f"kind=huggingface_auto,model={ask.tokenizer}",
        "--data", f"kind=json_file,path={_prompts(ask)}",
        "--output", f"kind=json,path={ask.out}/result.json", "--disable-console",
    ]  # fmt: skip


def _guidellm_said(out: Path) -> float:
    found = json.loads((out / "result.json").read_text())["benchmarks"][0]["metrics"]["requests_per_second"]
    return float(found.get("successful", found)["mean"])


def _aiperf(ask: Ask) -> list[str]:
    return [
        "profile", "-m", "tiny", "-u", ask.url, "--endpoint-type", "chat", "--tokenizer", str(ask.tokenizer),
        "--concurrency", str(ask.connections), "--benchmark-duration", f"{ask.seconds:.0f}", "--isl", "16",
        "--osl", str(ask.tokens), "--use-server-token-count", "--artifact-dir", str(ask.out), "--ui", "none",
        *(["--streaming"] if ask.stream else []),
    ]  # fmt: skip


def _aiperf_said(out: Path) -> float:
    return float(json.loads((out / "profile_export_aiperf.json").read_text())["request_throughput"]["avg"])


def _inference_perf(ask: Ask) -> list[str]:
    # JSON is YAML.
    config = {
        "load": {
            "type": "concurrent", "num_workers": 1, "worker_max_concurrency": ask.connections,
            "stages": [{"num_requests": ask.requests, "concurrency_level": ask.connections}],
        },
        "api": {"type": "chat", "streaming": ask.stream},
        "server": {"type": "vllm", "model_name": "tiny", "base_url": ask.url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": str(ask.tokenizer)},
        "data": {
            "type": "shared_prefix",
            "shared_prefix": {
                "num_groups": 10, "num_prompts_per_group": 100, "system_prompt_len": 4, "question_len": 12,
                "output_len": ask.tokens,
            },
        },
        "storage": {"local_storage": {"path": str(ask.out)}},
    }  # fmt: skip
    file = ask.out / "config.yaml"
    file.write_text(json.dumps(config))
    return ["-c", str(file), "--log-level", "ERROR"]


def _inference_perf_said(out: Path) -> float:
    (file,) = out.rglob("*summary_lifecycle_metrics.json")
    return float(json.loads(file.read_text())["successes"]["throughput"]["requests_per_sec"])


def _prompts(ask: Ask) -> Path:
    """Prompts of sixteen words, for those that cannot make any for a tokenizer of their own, or take long to."""
    file = ask.out / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt":"word {number} {"x " * 14}"}}\n' for number in range(3000)))
    return file


def _endpoint(ask: Ask) -> list[str]:
    return [
        "benchmark", "online", "--endpoints", ask.url, "--model", "tiny", "--dataset", str(_prompts(ask)),
        "--load-pattern", "concurrency", "--concurrency", str(ask.connections), "--num-samples", str(ask.requests),
        "--duration", "0", "--max-output-tokens", str(ask.tokens),
        "--workers", "1", "--no-cpu-affinity", "--streaming", "on" if ask.stream else "off",
        "--report-dir", str(ask.out / "report"),
    ]  # fmt: skip


def _endpoint_said(out: Path) -> float:
    found = json.loads((out / "report" / "performance" / "result_summary.json").read_text())
    return float(found["qps"])


def _vllm_bench(ask: Ask) -> list[str]:
    return [
        "--backend", "openai-chat", "--base-url", ask.url, "--endpoint", "/v1/chat/completions", "--model", "tiny",
        "--tokenizer", str(ask.tokenizer), "--dataset-name", "custom", "--dataset-path", str(_prompts(ask)),
        "--custom-output-len", str(ask.tokens), "--skip-chat-template", "--num-prompts", str(ask.requests), "--max-concurrency",
        str(ask.connections), "--ignore-eos", "--disable-tqdm", "--save-result", "--result-dir", str(ask.out),
        "--result-filename", "result.json",
    ]  # fmt: skip


def _vllm_bench_said(out: Path) -> float:
    return float(json.loads((out / "result.json").read_text())["request_throughput"])


_PEERS: dict[str, tuple[Callable[[Ask], list[str]], Callable[[Path], float]]] = {
    "vllm-bench": (_vllm_bench, _vllm_bench_said),
    "inference-endpoint": (_endpoint, _endpoint_said),
    "inference-perf": (_inference_perf, _inference_perf_said),
    "aiperf": (_aiperf, _aiperf_said),
    "guidellm": (_guidellm, _guidellm_said),
}
NAMES = tuple(_PEERS)


def rate(name: str, url: str, *, connections: int, tokens: int, seconds: float, stream: bool) -> tuple[float, str]:
    """Requests/s by its own report, or nan and why there are none. It shares this process's cores and environment."""
    program = find(name)
    if program is None:
        return math.nan, "not here"
    if name == "vllm-bench" and not stream:
        return math.nan, "streams only"
    asked, said = _PEERS[name]
    with TemporaryDirectory() as folder:
        words, out = Path(folder, "tokenizer"), Path(folder, "out")
        words.mkdir()
        out.mkdir()
        tokenizer(words)
        requests = int(_ABOUT.get(name, (1000, 1000))[stream] * seconds)
        ask = Ask(
            url=url, connections=connections, tokens=tokens, seconds=max(6.0, seconds), stream=stream, tokenizer=words,
            out=out, requests=requests,
        )  # fmt: skip
        # One finds a local tokenizer only when it is told to stay off the network, another only when it is not.
        environment: dict[str, Any] = {**os.environ, "OPENAI_API_KEY": "none", "HF_HUB_DISABLE_TELEMETRY": "1"}
        if name != "aiperf":
            environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        said_nothing, ended = _ran([program, *asked(ask)], environment, folder, 3 * ask.seconds + STARTING_SECONDS)
        if not ended:
            return math.nan, "did not end in time"
        try:
            return said(out), ""
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            return math.nan, f"{type(error).__name__}: {said_nothing or error}"


def _ran(command: list[str], environment: dict[str, Any], folder: str, seconds: float) -> tuple[str, bool]:
    """The last line that it wrote, and whether it ended in time; nothing that it started is left."""
    with Path(folder, "log").open("w+b") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder, start_new_session=True
        )  # fmt: skip
        try:
            process.wait(seconds)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    return (lines[-1][:160] if lines else ""), ended


if __name__ == "__main__":
    for peer in NAMES:
        print(f"{peer:<20} {find(peer) or 'not here'}")
