"""Releases that are the same as the one before, and some that are 10 % slower, through the whole of it on the embedded cluster.

    python benchmarks/gate_cluster.py [--same 20] [--slower 5] [--json FILE]

Each is deployed on local-dev by `pulumi up`, measured by its benchmark Job in turns with what local-staging runs, recorded as
signed evidence and put to the gate by `promote`; where that is inconclusive the next `up` adds runs, as the pipeline's looks
allow. A "build" of the simulated engine, named by its image's tag, has latencies of its own. Ends with 1 when an equal release
was refused or a slower one was let in. `tests/gate/test_gate_scenes.py` tells its story with the same project.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gate
import stacks
import values
from local import cluster

NAME = "gate"
ROOT = Path(__file__).resolve().parents[1]
DEV, STAGING, PROD = STAGES = ("local-dev", "local-staging", "local-prod")
# More looks than quiet runs need: one that a busy machine's client spoils is lost.
RUNS, SECONDS, LOOKS, LIMIT = 4, 0.5, 5, 0.05
# 20 ms to the first token and 20 ms between tokens: 0.16 s for an answer of 8.
BUILDS = {
    "good": {"TTFT": "20ms", "ITL": "20ms"},
    "same": {"TTFT": "20ms", "ITL": "20ms"},
    "slow": {"TTFT": "22ms", "ITL": "22ms"},
    "noisy": {"TTFT": "20ms", "ITL": "20ms", "JITTER": "0.4"},
}
STACK = """config:
  tollgate:target: local
  tollgate:release: {release}
  tollgate:fleet:
    machine_type: g2-standard-8
    nodes: {{min: 1, max: 1}}
  tollgate:traffic: {{arrival: closed, users: 8, prompt_tokens: 16, output_tokens: 8}}
  tollgate:objectives: {{e2e_p95_seconds: {promise}, error_rate: 0.1}}
{benchmark}encryptionsalt: v1:nSP0oeW4L1Q=:v1:A/hgry48T2nX/YrZ:JWkLJIV7NXKxBlMDaR6TqmofdsC4pQ==
"""
PIPELINE = """stages:
  - stack: local-dev
  - stack: local-staging
    after: local-dev
    criteria: {{{dev}}}
  - stack: local-prod
    after: local-staging
    criteria: {{{staging}}}
"""
PLAIN = f"min_requests: 20, looks: {LOOKS}"
COMPARED = f"{PLAIN}, max_regression: {{e2e_p95_seconds: {LIMIT}}}"
# Before the program of the project: what a build does is put into the engine's environment.
PROGRAM = """
import pulumi, stacks
from pathlib import Path

BUILDS = {builds!r}
tag = stacks.load_stack(pulumi.get_stack(), Path(__file__).resolve().parent).release.image.partition(":")[2]
build = BUILDS[tag.partition("-")[0]]

def built(args):
    if args.type_ == "kubernetes:helm.sh/v3:Release" and "server" in args.props.get("values", {{}}):
        server = args.props["values"]["server"]
        extra = [{{"name": f"TOLLGATE_SIM_{{key}}", "value": value}} for key, value in build.items()]
        args.props["values"] = {{**args.props["values"], "server": {{**server, "env": [*server["env"], *extra]}}}}
    return pulumi.ResourceTransformationResult(args.props, args.opts)

