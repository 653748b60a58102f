"""The gate on the embedded cluster, as a story: a good release goes from local-dev through local-staging to local-prod; one
that is 10 % slower, one that is the same, a noisy one, an expired one and an override each meet what they should.

The simulated engine is given fixed latencies; a "build" of it, named by the image's tag, is slower or noisier than another.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import gate
import stacks
import values
from bench import load as generator
from bench.results import Result

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
HERE = Path(__file__).resolve().parents[2]
STAGES = ("local-dev", "local-staging", "local-prod")
Pulumi = Callable[..., str]

STACK = """config:
  tollgate:target: local
  tollgate:release: good
  tollgate:fleet:
    machine_type: g2-standard-8
    nodes: {{min: 1, max: 1}}
  tollgate:traffic: {{arrival: closed, users: 4, prompt_tokens: 16, output_tokens: 32}}
  tollgate:objectives: {{e2e_p95_seconds: {promise}, error_rate: 0.05}}
{benchmark}encryptionsalt: v1:nSP0oeW4L1Q=:v1:A/hgry48T2nX/YrZ:JWkLJIV7NXKxBlMDaR6TqmofdsC4pQ==
"""
PIPELINE = """stages:
  - stack: local-dev
  - stack: local-staging
    after: local-dev
    criteria: {{{dev}}}
  - stack: local-prod
    after: local-staging
    criteria: {{min_requests: 20, looks: 3}}
"""
# What each build does, in the simulator's own words: 30 ms to the first token and 10 ms between tokens, 0.34 s in all.
BUILDS = {
    "1.0": {"TTFT": "30ms", "ITL": "10ms"},
    "1.1-slow": {"TTFT": "33ms", "ITL": "11ms"},
    "1.2-same": {"TTFT": "30ms", "ITL": "10ms"},
    "1.3-noisy": {"TTFT": "30ms", "ITL": "10ms", "JITTER": "0.4"},
}
# The program of the project, with what a build does put into the engine's environment.
PROGRAM = """
import pulumi, stacks
from pathlib import Path

BUILDS = {builds!r}
build = stacks.load_stack(pulumi.get_stack(), Path(__file__).resolve().parent).release.image.partition(":")[2]

def built(args):
    if args.type_ == "kubernetes:helm.sh/v3:Release" and "server" in args.props.get("values", {{}}):
        server = args.props["values"]["server"]
        extra = [{{"name": f"TOLLGATE_SIM_{{key}}", "value": value}} for key, value in BUILDS[build].items()]
        args.props["values"] = {{**args.props["values"], "server": {{**server, "env": [*server["env"], *extra]}}}}
    return pulumi.ResourceTransformationResult(args.props, args.opts)

pulumi.runtime.register_stack_transformation(built)
"""


LOOKS = "min_requests: 20, looks: 3"


class Story:
    """A checkout of its own; the code comes from the repository."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root, self.environment = root, environment
        self.baseline, self.limit = 0.0, 0.05

    def pulumi(self, *arguments: str, fails: bool = False) -> str:
        return self.run("pulumi", *arguments, "--non-interactive", "--color", "never", fails=fails)

    def tollgate(self, *arguments: str, fails: bool = False) -> str:
        return self.run("tollgate", *arguments, fails=fails)

    def run(self, *command: str, fails: bool = False) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert (done.returncode != 0) is fails, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + (done.stderr if fails else "")

    def stack(self, name: str) -> stacks.Stack:
        return stacks.load_stack(name, self.root)

    @property
    def compared(self) -> str:
        """The criteria of the edge into staging that compare with what staging runs."""
        return f"{LOOKS}, max_regression: {{e2e_p95_seconds: {self.limit}}}"

    def write(self, *, promise: float = 3.0, dev: str = LOOKS, release: str | None = None) -> None:
        """Promise and pipeline; what was promoted stays."""
        (self.root / "stacks" / "pipeline.yaml").write_text(PIPELINE.format(dev=dev))
        path = self.root / "stacks" / "Pulumi.local-dev.yaml"
        text = STACK.format(promise=promise, benchmark="  tollgate:benchmark: {runs: 3, seconds: 4}\n")
        path.write_text(text.replace("release: good", f"release: {release or self.stack('local-dev').release.name}"))

    def up(self, stack: str = "local-dev", settle: bool = True) -> dict[str, Any]:
        """`settle`: on a machine that does much else a client may be late; then it takes another look or two."""
        for _ in range(3):
            self.pulumi("up", "-s", stack, "--yes", "--skip-preview")
            found = json.loads(self.pulumi("stack", "output", "-s", stack, "--json"))
            assert isinstance(found, dict)
            if not settle or found.get("verdict") != "inconclusive":
                break
        return found

    def newest(self, stack: str = "local-dev") -> gate.Entry:
        entry = gate.newest(self.stack(stack), self.root, values.release_digest(self.stack(stack).release))
        assert entry is not None
        return entry

    def latency(self, stack: str = "local-dev") -> float:
        runs = gate.result_of(self.newest(stack)).runs
        return sum(run.metrics["e2e_p95_seconds"] for run in runs) / len(runs)


