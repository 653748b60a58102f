"""The `/metrics` page: vLLM's names, labels, buckets and order, in the text format of the Prometheus client library."""

from __future__ import annotations

import gc
import os
import platform
import resource
import sys

from ._options import Engine
from ._stats import HTTP_COARSE, REASONS, Histogram, Stats


def show(value: float) -> str:
    """A number as Prometheus' Python client prints it: exponents from eight digits on."""
    text = repr(float(value))
    dot = text.find(".")
    if value > 0 and dot > 6 and "e" not in text:
        mantissa = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
        return f"{mantissa}e+{dot - 1:02d}"
    return text


class _Page:
    def __init__(self, labels: str, created: float) -> None:
        self.lines: list[str] = []
        self.labels = labels
        self.created = show(created)

    def head(self, name: str, kind: str, text: str) -> None:
        self.lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")

    def gauge(self, name: str, text: str, rows: list[tuple[str, float]]) -> None:
        self.head(name, "gauge", text)
        self.lines += [f"{name}{{{labels}}} {show(value)}" for labels, value in rows]

    def counter(self, name: str, text: str, rows: list[tuple[str, float]]) -> None:
        self.head(f"{name}_total", "counter", text)
        self.lines += [f"{name}_total{{{labels}}} {show(value)}" for labels, value in rows]
        self.head(f"{name}_created", "gauge", text)
        self.lines += [f"{name}_created{{{labels}}} {self.created}" for labels, _ in rows]

    def histogram(
        self,
        name: str,
        text: str,
        bounds: tuple[float, ...],
        counts: list[float],
        total: float,
        before: str = "",
        after: str = "",
    ) -> None:
        """`before` and `after`: labels that sort before and after `le`, with their commas."""
        self.head(name, "histogram", text)
        running = 0.0
        lines = self.lines
        for bound, number in zip((*[show(b) for b in bounds], "+Inf"), counts, strict=True):
            running += number
            lines.append(f'{name}_bucket{{{before}le="{bound}"{after}}} {show(running)}')
        labels = (before.rstrip(",") + after) if before else after.lstrip(",")
        shown = f"{{{labels}}}" if labels else ""
        lines.append(f"{name}_count{shown} {show(running)}")
        lines.append(f"{name}_sum{shown} {show(total)}")
        self.head(f"{name}_created", "gauge", text)
        lines.append(f"{name}_created{shown} {self.created}")


def _process(page: _Page, created: float) -> None:
    generations = gc.get_stats()
    for name, key, text in (
        ("python_gc_objects_collected", "collected", "Objects collected during gc"),
        ("python_gc_objects_uncollectable", "uncollectable", "Uncollectable objects found during GC"),
        ("python_gc_collections", "collections", "Number of times this generation was collected"),
    ):
        page.head(f"{name}_total", "counter", text)
        page.lines += [f'{name}_total{{generation="{at}"}} {show(row[key])}' for at, row in enumerate(generations)]
    major, minor, patch = sys.version_info[:3]
    info = f'implementation="CPython",major="{major}",minor="{minor}",patchlevel="{patch}"'
    page.gauge("python_info", "Python platform information", [(f'{info},version="{platform.python_version()}"', 1.0)])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    resident = float(usage.ru_maxrss * 1024)
    virtual = resident
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - a proc file, read once per scrape
            pages = file.read().split()
        virtual, resident = (float(pages[i]) * resource.getpagesize() for i in (0, 1))
        files = float(len(os.listdir("/proc/self/fd")))  # noqa: PTH208
    except OSError:
        files = 0.0
    for name, kind, text, value in (
        ("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", virtual),
        ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident),
        ("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", created),
        (
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            usage.ru_utime + usage.ru_stime,
        ),
        ("process_open_fds", "gauge", "Number of open file descriptors.", files),
        (
            "process_max_fds",
            "gauge",
            "Maximum number of open file descriptors.",
            float(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        ),
    ):
        page.head(name, kind, text)
        page.lines.append(f"{name} {show(value)}")


