"""Seconds of wall clock of `tollgate preview --base HEAD` over every stack, in the worst case and in the usual ones.

Worst: a change of code, so that base and head are both evaluated whole; once more with nothing kept from earlier runs. Usual: one
stack's file changed; no base at all. Every measurement is a process of its own, in a clone of this repository; the promise is
2.5 s on two idle cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
RUNS = 5
PROMISE_SECONDS = 2.5


def once(root: Path, cache: Path, arguments: list[str]) -> float:
    """Seconds of one run. `cache`: the user's, where compiled code is kept."""
    command = [sys.executable, "-m", "tollgate", "preview", *arguments, "--json", "--out", os.devnull]
    env = {**os.environ, "PYTHONPATH": str(root), "TOLLGATE_CACHE": str(cache)}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=300)
    took = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return took


def main() -> None:
    """Print each case as best, median and worst, and whether its median keeps the promise."""
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "clone", Path(folder) / "cache"
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{HERE}", str(root)], check=True)
        names = sorted(path.name for path in (root / "stacks").glob("Pulumi.*.yaml"))
        stack, code = root / "stacks" / "Pulumi.local-dev.yaml", root / "values" / "__init__.py"
        fewer = stack.read_text().replace("max: 10", "max: 12").replace("min: 10", "min: 12")
        changed = code.read_text() + "\n# changed\n"
        print(f"tollgate preview, {len(names)} stacks, {os.cpu_count()} cores")
        print(f"load before: {os.getloadavg()[0]:.1f}; promise: {PROMISE_SECONDS} s, median of {RUNS} runs")
        kept = True
        for words, path, text, arguments, first in (
            ("--base HEAD, code changed: all evaluated twice", code, changed, ["--base", "HEAD"], False),
            ("the same, the first run on a machine", code, changed, ["--base", "HEAD"], True),
            ("--base HEAD, one stack changed", stack, fewer, ["--base", "HEAD"], False),
            ("--offline, without a base", code, changed, ["--offline"], False),
        ):
            before = path.read_text()
            path.write_text(text)
            if not first:
                once(root, cache, arguments)
            seconds = sorted(once(root, cache / str(run) if first else cache, arguments) for run in range(RUNS))
            path.write_text(before)
            middle = seconds[RUNS // 2]
            kept = kept and middle <= PROMISE_SECONDS
            figures = f"best {seconds[0]:.2f} s, median {middle:.2f} s, worst {seconds[-1]:.2f} s"
            print(f"{words:48} {figures}: {'pass' if middle <= PROMISE_SECONDS else 'MISS'}")
        print("pass" if kept else "MISS (on idle cores?)")


if __name__ == "__main__":
    main()
