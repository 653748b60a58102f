"""The scenarios of benchmarks/autoscaling.py, each once: what must not happen, however long a busy machine takes for it.

test_autoscaling_live.py has the step and the way from zero; the times are the benchmark's to measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import stacks
from benchmarks.scaling import SCENARIOS, Ground, Report, scaled
from local import tools

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]
# At the same time, as each is a stack of its own; then one after the other those that take away what others use, too.
BESIDE = ("ramp", "burst", "down", "flapping", "rollout", "nodes-short")
ALONE = ("spot", "metric-loss", "keda-down")


@pytest.fixture(scope="module")
def reports(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Report | Exception]:
    """What came of each."""
    try:
        tools.path("haproxy")
    except stacks.TollgateError:
        pytest.skip("haproxy is not there: tollgate tools build --with haproxy")
    environment = cluster.environment(tmp_path_factory.mktemp("scenarios"))
    grounds: list[Ground] = []

    def make(what: str, **given: Any) -> Ground:
        ground = scaled(cluster, environment, what, **given)
        grounds.append(ground)
        return ground

    def run(name: str) -> Report | Exception:
        try:
            return SCENARIOS[name](make)
        except Exception as error:  # noqa: BLE001 - said by the scenario's own test
            return error

    def gone() -> None:
        # All at once: the gateway of one may run on a node of another.
        with ThreadPoolExecutor() as pool:
            list(pool.map(Ground.remove, grounds))
        grounds.clear()

    try:
        with ThreadPoolExecutor(len(BESIDE)) as pool:
            found = dict(zip(BESIDE, pool.map(run, BESIDE), strict=True))
        for name in ALONE:
            gone()
            found[name] = run(name)
    finally:
        gone()
    return found


@pytest.fixture
def report(reports: Mapping[str, Report | Exception], request: pytest.FixtureRequest) -> Report:
    """That of the test's name."""
    found = reports[request.param]
    if isinstance(found, Exception):
        raise found
    return found


def of(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("report", names, indirect=True, ids=names)


@of(*BESIDE, *ALONE)
def test_no_request_is_lost_and_no_stream_cut(report: Report) -> None:
    assert report.requests > 50
    assert report.lost == 0, report.facts
    # What is lost is what did not get all of its tokens.
    assert all(answer.ok for answer in report.outcome.answers)


@of(*BESIDE[:4])
def test_a_load_that_grows_gets_more_replicas(report: Report) -> None:
    assert max(one.ready for one in report.samples) > 1


@of("down")
def test_a_load_that_goes_gives_them_back(report: Report) -> None:
    most = max(one.wanted for one in report.samples)
    assert report.samples[-1].wanted < most


@of("flapping")
def test_a_load_that_flaps_turns_it_back_once_a_cooldown_at_most(report: Report) -> None:
    assert report.reversals <= report.facts["cooldowns"]


@of("spot")
def test_the_node_that_was_taken_had_streams_and_all_of_them_ended(report: Report) -> None:
    assert float(report.facts["streams on it at the notice"]) > 0


@of("rollout")
def test_a_rollout_keeps_the_replicas_that_the_load_needs(report: Report) -> None:
    assert report.facts["replicas before"] > 1
    # The autoscaler may take one back meanwhile; the chart sets no number.
    assert report.facts["after"] >= report.facts["replicas before"] - 1


@of("nodes-short")
def test_replicas_without_a_node_are_pending_until_there_is_one(report: Report) -> None:
    assert report.facts["Pending"] >= 1
    assert max(one.ready for one in report.samples) > 2


@of("metric-loss")
def test_without_prometheus_the_replicas_stay(report: Report) -> None:
    assert report.facts["while blind"] >= report.facts["before"] > 1


@of("keda-down")
def test_without_keda_the_replicas_stay_and_afterwards_they_follow_the_load(report: Report) -> None:
    assert report.facts["while KEDA is away"] >= 1
    assert max(one.wanted for one in report.samples) > report.facts["while KEDA is away"]
