"""Writes questions.md: the operators' questions, answered by the planner. Run: python docs/planner/questions.py"""

from __future__ import annotations

import math
from pathlib import Path

import planner
from planner import _simfleet as simulators
from stacks import Tokens, Traffic

OLLAMA = planner.timing_for(engine="ollama", model="gemma3:4b", quantization="q4-k-m", gpu="nvidia-l4")
VLLM = planner.timing_for(engine="vllm", model="gemma3:4b", quantization="bf16", gpu="nvidia-l4", kv_cache="bf16")
VLLM_INT4 = planner.timing_for(engine="vllm", model="gemma3:4b", quantization="awq-int4", gpu="nvidia-l4")
PRICES = planner.price_book()


def traffic(users: int, output: float = 128) -> Traffic:
    """Users without think time, 128 tokens in."""
    return Traffic(users=users, prompt_tokens=Tokens(mean=128), output_tokens=Tokens(mean=output))


def hourly(nodes: int, machine: str = "g2-standard-8", *, spot: bool = False) -> float:
    """USD per hour of that many nodes in us-central1."""
    return nodes * float(PRICES.hourly(machine, region="us-central1", spot=spot) or 0)


SHAPES = (
    ("c6i.2xlarge", "us-east-1"),
    ("c6i.4xlarge", "us-east-1"),
    ("c6i.8xlarge", "us-east-1"),
    ("n2-highcpu-8", "us-central1"),
    ("n2-highcpu-16", "us-central1"),
    ("n2-highcpu-32", "us-central1"),
    ("c3-highcpu-8", "us-central1"),
    ("c3-highcpu-22", "us-central1"),
    ("c3-highcpu-44", "us-central1"),
)
# As "LLM-Simulator: Scalability & Performance - Executive Summary" of 2024-01-26 prints them.
PER_NODE = 12_000.0
HOURS = 720.0


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def measured() -> str:
    """The two measured rows and 16 slots."""
    rows = []
    for slots, rate, seconds in ((1, "~5", "~9.7 s"), (8, "~18", "~2.7 s"), (16, "–", "–")):
        found = planner.predict(OLLAMA, slots=slots, replicas=10, traffic=traffic(50))
        rows.append(
            [
                str(slots),
                str(slots * 10),
                rate,
                f"{found.requests_per_second:.1f}",
                seconds,
                f"{found.e2e_mean_seconds:.2f} s",
            ]
        )
    return table(["slots/node", "slots in all", "measured req/s", "planned", "measured latency", "planned"], rows)


