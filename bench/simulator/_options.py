"""What a simulated engine is told: its own flags and environment, and what only the simulator knows.

The engine's part is read exactly as the engine reads it (`OLLAMA_*`, the arguments of `vllm serve`), so that a chart
written for the engine starts the simulator unchanged. The simulator's own part is `TOLLGATE_SIM_*`.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

_DURATION = re.compile(r"^\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|m|h)?\s*$")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


class OptionError(ValueError):
    """An option that cannot be used; the message names it, what was got and what is allowed."""


def seconds(name: str, text: str) -> float:
    """`text` as seconds: a bare number, or one with us, ms, s, m or h."""
    match = _DURATION.match(text)
    if not match:
        raise OptionError(
            f"{name}: got {text!r}; allowed: seconds, or a number with us, ms, s, m, h (for example 20ms)"
        )
    return float(match[1]) * _UNITS[match[2]]


def number(name: str, text: str, low: float, high: float = math.inf) -> float:
    """`text` as a finite number within [low, high]."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and low <= value <= high):
        raise OptionError(f"{name}: got {text!r}; allowed: a number from {low:g} to {high:g}")
    return value


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong on purpose, as shares of requests (0..1) drawn by the seed.

    `error`: answered with 500. `disconnect`: cut in mid-stream. `slow`: served `slow_factor` times slower.
    `slow_replica`: share of the replicas (by name) that are so much slower in everything. `oom`: the process dies with
    code 137 after beginning to answer, as a container killed for memory does.
    """

    error: float = 0.0
    disconnect: float = 0.0
    slow: float = 0.0
    slow_factor: float = 5.0
    slow_replica: float = 0.0
    oom: float = 0.0

    @property
    def any(self) -> bool:
        """Whether any fault can happen."""
        return (self.error + self.disconnect + self.slow + self.oom) > 0

    @classmethod
    def parse(cls, text: str) -> Faults:
        """From `error=0.01,disconnect=0.02,slow=0.1,slow_factor=3,oom=0`."""
        values: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, _, value = part.partition("=")
            if key not in cls.__dataclass_fields__:
                raise OptionError(f"TOLLGATE_SIM_FAULTS: got {key!r}; allowed: {', '.join(cls.__dataclass_fields__)}")
            values[key] = number(
                f"TOLLGATE_SIM_FAULTS {key}",
                value,
                1.0 if key == "slow_factor" else 0.0,
                1000.0 if key == "slow_factor" else 1.0,
            )
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Sim:
    """The simulator's own settings.

    `ttft`, `itl`: fixed seconds to the first token and between tokens; None: from the latency model of the GPU.
    `jitter`: coefficient of variation of both when fixed. `speed`: divides every simulated duration.
    `load_seconds`: time to load a model (Ollama, on first use); None: from the model. `cold_start`: seconds until the
    server listens (vLLM's start-up). `output_tokens`, `output_cv`: natural length of an answer whose length the client
    does not force; 0 means "always as long as allowed". `throttle_after`: busy seconds after which the GPU slows to
    `throttle_factor` of its speed; None: never. `grace`: seconds for streams to finish after SIGTERM. `restart`: seconds
    after which a worker that died for memory comes back; None: the server ends as a container does.
    """

    ttft: float | None = None
    itl: float | None = None
    jitter: float = 0.0
    speed: float = 1.0
    seed: int = 0
    load_seconds: float | None = None
    cold_start: float = 0.0
    output_tokens: float = 256.0
    output_cv: float = 0.6
    throttle_after: float | None = None
    throttle_factor: float = 0.1
    grace: float = 30.0
    restart: float | None = None
    workers: int = 1
    http2: bool = False
    max_connections: int = 0
    max_body: int = 16 << 20
    idle_seconds: float = 120.0
    head_seconds: float = 30.0
    metrics_port: int = 0
    certificate: str = ""
    private_key: str = ""
    api_key: str = ""
    faults: Faults = field(default_factory=Faults)

    @property
    def fixed(self) -> bool:
        """Whether latency is given instead of modelled."""
        return self.ttft is not None or self.itl is not None

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Sim:
        """Every field from `TOLLGATE_SIM_<FIELD>`; unset or empty ones keep their default."""
        values: dict[str, object] = {}
        for name in cls.__dataclass_fields__:
            key = f"TOLLGATE_SIM_{name.upper()}"
            text = env.get(key, "")
            if text:
                values[name] = _sim_value(name, key, text)
        return replace(cls(), **values)  # type: ignore[arg-type]


def _sim_value(name: str, key: str, text: str) -> object:
    if name in ("ttft", "itl", "load_seconds", "cold_start", "throttle_after", "grace", "restart", "idle_seconds",
                "head_seconds"):  # fmt: skip
        return seconds(key, text)
    if name == "faults":
        return Faults.parse(text)
    if name in ("certificate", "private_key", "api_key"):
        return text
    if name == "http2":
        if text not in ("0", "1", "true", "false"):
            raise OptionError(f"{key}: got {text!r}; allowed: 1 or 0")
        return text in ("1", "true")
    if name == "workers" and text == "auto":
        return len(os.sched_getaffinity(0))
    if name in ("seed", "workers", "max_connections", "max_body", "metrics_port"):
        high = {"workers": 256, "metrics_port": 65535, "max_body": 1 << 30}.get(name, 1 << 53)
        return int(number(key, text, 1 if name == "workers" else 0, high))
    if name == "speed":
        return number(key, text, 1e-3, 1e9)
    if name == "throttle_factor":
        return number(key, text, 1e-3, 1.0)
    return number(key, text, 0.0, 1e9)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The accelerator the node says it has: GKE's name, MIG profile (None: the whole GPU), how many."""

    name: str = "nvidia-l4"
    mig_profile: str | None = None
    count: int = 1

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Gpu:
        """From what the node agent adds to a container's environment."""
        count = env.get("TOLLGATE_GPU_COUNT", "") or "1"
        return cls(
            name=env.get("TOLLGATE_ACCELERATOR", "") or "nvidia-l4",
            mig_profile=env.get("TOLLGATE_GPU_PARTITION", "") or None,
            count=max(1, int(number("TOLLGATE_GPU_COUNT", count, 0, 1024))),
        )


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One simulated engine, whichever dialect it speaks.

    `max_seqs`: requests decoded at once (slots). `max_batched_tokens`: tokens of one step. `max_queue`: requests that
    may wait. `max_queued_reqs`, `max_queued_tokens`: vLLM's limits on requests in flight and on prompt tokens that are not
    yet computed (0: none). `context_tokens`: of one request. `name`: of the replica, the pod's where it is in one.
    """

    dialect: Literal["ollama", "vllm"]
    name: str = ""
    host: str
    port: int
    gpu: Gpu
    sim: Sim
    version: str
    models: tuple[str, ...] = ()
    source: str = ""
    context_tokens: int = 4096
    max_seqs: int = 1
    max_batched_tokens: int = 512
    max_queue: int = 512
    max_queued_reqs: int = 0
    max_queued_tokens: int = 0
    quantization: str = ""
    kv_cache: str = "f16"
    tensor: int = 1
    gpu_memory_utilization: float = 0.92
    num_gpu_blocks: int | None = None
    block_tokens: int = 16
    prefix_caching: bool = True
    keep_alive: float = 300.0
    max_loaded: int = 3
    api_keys: tuple[str, ...] = ()
    shutdown_timeout: float | None = None
    auto_tools: bool = False
    chunked: bool = True


def warn(text: str) -> None:
    """One line to standard error, where a container's log is read."""
    print(text, file=sys.stderr, flush=True)


def pod_address(env: Mapping[str, str]) -> str:
    """The address to serve on: the pod's own where there is one, else this machine's loopback."""
    return env.get("POD_IP") or "127.0.0.1"


def go_duration(text: str, default: float) -> float:
    """A Go duration (`5m`, `1h30m`, `-1`) or bare seconds, as Ollama reads `keep_alive`; negative: for ever (inf)."""
    text = text.strip().strip('"')
    if not text:
        return default
    sign, rest = (-1.0, text[1:]) if text[0] == "-" else (1.0, text)
    if re.fullmatch(r"\d+(\.\d*)?", rest):
        value = float(rest)
    else:
        parts = re.findall(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)", rest)
        if not parts or "".join(a + b for a, b in parts) != rest:
            raise OptionError(f'time: invalid duration "{text}"')
        scale = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
        value = sum(float(a) * scale[b] for a, b in parts)
    return math.inf if sign < 0 and value > 0 else value


def _ollama_int(env: Mapping[str, str], name: str, default: int) -> int:
    """As Ollama does: what is not a number is logged and the default taken."""
    text = env.get(name, "").strip().strip("\"'")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        warn(f"invalid environment variable, using default key={name} value={text} default={default}")
        return default


def ollama_from(env: Mapping[str, str], *, version: str) -> Engine:
    """An Ollama server as its environment configures it."""
    host, port = ollama_host(env)
    context = _ollama_int(env, "OLLAMA_CONTEXT_LENGTH", 0)
    gpu = Gpu.from_environment(env)
    try:
        keep_alive = go_duration(env.get("OLLAMA_KEEP_ALIVE", ""), 300.0)
    except OptionError:
        keep_alive = 300.0
    slots = _ollama_int(env, "OLLAMA_NUM_PARALLEL", 1)
    sim = Sim.from_environment(env)
    models = tuple(name for name in re.split(r"[,\s]+", env.get("TOLLGATE_SIM_MODELS", "")) if name)
    return Engine(
        dialect="ollama",
        name=env.get("HOSTNAME", ""),
        host=host,
        port=port,
        gpu=gpu,
        sim=sim,
        version=version,
        models=models,
        api_keys=(sim.api_key,) if sim.api_key else (),
        context_tokens=context if context > 0 else 4096,
        max_seqs=max(1, slots),
        max_batched_tokens=512,
        max_queue=_ollama_int(env, "OLLAMA_MAX_QUEUE", 512),
        kv_cache=env.get("OLLAMA_KV_CACHE_TYPE", "").lower() or "f16",
        keep_alive=keep_alive,
        max_loaded=_ollama_int(env, "OLLAMA_MAX_LOADED_MODELS", 0) or 3 * gpu.count,
    )


def ollama_host(env: Mapping[str, str]) -> tuple[str, int]:
    """Where Ollama listens: `OLLAMA_HOST` as host, host:port, :port or URL; else the pod's address and 11434.

    An address of all interfaces is narrowed to the pod's own where there is one: several pods share this machine.
    """
    text = env.get("OLLAMA_HOST", "").strip().strip("\"'")
    text = re.sub(r"^https?://", "", text).partition("/")[0]
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "")
    host = host.strip("[]")
    try:
        number_ = int(port) if port else 11434
    except ValueError:
        number_ = 11434
    if env.get("POD_IP") and host in ("", "0.0.0.0", "::"):
        host = env["POD_IP"]
    return host or pod_address(env), number_ if 0 <= number_ <= 65535 else 11434