@pytest.fixture(scope="module")
def story(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Story:
    root = tmp_path_factory.mktemp("scenes")
    shutil.copy(HERE / "Pulumi.yaml", root)
    (root / "__main__.py").write_text(PROGRAM.format(builds=BUILDS) + (HERE / "__main__.py").read_text())
    (root / "stacks" / "releases").mkdir(parents=True)
    text = (HERE / "stacks" / "releases" / "gemma-3-4b-ollama-8.yaml").read_text()
    assert "image: ollama/ollama:0.17.4" in text
    for build in BUILDS:
        name = build.partition("-")[2] or "good"
        (root / "stacks" / "releases" / f"{name}.yaml").write_text(
            text.replace("ollama/ollama:0.17.4", f"ollama/ollama:{build}")
        )
    for stack in STAGES:
        measured = "" if stack == "local-prod" else "  tollgate:benchmark: {runs: 3, seconds: 4}\n"
        path = root / "stacks" / f"Pulumi.{stack}.yaml"
        path.write_text(STACK.format(promise=3.0, benchmark=measured))
    found = Story(root, {**cluster.environment(root), "PYTHONPATH": str(HERE)})
    found.write()
    for stack in STAGES:
        found.pulumi("stack", "init", stack)
    return found


def test_a_good_release_goes_through_all_three_stages(story: Story) -> None:
    for stack in STAGES[1:]:
        said = story.pulumi("preview", "-s", stack, fails=True)
        assert f"{stack} is gated and nothing was promoted into it" in said
    assert story.up("local-dev")["verdict"] == "pass"
    assert "takes releases from local-staging" in story.tollgate("promote", "local-dev", "local-prod", fails=True)
    story.tollgate("promote", "local-dev", "local-staging")
    assert "no evidence of release good" in story.tollgate("promote", "local-staging", "local-prod", fails=True)
    assert story.up("local-staging")["verdict"] == "pass"
    assert "changed: review and commit it" in story.tollgate("promote", "local-staging", "local-prod")
    story.up("local-prod")
    assert "admits release good: pass" in story.tollgate("gate", "local-prod")
    assert "entered from local-staging" in story.tollgate("evidence", "history", "local-prod")
    # Production and staging make room; what is compared from here on is measured on local-dev.
    for stack in ("local-prod", "local-staging"):
        story.pulumi("destroy", "-s", stack, "--yes", "--skip-preview")


def test_the_environment_is_calibrated_by_the_same_release_several_times(story: Story, kubectl: Any) -> None:
    """A/A: the very release that runs, measured from beside the cluster in four sessions."""
    stack, entry = story.stack("local-dev"), story.newest()
    before = gate.result_of(entry)
    # From outside of the cluster there is no DNS for Services, but their addresses are there.
    address = kubectl("get", "service", "-n", "local-dev", "engine", "-o", "jsonpath={.spec.clusterIP}")
    sessions: list[Result] = []
    for _ in range(12):
        session = generator.run(
            generator.Target(url=f"http://{address}", engine="ollama", model=stack.release.source),
            stack.traffic,
            generator.Settings(runs=3, seconds=4.0, context_tokens=2048),
            release=entry.release,
            stack=stack.name,
            replicas=1,
            costs=generator.Costs(objectives=stack.objectives),
            environment={key: value for key, value in before.environment.items() if key != "client_machine"},
        )
        # On a machine that does much else the client itself may be late; such runs say so, and calibrate nothing.
        if all(run.valid for run in session.runs):
            sessions.append(session)
        if len(sessions) == 4:
            break
    found, _ = gate.record_calibration(stack, sessions, root=story.root, now=datetime.now(UTC))
    floor = found.noise["e2e_p95_seconds"].floor(9, 1 - 0.05 / 3)
    assert 0.0 < floor < 0.08, found.noise
    story.baseline, story.limit = story.latency(), max(0.05, round(floor + 0.002, 3))
    # A limit that this noise cannot resolve is refused where it is read.
    story.write(dev=f"{LOOKS}, max_regression: {{e2e_p95_seconds: 0.001}}")
    said = story.tollgate("promote", "local-dev", "local-staging", fails=True)
    assert "the A/A noise floor of local-dev with 3 runs" in said


def test_a_release_that_is_ten_percent_slower_is_caught_although_it_keeps_the_promise(story: Story) -> None:
    story.write(dev=story.compared, release="slow")
    assert story.up()["verdict"] == "pass"
    assert story.latency() / story.baseline == pytest.approx(1.1, abs=0.03)
    said = story.tollgate("promote", "local-dev", "local-staging", fails=True)
    assert "regression:e2e_p95_seconds" in said
    assert "local-staging refuses release slow: " in said
    assert story.stack("local-staging").release.name == "good"


def test_an_override_lets_it_in_until_it_expires_and_is_said_each_time(story: Story) -> None:
    now = datetime.now(UTC)
    target, release = story.stack("local-staging"), story.stack("local-dev").release
    gate.approve(
        target,
        release_name=release.name,
        release_digest=values.release_digest(release),
        who="Ada",
        why="the fair needs it today",
        criteria=["regression:e2e_p95_seconds"],
        expires=now + timedelta(seconds=45),
        root=story.root,
        now=now,
    )
    assert "the fair needs it today" in story.tollgate("promote", "local-dev", "local-staging")
    shown = story.pulumi("preview", "-s", "local-staging")
    assert "approved by Ada until" in shown
    time.sleep(max(0.0, (now + timedelta(seconds=46) - datetime.now(UTC)).total_seconds()))
    said = story.pulumi("preview", "-s", "local-staging", fails=True)
    assert "the approval by Ada expired" in said
    # Back to what ran before.
    assert "returns from slow to good" in story.tollgate("rollback", "local-staging", "--why", "the fair is over")
    assert story.stack("local-staging").release.name == "good"
    story.pulumi("preview", "-s", "local-staging")


def test_a_release_that_is_the_same_is_not_caught(story: Story) -> None:
    story.write(dev=story.compared, release="same")
    assert story.up()["verdict"] == "pass"
    assert "local-staging takes release same" in story.tollgate("promote", "local-dev", "local-staging")


def test_what_was_measured_is_not_measured_again_until_it_expires(story: Story) -> None:
    evidence = story.newest().digest
    began = time.monotonic()
    assert story.up()["evidence"] == evidence
    assert time.monotonic() - began < 60
    # Seconds later it counts as too old.
    story.write(dev=f"{LOOKS}, max_evidence_age_hours: 0.002")
    time.sleep(8)
    assert "stale" in story.tollgate("promote", "local-dev", "local-staging", fails=True)
    # So the next `up` measures again; with the usual age the new evidence is what counts.
    assert story.up()["evidence"] != evidence
    assert story.newest().facts["attempt"] > 1


def test_a_noisy_release_is_inconclusive_and_settled_by_more_runs(story: Story) -> None:
    story.write(promise=3.0, dev="min_requests: 20, looks: 4", release="noisy")
    assert story.up()["verdict"] == "pass"
    level = story.latency()
    # A promise so close to what it does that three runs at a quarter of the permitted error cannot tell.
    promise = round(level * 1.012, 4)
    story.write(promise=promise, dev="min_requests: 20, looks: 4")
    outcomes = []
    for _ in range(4):
        outcomes.append(story.up(settle=False)["verdict"])
        if outcomes[-1] != "inconclusive":
            break
    assert outcomes[0] == "inconclusive"
    assert outcomes[-1] in ("pass", "fail"), outcomes
    entry = story.newest()
    assert entry.facts["attempt"] == len(outcomes)
    assert len(entry.facts["result"]["runs"]) == 3 * len(outcomes)
    assert "looks" in story.tollgate("promote", "local-dev", "local-staging", fails=outcomes[-1] != "pass")


def test_the_chain_is_whole_at_the_end(story: Story) -> None:
    assert "every signature holds and the chain is whole" in story.tollgate("evidence", "verify")
    story.pulumi("destroy", "-s", "local-dev", "--yes", "--skip-preview")
