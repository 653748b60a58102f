"""Writes comparison.md: the planner beside llm-d-planner and AIConfigurator. Run: python docs/planner/comparison.py"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import planner
from stacks import Tokens, Traffic

HERE = Path(__file__).parent
# Its TTFT of the case with 128 at once.
PROMPTS_MS = 67.982
FEATURES = """\
| | planner | llm-d-planner | AIConfigurator |
|---|---|---|---|
| users and promise in, nodes out | yes | yes, by use case | GPUs for a target |
| dollars, on demand, spot and committed | yes | per GPU hour | no |
| budget and quota as limits | yes, and what would keep the promise | no | no |
| Ollama, fixed slots | yes | no | no |
| L4 | yes | in its catalog | no measured data |
| MIG slices | yes | no | no |
| tensor and pipeline | yes | by table | yes, and expert parallel |
| disaggregated prefill | no | no | yes |
| prefix caching | tokens and hit rate, time and memory | no | tokens, time |
| queueing, p95 | yes, closed and open | table percentiles | no |
| latency source | roofline, fitted to evidence, or AIConfigurator | simulated and interpolated table | measured kernels |
| fits itself to your benchmark | yes, and says how well | no | no |
| says what it assumed | per plan | in its docs | in its docs |"""


def predicted(case: Mapping[str, Any]) -> planner.Prediction:
    """One replica of the case's release under its traffic."""
    release, asked = case["release"], case["traffic"]
    times = planner.timing_for(
        engine="vllm", quantization="bf16", model=release["model"], gpu=release["gpu"], tensor=release["tensor"]
    )
    traffic = Traffic(
        arrival="poisson" if "rate" in asked else "closed",
        requests_per_second=asked.get("rate"),
        users=asked.get("users"),
        prompt_tokens=Tokens(mean=asked["prompt"]),
        output_tokens=Tokens(mean=asked["output"]),
    )
    return planner.predict(times, slots=times.slots, replicas=1, traffic=traffic)


def cell(ttft: float, itl: float, e2e: float) -> str:
    """The three latencies of an answer, milliseconds."""
    return f"TTFT {ttft:.0f}, ITL {itl:.1f}, e2e {e2e:,.0f}"


def alone(measurement: str) -> float:
    """Milliseconds a token of one of the published measurements."""
    for entry in yaml.safe_load((HERE / "measurements.yaml").read_text(encoding="utf-8")):
        if entry["id"] == measurement:
            return 1e3 * float(entry["together"]) / float(entry["tokens_per_second"])
    raise KeyError(measurement)


def peak_ms() -> float:
    """Milliseconds of arithmetic in 128 prompts of 128 tokens at an H100's dense bf16 peak, head left out."""
    model = planner.find_model("llama-3.1-8b-instruct")
    flops = 2 * (model.active_parameters - model.embedding_parameters) * 128 * 128
    return 1e3 * flops / planner.catalog().gpu("nvidia-h100-80gb").flops["bf16"]


def document() -> str:
    """The whole page."""
    cases = yaml.safe_load((HERE / "comparison.yaml").read_text(encoding="utf-8"))
    rows: list[str] = []
    ratios: list[tuple[str, float, float]] = []
    for case in cases["both"]:
        found, theirs, kernels = predicted(case), case["llm_d_planner"], case["aiconfigurator"]
        ours = [getattr(found, f"{name}_mean_seconds") * 1e3 for name in ("ttft", "itl", "e2e")]
        kernel = [kernels[name] for name in ("ttft", "itl", "e2e")]
        rows.append(
            f"| {case['what']} | {cell(*ours)} | {cell(theirs['ttft'], theirs['itl'], theirs['e2e'])} "
            f"| {cell(*kernel)} (batch {kernels['batch']}) |"
        )
        ratios.append((case["what"], ours[2] / theirs["e2e"], ours[2] / kernels["e2e"]))
    more = []
    for case in cases["concurrent"]:
        tokens = predicted(case).requests_per_second * case["traffic"]["output"]
        ratio = tokens / case["aiconfigurator"] - 1
        more.append(f"| {case['what']} | {tokens:,.0f} | {case['aiconfigurator']:,.0f} | {ratio:+.0%} |")
    worst = max(ratios, key=lambda ratio: abs(ratio[2] - 1))
    least, most = (pick(ratio[2] for ratio in ratios) for pick in (min, max))
    low, high = (pick(ratio[1] for ratio in ratios) for pick in (min, max))
    return "\n".join(
        [
            "# Beside llm-d-planner and AIConfigurator",
            "",
            "Written by `python docs/planner/comparison.py` from `comparison.yaml`, where versions, commands and raw",
            "answers are.",
            "",
            "## Cases that all three can answer",
            "",
            "Milliseconds, means. llm-d-planner looks answers up in a table that its metadata calls simulated; AIConfigurator",
            "answers for a batch, which is taken as large as the rate needs.",
            "",
            "| case | planner | llm-d-planner | AIConfigurator |",
            "|---|---|---|---|",
            *rows,
            "",
            f"End to end, the planner gives {least:.2f} to {most:.2f} times AIConfigurator's time and",
            f"{low:.2f} to {high:.2f} times llm-d-planner's.",
            f'It is furthest off in "{worst[0]}",',
            "where its assumed cost per sequence and step weighs most. Measured: Llama 3.1 8B alone takes",
            f"{alone('h100-llama-1'):.1f} ms a token on one H100",
            f"and {alone('a100-40-llama-1'):.1f} ms on one A100 40 GB, the slower A100",
            "(`measurements.md`); llm-d-planner's 23 ms on the A100 80 GB agrees with neither.",
            "",
            "## Throughput by concurrency",
            "",
            "Output tokens per second; llm-d-planner has no rows by concurrency.",
            "",
            "| case | planner | AIConfigurator | |",
            "|---|---:|---:|---:|",
            *more,
            "",
            f"In the last case AIConfigurator counts {PROMPTS_MS:.0f} ms for the prompts of a round of 128 requests.",
            f"Their arithmetic alone, {128 * 128:,} tokens at the card's peak, is {peak_ms():.0f} ms: the planner counts it,",
            "so that its lower figure is the likelier one under steady load.",
            "",
            "## What each answers",
            "",
            FEATURES,
            "",
        ]
    )


if __name__ == "__main__":
    (HERE / "comparison.md").write_text(document(), encoding="utf-8")
