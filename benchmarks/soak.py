"""Two stacks under mixed load on the embedded cluster, and a fault every 20 seconds: `make soak`, or

    python benchmarks/soak.py [--minutes 30] [--every 20] [--json FILE] [--page FILE]

In turn: a pod, the API server, a node that is lost for good, Prometheus, the cluster's disk full, an engine's process, KEDA's
operator, a node that falls silent, the pod runner, the evidence's disk full, KEDA's adapter, etcd; processes by SIGKILL.
local-dev has three replicas of Ollama; local-vllm is scaled by KEDA under load that comes and goes.

Ends with 1 when a request was lost that was not in flight on what a fault killed, when a fault did not heal, when a process's
memory grew, when the evidence does not verify, or when the gate lets in what it must refuse or refuses what it must let in.
What is refused at the door is asked again, as clients do. All of it runs in namespaces of its own: whatever ends the soak,
nothing is left.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

import stacks
from benchmarks.soaking import (
    HEAL_SECONDS,
    INSIDE,
    KINDS,
    Breaker,
    Disk,
    Gate,
    Load,
    Memory,
    Target,
    classify,
    markdown,
    run_isolated,
    wrongs,
)
from local import cluster

ROOT = Path(__file__).resolve().parents[1]
NAME = "soak"
STACKS = {"local-dev": "ollama", "local-vllm": "vllm"}
PLACE = ROOT / ".tollgate" / "soak"
MOST_MINUTES, LEAST_EVERY = 120.0, 10.0
SAMPLE_SECONDS, GATE_SECONDS, LOOKS = 5.0, 150.0, 5
CLUSTER_MIB, EVIDENCE_MIB, PROJECT_MIB = 1024, 16, 64
CRITERIA = f"{{min_runs: 3, min_requests: 20, looks: {LOOKS}, max_evidence_age_hours: 24}}"
PIPELINE = f"""stages:
  - stack: local-dev
  - {{stack: local-staging, after: local-dev, criteria: {CRITERIA}}}
  - {{stack: local-strict, after: local-dev, criteria: {CRITERIA}}}
  - stack: local-vllm