def exposition(
    stats: Stats,
    values: list[float],
    handlers: dict[tuple[str, str, str], list[float]],
    options: Engine,
    blocks: int,
    created: float,
    *,
    prefix: str = "vllm",
    model: str = "",
) -> bytes:
    """The whole page. `values` and `handlers` are a snapshot of `stats`, or the sum of several workers'."""
    name = (model or (options.models[0] if options.models else "")).replace("\\", "\\\\").replace('"', '\\"')
    own = f'engine="0",model_name="{name}"'
    page = _Page(own, created)
    _process(page, created)

    def one(at: int) -> list[tuple[str, float]]:
        return [(own, values[at])]

    def counter(metric: str, text: str, at: int | None) -> None:
        page.counter(f"{prefix}:{metric}", text, [(own, values[at] if at is not None else 0.0)])

    def sourced(metric: str, text: str, rows: tuple[tuple[str, float], ...]) -> None:
        page.counter(f"{prefix}:{metric}", text, [(f'{own},source="{source}"', value) for source, value in rows])

    for metric, text in (
        ("estimated_flops_per_gpu", "Estimated number of floating point operations per GPU"),
        ("estimated_read_bytes_per_gpu", "Estimated number of bytes read from memory per GPU"),
        ("estimated_write_bytes_per_gpu", "Estimated number of bytes written to memory per GPU"),
    ):
        counter(metric, f"{text} (for Model Flops Utilization calculations).", None)
    page.gauge(f"{prefix}:num_requests_running", "Number of requests in model execution batches.", one(stats.running))
    page.gauge(f"{prefix}:num_requests_waiting", "Number of requests waiting to be processed.", one(stats.waiting))
    page.gauge(
        f"{prefix}:num_requests_waiting_by_reason",
        "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = "
        "deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals "
        "vllm:num_requests_waiting.",
        [(f'{own},reason="capacity"', values[stats.waiting]), (f'{own},reason="deferred"', 0.0)],
    )
    page.gauge(
        f"{prefix}:engine_sleep_state",
        "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1 means "
        "sleep level 1; discard_all = 1 means sleep level 2.",
        [(f'{own},sleep_state="{s}"', float(s == "awake")) for s in ("awake", "weights_offloaded", "discard_all")],
    )
    page.gauge(f"{prefix}:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", one(stats.kv_usage))
    hits, prompts = values[stats.prefix_hits], values[stats.prompt_tokens]
    counter("prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens.", stats.prefix_queries)
    counter("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", stats.prefix_hits)
    for kind, text in (("queries", "queried"), ("hits", "cached")):
        counter(
            f"external_prefix_cache_{kind}",
            f"External prefix cache {kind} from KV connector cross-instance cache sharing, in terms of number of {text} tokens.",
            None,
        )
    for kind, text in (("queries", "queried"), ("hits", "cached")):
        counter(f"mm_cache_{kind}", f"Multi-modal cache {kind}, in terms of number of {text} items.", None)
    counter("num_preemptions", "Cumulative number of preemption from the engine.", stats.preemptions)
    counter("prompt_tokens", "Number of prefill tokens processed.", stats.prompt_tokens)
    computed = max(0.0, prompts - hits)
    sources = (("local_compute", computed), ("local_cache_hit", hits), ("external_kv_transfer", 0.0))
    sourced("prompt_tokens_by_source", "Number of prompt tokens by source.", sources)
    counter("prompt_tokens_cached", "Number of cached prompt tokens (local + external).", stats.prefix_hits)
    sourced(
        "prompt_tokens_cached_by_source",
        "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), disk, p2p "
        "(transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to vllm:prefix_cache_hits "
        "+ vllm:external_prefix_cache_hits.",
        (("device", hits), ("host", 0.0), ("p2p", 0.0), ("disk", 0.0), ("external_unspecified", 0.0)),
    )
    counter("generation_tokens", "Number of generation tokens processed.", stats.generation_tokens)
    page.counter(
        f"{prefix}:request_success",
        "Count of successfully processed requests.",
        [
            (f'engine="0",finished_reason="{reason}",model_name="{name}"', values[stats.success + i])
            for i, reason in enumerate(REASONS)
        ],
    )
    page.counter(
        f"{prefix}:admission_rejections",
        "Number of admission attempts rejected by a queue limit, by reason.",
        [
            (f'model_name="{name}",reason="max_num_queued_reqs"', values[stats.rejected]),
            (f'model_name="{name}",reason="max_num_queued_tokens"', values[stats.rejected_tokens]),
        ],
    )
    before, after = 'engine="0",', f',model_name="{name}"'
    histograms: tuple[tuple[str, str, Histogram], ...] = (
        ("request_prompt_tokens", "Number of prefill tokens processed.", stats.request_prompt),
        ("request_generation_tokens", "Number of generation tokens processed.", stats.request_generation),
        ("iteration_tokens_total", "Histogram of number of tokens per engine_step.", stats.iteration_tokens),
        (
            "request_max_num_generation_tokens",
            "Histogram of maximum number of requested generation tokens.",
            stats.request_max_generation,
        ),
        ("request_params_n", "Histogram of the n request parameter.", stats.params_n),
        ("request_params_max_tokens", "Histogram of the max_tokens request parameter.", stats.params_max_tokens),
        ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", stats.ttft),
        ("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", stats.itl),
        (
            "request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            stats.tpot,
        ),
        ("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", stats.e2e),
        ("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", stats.queue),
        ("request_inference_time_seconds", "Histogram of time spent in RUNNING phase for request.", stats.inference),
        ("request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.", stats.prefill),
        ("request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", stats.decode),
        (
            "request_num_preemptions",
            "Histogram of the number of times a request was preempted.",
            stats.request_preemptions,
        ),
        (
            "request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            stats.prefill_computed,
        ),
    )
    for metric, text, histogram in histograms:
        counts = values[histogram.at : histogram.sum]
        page.histogram(f"{prefix}:{metric}", text, histogram.bounds, counts, values[histogram.sum], before, after)
    if blocks:
        _cache_config(page, options, blocks)
    _http(page, stats, values, handlers)
    return ("\n".join(page.lines) + "\n").encode()


