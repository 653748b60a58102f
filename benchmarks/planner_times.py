"""Times of the planner: `python benchmarks/planner_times.py`. Prints medians of five; nothing is asserted."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import planner
from stacks import Objectives, Tokens, Traffic, load_stack

TRAFFIC = Traffic(users=1000, prompt_tokens=Tokens(mean=128), output_tokens=Tokens(mean=128))
SEARCH = planner.Search(model="gemma3:4b", traffic=TRAFFIC, objectives=Objectives(e2e_p95_seconds=3.0))
ROOT = Path(__file__).resolve().parents[1]


def median_ms(work: Callable[[], object]) -> float:
    """Median milliseconds of five runs after one that warms up."""
    work()
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        work()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def process(*arguments: str) -> None:
    """One whole process from the project root."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False, timeout=60)


def main() -> None:
    """Print the table."""
    stack = load_stack("local-dev")
    start = (
        "import planner; planner.timing_for(engine='ollama', model='gemma3:4b', quantization='q4-k-m', gpu='nvidia-l4')"
    )
    nothing = median_ms(lambda: process("-c", "pass"))
    rows = [
        ("plan of one stack", median_ms(lambda: planner.plan(stack))),
        (f"every choice for one model ({len(planner.choices(SEARCH))})", median_ms(lambda: planner.choices(SEARCH))),
        ("Pareto front for one model", median_ms(lambda: planner.frontier(SEARCH))),
        ("whole report of one stack", median_ms(lambda: planner.report_stack(stack))),
        ("import planner + timing_for, beyond an empty Python", median_ms(lambda: process("-c", start)) - nothing),
        ("tollgate plan local-dev, whole process", median_ms(lambda: process("-m", "tollgate", "plan", "local-dev"))),
    ]
    for what, milliseconds in rows:
        print(f"{what:60} {milliseconds:8.1f} ms")


if __name__ == "__main__":
    main()