pulumi.runtime.register_stack_transformation(built)
"""


class Story:
    """A project with three stages in a folder of its own; its code comes from this checkout."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root, self.environment = root, {**environment, "PYTHONPATH": str(ROOT)}
        for name in ("TOLLGATE_EVIDENCE", "TOLLGATE_SIGNING_KEY"):
            self.environment.pop(name, None)
        shutil.copy(ROOT / "Pulumi.yaml", root)
        (root / "__main__.py").write_text(PROGRAM.format(builds=BUILDS) + (ROOT / "__main__.py").read_text())
        (root / "stacks" / "releases").mkdir(parents=True)
        self._model = (ROOT / "stacks" / "releases" / "gemma-3-4b-ollama-8.yaml").read_text()
        self.release("good")
        self.policy(PLAIN)
        self.stage(DEV, runs=3)
        self.stage(STAGING, runs=3)
        self.stage(PROD)
        for stack in STAGES:
            self.pulumi("stack", "init", stack)

    def release(self, name: str) -> None:
        """A release of that name and with a digest of its own; up to a hyphen it names the build."""
        text = self._model.replace("ollama/ollama:0.17.4", f"ollama/ollama:{name}")
        (self.root / "stacks" / "releases" / f"{name}.yaml").write_text(text)

    def policy(self, dev: str, staging: str = PLAIN) -> None:
        """What the edges out of local-dev and out of local-staging ask for."""
        (self.root / "stacks" / "pipeline.yaml").write_text(PIPELINE.format(dev=dev, staging=staging))

    def stage(
        self, stack: str, release: str = "good", *, runs: int = 0, against: str = "", promise: float = 3.0
    ) -> None:
        """The stack's file, written anew; `runs=0`: it measures nothing."""
        beside = f", against: {against}" if against else ""
        benchmark = f"  tollgate:benchmark: {{runs: {runs}, seconds: {SECONDS}{beside}}}\n" if runs else ""
        path = self.root / "stacks" / f"Pulumi.{stack}.yaml"
        path.write_text(STACK.format(release=release, promise=promise, benchmark=benchmark))

    def pulumi(self, *arguments: str, fails: bool = False) -> str:
        """What it printed; `fails`: as it has to."""
        return self._run("pulumi", *arguments, "--non-interactive", "--color", "never", fails=fails)

    def tollgate(self, *arguments: str, fails: bool = False) -> str:
        """What it printed; `fails`: as it has to."""
        return self._run(sys.executable, "-m", "tollgate", *arguments, fails=fails)

    def _run(self, *command: str, fails: bool = False) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        if (done.returncode != 0) is not fails:
            raise AssertionError(f"{command}:\n{done.stdout}\n{done.stderr}")
        return done.stdout + (done.stderr if fails else "")

    def deploy(self, stack: str = DEV) -> str:
        """`pulumi up`, which measures too; what it printed."""
        return self.pulumi("up", "-s", stack, "--yes", "--skip-preview")

    def up(self, stack: str = DEV, looks: int = LOOKS) -> dict[str, Any]:
        """Deploy and measure, again where the verdict is open (a busy machine's client may be late); the stack's outputs."""
        found: dict[str, Any] = {}
        for _ in range(looks):
            self.deploy(stack)
            found = json.loads(self.pulumi("stack", "output", "-s", stack, "--json"))
            if found.get("verdict") != "inconclusive":
                break
        return found

    def stack(self, name: str) -> stacks.Stack:
        """As its file says now."""
        return stacks.load_stack(name, self.root)

    def promote(self, source: str = DEV, target: str = STAGING) -> str:
        """Empty when it was let in, else the refusal."""
        digest = values.release_digest(self.stack(source).release)
        try:
            gate.promote(source, target, self.root, release_digest=digest, now=datetime.now(UTC))
        except gate.GateRefused as refused:
            return str(refused)
        return ""

    def settled(self) -> tuple[str, int]:
        """What the gate into staging says of what local-dev runs, and after how many looks; empty: it was let in."""
        looks, said = 0, ": inconclusive"
        while ": inconclusive" in said.partition("\n")[0] and looks < LOOKS:
            looks += 1
            self.deploy()
            said = self.promote()
        return said, looks

    def newest(self, stack: str = DEV) -> gate.Entry:
        """The newest evidence of what that stack runs."""
        found = gate.newest(self.stack(stack), self.root, values.release_digest(self.stack(stack).release))
        assert found is not None
        return found

    def begin(self) -> None:
        """The good release on local-dev and local-staging; from then on local-dev is measured against local-staging."""
        self.up()
        assert self.promote() == ""
        self.up(STAGING)

    def destroy(self) -> None:
        """All three stacks, at the same time."""
        command = ["pulumi", "destroy", "--yes", "--skip-preview", "--non-interactive", "--color", "never", "-s"]
        going = [
            subprocess.Popen(
                [*command, stack], cwd=self.root, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            for stack in STAGES
        ]
        said = [process.communicate(timeout=300)[0].decode() for process in going]
        assert [process.returncode for process in going] == [0] * len(going), "\n".join(said)

    def candidate(self, name: str) -> None:
        """A release of that name is the next on local-dev."""
        self.release(name)
        self.policy(COMPARED)
        self.stage(DEV, name, runs=RUNS, against=STAGING)


def refused_by(said: str) -> list[str]:
    """The lines of a refusal's table that are to blame."""
    lines = [" ".join(line.split()) for line in said.splitlines()[2:] if line.startswith("  ")]
    return [line for line in lines if re.search(r" (fail|inconclusive|stale|mismatch)\b", line)]


def tell(story: Story, same: int, slower: int) -> dict[str, Counter[str]]:
    """Put so many of each to the gate."""
    counts: dict[str, Counter[str]] = {"same": Counter(), "slow": Counter()}
    story.begin()
    staging = stacks.stack_path(STAGING, story.root)
    before = staging.read_text()
    for kind, number in (("same", same), ("slow", slower)):
        for index in range(1, number + 1):
            began = time.monotonic()
            story.candidate(f"{kind}-{index}")
            said, looks = story.settled()
            first = said.partition("\n")[0]
            outcome = "let in" if not said else "refused" if ": fail" in first else "open" if looks == LOOKS else first
            counts[kind][outcome] += 1
            took = f"{time.monotonic() - began:.0f} s"
            print(f"{kind} {index}: {outcome} after {looks} look(s), {took}", *refused_by(said), sep="\n  ", flush=True)
            # The next one is compared with the good release again.
            staging.write_text(before)
    return counts


def main() -> int:
    """Print the counts; the exit code says whether they are as they should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--same", type=int, default=20)
    parser.add_argument("--slower", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    began = time.monotonic()
    # Nothing may be left when it is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="tollgate-gate-"))
    try:
        found = cluster.up(NAME)
        found.enter()
        counts = tell(Story(folder, found.environment(folder)), given.same, given.slower)
    finally:
        cluster.down(NAME)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"same: {counts['same']['let in']} of {given.same} let in, {counts['same']['refused']} refused")
    print(f"10 % slower: {counts['slow']['refused']} of {given.slower} refused, {counts['slow']['let in']} let in")
    print(f"a look: {RUNS} pairs of {SECONDS:g} s each, {LOOKS} looks at most")
    busy = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"{time.monotonic() - began:.0f} s; load average of this machine at the end {busy}")
    if given.json:
        given.json.write_text(json.dumps({kind: dict(found) for kind, found in counts.items()}, indent=2))
    return 1 if counts["same"]["refused"] or counts["slow"]["let in"] else 0


if __name__ == "__main__":
    sys.exit(main())
