"""Two stacks under load on the embedded cluster, and something of it killed every 20 seconds.

    python benchmarks/soak.py [--minutes 30] [--every 20] [--json FILE]

Killed in turn: an engine's pod, the API server, Prometheus, KEDA's operator, the pod runner, a node (its pods are deleted and go
elsewhere). Ends with 1 when a request was lost that no fault explains, when memory grew by more than a quarter, when the
evidence does not verify, or when the gate lets in what it must refuse. A request counts as lost when it was sent and not
answered; those in flight on a pod that is killed are expected, and there are never more of them than clients. What is refused at
the door is asked again, as clients do.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import stacks
from local import cluster

ROOT = Path(__file__).resolve().parents[1]
NAME = "soak"
STACKS = ("local-dev", "local-vllm")
CLIENTS = 4
# How long after a pod was killed a request that was in flight there may still fail.
WINDOW_SECONDS = 20.0
GROWTH = 1.25
MOST_MINUTES = 30.0


@dataclass
class Tally:
    """What came of the requests of one stack. `lost`: seconds since the start at which each was sent, and why."""

    ok: int = 0
    refused: int = 0
    lost: list[tuple[float, str]] = field(default_factory=list)


@dataclass
class Soak:
    """One run. `faults`: (seconds since the start, what, whether requests in flight may die of it)."""

    root: Path
    env: dict[str, str]
    minutes: float
    every: float
    began: float = field(default_factory=time.monotonic)
    over: threading.Event = field(default_factory=threading.Event)
    tallies: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in STACKS})
    faults: list[tuple[float, str, bool]] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def now(self) -> float:
        return time.monotonic() - self.began

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.root, env=self.env, capture_output=True, text=True, timeout=600, check=False
        )
        if check and done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done

    # --- load

    def client(self, stack: stacks.Stack, host: str) -> None:
        tally, lock = self.tallies[stack.name], _LOCK
        ollama = stack.release.engine == "ollama"
        path = "/api/generate" if ollama else "/v1/completions"
        body = {"model": stack.release.source, "prompt": "word " * 16, "stream": False}
        body |= {"options": {"num_predict": 8}} if ollama else {"max_tokens": 8}
        while not self.over.is_set():
            sent, why = self.now(), ""
            try:
                connection = http.client.HTTPConnection(host, 80, timeout=60)
                connection.connect()
            except OSError:
                with lock:
                    tally.refused += 1
                self.over.wait(0.2)
                continue
            try:
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                why = "" if answer.status == 200 else f"status {answer.status}"
            except (OSError, http.client.HTTPException) as error:
                why = type(error).__name__
            finally:
                connection.close()
            with lock:
                if why:
                    tally.lost.append((sent, why))
                else:
                    tally.ok += 1

    # --- faults

    def breakages(self) -> Iterator[tuple[str, bool, Callable[[], None]]]:
        order = [
            ("pod", True, self.kill_pod),
            ("kube-apiserver", False, lambda: self.kill_process("kube-apiserver")),
            ("prometheus", False, lambda: self.kill_process("prometheus")),
            ("keda-operator", False, lambda: self.kill_process("keda-operator")),
            ("runner", False, lambda: self.kill_process("runner")),
            ("node", True, self.empty_node),
        ]
        return itertools.cycle(order)

    def kill_process(self, name: str) -> None:
        pid = next(one.pid for one in cluster.status(NAME).components if one.name == name)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    def kill_pod(self) -> None:
        namespace, pod, _ = random.choice(self.pods())
        self.run("kubectl", "delete", "pod", "-n", namespace, pod, "--grace-period=0", "--force", check=False)

    def empty_node(self) -> None:
        namespace, _, node = random.choice(self.pods())
        self.run("kubectl", "cordon", node, check=False)
        chosen = [pod for where, pod, on in self.pods() if where == namespace and on == node]
        for pod in chosen:
            self.run("kubectl", "delete", "pod", "-n", namespace, pod, "--wait=false", check=False)
        self.run("kubectl", "uncordon", node, check=False)

    def pods(self) -> list[tuple[str, str, str]]:
        found = []
        for name in STACKS:
            listed = self.run(
                "kubectl", "get", "pods", "-n", name, "-l", "app.kubernetes.io/instance=engine", "-o", "json"
            )
            for pod in json.loads(listed.stdout)["items"]:
                found.append((name, pod["metadata"]["name"], pod["spec"].get("nodeName", "")))
        if not found:
            raise SystemExit("no pod is left")
        return found

    def weigh(self) -> None:
        parts = cluster.status(NAME).components
        self.memory.append(sum(one.memory_bytes for one in parts) / 2**20)

    # --- all of it

    def go(self) -> dict[str, Any]:
        threads = []
        for name in STACKS:
            stack = stacks.load_stack(name, self.root)
            host = self.run("kubectl", "get", "svc", "engine", "-n", name, "-o", "jsonpath={.spec.clusterIP}").stdout
            threads += [threading.Thread(target=self.client, args=(stack, host)) for _ in range(CLIENTS)]
        self.began = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            for what, deadly, breaks in self.breakages():
                if self.now() + self.every > self.minutes * 60:
                    break
                time.sleep(self.every)
                self.faults.append((self.now(), what, deadly))
                print(f"{self.now():6.0f} s  {what}", flush=True)
                self.try_to(breaks)
                self.weigh()
            time.sleep(self.every)
        finally:
            self.over.set()
            for thread in threads:
                thread.join(90)
        return self.report()

    def try_to(self, breaks: Callable[[], None]) -> None:
        """The API server may be the last thing that was killed: what needs it waits until it is back."""
        end = time.monotonic() + 60
        while self.run("kubectl", "get", "--raw", "/readyz", check=False).returncode:
            if time.monotonic() > end:
                raise SystemExit("the API server did not come back within a minute")
            time.sleep(0.5)
        breaks()

    def report(self) -> dict[str, Any]:
        windows = [at for at, _, deadly in self.faults if deadly]
        unexplained = [
            (name, round(sent, 1), why)
            for name, tally in self.tallies.items()
            for sent, why in tally.lost
            if not any(at - 30 <= sent <= at + WINDOW_SECONDS for at in windows)
        ]
        by_fault = [
            sum(at - 30 <= sent <= at + WINDOW_SECONDS for sent, _ in tally.lost)
            for at in windows
            for tally in self.tallies.values()
        ]
        third = max(1, len(self.memory) // 3)
        verify = self.run("tollgate", "evidence", "verify", check=False)
        # Measured for itself by nobody: the gate has nothing to let it in on.
        refused = self.run("tollgate", "gate", "local-prod", check=False)
        return {
            "seconds": round(self.now()),
            "faults": dict(Counter(what for _, what, _ in self.faults)),
            "answered": {name: tally.ok for name, tally in self.tallies.items()},
            "refused_at_the_door": {name: tally.refused for name, tally in self.tallies.items()},
            "lost_in_flight": {name: len(tally.lost) for name, tally in self.tallies.items()},
            "lost_at_most_by_one_fault": max(by_fault, default=0),
            "lost_unexplained": unexplained,
            "memory_mib": [
                round(statistics.median(self.memory[:third])),
                round(statistics.median(self.memory[-third:])),
            ],
            "evidence_verifies": verify.returncode == 0,
            "gate_refuses": refused.returncode == 3,
        }


_LOCK = threading.Lock()


def bad(found: dict[str, Any]) -> list[str]:
    """What of the report is not as it must be."""
    first, last = found["memory_mib"]
    checks = {
        "requests were lost that no fault explains": bool(found["lost_unexplained"]),
        f"more than {CLIENTS} requests were lost by one fault": found["lost_at_most_by_one_fault"] > CLIENTS,
        "a stack answered nothing": not all(found["answered"].values()),
        f"memory grew from {first} to {last} MiB": last > GROWTH * first,
        "the evidence does not verify": not found["evidence_verifies"],
        "the gate let in what it must refuse": not found["gate_refuses"],
    }
    return [words for words, wrong in checks.items() if wrong]


def project(folder: Path) -> Path:
    """This project's stacks, smaller: three nodes each, and one measurement of local-dev."""
    for name in ("Pulumi.yaml", "__main__.py"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "stacks", folder / "stacks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for path in (folder / "stacks").glob("Pulumi.local-*.yaml"):
        text = path.read_text().replace("users: 50", "users: 6").replace("{min: 10, max: 10}", "{min: 3, max: 3}")
        text = text.replace("requests_per_second: 14", "requests_per_second: 1").replace(
            "requests_per_second: 10", "requests_per_second: 1"
        )
        path.write_text(text.replace("{runs: 3, seconds: 8}", "{runs: 2, seconds: 4}"))
    return folder


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MOST_MINUTES)
    parser.add_argument("--every", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = cluster.up(NAME)
    try:
        # Without root this starts the script again, inside the cluster's network.
        found.enter()
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            root = project(Path(folder))
            env = {**found.environment(root), "PYTHONPATH": str(ROOT)}
            soak = Soak(root=root, env=env, minutes=min(given.minutes, MOST_MINUTES), every=max(5.0, given.every))
            for name in STACKS:
                soak.run("pulumi", "stack", "init", name, "--non-interactive")
                soak.run("pulumi", "up", "-s", name, "--yes", "--skip-preview", "--non-interactive")
            report = soak.go()
            for name in STACKS:
                soak.run("pulumi", "destroy", "-s", name, "--yes", "--skip-preview", "--non-interactive", check=False)
    finally:
        cluster.down(NAME)
    print(json.dumps(report, indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=2) + "\n")
    wrong = bad(report)
    for words in wrong:
        print(f"wrong: {words}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
