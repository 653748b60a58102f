"""Autoscaling under load: `python benchmarks/autoscaling.py [--only SCENARIO…] [--page FILE.html] [--png FILE]`.

Nothing is asserted.

Each scenario is a stack of its own on one embedded cluster: the real KEDA, HPA and Prometheus scale simulators under real
HTTP load. A pod is a process here and two cores serve them all, so replicas have 4 slots and at most 10 run. Takes about a
quarter of an hour; `--only policies` compares the policies on one trace.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.scaling import EXTRA, POLICIES, SCENARIOS, Ground, compare, page, scaled, table, write_png  # noqa: E402
from local import cluster  # noqa: E402


def main() -> None:
    """Run the scenarios, print a table of them, and write a page with pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        nargs="*",
        choices=[*SCENARIOS, "policies"],
        default=[*(one for one in SCENARIOS if one not in EXTRA), "policies"],
    )
    parser.add_argument("--page", type=Path, help="where to write the pictures")
    parser.add_argument(
        "--png", type=Path, help="where to write those of the step and of the first policy as one picture"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["TOLLGATE_HOME"] = home
        name = f"autoscaling-{os.getpid()}"
        found = cluster.up(name)
        found.enter()
        try:
            _run(found, given.only, given.page, given.png, Path(home))
        finally:
            cluster.down(name)


def _run(found: cluster.Cluster, only: list[str], pictures: Path | None, png: Path | None, home: Path) -> None:
    environment = found.environment(home)
    grounds: list[Ground] = []

    def make(what: str, **given: Any) -> Ground:
        grounds.append(scaled(found, environment, what, **given))
        return grounds[-1]

    reports, policies = [], []
    for what in only:
        runs = (
            [lambda policy=policy: compare(make, policy) for policy in POLICIES]
            if what == "policies"
            else [lambda what=what: SCENARIOS[what](make)]
        )
        for run in runs:
            try:
                made = run()
            except (RuntimeError, TimeoutError, OSError) as error:
                # One scenario that cannot be had must not take the others' numbers along.
                print(f"{what}: {error}", file=sys.stderr)
                continue
            finally:
                grounds.pop().remove()
            (policies if what == "policies" else reports).append(made)
            print(
                json.dumps({"scenario": made.name, "requests": made.requests, "lost": made.lost, **made.facts}),
                flush=True,
            )
    if reports:
        print("\n" + table(reports))
    if policies:
        print("\n" + table(policies, "policy"))
    if pictures is not None:
        pictures.write_text(page([*reports, *policies]))
    shown = [*(one for one in reports if one.name.startswith("step ")), *policies[:1]]
    if png is not None and shown:
        write_png(page(shown), png, len(shown))


if __name__ == "__main__":
    main()