"""
BENCHMARK = "  tollgate:benchmark: {runs: 3, seconds: 8}\n"
SCALING = "  tollgate:autoscaling: {polling_seconds: 2, cold_start_seconds: 4, cooldown_seconds: 15}\n"


def project(folder: Path) -> None:
    """This project's local stacks, smaller: three replicas of Ollama, and one to three of vLLM with four slots each."""
    for name in ("Pulumi.yaml", "__main__.py"):
        shutil.copy(ROOT / name, folder)
    target = folder / "stacks"
    shutil.copytree(ROOT / "stacks", target, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (target / "pipeline.yaml").write_text(PIPELINE)
    for path in target.glob("Pulumi.*.yaml"):
        if path.stem.partition(".")[2] not in ("local-dev", "local-staging", "local-vllm"):
            path.unlink()
            continue
        text = path.read_text().replace("users: 50", "users: 6").replace("{min: 10, max: 10}", "{min: 3, max: 3}")
        text = text.replace("requests_per_second: 14", "requests_per_second: 1")
        # Few requests in short runs: the promise is one that they can prove.
        text = text.replace("error_rate: 0.01", "error_rate: 0.1").replace("output_tokens: 128", "output_tokens: 32")
        path.write_text(text.replace("seconds: 8}", "seconds: 6}"))
    text = (target / "Pulumi.local-staging.yaml").read_text()
    (target / "Pulumi.local-strict.yaml").write_text(text.replace("e2e_p95_seconds: 5", "e2e_p95_seconds: 0.01"))
    path = target / "Pulumi.local-vllm.yaml"
    text = (
        path.read_text()
        .replace("{min: 3, max: 3}", "{min: 1, max: 3}")
        .replace("requests_per_second: 10", "requests_per_second: 1")
    )
    lines = [line for line in text.splitlines(keepends=True) if "tollgate:benchmark" not in line]
    where = next(number for number, line in enumerate(lines) if "tollgate:traffic" in line)
    path.write_text("".join([*lines[:where], SCALING, *lines[where:]]))
    path = target / "releases" / "gemma-3-4b-vllm.yaml"
    path.write_text(path.read_text().replace("{slots: auto}", "{slots: 4}"))


class Soak:
    """One run on the cluster that is up; `minutes` of load, a fault every `every` seconds."""

    def __init__(
        self, root: Path, environment: dict[str, str], disks: tuple[Disk, Disk], minutes: float, every: float
    ) -> None:
        self.root, self.environment, self.minutes, self.every = root, environment, minutes, every
        self.gate = Gate(root, environment, disks[1])
        self.load = Load([self._target(name) for name in STACKS])
        self.breaker = Breaker(NAME, environment, STACKS, self.load, self.gate, disks[0])
        self.memory = Memory()
        self.over = threading.Event()
        self.early = False
        self.wrong: list[str] = []
        self.loads: list[float] = []
        self._planned = max(1, int(minutes * 60 / every) - 1)

    def _target(self, name: str) -> Target:
        release = stacks.load_stack(name, self.root).release
        command = ["kubectl", "get", "svc", "engine", "-n", name, "-o", "jsonpath={.spec.clusterIP}"]
        host = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout
        scaled = name == "local-vllm"
        return Target(
            stack=name,
            engine=STACKS[name],
            model=release.source,
            host=host,
            most=12 if scaled else 6,
            # A minute of calm, a minute for which one replica is too few.
            clients=(lambda seconds: 12 if int(seconds // 60) % 2 else 2) if scaled else (lambda _: 6),
        )

    def go(self) -> None:
        """All of it."""
        self.breaker.spare_nodes()
        self.gate.look(0.0)
        if self.gate.done.wrong:
            # Nothing was broken yet: no fault could explain it, and half an hour would tell no more.
            return
        self.load.start()
        watchers = [threading.Thread(target=self._watch, daemon=True), threading.Thread(target=self._ask, daemon=True)]
        for one in watchers:
            one.start()
        kinds = itertools.cycle(KINDS)
        for number in range(1, self._planned + 1):
            self._until(number * self.every)
            if self.over.is_set():
                break
            kind = next(kinds)
            try:
                fault = self.breaker.strike(kind)
                self._say(f"{number:3} of {self._planned}  {fault.kind}: {fault.target}")
            except (RuntimeError, OSError, psutil.Error, subprocess.TimeoutExpired) as error:
                self.wrong.append(f"{kind} at {self.load.now():.0f} s could not be done: {error}")
                self._say(self.wrong[-1])
        self._until(self.minutes * 60)
        # The load goes on until the last fault has healed.
        while self.breaker.healing and not self.over.is_set():
            self._until(self.load.now() + 1)
        self.seconds = self.load.now()
        self.load.stop()
        self.over.set()
        for one in watchers:
            one.join(300)
        if not self.early:
            self.gate.look(self.load.now())

    def end_early(self) -> None:
        """From a signal handler: no more faults, and the figures so far."""
        self.early = True
        self.breaker.running = False
        self.over.set()

    def _until(self, at: float) -> None:
        while self.load.now() < at and not self.over.wait(min(1.0, max(0.0, at - self.load.now()))):
            for fault in self.breaker.tend():
                took = "NOT HEALED" if fault.healed is None else f"healed after {fault.healed - fault.at:.1f} s"
                self._say(f"            {fault.kind}: {took}")
            self._status()

    def _watch(self) -> None:
        while not self.over.wait(SAMPLE_SECONDS):
            with contextlib.suppress(psutil.Error, OSError, stacks.TollgateError):
                self.memory.look(NAME, self.load.now())
            self.loads.append(os.getloadavg()[0])

    def _ask(self) -> None:
        while not self.over.wait(GATE_SECONDS):
            self.gate.look(self.load.now())
            self._say(
                f"            gate: {sum(self.gate.done.asked.values())} answers, {len(self.gate.done.wrong)} wrong"
            )

    # ------------------------------------------------------------------ what is shown

    def _line(self) -> str:
        answered = " + ".join(str(count) for count in self.load.answered().values())
        total = self.memory.total[-1] if self.memory.total else 0
        door = sum(tally.door for tally in self.load.tallies.values())
        return f"answered {answered}, lost {len(self.load.lost())}, door {door}, {total:.0f} MiB"

    def _say(self, words: str) -> None:
        clear = "\r\x1b[K" if sys.stdout.isatty() else ""
        print(f"{clear}{self.load.now():6.0f} s  {words:<60}  {self._line()}", flush=True)

    def _status(self) -> None:
        if sys.stdout.isatty():
            left = max(0.0, self.minutes * 60 - self.load.now())
            print(f"\r\x1b[K{self.load.now():6.0f} s  {left:.0f} s to go  {self._line()}", end="", flush=True)

    # ------------------------------------------------------------------ what comes of it

    def report(self) -> dict[str, Any]:
        """All figures, and under `wrong` what is not as it must be."""
        faults, lost = self.breaker.faults, self.load.lost()
        by_fault, unexplained = classify(lost, faults)
        trends = self.memory.trends()
        wrong = [*self.wrong, *wrongs(lost, faults, HEAL_SECONDS), *self.gate.done.wrong]
        wrong += [f"{name} answered nothing" for name, count in self.load.answered().items() if not count]
        wrong += [
            f"memory of {one.name} grew from {one.first:.0f} to {one.last:.0f} MiB ({one.slope:+.0f} MiB/h, p {one.p:.4f})"
            for one in trends
            if one.flat is False
        ]
        kinds: dict[str, dict[str, Any]] = {}
        for index, fault in enumerate(faults):
            row = kinds.setdefault(fault.kind, {"faults": 0, "in_flight": 0, "lost": 0, "healed_seconds": []})
            row["faults"] += 1
            row["in_flight"] += fault.flying
            row["lost"] += len(by_fault.get(index, ()))
            if fault.healed is not None:
                row["healed_seconds"].append(round(fault.healed - fault.at, 1))
        return {
            "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "machine": f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
            "load_average": [round(value, 1) for value in spread(self.loads)],
            "seconds": round(getattr(self, "seconds", self.load.now())),
            "every": self.every,
            "faults": kinds,
            "requests": {
                name: {
                    "answered": dict(tally.answered),
                    "lost": len(tally.lost),
                    "unexplained": sum(one.stack == name for one in unexplained),
                    "door": tally.door,
                    "door_longest_seconds": round(tally.closed, 1),
                }
                for name, tally in self.load.tallies.items()
            },
            "memory": [dataclasses.asdict(one) for one in sorted(trends, key=lambda one: one.name)],
            "gate": dict(self.gate.done.asked),
            "wrong": wrong,
        }


def spread(values: list[float]) -> list[float]:
    """Lowest, median and highest."""
    return [min(values), statistics.median(values), max(values)] if values else []


def run(command: list[str], root: Path, environment: dict[str, str]) -> str:
    """Its standard output; ends the script with what it said where it fails."""
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def deploy(root: Path, environment: dict[str, str]) -> None:
    """Both stacks; local-dev is measured until its verdict is known (a busy machine's client may be late)."""
    plain = ["--non-interactive", "--color", "never"]
    for name in STACKS:
        print(f"deploying {name}", flush=True)
        run(["pulumi", "stack", "init", name, *plain], root, environment)
        for _ in range(LOOKS):
            run(["pulumi", "up", "-s", name, "--yes", "--skip-preview", *plain], root, environment)
            found = json.loads(run(["pulumi", "stack", "output", "-s", name, "--json", *plain], root, environment))
            if found.get("verdict") != "inconclusive":
                break


@contextlib.contextmanager
def ground() -> Iterator[tuple[Path, dict[str, str], tuple[Disk, Disk]]]:
    """A project, the environment of a fresh cluster, and the disks of both: cluster's and evidence's."""
    Disk(PLACE, PROJECT_MIB)
    home, root = Disk(PLACE / "cluster", CLUSTER_MIB), PLACE / "project"
    os.environ |= {"TOLLGATE_HOME": str(home.path), "TOLLGATE_SLOTS": str(PLACE / "slots"), "TMPDIR": str(PLACE)}
    for name in ("TOLLGATE_EVIDENCE", "TOLLGATE_SIGNING_KEY", "PULUMI_HOME", "PULUMI_BACKEND_URL"):
        os.environ.pop(name, None)
    root.mkdir()
    project(root)
    evidence = Disk(root / ".tollgate" / "evidence", EVIDENCE_MIB)
    print("starting the cluster", flush=True)
    found = cluster.up(NAME)
    try:
        yield root, {**found.environment(root), "PYTHONPATH": str(ROOT)}, (home, evidence)
    finally:
        cluster.down(NAME)


def inside(minutes: float, every: float) -> tuple[dict[str, Any], bool]:
    """The figures, and whether somebody ended it early."""
    running: list[Soak] = []

    def stop(_number: int, _frame: object) -> None:
        if not running or running[0].early:
            sys.exit(130)
        running[0].end_early()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with ground() as (root, environment, disks):
        deploy(root, environment)
        soak = Soak(root, environment, disks, minutes, every)
        running.append(soak)
        soak.go()
        return soak.report(), soak.early


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help=f"of load; {MOST_MINUTES:.0f} at most")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between faults; 10 at least")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--page", type=Path, help="where to write the figures as tables in Markdown")
    given = parser.parse_args()
    if INSIDE not in os.environ:
        PLACE.mkdir(parents=True, exist_ok=True)
        return run_isolated()
    began = time.monotonic()
    report, early = inside(min(given.minutes, MOST_MINUTES), max(LEAST_EVERY, given.every))
    page = markdown(report)
    print(f"\n{page}")
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=2) + "\n")
    if given.page is not None:
        given.page.write_text(page)
    for words in report["wrong"]:
        print(f"wrong: {words}", file=sys.stderr)
    print(f"{'interrupted' if early else 'done'} after {time.monotonic() - began:.0f} s, start included", flush=True)
    return 130 if early else 1 if report["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
