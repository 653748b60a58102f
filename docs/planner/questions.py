"""Writes questions.md: the operators' questions, answered by the planner. Run: python docs/planner/questions.py"""

from __future__ import annotations

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


def promises() -> str:
    """How long replies may be for the promises the operators made."""
    rows = []
    for words, times, slots, nodes, users in (
        ("Ollama, 1 slot, one user per node", OLLAMA, 1, 10, 10),
        ("Ollama, 2 slots, two users per node", OLLAMA, 2, 10, 20),
        ("Ollama, 8 slots, 50 users on 10 nodes", OLLAMA, 8, 10, 50),
        ("vLLM bf16, 1,000 users on 25 nodes", VLLM, 64, 25, 1000),
        ("vLLM awq-int4, 1,000 users on 25 nodes", VLLM_INT4, 64, 25, 1000),
    ):
        lengths = [
            planner.longest_reply(times, slots=slots, replicas=nodes, traffic=traffic(users), metric=metric, limit=1.0)
            for metric in ("ttft_p95_seconds", "e2e_p95_seconds")
        ]
        found = planner.predict(times, slots=slots, replicas=nodes, traffic=traffic(users))
        rows.append(
            [words, f"{found.e2e_p95_seconds:.2f} s"]
            + ["any" if length >= 100_000 else f"{length} tokens" if length else "none" for length in lengths]
        )
    return table(["", "e2e p95 at 128 tokens", "TTFT < 1 s holds up to", "e2e < 1 s holds up to"], rows)


def mig() -> str:
    """An 8B model on the whole A100 80 GB against seven slices."""
    rows = []
    price = hourly(1, "a2-ultragpu-1g")
    for quantization in ("bf16", "fp8", "awq-int4"):
        for profile, replicas in ((None, 1), ("1g.10gb", 7)):
            times = planner.timing_for(
                engine="vllm",
                model="llama-3.1-8b-instruct",
                quantization=quantization,
                gpu="nvidia-a100-80gb",
                mig_profile=profile,
            )
            where = f"7 × {profile}" if profile else "whole card"
            if times.slots < 1:
                rows.append([quantization, where, "0", "does not fit", "", "", ""])
                continue
            cells = [quantization, where, str(times.slots)]
            for users in (7, 7 * min(16, times.slots)):
                found = planner.predict(times, slots=times.slots, replicas=replicas, traffic=traffic(users))
                cost = price / 3600 / found.requests_per_second * 1000
                cells += [
                    f"{users} users: {found.requests_per_second:.1f}/s, {found.e2e_mean_seconds:.1f} s",
                    f"${cost:.3f}",
                ]
            rows.append(cells)
    return table(["Llama 3.1 8B", "A100 80 GB", "slots", "few", "$/1,000", "many", "$/1,000"], rows)


def seventy() -> str:
    """Where 70B fits, and what a second node costs."""
    rows = []
    for gpu, largest in (("nvidia-l4", 8), ("nvidia-tesla-a100", 8), ("nvidia-a100-80gb", 8), ("nvidia-h100-80gb", 8)):
        for quantization in ("bf16", "fp8", "awq-int4"):
            fits = []
            for tensor in (1, 2, 4, 8):
                if tensor > largest:
                    continue
                times = planner.timing_for(
                    engine="vllm", model="llama3.3:70b", quantization=quantization, gpu=gpu, tensor=tensor
                )
                if times.slots:
                    fits.append(
                        f"{tensor} ({times.slots} slots, {times.decode_step_seconds(8, 1024) * 1e3:.0f} ms a token)"
                    )
            rows.append([gpu, quantization, "; ".join(fits) or "two nodes"])
    return table(["GPU", "70B in", "GPUs of one node that hold it at 2,048 tokens (8 running)"], rows)


def simulator_fleet() -> str:
    """Nodes and dollars of the simulator fleet at months 0, 6 and 12."""
    rows = []
    for month in (0, 6, 12):
        rate = simulators.after(month)
        for machine in ("c6i.2xlarge", "c6i.4xlarge", "c6i.8xlarge"):
            size = simulators.right_size(rate, machine_type=machine, region="us-east-1")
            rows.append(
                [
                    str(month),
                    f"{rate:,.0f}",
                    f"{simulators.cores(rate):,.0f}",
                    machine,
                    str(size.nodes),
                    f"${size.cost_per_hour:.2f}",
                    f"${size.cost_per_month:,.0f}",
                    f"${size.cost_per_million_requests:.4f}",
                ]
            )
    return table(["month", "req/s", "cores", "shape", "nodes", "$/h", "$/month", "$/1M requests"], rows)


