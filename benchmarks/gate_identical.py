"""Twenty releases that are the same as the one before, and some that are 10 % slower, through the real gate.

    python benchmarks/gate_identical.py [--same 20] [--slower 5] [--seconds 1] [--json FILE]

Every one is a simulator's process of its own, measured by the real load generator in turns with one that has the old release,
recorded as signed evidence and put to the gate by `promote`, all in a folder that is removed afterwards. Inconclusive ones get
more runs, as the pipeline's looks allow. Ends with 1 when an equal release was refused or a slower one was let in.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gate
import stacks
import values
from bench import load
from bench.results import Result

ROOT = Path(__file__).resolve().parents[1]
LIMIT, RUNS, LOOKS = 0.05, 4, 3
PIPELINE = f"""stages:
  - stack: dev
  - stack: prod
    after: dev
    criteria: {{min_runs: {RUNS}, looks: {LOOKS}, min_requests: 20, max_regression: {{e2e_p95_seconds: {LIMIT}}}}}
"""
STACK = """config:
  tollgate:target: local
  tollgate:release: old
  tollgate:fleet: {{machine_type: g2-standard-8, nodes: {{min: 1, max: 1}}}}
  tollgate:traffic: {{arrival: closed, users: 4, prompt_tokens: 16, output_tokens: 16}}
  tollgate:objectives: {{e2e_p95_seconds: 10, error_rate: 0.2}}
{benchmark}"""
ENVIRONMENT = {
    "accelerator": "nvidia-l4",
    "mig_profile": "",
    "machine_type": "g2-standard-8",
    "region": "us-central1",
    "target": "local",
    "simulated": True,
}


@contextlib.contextmanager
def engine(slower: float) -> Iterator[str]:
    """A simulated Ollama: 20 ms to the first token and 10 ms between tokens, times 1 + `slower`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tollgate", "simulate", "--engine", "ollama", "--port", str(port), "--slots", "8"]
    command += ["--ttft", f"{20 * (1 + slower)}ms", "--itl", f"{10 * (1 + slower)}ms"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


class Project:
    """A project with two stages in a folder of its own; `old` runs on prod."""

    def __init__(self, root: Path, seconds: float) -> None:
        self.root, self.seconds = root, seconds
        folder = root / "stacks"
        (folder / "releases").mkdir(parents=True)
        (root / "Pulumi.yaml").write_text("name: tollgate\nruntime: python\nstackConfigDir: stacks\n")
        (folder / "pipeline.yaml").write_text(PIPELINE)
        (folder / "Pulumi.dev.yaml").write_text(
            STACK.format(benchmark=f"  tollgate:benchmark: {{runs: {RUNS}, seconds: {seconds}}}\n")
        )
        (folder / "Pulumi.prod.yaml").write_text(STACK.format(benchmark=""))
        self._model = (ROOT / "stacks" / "releases" / "gemma-3-4b-ollama-8.yaml").read_text()
        self.release("old")

    def release(self, name: str) -> str:
        """A release of that name on dev, of a digest of its own."""
        text = self._model.replace("ollama/ollama:0.17.4", f"ollama/ollama:{name}")
        (self.root / "stacks" / "releases" / f"{name}.yaml").write_text(text)
        path = self.root / "stacks" / "Pulumi.dev.yaml"
        path.write_text(re.sub(r"(tollgate:release:) \S+", rf"\1 {name}", path.read_text()))
        return values.release_digest(stacks.load_stack("dev", self.root).release)

    def measure(self, url: str, digest: str, seed: int) -> Result:
        """One run of that service."""
        stack = stacks.load_stack("dev", self.root)
        return load.run(
            load.Target(url=url, engine="ollama", model="gemma3:4b"),
            stack.traffic,
            load.Settings(runs=1, seconds=self.seconds, seed=seed),
            release=digest,
            stack="dev",
            costs=load.Costs(objectives=stack.objectives),
            environment=ENVIRONMENT,
        )

    def record(self, result: Result, against: Result | None, measuring: gate.Measuring) -> gate.Evidence:
        """Signed evidence of it."""
        return gate.record(
            stacks.load_stack("dev", self.root),
            result,
            release_digest=result.release,
            root=self.root,
            now=datetime.now(UTC),
            measuring=measuring,
            against=against,
        )

    def in_turns(self, url: str, digest: str, beside: str, old: str, seed: int) -> tuple[Result, Result]:
        """A usable pair for each of the runs; a pair of which the client spoilt one is not used at all."""
        ours: list[Result] = []
        theirs: list[Result] = []
        for number in range(20 * RUNS):
            one, two = (self.measure(*what, seed + number) for what in ((url, digest), (beside, old)))
            if one.runs[0].valid and two.runs[0].valid:
                ours.append(one)
                theirs.append(two)
            if len(ours) == RUNS:
                return gate.pool(ours), gate.pool(theirs)
        raise SystemExit("this machine is too busy to measure anything")


def put(project: Project, name: str, slower: float, beside: str, old: str) -> tuple[str, int]:
    """`let in`, `refused` or `open`, and after how many looks."""
    digest = project.release(name)
    earlier: tuple[str, ...] = ()
    with engine(slower) as url:
        for look in range(1, LOOKS + 1):
            ours, theirs = project.in_turns(url, digest, beside, old, seed=hash(name) % 10_000 + 1000 * look)
            found = project.record(ours, theirs, gate.Measuring(benchmark=digest, attempt=look, earlier=earlier))
            path = stacks.stack_path("prod", project.root)
            before = path.read_bytes()
            try:
                gate.promote("dev", "prod", project.root, release_digest=digest, now=datetime.now(UTC))
            except gate.GateRefused as error:
                if ": inconclusive" in str(error).splitlines()[0]:
                    earlier = (*earlier, found.digest)
                    continue
                return ("refused" if ": fail" in str(error).splitlines()[0] else str(error)), look
            # The next one is compared with `old` again.
            path.write_bytes(before)
            return "let in", look
    return "open", LOOKS


def main() -> int:
    """Print the counts; the exit code says whether they are as they should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--same", type=int, default=20)
    parser.add_argument("--slower", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    for name in ("TOLLGATE_EVIDENCE", "TOLLGATE_SIGNING_KEY"):
        os.environ.pop(name, None)
    folder = Path(tempfile.mkdtemp(prefix="tollgate-gate-"))
    began = time.monotonic()
    try:
        project = Project(folder, given.seconds)
        counts: dict[str, Counter[str]] = {"same": Counter(), "10 % slower": Counter()}
        looks = 0
        with engine(0.0) as beside:
            old = project.release("old")
            first, _ = project.in_turns(beside, old, beside, old, seed=1)
            project.record(first, None, gate.Measuring(benchmark=old))
            gate.promote("dev", "prod", folder, release_digest=old, now=datetime.now(UTC))
            for kind, slower, number in (("same", 0.0, given.same), ("10 % slower", 0.1, given.slower)):
                for index in range(number):
                    outcome, used = put(project, f"{kind.replace(' % ', '-')}-{index}", slower, beside, old)
                    counts[kind][outcome] += 1
                    looks += used
                    print(f"{kind} {index + 1}: {outcome} after {used} look(s)", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"same: {counts['same']['let in']} of {given.same} let in; {counts['same']['refused']} refused")
    print(f"10 % slower: {counts['10 % slower']['refused']} of {given.slower} refused; "
          f"{counts['10 % slower']['let in']} let in")  # fmt: skip
    print(f"{time.monotonic() - began:.0f} s, {looks} looks of {RUNS} pairs of {given.seconds:g} s")
    if given.json:
        given.json.write_text(json.dumps({kind: dict(found) for kind, found in counts.items()}, indent=2))
    return 1 if counts["same"]["refused"] or counts["10 % slower"]["let in"] else 0


if __name__ == "__main__":
    sys.exit(main())