# Labels of the cache's configuration that say None on a machine as it is simulated here.
_UNSET: tuple[str, ...] = (
    "cache_hit_alignment_tokens",
    "hash_block_size",
    "kv_cache_layout",
    "kv_cache_memory_bytes",
    "kv_offloading_size",
)
_UNSET += ("mamba_block_size", "mamba_page_size_padded", "num_cpu_blocks", "prefix_match_unit", "skip_page_size_padded")
_UNSET += ("sliding_window",)


def _cache_config(page: _Page, options: Engine, blocks: int) -> None:
    tokens = blocks * options.block_tokens
    none = dict.fromkeys(_UNSET, "None")
    labels: dict[str, object] = none | {
        "_block_size_resolved": "True",
        "block_size": options.block_tokens,
        "cache_dtype": options.kv_cache,
        "effective_attention_block_size": options.block_tokens,
        "enable_mamba_shared_prefix_checkpoint": "False",
        "enable_prefix_caching": options.prefix_caching,
        "engine": 0,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "is_attention_free": "False",
        "kv_cache_dtype_skip_layers": "[]",
        "kv_cache_max_concurrency": tokens / options.context_tokens,
        "kv_cache_size_tokens": tokens,
        "kv_offloading_backend": "native",
        "kv_sharing_fast_prefill": "False",
        "mamba_cache_dtype": "auto",
        "mamba_cache_mode": "none",
        "mamba_ssm_cache_dtype": "float32",
        "num_gpu_blocks": blocks,
        "num_gpu_blocks_override": options.num_gpu_blocks,
        "prefix_cache_retention_interval": 0,
        "prefix_caching_hash_algo": "sha256",
        "replayssm_buffer_len": 16,
        "swa_bounded_replay": "True",
        "use_kda_recoverssm": "False",
        "use_replayssm": "False",
        "user_specified_block_size": options.block_tokens != 16,
    }
    shown = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    page.gauge("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", [(shown, 1.0)])


def _http(page: _Page, stats: Stats, values: list[float], handlers: dict[tuple[str, str, str], list[float]]) -> None:
    rows = sorted(handlers.items())
    page.counter(
        "http_requests",
        "Total number of requests by method, status and handler.",
        [(f'handler="{h}",method="{m}",status="{s}"', row[0]) for (h, m, s), row in rows],
    )
    by_handler: dict[str, list[float]] = {}
    for (handler, _, _), row in rows:
        total = by_handler.setdefault(handler, [0.0, 0.0, 0.0])
        for at in range(3):
            total[at] += row[at]
    for metric, text, at in (
        (
            "http_request_size_bytes",
            "Content length of incoming requests by handler. Only value of header is respected. "
            "Otherwise ignored. No percentile calculated. ",
            1,
        ),
        (
            "http_response_size_bytes",
            "Content length of outgoing responses by handler. Only value of header is respected. "
            "Otherwise ignored. No percentile calculated. ",
            2,
        ),
    ):
        page.head(metric, "summary", text)
        for handler, total in by_handler.items():
            page.lines += (
                f'{metric}_count{{handler="{handler}"}} {show(total[0])}',
                f'{metric}_sum{{handler="{handler}"}} {show(total[at])}',
            )
        page.head(f"{metric}_created", "gauge", text)
        page.lines += [f'{metric}_created{{handler="{handler}"}} {page.created}' for handler in by_handler]
    fine = stats.http_fine
    page.histogram(
        "http_request_duration_highr_seconds",
        "Latency with many buckets but no API specific labels. Made for more accurate percentile calculations. ",
        fine.bounds,
        values[fine.at : fine.sum],
        values[fine.sum],
    )
    merged: dict[tuple[str, str], list[float]] = {}
    for (handler, method, _), row in rows:
        into = merged.setdefault((handler, method), [0.0] * len(row))
        for at, value in enumerate(row):
            into[at] += value
    for (handler, method), row in merged.items():
        page.histogram(
            "http_request_duration_seconds",
            "Latency with only few buckets by handler. Made to be only used if aggregation by handler is important. ",
            HTTP_COARSE,
            row[3:-1],
            row[-1],
            f'handler="{handler}",',
            f',method="{method}"',
        )