def thousand() -> str:
    """1,000 users at 1 to 16 slots per node: on 10 nodes, and on as many as give everybody a slot."""
    rows = []
    for slots in (1, 2, 4, 8, 16):
        ten = planner.predict(OLLAMA, slots=slots, replicas=10, traffic=traffic(1000))
        nodes = -(-1000 // slots)
        full = planner.predict(OLLAMA, slots=slots, replicas=nodes, traffic=traffic(1000))
        rows.append(
            [
                str(slots),
                f"{ten.requests_per_second:.0f} req/s, {ten.e2e_mean_seconds:.1f} s",
                str(nodes),
                f"{full.requests_per_second:.0f} req/s, {full.e2e_mean_seconds:.2f} s",
                f"${hourly(nodes):,.0f}",
                f"${hourly(nodes, spot=True):,.0f}",
            ]
        )
    return table(["slots", "on 10 nodes", "nodes for a slot each", "there", "$/h", "spot"], rows)


def streams() -> str:
    """vLLM at 50 streams per L4."""
    rows = []
    for name, times in (("bf16", VLLM), ("awq-int4", VLLM_INT4)):
        for nodes in (10, 25):
            users = 50 * nodes
            found = planner.predict(times, slots=64, replicas=nodes, traffic=traffic(users))
            rows.append(
                [
                    name,
                    str(nodes),
                    f"{users:,}",
                    str(times.slots),
                    f"{found.requests_per_second:.0f}",
                    f"{found.ttft_p95_seconds:.2f} s",
                    f"{found.e2e_p95_seconds:.2f} s",
                    f"${hourly(nodes):.2f}",
                ]
            )
    return table(["vLLM", "nodes", "streams", "memory holds per L4", "req/s", "TTFT p95", "e2e p95", "$/h"], rows)


def kept_at(metric: str, seconds: float = 1.0) -> list[list[str]]:
    """For each promise the operators made: what the plan gives, and the longest reply at which it holds."""
    rows = []
    for words, times, slots, nodes, users in (
        ("Ollama, 1 slot, one user per node", OLLAMA, 1, 10, 10),
        ("Ollama, 2 slots, two users per node", OLLAMA, 2, 10, 20),
        ("Ollama, 8 slots, 50 users on 10 nodes", OLLAMA, 8, 10, 50),
        ("vLLM bf16, 1,000 users on 25 nodes", VLLM, 64, 25, 1000),
        ("vLLM awq-int4, 1,000 users on 25 nodes", VLLM_INT4, 64, 25, 1000),
    ):
        load = traffic(users)
        length = planner.longest_reply(times, slots=slots, replicas=nodes, traffic=load, metric=metric, limit=seconds)
        found = planner.predict(times, slots=slots, replicas=nodes, traffic=load)
        any_ = "any" if length >= 100_000 else f"{length} tokens" if length else "none"
        rows.append([words, f"{getattr(found, metric):.2f} s", any_])
    return rows


def promises() -> str:
    """How long replies may be for the promises the operators made, for the first token and for whole replies."""
    pairs = zip(kept_at("ttft_p95_seconds"), kept_at("e2e_p95_seconds"), strict=True)
    rows = [[words, first, held, whole, ends] for (words, first, held), (_, whole, ends) in pairs]
    columns = ["", "TTFT p95", "TTFT < 1 s holds up to", "e2e p95 at 128 tokens", "e2e < 1 s holds up to"]
    return table(columns, rows)


def mig() -> str:
    """An 8B model on the whole A100 80 GB against seven slices, under little and much load, beside the operators' claims."""
    rows = []
    price = hourly(1, "a2-ultragpu-1g")
    for quantization in ("bf16", "fp8", "awq-int4"):
        whole, slices = (
            planner.timing_for(
                engine="vllm",
                model="llama-3.1-8b-instruct",
                quantization=quantization,
                gpu="nvidia-a100-80gb",
                mig_profile=profile,
            )
            for profile in (None, "1g.10gb")
        )
        if slices.slots < 1:
            rows.append([quantization, "7 × 1g.10gb", "does not fit"] + [""] * 5)
            continue
        for users in (1, 7, 7 * slices.slots, 4 * 7 * slices.slots):
            one, seven = (
                planner.predict(times, slots=times.slots, replicas=replicas, traffic=traffic(users))
                for times, replicas in ((whole, 1), (slices, 7))
            )
            costs = [price / 3600 / found.requests_per_second * 1000 for found in (one, seven)]
            rows.append(
                [
                    quantization,
                    f"{users}",
                    f"{one.requests_per_second:.1f}/s, {one.e2e_mean_seconds:.1f} s",
                    f"{seven.requests_per_second:.1f}/s, {seven.e2e_mean_seconds:.1f} s",
                    f"{seven.requests_per_second / one.requests_per_second:.2f}×",
                    f"${costs[0]:.3f}",
                    f"${costs[1]:.3f}",
                    f"{costs[1] / costs[0] - 1:+.0%}",
                ]
            )
    columns = ["8B in", "users", "whole card", "7 × 1g.10gb", "throughput (claimed 7×)"]
    return table([*columns, "$/1,000 whole", "$/1,000 slices", "cost (claimed −85 %)"], rows)


def one_at_a_time() -> str:
    """The only card that seven slices beat sevenfold: one that serves a single request at a time."""
    serial = planner.timing_for(
        engine="vllm", model="llama-3.1-8b-instruct", quantization="bf16", gpu="nvidia-a100-80gb"
    )
    slices = planner.timing_for(
        engine="vllm",
        model="llama-3.1-8b-instruct",
        quantization="awq-int4",
        gpu="nvidia-a100-80gb",
        mig_profile="1g.10gb",
    )
    one = planner.predict(serial, slots=1, replicas=1, traffic=traffic(7 * slices.slots))
    seven = planner.predict(slices, slots=slices.slots, replicas=7, traffic=traffic(7 * slices.slots))
    ratio = seven.requests_per_second / one.requests_per_second
    return (
        f"Against a whole card in bf16 that answers one request at a time ({one.requests_per_second:.2f}/s), seven slices in\n"
        f"awq-int4 with {slices.slots} slots each make {ratio:.1f}×, {1 / ratio - 1:+.0%} per inference"
    )


def seventy() -> str:
    """Which machines hold 70B inside one node, by tensor parallelism, and which need two."""
    rows = []
    machines = [m for m in planner.catalog().machines.values() if m.gpu and PRICES.hourly(m.id, region="us-central1")]
    seen = set()
    for machine in sorted(machines, key=lambda m: (str(m.gpu), m.gpus, hourly(1, m.id))):
        if (machine.gpu, machine.gpus) in seen:
            continue
        seen.add((machine.gpu, machine.gpus))
        cells = [f"{machine.id} ({machine.gpus} × {machine.gpu})"]
        for quantization in ("bf16", "fp8", "awq-int4"):
            for nodes in (1, 2):
                times = planner.timing_for(
                    engine="vllm",
                    model="llama3.3:70b",
                    quantization=quantization,
                    gpu=str(machine.gpu),
                    tensor=machine.gpus,
                    pipeline=nodes,
                )
                if times.slots:
                    step = times.decode_step_seconds(8, 1024) * 1e3
                    where = "" if nodes == 1 else "**2 nodes**, "
                    cells.append(f"{where}{times.slots} slots, {step:.0f} ms, ${hourly(nodes, machine.id):.2f}/h")
                    break
            else:
                cells.append("not on two nodes either")
        rows.append(cells)
    return table(["machine", "bf16", "fp8", "awq-int4"], rows)


def all_reduces(gpu: str) -> float:
    """Milliseconds of the all-reduces of one token of 70B over 8 GPUs of a node, bandwidth left out."""
    model = planner.find_model("llama3.3:70b")
    return 2 * model.layers * planner.catalog().gpu(gpu).hop * 1e3


def simulator_fleet() -> str:
    """Nodes and dollars of the simulator fleet at months 0, 6 and 12."""
    rows = []
    for month in (0, 6, 12):
        rate = simulators.after(month)
        for machine, region in SHAPES:
            size = simulators.right_size(rate, machine_type=machine, region=region)
            rows.append(
                [
                    str(month),
                    f"{rate:,.0f}",
                    f"{simulators.cores(rate):,.0f}",
                    machine,
                    size.binds,
                    str(size.nodes),
                    f"${size.cost_per_hour:.2f}",
                    f"${size.cost_per_month:,.0f}",
                    f"${size.cost_per_million_requests:.4f}",
                ]
            )
    return table(["month", "req/s", "cores", "shape", "runs out", "nodes", "$/h", "$/month", "$/1M requests"], rows)


def regions() -> str:
    """Dev with 3 nodes and production with 3 regions × 10."""
    rows = []
    for words, nodes in (("dev, 3 nodes", 3), ("prod, 3 regions × 10", 30)):
        for machine, region in SHAPES:
            size = simulators.right_size(1.0, machine_type=machine, region=region)
            rate = simulators.capacity(nodes, size.requests_per_second_per_node)
            price = nodes * float(PRICES.hourly(machine, region=region) or 0)
            cells = [words, machine, f"{rate:,.0f}", f"${price:.2f}", f"${price * 730:,.0f}"]
            rows.append([*cells, f"${price / rate / 3600 * 1e6:.4f}"])
    return table(["fleet", "shape", "req/s it carries", "$/h", "$/month", "$/1M requests at full load"], rows)


def checked() -> str:
    """The operators' published figures of the simulator fleet against their own formulas, worked out again."""
    small, middle, large = (float(PRICES.hourly(f"c6i.{size}xlarge", region="us-east-1") or 0) for size in (2, 4, 8))

    def nodes(rate: float) -> int:
        return math.ceil(rate / (PER_NODE * simulators.HEADROOM))

    def per_million(monthly: float, rate: float) -> float:
        return monthly / (rate * HOURS * 3600) * 1e6

    def both(rate: float) -> str:
        return f"{nodes(rate)} by capacity, {cpu_nodes(rate)} by cores"

    by_cores = 8 * simulators.CPU_UTILIZATION / simulators.CPU_SECONDS_PER_REQUEST
    rows: list[tuple[str, str, str, bool]] = [
        ("capacity of 10 nodes", "102,000 req/s", f"{simulators.capacity(10, PER_NODE):,.0f} req/s", True),
        ("capacity of 3 nodes (dev)", "30,600 req/s", f"{simulators.capacity(3, PER_NODE):,.0f} req/s", True),
        ("capacity of 3 × 10 nodes (prod)", "306,000 req/s", f"{simulators.capacity(30, PER_NODE):,.0f} req/s", True),
        ("cores for 10,000 req/s", "29", f"{simulators.cores(10_000):.1f}, rounded up 29", True),
        ("memory at 200 requests", "2 GB + 2 MB", f"{simulators.memory_bytes(200) / 1e9:.3f} GB", True),
        ("bandwidth, 6 kB × 10,000 req/s", "60 MB/s", f"{simulators.bandwidth_bytes(10_000, 2e3, 4e3) / 1e6:.0f} MB/s", True),
        ("req/s after 6 months", "115,659", f"{simulators.after(6):,.0f}", False),
        ("req/s after 12 months", "267,447", f"{simulators.after(12):,.0f}", False),
        ("nodes at month 0", "10", both(50_000), False),
        ("nodes at month 6", "23", both(simulators.after(6)), False),
        ("nodes at month 12", "53", both(simulators.after(12)), False),
        ("12,000 req/s on 8 vCPUs", "12,000 req/s", f"{by_cores:,.0f} req/s at 2 ms and 70 %", False),
        ("dev, 3 × c6i.2xlarge, a month", "$734", f"${3 * small * HOURS:,.0f}", True),
        ("prod, 3 × 10 × c6i.2xlarge, a month", "$24,480", f"${30 * small * HOURS:,.0f}", False),
        ("10 × c6i.2xlarge, a month", "$2,448", f"${10 * small * HOURS:,.0f}", True),
        ("5 × c6i.4xlarge, a month", "$2,482", f"${5 * middle * HOURS:,.0f}", False),
        ("3 × c6i.8xlarge, a month", "$2,980", f"${3 * large * HOURS:,.0f}", False),
        ("$/1M requests, 10 × c6i.2xlarge", "$0.79", f"${per_million(10 * small * HOURS, 50_000):.4f}", False),
        ("$/1M requests, 5 × c6i.4xlarge", "$0.94", f"${per_million(5 * middle * HOURS, 50_000):.4f}", False),
        ("$/1M requests, 3 × c6i.8xlarge", "$1.08", f"${per_million(3 * large * HOURS, 50_000):.4f}", False),
        ("auto-scaling", "at most 50 nodes", "below the 53 that they plan for month 12", False),
    ]  # fmt: skip
    return table(
        ["figure", "published", "by their formulas", ""],
        [[what, said, right, "follows" if good else "**does not follow**"] for what, said, right, good in rows],
    )


def cpu_nodes(rate: float) -> int:
    """c6i.2xlarge nodes by the formula of cores, 15 % held back."""
    return simulators.right_size(rate, machine_type="c6i.2xlarge", region="us-east-1").nodes


def guesses() -> str:
    """The operators' other figures, about GPUs, with what follows from the measured rows and the price book."""
    one = planner.predict(OLLAMA, slots=1, replicas=1, traffic=traffic(1))
    vllm = planner.predict(VLLM_INT4, slots=64, replicas=25, traffic=traffic(1000))
    memory = planner.memory_for(
        engine=planner.catalog().engine("ollama"),
        model=planner.find_model("gemma3:4b"),
        quantization=planner.catalog().quantization("q4-k-m"),
        gpu=planner.catalog().gpu("nvidia-l4"),
    )
    best = f"{vllm.e2e_p95_seconds:.2f} s at best (awq-int4), first token {vllm.ttft_p95_seconds:.2f} s"
    rows = [
        ["KV cache of a 2k slot (Gemma 3 4B)", "about 1 GB", f"{memory.kv_bytes_per_slot / 1e9:.2f} GB"],
        ["slots that fit an L4", "about 20", str(memory.max_slots)],
        ["latency with 1 slot, nobody waiting", "1.0 s", f"{one.e2e_mean_seconds:.2f} s (the measured 9.7 s over 5 users)"],
        ["1,000 users on 25 vLLM nodes", "< 1 s", best],
        ["20 L4", "about $15/h", f"${hourly(20, 'g2-standard-4'):.2f}/h on g2-standard-4, ${hourly(20):.2f}/h on g2-standard-8"],
    ]  # fmt: skip
    return table(["figure", "operators", "planner"], rows)


def document() -> str:
    """The whole page."""
    memory = planner.memory_for(
        engine=planner.catalog().engine("ollama"),
        model=planner.find_model("gemma3:4b"),
        quantization=planner.catalog().quantization("q4-k-m"),
        gpu=planner.catalog().gpu("nvidia-l4"),
    )
    model, big = planner.find_model("gemma3:4b"), planner.find_model("llama3.3:70b")
    per_token = 2 * model.kv_heads * model.head_dim * 2 * model.layers
    windowed = model.layers - model.full_attention_layers
    weights, vision = memory.weights_bytes / 1e9, model.other_parameters * 2 / 1e9
    exchanges, nvlink, pcie = 2 * big.layers, all_reduces("nvidia-h100-80gb"), all_reduces("nvidia-l4")
    alone = planner.predict(OLLAMA, slots=1, replicas=1, traffic=traffic(1)).e2e_mean_seconds
    return f"""# The operators' questions, answered

Written by `python docs/planner/questions.py`; prices of {PRICES.source}, on demand unless it says spot.
Everywhere 128 tokens in and 128 out: the measured rows do not say how long the replies were, and this is the assumption
under which the constants were fitted. With replies of another length the same rows give other constants.

## What was measured, and 16 slots

{measured()}

With 50 users on 10 nodes five run on each, so 16 slots (160 in all) change nothing: from 5 slots up nobody waits.

## Memory

The operators counted about 3 GB of weights and 1 GB of keys and values per slot, 20 slots on 24 GB. Weights:
{weights:.2f} GB ({weights - vision:.2f} GB of text model in q4_K_M and {vision:.2f} GB of vision in 16 bits), as counted.
Keys and values: {model.layers} layers × 2 × {model.kv_heads} heads × {model.head_dim} × 2 bytes = {per_token / 1e3:.0f} kB
per token would be {per_token * 2048 / 1e9:.2f} GB at 2,048 tokens; {windowed} of the layers keep only a window of
{model.window:,}, which leaves {memory.kv_bytes_per_slot / 1e9:.2f} GB. So memory holds {memory.max_slots} slots, and time,
not memory, says how many are of use.

## 1,000 users

{thousand()}

125, 250 and 500 nodes cost ${hourly(125):,.2f}, ${hourly(250):,.2f} and ${hourly(500):,.2f} per hour on
g2-standard-8 (spot ${hourly(125, spot=True):,.2f}, ${hourly(250, spot=True):,.2f}, ${hourly(500, spot=True):,.2f}).
"20 L4 ≈ $15/h" fits g2-standard-4 (${hourly(20, "g2-standard-4"):.2f}); on g2-standard-8 it is ${hourly(20):.2f}.

## vLLM at 50 streams per L4

{streams()}

## Promises of one second

{promises()}

1.0 s at one or two slots contradicts the measured 9.7 s / 5 users = {alone:.2f} s of one request alone, unless replies are
about half as long. "1,000 users < 1 s" on 25 vLLM nodes means 40 streams per L4: true of the first token, of whole
replies only where they are a few dozen tokens.

## MIG: 8B on an A100 80 GB

{mig()}

fp16 needs 16 GB and does not fit 9.5 GB, fp8's 9.1 GB of weights leave no room for the engine, four bits fit. A slice has an
eighth of the bandwidth and about an eighth of the compute, so seven of them together stay below the card they were cut
from. {one_at_a_time()}:
the claims come near only where the whole card is used badly. With continuous batching the whole card gives as much or more
at any load; what slices buy is isolation.

## 70B

At 2,048 tokens of context; milliseconds of one token with 8 requests running; tensor parallelism over all GPUs of a node.

{seventy()}

Tensor parallelism exchanges activations twice per layer, {exchanges} times a token: inside a node {nvlink:.1f} ms over NVLink,
{pcie:.1f} ms over PCIe (L4). Two nodes are needed only where the table says so, and then split by pipeline, not tensor.

## The simulator fleet

Cores = req/s × 2 ms / 0.70, with 15 % of every node held back; {simulators.GROWTH_PER_MONTH * 100:.0f} % more each month.

{simulator_fleet()}

{regions()}

Cores run out first on every shape. Costs follow the price of a vCPU: c6i's sizes differ only by rounding up to whole nodes.

## Figures of the operators that do not follow from their own formulas

The fleet's figures are those of "LLM-Simulator: Scalability & Performance - Executive Summary" (2024-01-26), whose months have
{HOURS:.0f} hours; the prices per hour are the price book's, which agree with its rows that follow.

{checked()}

The node counts are those of 5,000 req/s per node, which stands nowhere; the production month is that of 100 nodes; the
dollars per million requests are about 42 times too high, and the ranking of shapes by them is one of rounding.

The same for GPUs:

{guesses()}
"""


if __name__ == "__main__":
    Path(__file__).with_name("questions.md").write_text(document(), encoding="utf-8")