def regions() -> str:
    """Dev with 3 nodes and production with 3 regions × 10."""
    rows = []
    for words, nodes in (("dev, 3 nodes", 3), ("prod, 3 regions × 10", 30)):
        for machine in ("c6i.2xlarge", "c6i.4xlarge", "c6i.8xlarge"):
            vcpus = planner.catalog().machine(machine).vcpus
            rate = simulators.capacity(nodes, vcpus * simulators.CPU_UTILIZATION / simulators.CPU_SECONDS_PER_REQUEST)
            price = nodes * float(PRICES.hourly(machine, region="us-east-1") or 0)
            cells = [words, machine, f"{rate:,.0f}", f"${price:.2f}", f"${price * 730:,.0f}"]
            rows.append([*cells, f"${price / rate / 3600 * 1e6:.4f}"])
    return table(["fleet", "shape", "req/s it carries", "$/h", "$/month", "$/1M requests at full load"], rows)


def document() -> str:
    """The whole page."""
    memory = planner.memory_for(
        engine=planner.catalog().engine("ollama"),
        model=planner.find_model("gemma3:4b"),
        quantization=planner.catalog().quantization("q4-k-m"),
        gpu=planner.catalog().gpu("nvidia-l4"),
    )
    return f"""# The operators' questions, answered

Written by `python docs/planner/questions.py`; prices of {PRICES.source}, on demand unless it says spot.
Everywhere 128 tokens in and 128 out: the measured rows do not say how long the replies were, and this is the assumption
under which the constants were fitted. With replies of another length the same rows give other constants.

## What was measured, and 16 slots

{measured()}

With 50 users on 10 nodes five run on each, so 16 slots (160 in all) change nothing: from 5 slots up nobody waits.

## Memory

The operators counted about 3 GB of weights and 1 GB of keys and values per slot, 20 slots on 24 GB. Weights:
{memory.weights_bytes / 1e9:.2f} GB (2.48 GB of text model in q4_K_M and 0.84 GB of vision in 16 bits), as counted. Keys and
values: 34 layers × 2 × 4 heads × 256 × 2 bytes = 139 kB per token would be 0.29 GB at 2,048 tokens; 29 of the layers keep only
a window of 1,024, which leaves {memory.kv_bytes_per_slot / 1e9:.2f} GB. So memory holds {memory.max_slots} slots,
and time, not memory, says how many are of use.

## 1,000 users

{thousand()}

125, 250 and 500 nodes cost ${hourly(125):,.2f}, ${hourly(250):,.2f} and ${hourly(500):,.2f} per hour on
g2-standard-8 (spot ${hourly(125, spot=True):,.2f}, ${hourly(250, spot=True):,.2f}, ${hourly(500, spot=True):,.2f}).
"20 L4 ≈ $15/h" fits g2-standard-4 (${hourly(20, "g2-standard-4"):.2f}); on g2-standard-8 it is ${hourly(20):.2f}.

## vLLM at 50 streams per L4

{streams()}

## Promises of one second

{promises()}

1.0 s at one or two slots contradicts the measured 9.7 s / 5 users = 1.94 s of one request alone, unless replies are about
half as long. "1,000 users < 1 s" on 25 vLLM nodes means 40 streams per L4: true of the first token, of whole
replies only where they are a few dozen tokens.

## MIG: 8B on an A100 80 GB

{mig()}

fp16 needs 16 GB and does not fit 9.5 GB; four bits do (fp8's 9.1 GB of weights leave no room for the
engine). A slice has an eighth of the bandwidth and an eighth of the
compute, so seven of them together stay below the card they were cut from. "7×" holds only
against a card that serves one request at a time, "−85 % per inference" likewise: with continuous batching the whole
card is at least as cheap per request. What slices buy is isolation.

## 70B

{seventy()}

Tensor parallelism exchanges activations twice per layer, 160 times a token here: inside a node over NVLink 1.9 ms, over PCIe
(L4) 6.4 ms. Two nodes are needed only where the table says so, and then split by pipeline, not tensor.

## The simulator fleet

{simulator_fleet()}

{regions()}

Cores, not memory or network, run out first on every shape (2 ms a request: 2,800 req/s on 8 vCPUs at 70 %; memory would
hold over a million open requests). Costs are linear in vCPUs on this list, so the smallest shape wastes least by rounding.
Months in between grow by 15 % compounded: 2.31 times after 6, 5.35 after 12. Prices of Google's CPU shapes are not in the
book, so they are not compared.
"""


if __name__ == "__main__":
    Path(__file__).with_name("questions.md").write_text(document(), encoding="utf-8")
