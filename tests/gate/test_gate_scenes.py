"""The gate on the embedded cluster, as a story: a good release goes from local-dev through local-staging to local-prod; one
that is the same, an expired one, one that is 10 % slower, an override and a noisy one each meet what they should.

The project and its simulated builds are those of `benchmarks/gate_cluster.py`, which puts twenty equal releases to this gate.
"""

from __future__ import annotations

import importlib.util
import math
import re
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import gate
import stacks
import values

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]
HERE = Path(__file__).resolve().parents[2]
DEV, STAGING, PROD = "local-dev", "local-staging", "local-prod"


@pytest.fixture(scope="module")
def scene() -> Any:
    spec = importlib.util.spec_from_file_location("gate_cluster", HERE / "benchmarks" / "gate_cluster.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def story(scene: Any, cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("scenes")
    return scene.Story(root, cluster.environment(root))


def test_a_good_release_goes_through_all_three_stages(story: Any) -> None:
    said = story.pulumi("preview", "-s", STAGING, fails=True)
    assert f"{STAGING} is gated and nothing was promoted into it" in said
    # While the Job runs, Pulumi shows what its pod says.
    assert re.search(r"Job benchmark-job-.* run \d/3 .* req/s", story.deploy(DEV))
    assert story.up(DEV)["verdict"] == "pass"
    assert "takes releases from local-staging" in story.tollgate("promote", DEV, PROD, fails=True)
    assert story.promote() == ""
    assert "no evidence of release good" in story.promote(STAGING, PROD)
    assert story.up(STAGING)["verdict"] == "pass"
    assert "changed: review and commit it" in story.tollgate("promote", STAGING, PROD)
    assert story.up(PROD)["release"] == "good"
    assert "admits release good: pass" in story.tollgate("gate", PROD)
    assert "entered from local-staging" in story.tollgate("evidence", "history", PROD)


def test_a_release_that_is_the_same_is_not_caught(story: Any) -> None:
    """The Job of local-dev measures local-staging, which runs the good one, in turns with it."""
    story.candidate("same-1")
    assert story.settled()[0] == ""
    entry = story.newest()
    beside = entry.facts["against"]
    assert (beside["stack"], beside["release"]) == (
        STAGING,
        values.release_digest(stacks.load_release("good", story.root)),
    )
    ours, theirs = entry.facts["result"]["runs"], beside["runs"]
    assert len(ours) == len(theirs) >= 4
    order = sorted([(run["started"], 0) for run in ours] + [(run["started"], 1) for run in theirs])
    assert [who for _, who in order] == [0, 1] * len(ours)
    assert "returns from same-1 to good" in story.tollgate("rollback", STAGING, "--why", "only a rehearsal")


def test_what_was_measured_is_not_measured_again_until_it_expires(scene: Any, story: Any) -> None:
    evidence = story.newest()
    assert story.up()["evidence"] == evidence.digest
    # Two seconds later it counts as too old, so that the next `up` measures again.
    story.policy(f"{scene.COMPARED}, max_evidence_age_hours: 0.0005")
    said = story.promote()
    assert said.startswith("local-staging refuses release same-1: stale")
    assert story.up()["evidence"] != evidence.digest
    assert story.newest().facts["attempt"] > evidence.facts["attempt"]
    # With the usual age the new evidence is what counts.
    story.policy(scene.COMPARED)
    assert "stale" not in story.promote().partition("\n")[0]
    if story.stack(STAGING).release.name != "good":
        story.tollgate("rollback", STAGING, "--why", "only a rehearsal")


def test_a_release_that_is_ten_percent_slower_fails_although_it_keeps_the_promise(story: Any) -> None:
    story.candidate("slow-1")
    said, _ = story.settled()
    assert said.startswith("local-staging refuses release slow-1: fail"), said
    (line,) = [line.split() for line in said.splitlines() if line.strip().startswith("regression:")]
    assert "fail" in line
    # Every promise; a run of a client that was late may be open.
    outcomes = {line["metric"]: line["outcome"] for line in story.newest().facts["verdict"]["criteria"]}
    assert {outcomes.pop(name) for name in ("e2e_p95_seconds", "error_rate")} == {"pass"}
    assert "fail" not in outcomes.values(), outcomes
    assert story.stack(STAGING).release.name == "good"


def test_an_override_lets_it_in_and_is_said_each_time(story: Any) -> None:
    # As long as a few commands take: on a busy machine each of them may need half a minute.
    began = time.monotonic()
    story.pulumi("preview", "-s", DEV)
    now = datetime.now(UTC)
    release = story.stack(DEV).release
    lines = story.newest().facts["verdict"]["criteria"]
    late = [line["metric"] for line in lines if line["outcome"] == "inconclusive" and "client-bound" in line["why"]]
    story.expires = now + timedelta(seconds=30 + 8 * (time.monotonic() - began))
    gate.approve(
        story.stack(STAGING),
        release_name=release.name,
        release_digest=values.release_digest(release),
        who="Ada",
        why="the fair needs it today",
        criteria=["regression:e2e_p95_seconds", *late],
        expires=story.expires,
        root=story.root,
        now=now,
    )
    assert "the fair needs it today" in story.tollgate("promote", DEV, STAGING)
    assert "approved by Ada until" in story.pulumi("preview", "-s", STAGING)
    # It is in the file and not yet on the cluster: nothing is called baseline that does not run there.
    said = story.pulumi("preview", "-s", DEV, fails=True)
    assert "nothing can be measured against local-staging: it runs release" in said
    assert "Traceback" not in said


def test_a_noisy_release_is_inconclusive_and_settled_by_more_runs(story: Any) -> None:
    looks = 8
    story.policy(f"min_requests: 20, looks: {looks}")
    story.release("noisy-1")
    story.stage(DEV, "noisy-1", runs=6)
    story.up()
    runs = gate.result_of(story.newest()).runs
    latencies = [math.log(run.metrics["e2e_p95_seconds"]) for run in runs if "e2e_p95_seconds" in run.metrics]
    level, spread = statistics.fmean(latencies), statistics.stdev(latencies)
    for step in range(4):
        # Two standard deviations of a run away: three runs cannot tell, at an eighth of the permitted error; six or nine can.
        # (Three runs may agree by luck once in seven times; then a promise a little closer is asked for.)
        promise = round(math.exp(level + (2 - step / 4) * spread), 5)
        story.stage(DEV, "noisy-1", runs=3, promise=promise)
        outcomes = [story.up(looks=1)["verdict"]]
        while outcomes[-1] == "inconclusive" and len(outcomes) < looks:
            outcomes.append(story.up(looks=1)["verdict"])
        entry = story.newest()
        if entry.facts["earlier"]:
            break
    assert outcomes[0] == "inconclusive"
    assert outcomes[-1] in ("pass", "fail"), outcomes
    assert entry.facts["attempt"] == len(outcomes)
    # Runs came upon runs, and all of them were judged.
    assert len(entry.facts["result"]["runs"]) == 3 * (len(entry.facts["earlier"]) + 1) > 3


def test_the_override_ends_by_itself_and_the_stage_goes_back(scene: Any, story: Any) -> None:
    story.policy(scene.COMPARED)
    time.sleep(max(0.0, (story.expires - datetime.now(UTC)).total_seconds() + 1))
    said = story.pulumi("preview", "-s", STAGING, fails=True)
    assert "the approval by Ada expired" in said
    assert "returns from slow-1 to good" in story.tollgate("rollback", STAGING, "--why", "the fair is over")
    story.pulumi("preview", "-s", STAGING)


def test_the_chain_is_whole_at_the_end_and_nothing_is_left(story: Any, kubectl: Any) -> None:
    assert "every signature holds and the chain is whole" in story.tollgate("evidence", "verify")
    story.destroy()
    assert kubectl("get", "namespaces", DEV, STAGING, PROD, "--ignore-not-found") == ""