def vllm_defaults(gpu: str) -> tuple[int, int]:
    """(max_num_seqs, max_num_batched_tokens) of vLLM's API server: larger on GPUs of 70 GiB and more, but for A100."""
    name = gpu.lower()
    large = any(part in name for part in ("h100", "h200", "b200", "gb200", "mi300", "mi325", "mi355"))
    return (1024, 8192) if large and "a100" not in name else (256, 2048)


class _Flags:
    """`--name value`, `--name=value`, `--switch`, with - and _ alike, as vLLM's parser takes them."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.values: dict[str, str] = {}
        self.positional: list[str] = []
        position = 0
        while position < len(arguments):
            argument = arguments[position]
            position += 1
            if argument in ("-tp", "-pp", "-q"):
                argument = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size", "-q": "--quantization"}[
                    argument
                ]
            if not argument.startswith("--"):
                self.positional.append(argument)
                continue
            name, equals, value = argument[2:].partition("=")
            name = name.replace("_", "-")
            if not equals and position < len(arguments) and not arguments[position].startswith("--"):
                if name in _SWITCHES:
                    value = ""
                else:
                    value = arguments[position]
                    position += 1
            self.values[name] = value

    def text(self, name: str, default: str = "") -> str:
        return self.values.pop(name, "") or default

    def integer(self, name: str, default: int, low: int = 0) -> int:
        text = self.values.pop(name, "")
        return int(number(f"--{name}", text, low, 1 << 53)) if text else default


_SWITCHES = frozenset(
    [
        "enable-prefix-caching",
        "no-enable-prefix-caching",
        "enable-chunked-prefill",
        "no-enable-chunked-prefill",
        "trust-remote-code",
        "enforce-eager",
        "enable-auto-tool-choice",
        "disable-log-requests",
        "disable-log-stats",
        "enable-lora",
        "enable-log-requests",
        "no-enable-log-requests",
        "disable-uvicorn-access-log",
        "enable-sleep-mode",
        "async-scheduling",
        "no-async-scheduling",
        "enable-expert-parallel",
        "headless",
    ]
)
_HARMLESS = frozenset(
    [
        "pipeline-parallel-size",
        "dtype",
        "download-dir",
        "tokenizer",
        "revision",
        "seed",
        "trust-remote-code",
        "enforce-eager",
        "load-format",
        "disable-log-requests",
        "disable-log-stats",
        "swap-space",
        "uvicorn-log-level",
        "tool-call-parser",
        "chat-template",
        "enable-log-requests",
        "no-enable-log-requests",
        "disable-uvicorn-access-log",
        "generation-config",
    ]
)


def vllm_from(arguments: Sequence[str], env: Mapping[str, str], *, version: str) -> Engine:
    """A vLLM API server as its arguments configure it; a flag the simulator has no use for is said so, not refused."""
    flags = _Flags(arguments)
    if flags.positional[:1] == ["serve"]:
        flags.positional.pop(0)
    model = flags.text("model") or (flags.positional[0] if flags.positional else "")
    if not model:
        raise OptionError("vllm serve: got no model; allowed: vllm serve MODEL or --model MODEL")
    gpu = Gpu.from_environment(env)
    seqs, batched = vllm_defaults(gpu.name)
    names = tuple(flags.text("served-model-name").replace(",", " ").split()) or (model,)
    # `--served-model-name a b` leaves b among the positional words.
    names += tuple(flags.positional[1:]) if names != (model,) else ()
    host = flags.text("host")
    if not host or (env.get("POD_IP") and host in ("0.0.0.0", "::")):
        host = pod_address(env)
    sim = Sim.from_environment(env)
    keys = tuple(filter(None, (flags.text("api-key"), env.get("VLLM_API_KEY", ""), sim.api_key)))
    context = _tokens("--max-model-len", flags.text("max-model-len"), 8192)
    timeout = flags.values.pop("shutdown-timeout", "")
    prefix = "no-enable-prefix-caching" not in flags.values
    engine = Engine(
        dialect="vllm",
        name=env.get("HOSTNAME", ""),
        host=host,
        port=flags.integer("port", 8000),
        gpu=gpu,
        sim=sim,
        version=version,
        models=names,
        source=model,
        context_tokens=context,
        max_seqs=flags.integer("max-num-seqs", seqs, 1),
        max_batched_tokens=_tokens("--max-num-batched-tokens", flags.text("max-num-batched-tokens"), batched),
        # vLLM's queue has no end; this one has, so that memory has.
        max_queue=1 << 17,
        max_queued_reqs=flags.integer("max-num-queued-reqs", 0),
        max_queued_tokens=flags.integer("max-num-queued-tokens", 0),
        quantization=flags.text("quantization"),
        kv_cache=flags.text("kv-cache-dtype", "auto"),
        tensor=flags.integer("tensor-parallel-size", 1, 1),
        gpu_memory_utilization=number(
            "--gpu-memory-utilization", flags.text("gpu-memory-utilization", "0.92"), 0.01, 1.0
        ),
        num_gpu_blocks=flags.integer("num-gpu-blocks-override", 0) or None,
        block_tokens=flags.integer("block-size", 16, 1),
        prefix_caching=prefix,
        api_keys=keys,
        shutdown_timeout=number("--shutdown-timeout", timeout, 0, 86400) if timeout else None,
        auto_tools=flags.values.pop("enable-auto-tool-choice", None) is not None,
        chunked="no-enable-chunked-prefill" not in flags.values,
    )
    for name in sorted(set(flags.values) - _HARMLESS - _SWITCHES):
        warn(f"simulator: --{name} changes nothing here")
    return engine


def _tokens(name: str, text: str, default: int) -> int:
    """A token count as vLLM writes it: 2048, 2k (thousand), 2K (1024)."""
    if not text or text == "auto" or text == "-1":
        return default
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text)
    if not match:
        raise OptionError(f"{name}: got {text!r}; allowed: a number of tokens, such as 2048 or 32k")
    return max(1, int(float(match[1]) * {"": 1, "k": 1000, "K": 1024, "m": 10**6, "M": 1 << 20}[match[2]]))


def environment() -> Mapping[str, str]:
    """This process's environment (one place, so that tests can give their own)."""
    return os.environ
