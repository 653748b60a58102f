"""How long planning takes: `python benchmarks/planner_times.py`. Prints the best of five; nothing is asserted.

Limits that the planner holds itself to, on an idle machine with 2 cores: the whole catalog in 100 ms in process, `tollgate
plan` in 0.7 s. Wall and CPU time stand side by side, since on a busy machine only the latter means something.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import planner
from planner import _ways
from stacks import Objectives, Tokens, Traffic, load_stack

TRAFFIC = Traffic(users=1000, prompt_tokens=Tokens(mean=128), output_tokens=Tokens(mean=128))
SEARCH = planner.Search(model="gemma3:4b", traffic=TRAFFIC, objectives=Objectives(e2e_p95_seconds=3.0))
EVERY = [replace(SEARCH, model=name) for name in planner.catalog().models]
ROOT = Path(__file__).resolve().parents[1]


def best_ms(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> tuple[float, float]:
    """(wall, CPU of this process and its children) milliseconds of the best of five runs after one that warms up."""
    work()
    walls, cpus = [], []
    for _ in range(5):
        before()
        wall, cpu = time.perf_counter(), _cpu()
        work()
        walls.append((time.perf_counter() - wall) * 1e3)
        cpus.append((_cpu() - cpu) * 1e3)
    return min(walls), min(cpus)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def process(*arguments: str) -> None:
    """One whole process from the project root."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False, timeout=60)


def main() -> None:
    """Print the table."""
    stack = load_stack("local-dev", ROOT)
    start = (
        "import planner; planner.timing_for(engine='ollama', model='gemma3:4b', quantization='q4-k-m', gpu='nvidia-l4')"
    )
    ways = sum(len(planner.choices(search)) for search in EVERY)
    asked = ("plan", "--model", "gemma3:4b", "--users", "1000", "--latency", "3")
    forget = _ways.ways_of.cache_clear
    rows = [
        ("plan of one stack", best_ms(lambda: planner.plan(stack))),
        (f"all {len(planner.choices(SEARCH))} choices for one model", best_ms(lambda: planner.choices(SEARCH))),
        ("Pareto front for one model", best_ms(lambda: planner.frontier(SEARCH))),
        (
            f"whole catalog: cheapest of {ways} choices for {len(EVERY)} models",
            best_ms(lambda: [planner.cheapest(search) for search in EVERY]),
        ),
        (
            "the same as the first question of a process",
            best_ms(lambda: [planner.cheapest(search) for search in EVERY], forget),
        ),
        ("whole report of one stack", best_ms(lambda: planner.report_stack(stack))),
        ("empty Python, whole process", best_ms(lambda: process("-c", "pass"))),
        ("import planner + timing_for, whole process", best_ms(lambda: process("-c", start))),
        ("tollgate plan local-dev, whole process", best_ms(lambda: process("-m", "tollgate", "plan", "local-dev"))),
        ("tollgate plan --model …, whole process", best_ms(lambda: process("-m", "tollgate", *asked))),
    ]
    print(f"{'':60} {'wall':>9} {'CPU':>9}")
    for what, (wall, cpu) in rows:
        print(f"{what:60} {wall:6.1f} ms {cpu:6.1f} ms")


if __name__ == "__main__":
    main()
